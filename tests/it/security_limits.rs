//! Limits, as a guesser meets them: who is counted as one, and that many at once get no more than one after the other.
//! The lines are those of `docs/security.md`.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration as StdDuration, Instant},
};

use chrono::{DateTime, Duration, Utc};
use futures_util::future::join_all;
use identity::{config::Config, limiter::Limiter, pb};
use prost::Message;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    grpc_web,
    harness::{Face, PASSWORD, Service, Store, redis::PrivateRedis},
    limits::{WRONG, get_me, limited, login, login_forwarded, tally},
    password_change::{NEW, change},
    redis,
    security_passwords::until_hashes_are,
    strangers::{EMAIL, behind_a_proxy, count, guess, stranger},
};

/// Line 27.
#[tokio::test(flavor = "multi_thread")]
async fn after_five_failures_the_sixth_is_told_when_to_come_back() {
    for store in Store::all() {
        let service = limited(store, &[]).await;
        service.user("user@example.com").await;
        let anyone = service.anonymous();
        for n in 0..5 {
            // One count for both faces and every spelling of the address.
            let email = ["user@example.com", "USER@Example.com "][n / 2 % 2];
            login(&anyone, Face::ALL[n % 2], email, WRONG).await.expect(401);
        }
        for face in Face::ALL {
            // Not even the right password: whoever guesses must not learn that it was.
            let refused = login(&anyone, face, "user@example.com", PASSWORD).await;
            assert_eq!((refused.status, refused.retry_after), (429, Some(900)), "{refused:?}");
            let text = "Request throttled. Retry after 15 minutes";
            match face {
                Face::Rest => {
                    assert_eq!(serde_json::from_str::<Value>(&refused.text).unwrap(), json!({ "error": text }));
                }
                Face::Grpc => assert_eq!((refused.text.as_str(), refused.reason.as_deref()), (text, Some("THROTTLED"))),
            }
        }
        login(&anyone, Face::Rest, "nobody@example.com", WRONG).await.expect(404);

        service.clock.advance(Duration::minutes(15) - Duration::microseconds(1));
        let refused = login(&anyone, Face::Rest, "user@example.com", PASSWORD).await;
        assert_eq!((refused.status, refused.retry_after), (429, Some(1)));
        service.clock.advance(Duration::microseconds(1));
        login(&anyone, Face::Rest, "user@example.com", PASSWORD).await.expect(200);
        service.stop().await;
    }
}

/// Line 28.
#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_wrong_logins_at_once_exactly_five_are_looked_at() {
    for store in Store::all() {
        let service = limited(store, &[]).await;
        service.user("user@example.com").await;
        let anyone = service.anonymous();
        let logins = (0..50).map(|n| login(&anyone, Face::ALL[n % 2], "user@example.com", WRONG));
        assert_eq!(tally(&join_all(logins).await), [(401, 5), (429, 45)].into());
        service.stop().await;
    }
}

/// Line 28.
#[tokio::test(flavor = "multi_thread")]
async fn a_success_clears_the_failures_before_it() {
    for store in Store::all() {
        let service = limited(store, &[]).await;
        service.user("user@example.com").await;
        let anyone = service.anonymous();
        for _ in 0..3 {
            for _ in 0..4 {
                login(&anyone, Face::Rest, "user@example.com", WRONG).await.expect(401);
            }
            login(&anyone, Face::Grpc, "user@example.com", PASSWORD).await.expect(200);
        }
        service.stop().await;

        let service = limited(store, &[("RATE_LIMIT_LOGIN_COUNTS", "attempts")]).await;
        service.user("user@example.com").await;
        let anyone = service.anonymous();
        for _ in 0..5 {
            login(&anyone, Face::Rest, "user@example.com", PASSWORD).await.expect(200);
        }
        login(&anyone, Face::Rest, "user@example.com", PASSWORD).await.expect(429);
        service.stop().await;
    }
}

/// Lines 27, 28, 29.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_stole_a_session_has_five_guesses_however_many_clients_make_them() {
    for (store, face) in Store::all().into_iter().flat_map(|store| Face::ALL.map(|face| (store, face))) {
        let settings = [("RATE_LIMIT_LOGIN", "5/15m"), ("TRUSTED_PROXIES", "127.0.0.1")];
        let service = Service::start_with(store, &settings).await;
        let stolen = service.user("user@example.com").await;
        let guesses = (1..=8).map(async |n| {
            let thief = stolen.coming_from(&format!("203.0.113.{n}"));
            change(&thief, face, "wrong", NEW).await.status
        });
        let mut statuses = join_all(guesses).await;
        statuses.sort_unstable();
        assert_eq!(statuses, [400, 400, 400, 400, 400, 429, 429, 429], "{store:?} {face:?}");
        // Nor does it lock the owner out, who logs in and turns the thief out.
        let mut owner = service.anonymous().coming_from("198.51.100.1");
        let fields = json!({ "email": "user@example.com", "password": PASSWORD });
        owner.take_tokens(&owner.call(face, "AuthService.Login", fields).await.expect(200));
        change(&owner, face, PASSWORD, NEW).await.expect(200);
        stolen.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(401);
        service.stop().await;
    }
}

/// Line 29.
#[tokio::test(flavor = "multi_thread")]
async fn an_attacker_elsewhere_can_not_lock_the_owner_out() {
    for store in Store::all() {
        let service = limited(store, &[("TRUSTED_PROXIES", "127.0.0.1")]).await;
        service.user("user@example.com").await;
        let anyone = service.anonymous();
        for status in [401, 401, 401, 401, 401, 429] {
            login_forwarded(&anyone, Face::Rest, &["203.0.113.66"]).await.expect(status);
        }
        login(&anyone, Face::Rest, "user@example.com", PASSWORD).await.expect(200);
        login_forwarded(&anyone, Face::Rest, &["203.0.113.66"]).await.expect(429);
        service.stop().await;
    }
}

/// Line 29.
#[tokio::test(flavor = "multi_thread")]
async fn of_many_strangers_who_guess_at_once_exactly_a_hundred_are_looked_at() {
    for store in Store::all() {
        let service = behind_a_proxy(store, &[]).await;
        let owner = service.user(EMAIL).await;
        // An address that nobody has is no different.
        for (email, failure) in [(EMAIL, 401), ("nobody@example.com", 404)] {
            let statuses = guess(&service, email, 0..110).await;
            assert_eq!(
                (count(&statuses, failure), count(&statuses, 429)),
                (100, 10),
                "{store:?} {email}: {statuses:?}"
            );
        }
        for face in Face::ALL {
            // Not even the right password: whoever guesses must not learn that it was.
            let refused = login(&stranger(&service, 500), face, EMAIL, PASSWORD).await;
            assert_eq!((refused.status, refused.retry_after), (429, Some(86_400)), "{refused:?}");
            assert!(refused.text.contains("Request throttled. Retry after 1 day"), "{refused:?}");
            // Where the account was made one may also come back to it.
            login(&owner, face, EMAIL, PASSWORD).await.expect(200);
            // Another address has a count of its own.
            login(&stranger(&service, 500), face, "other@example.com", WRONG).await.expect(404);
        }
        service.clock.advance(Duration::days(1) - Duration::microseconds(1));
        let refused = login(&stranger(&service, 501), Face::Rest, EMAIL, PASSWORD).await;
        assert_eq!((refused.status, refused.retry_after), (429, Some(1)));
        service.clock.advance(Duration::microseconds(1));
        login(&stranger(&service, 501), Face::Rest, EMAIL, PASSWORD).await.expect(200);
        service.stop().await;
    }
}

/// Lines 29, 30.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_forwarded_by_a_trusted_proxy_is_a_client_of_its_own() {
    for store in Store::all() {
        for face in Face::ALL {
            let service =
                limited(store, &[("TRUSTED_PROXIES", "127.0.0.1, 10.0.0.0/8"), ("RATE_LIMIT_LOGIN", "1/15m")]).await;
            let anyone = service.anonymous();
            let cases: [(&[&str], u16); 15] = [
                (&["203.0.113.1"], 404),
                (&["203.0.113.1"], 429),
                // Read from the right: what the client itself put in front counts for nothing.
                (&["198.51.100.7, 203.0.113.1"], 429),
                (&["198.51.100.7", "203.0.113.1"], 429),
                (&["203.0.113.1, 10.1.2.3"], 429),
                (&["203.0.113.1", "10.1.2.3,10.9.9.9"], 429),
                (&["::ffff:203.0.113.1"], 429),
                (&["203.0.113.2,203.0.113.1 , 10.1.2.3"], 429),
                (&["203.0.113.2"], 404),
                // With IPv6 one subscriber has a /64.
                (&["2001:db8:1:2::1"], 404),
                (&["2001:db8:1:2:ffff::9"], 429),
                (&["2001:db8:1:3::1"], 404),
                // Beyond what can't be read nobody is believed: it is the nearest proxy that is counted.
                (&["203.0.113.9, unknown"], 404),
                (&["203.0.113.10, unknown"], 429),
                (&[], 429),
            ];
            for (forwarded, status) in cases {
                let outcome = login_forwarded(&anyone, face, forwarded).await;
                assert_eq!(outcome.status, status, "{forwarded:?} through {face:?}: {outcome:?}");
            }
            service.stop().await;
        }
    }
}

/// Line 30.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_stranger_claims_to_forward_is_ignored() {
    for store in Store::all() {
        for proxies in ["", "10.0.0.0/8"] {
            let service = limited(store, &[("TRUSTED_PROXIES", proxies), ("RATE_LIMIT_LOGIN", "1/15m")]).await;
            let anyone = service.anonymous();
            login_forwarded(&anyone, Face::Rest, &["203.0.113.1"]).await.expect(404);
            for face in Face::ALL {
                login_forwarded(&anyone, face, &["203.0.113.2"]).await.expect(429);
                login_forwarded(&anyone, face, &["203.0.113.2, 10.0.0.1"]).await.expect(429);
            }
            service.stop().await;
        }
    }
}

/// Line 30.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_in_front_of_it_hides_what_a_trusted_proxy_adds() {
    for store in Store::all() {
        let service = limited(store, &[("TRUSTED_PROXIES", "127.0.0.1"), ("RATE_LIMIT_EXEMPT", "127.0.0.1")]).await;
        let mut statuses = Vec::new();
        for _ in 0..6 {
            let forwarded = reqwest::header::HeaderValue::from_bytes(b"\xff, 9.9.9.9").unwrap();
            let request =
                service.anonymous().request(Method::POST, "/api/auth/login/").header("x-forwarded-for", forwarded);
            let sent = request.json(&json!({ "email": "nobody@example.com", "password": WRONG })).send().await;
            statuses.push(sent.unwrap().status().as_u16());
        }
        assert_eq!(statuses, [404, 404, 404, 404, 404, 429]);
        service.stop().await;
    }
}

/// Line 31.
#[tokio::test(flavor = "multi_thread")]
async fn without_redis_everything_goes_on_at_once_and_each_replica_counts_by_itself() {
    for store in Store::all() {
        let Some(mut redis) = PrivateRedis::start().await else { return };
        let service = redis::service(store, &redis).await;
        let user = service.user(EMAIL).await;
        for way in ["killed", "hung"] {
            let begun = Instant::now();
            redis::login(&service, Face::Rest, PASSWORD).await.expect(200);
            let usual = begun.elapsed();
            if way == "killed" {
                redis.kill().await;
            } else {
                redis.hang();
            }
            let begun = Instant::now();
            redis::login(&service, Face::Rest, WRONG).await.expect(401);
            let first = begun.elapsed();
            assert!(first < 2 * usual + StdDuration::from_millis(150), "{way}: {first:?}, and {usual:?} before");
            user.call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await.expect(200);
            for _ in 1..5 {
                redis::login(&service, Face::Rest, WRONG).await.expect(401);
            }
            assert_eq!(redis::login(&service, Face::Grpc, PASSWORD).await.status, 429, "{way}");
            redis::until_cache_is("degraded", &service).await;

            if way == "killed" {
                redis.restart().await;
            } else {
                redis.wake();
            }
            redis::until_cache_is("ok", &service).await;
            user.call(Face::Grpc, "ProfileService.GetMyProfile", json!({})).await.expect(200);
            // What a server that hung had been told, it does when it wakes: a failure may count twice.
            if way == "killed" {
                redis::login(&service, Face::Rest, PASSWORD).await.expect(200);
            }
        }
        service.stop().await;
    }
}

/// Line 27.
#[tokio::test(flavor = "multi_thread")]
async fn one_count_holds_for_rest_grpc_and_browsers() {
    for store in Store::all() {
        let service = limited(store, &[("RATE_LIMIT_API", "20/1m")]).await;
        let user = service.user(EMAIL).await;
        let anyone = service.anonymous();
        let message = pb::LoginRequest { email: Some(EMAIL.into()), password: Some(WRONG.into()) }.encode_to_vec();
        let by_web = async || {
            let reply = grpc_web::call(&service, "/identity.v1.AuthService/Login", None, &message, false).await;
            reply.trailer("grpc-status").unwrap().to_owned()
        };
        for _ in 0..2 {
            login(&anyone, Face::Rest, EMAIL, WRONG).await.expect(401);
            login(&anyone, Face::Grpc, EMAIL, WRONG).await.expect(401);
        }
        assert_eq!(by_web().await, "16");
        assert_eq!(by_web().await, "8");
        for face in Face::ALL {
            login(&anyone, face, EMAIL, PASSWORD).await.expect(429);
        }
        // The general limit as well.
        let token = user.access_token.as_deref();
        for n in 0..20 {
            match n % 3 {
                0 => drop(get_me(&user, Face::Rest).await.expect(200)),
                1 => drop(get_me(&user, Face::Grpc).await.expect(200)),
                _ => {
                    let path = "/identity.v1.ProfileService/GetMyProfile";
                    let reply = grpc_web::call(&service, path, token, &[], true).await;
                    assert_eq!(reply.trailer("grpc-status"), Some("0"));
                }
            }
        }
        get_me(&user, Face::Rest).await.expect(429);
        get_me(&user, Face::Grpc).await.expect(429);
        service.stop().await;
    }
}

/// Line 28.
#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_wrong_old_passwords_at_once_exactly_five_are_looked_at() {
    for store in Store::all() {
        let service = limited(store, &[]).await;
        let stolen = service.user(EMAIL).await;
        until_hashes_are(1, &service).await;
        let guesses = (0..50).map(|n| change(&stolen, Face::ALL[n % 2], WRONG, NEW));
        assert_eq!(tally(&join_all(guesses).await), [(400, 5), (429, 45)].into());
        until_hashes_are(6, &service).await;
        service.stop().await;
    }
}

/// Line 30.
#[tokio::test(flavor = "multi_thread")]
async fn no_other_header_says_where_a_call_comes_from() {
    const HEADERS: [&str; 12] = [
        "forwarded",
        "x-real-ip",
        "x-client-ip",
        "x-cluster-client-ip",
        "x-forwarded",
        "x-original-forwarded-for",
        "forwarded-for",
        "true-client-ip",
        "cf-connecting-ip",
        "fastly-client-ip",
        "via",
        "x-forwarded-host",
    ];
    for proxies in ["", "127.0.0.1"] {
        let service = limited(Store::all()[0], &[("TRUSTED_PROXIES", proxies), ("RATE_LIMIT_REGISTER", "1/1h")]).await;
        service.user(EMAIL).await;
        for (n, name) in HEADERS.into_iter().enumerate() {
            let email = format!("user{n}@example.com");
            let value = if name == "forwarded" { "for=203.0.113.9" } else { "203.0.113.9" };
            let request = service.anonymous().request(Method::POST, "/api/auth/register/").header(name, value);
            let sent = request.json(&json!({ "email": email, "password": PASSWORD })).send().await.unwrap();
            assert_eq!(sent.status(), 429, "{name}, trusting {proxies:?}");
            let message =
                pb::RegisterRequest { email: Some(email), password: Some(PASSWORD.into()), ..Default::default() };
            let mut request = tonic::Request::new(message.encode_to_vec());
            request.metadata_mut().insert(name, value.parse().unwrap());
            let refused = service.anonymous().send_grpc("/identity.v1.AuthService/Register", request).await;
            assert_eq!(refused.unwrap_err().code(), tonic::Code::ResourceExhausted, "{name}, trusting {proxies:?}");
        }
        service.stop().await;
    }
}

/// Line 32.
#[tokio::test]
async fn a_million_callers_take_no_more_memory_than_a_quarter_of_them() {
    let settings = |name: &str| (name == "JWT_SECRET_KEY").then(|| "a-key-for-tests-that-is-long-enough".into());
    let limiter = Limiter::new(Config::load(settings).unwrap().limits, b"a secret of the test's own", None);
    let now: DateTime<Utc> = "2026-11-23T12:00:00Z".parse().unwrap();
    let address = |n: u32| IpAddr::from(Ipv4Addr::from_bits(0x0b00_0000 + n));
    let mut kib = Vec::new();
    for n in 0..1_000_000_u32 {
        if n % 250_000 == 0 {
            kib.push(memory_kib());
        }
        let at = now + Duration::microseconds(n.into());
        limiter.count_call(None, address(n), at).unwrap();
        // A failed login is two counts: of the address with the client, and of the client.
        if n % 2 == 0 {
            drop(limiter.reserve_login(EMAIL, address(n), at).await.unwrap());
        }
    }
    kib.push(memory_kib());
    let [before, .., last_but_one, last] = kib[..] else { panic!("{kib:?}") };
    println!("KiB, each quarter of a million: {kib:?}");
    assert!(last - before < 256 * 1024, "it took {} KiB", last - before);
    assert!(last.saturating_sub(last_but_one) < 16 * 1024, "it goes on growing: {kib:?}");
    // And whoever was there last still counts.
    let mut more = 0;
    while let Ok(attempt) = limiter.reserve_login(EMAIL, address(999_998), now + Duration::seconds(1)).await {
        drop(attempt);
        more += 1;
    }
    assert_eq!(more, 4);
}

/// What this process has in memory.
fn memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
