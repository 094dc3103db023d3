//! Limits: how much of what is let through, and who is counted as one.
//!
//! Attempts are counted in the process on the one store, in Redis on the other. Whom the table of known clients sets apart is told
//! in `strangers.rs`.

use std::collections::BTreeMap;

use chrono::Duration;
use futures_util::future::join_all;
use identity::pb;
use prost::Message;
use reqwest::Method;
use serde_json::json;

use crate::harness::{
    Actor, Face, PASSWORD, Service, Store,
    actor::{Outcome, outcome_of, outcome_of_status},
    metrics::Metrics,
};

pub const WRONG: &str = "wrong-password-1";
/// The limits as they are where nobody says otherwise; hashes as cheap as can be, for many are needed.
pub const DOCUMENTED: [(&str, &str); 4] = [
    ("RATE_LIMIT_LOGIN", "5/15m"),
    ("RATE_LIMIT_REGISTER", "3/1h"),
    ("ARGON2_MEMORY_KIB", "64"),
    ("ARGON2_ITERATIONS", "1"),
];

/// The service with the documented limits, where `settings` don't say otherwise.
pub async fn limited(store: Store, settings: &[(&str, &str)]) -> Service {
    let settings: Vec<_> = DOCUMENTED.iter().chain(settings).copied().collect();
    Service::start_with(store, &settings).await
}

pub async fn login(actor: &Actor, face: Face, email: &str, password: &str) -> Outcome {
    actor.call(face, "AuthService.Login", json!({ "email": email, "password": password })).await
}

/// A wrong login with these lines of `x-forwarded-for`.
pub async fn login_forwarded(actor: &Actor, face: Face, forwarded: &[&str]) -> Outcome {
    let (email, password) = ("user@example.com", WRONG);
    match face {
        Face::Rest => {
            let mut request = actor.request(Method::POST, "/api/auth/login/");
            for line in forwarded {
                request = request.header("x-forwarded-for", *line);
            }
            let sent = request.json(&json!({ "email": email, "password": password })).send().await;
            outcome_of(sent.unwrap()).await
        }
        Face::Grpc => {
            let message = pb::LoginRequest { email: Some(email.into()), password: Some(password.into()) };
            let mut request = tonic::Request::new(message.encode_to_vec());
            for line in forwarded {
                request.metadata_mut().append("x-forwarded-for", line.parse().unwrap());
            }
            let answer = actor.send_grpc("/identity.v1.AuthService/Login", request).await;
            outcome_of_status(&answer.expect_err("the password is wrong"))
        }
    }
}

/// How many outcomes there are of each status.
pub fn tally(outcomes: &[Outcome]) -> BTreeMap<u16, usize> {
    let mut tally = BTreeMap::new();
    for outcome in outcomes {
        *tally.entry(outcome.status).or_default() += 1;
    }
    tally
}

pub async fn get_me(actor: &Actor, face: Face) -> Outcome {
    actor.call(face, "ProfileService.GetMyProfile", json!({})).await
}

// Logins.

#[tokio::test(flavor = "multi_thread")]
async fn the_window_slides() {
    for store in Store::all() {
        let service = limited(store, &[]).await;
        let anyone = service.anonymous();
        let fail = async || login(&anyone, Face::Grpc, "nobody@example.com", WRONG).await.status;
        assert_eq!(fail().await, 404);
        service.clock.advance(Duration::minutes(10));
        for _ in 0..4 {
            assert_eq!(fail().await, 404);
        }
        assert_eq!(fail().await, 429);
        // The first runs out, and makes room for one, not for five.
        service.clock.advance(Duration::minutes(5));
        assert_eq!((fail().await, fail().await), (404, 429));
        service.clock.advance(Duration::minutes(10));
        let freed = [fail().await, fail().await, fail().await, fail().await, fail().await];
        assert_eq!(freed, [404, 404, 404, 404, 429]);
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_tries_many_addresses_is_stopped_after_fifty_failures() {
    for store in Store::all() {
        let service = limited(store, &[]).await;
        service.user("user@example.com").await;
        let anyone = service.anonymous();
        // A login that succeeds is no failure.
        login(&anyone, Face::Rest, "user@example.com", PASSWORD).await.expect(200);
        let emails: Vec<_> = (0..60).map(|n| format!("nobody{n}@example.com")).collect();
        let logins = emails.iter().enumerate().map(|(n, email)| login(&anyone, Face::ALL[n % 2], email, WRONG));
        assert_eq!(tally(&join_all(logins).await), [(404, 50), (429, 10)].into());
        login(&anyone, Face::Rest, "user@example.com", PASSWORD).await.expect(429);
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_nobody_had_time_to_look_at_is_no_failure() {
    for store in Store::all() {
        // Hashes that take their time, and room for two of them.
        let slow =
            [("HASH_THREADS", "1"), ("HASH_QUEUE", "1"), ("ARGON2_MEMORY_KIB", "19456"), ("ARGON2_ITERATIONS", "8")];
        let service = limited(store, &slow).await;
        service.user("user@example.com").await;
        let anyone = service.anonymous();
        let logins = (0..5).map(|n| login(&anyone, Face::ALL[n % 2], "user@example.com", WRONG));
        let outcomes = tally(&join_all(logins).await);
        let (looked_at, turned_away) = (outcomes.get(&401).copied().unwrap_or(0), outcomes[&503]);
        assert_eq!(looked_at + turned_away, 5, "{outcomes:?}");
        for _ in 0..turned_away {
            login(&anyone, Face::Rest, "user@example.com", WRONG).await.expect(401);
        }
        login(&anyone, Face::Rest, "user@example.com", WRONG).await.expect(429);
        service.stop().await;
    }
}

// Registrations.

#[tokio::test(flavor = "multi_thread")]
async fn three_registrations_an_hour_count_only_those_that_were_accepted() {
    for store in Store::all() {
        let service = limited(store, &[]).await;
        let anyone = service.anonymous();
        let register = async |face: Face, email: &str, password: &str| {
            anyone.call(face, "AuthService.Register", json!({ "email": email, "password": password })).await
        };
        for n in 0..3 {
            let face = Face::ALL[n % 2];
            for _ in 0..3 {
                register(face, "nobody", PASSWORD).await.expect(400);
                register(face, &format!("user{n}@example.com"), "weak").await.expect(400);
            }
            register(face, &format!("user{n}@example.com"), PASSWORD).await.expect(201);
            if n < 2 {
                register(face, "user0@example.com", PASSWORD).await.expect(400);
            }
        }
        for face in Face::ALL {
            let refused = register(face, "user3@example.com", PASSWORD).await;
            assert_eq!((refused.status, refused.retry_after), (429, Some(3600)), "{refused:?}");
            assert!(refused.text.contains("Request throttled. Retry after 1 hour"), "{refused:?}");
        }
        // A field's value is looked at first.
        register(Face::Rest, "nobody", PASSWORD).await.expect(400);
        service.clock.advance(Duration::hours(1));
        register(Face::Rest, "user3@example.com", PASSWORD).await.expect(201);
        service.stop().await;
    }
}

// All calls.

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_counted_by_user_and_without_one_by_client() {
    for store in Store::all() {
        let service = limited(store, &[("RATE_LIMIT_API", "4/1m")]).await;
        let [user, other] = [service.user("user@example.com").await, service.user("other@example.com").await];
        for n in 0..4 {
            get_me(&user, Face::ALL[n % 2]).await.expect(200);
        }
        for face in Face::ALL {
            let refused = get_me(&user, face).await;
            assert_eq!((refused.status, refused.retry_after), (429, Some(60)), "{refused:?}");
        }
        get_me(&other, Face::Rest).await.expect(200);

        // Two calls without a user were the registrations.
        get_me(&service.anonymous(), Face::Rest).await.expect(401);
        get_me(&user.with_token("a.guessed.token"), Face::Grpc).await.expect(401);
        get_me(&user.with_token("another.guessed.token"), Face::Rest).await.expect(429);
        login(&user, Face::Grpc, "user@example.com", PASSWORD).await.expect(429);
        for path in ["/api/nowhere/", "/api/auth/login/"] {
            outcome_of(service.anonymous().request(Method::GET, path).send().await.unwrap()).await.expect(429);
        }
        for path in ["/api/health/", "/api/health"] {
            outcome_of(service.anonymous().request(Method::GET, path).send().await.unwrap()).await.expect(200);
        }
        get_me(&other, Face::Grpc).await.expect(200);
        service.clock.advance(Duration::minutes(1));
        get_me(&user, Face::Rest).await.expect(200);
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_back_after_retry_after_is_welcome() {
    for store in Store::all() {
        // Few are remembered one by one, many by their number.
        for (rate, count) in [("3/1m", 3), ("150/1m", 150)] {
            let service = limited(store, &[("RATE_LIMIT_API", rate)]).await;
            let user = service.user("user@example.com").await;
            for turn in 0..3 {
                let mut let_in = 0;
                let refused = loop {
                    let outcome = get_me(&user, Face::Rest).await;
                    if outcome.status == 429 {
                        break outcome;
                    }
                    let_in += 1;
                    assert!(let_in <= count, "{rate}: more than the limit in turn {turn}");
                };
                assert!(let_in >= 1, "{rate}: sent back too early in turn {turn}");
                service.clock.advance(Duration::seconds(i64::try_from(refused.retry_after.unwrap()).unwrap()));
            }
            service.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn looks_into_a_token_are_counted_by_the_token() {
    for store in Store::all() {
        let service = limited(store, &[("RATE_LIMIT_API", "3/1m")]).await;
        let user = service.user("user@example.com").await;
        let look = async |face: Face, token: &str| {
            service.anonymous().call(face, "AuthService.VerifyToken", json!({ "token": token })).await.status
        };
        let [access, refresh] = [&user.access_token, &user.refresh_token].map(|t| t.clone().unwrap());
        for token in [access.as_str(), &refresh] {
            for n in 0..3 {
                assert_eq!(look(Face::ALL[n % 2], token).await, 200);
            }
            assert_eq!((look(Face::Rest, token).await, look(Face::Grpc, token).await), (429, 429));
        }
        // One that is none counts against the client, whose registration was the first call.
        for status in [401, 401, 429] {
            assert_eq!(look(Face::Rest, "a.guessed.token").await, status);
        }
        // A gateway that looks into many tokens uses up nobody's calls.
        get_me(&user, Face::Rest).await.expect(200);
        service.stop().await;
    }
}

// Who is one client.

#[tokio::test(flavor = "multi_thread")]
async fn limits_can_be_switched_off_and_gateways_exempted() {
    for store in Store::all() {
        let off = [("RATE_LIMIT_LOGIN", "off"), ("RATE_LIMIT_REGISTER", "off"), ("RATE_LIMIT_API", "off")];
        let exempt = [
            ("RATE_LIMIT_EXEMPT", "10.0.0.0/8, 127.0.0.0/8"),
            ("RATE_LIMIT_LOGIN", "1/15m"),
            ("RATE_LIMIT_REGISTER", "1/1h"),
            ("RATE_LIMIT_API", "5/1m"),
        ];
        for (settings, user_is_counted) in [(&off[..], false), (&exempt[..], true)] {
            let service = limited(store, settings).await;
            let user = service.user("user@example.com").await;
            for n in 0..8 {
                service.user(&format!("user{n}@example.com")).await;
                login(&user, Face::ALL[n % 2], "user@example.com", WRONG).await.expect(401);
                get_me(&service.anonymous(), Face::ALL[n % 2]).await.expect(401);
            }
            for n in 0..6 {
                // A user is no gateway: his or her own calls are counted wherever they come from.
                get_me(&user, Face::Rest).await.expect(if user_is_counted && n == 5 { 429 } else { 200 });
            }
            service.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_are_made_up_count_against_whoever_sends_them() {
    for store in Store::all() {
        for face in Face::ALL {
            let service = limited(store, &[("RATE_LIMIT_API", "4/1m")]).await;
            let nobody = service.anonymous();
            let mut statuses = Vec::new();
            for n in 0..6 {
                let token = json!({ "token": format!("made.up.{n}") });
                statuses.push(nobody.call(face, "AuthService.VerifyToken", token).await.status);
            }
            assert_eq!(statuses, [401, 401, 401, 401, 429, 429], "{face:?}");
            service.stop().await;
        }
    }
}

/// Whoever can't have a password hashed learns it before anything is asked for it: neither the counts nor the database are there for
/// logins that come to nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_for_which_there_is_no_place_is_refused_before_it_is_counted_or_looked_up() {
    for store in Store::all() {
        let service = limited(store, &[("HASH_THREADS", "1"), ("HASH_QUEUE", "1")]).await;
        let user = service.user("user@example.com").await;
        let anyone = service.anonymous();
        let asked = async || {
            let metrics = Metrics::of(&service).await;
            ["login", "register", "change_password"]
                .map(|limit| metrics.sum("identity_limit_checks_total", &[("limit", limit)]).to_string())
        };
        let before = asked().await;
        let places = [service.app.hash_pool.place().unwrap(), service.app.hash_pool.place().unwrap()];
        for face in Face::ALL {
            let person = json!({ "email": "new@example.com", "password": PASSWORD, "first_name": "New" });
            let change = json!({ "old_password": PASSWORD, "new_password": "another-Secret-1" });
            let refused = [
                login(&anyone, face, "user@example.com", PASSWORD).await,
                login(&anyone, face, "nobody@example.com", PASSWORD).await,
                anyone.call(face, "AuthService.Register", person).await,
                user.call(face, "AuthService.ChangePassword", change).await,
            ];
            for outcome in refused {
                assert_eq!(outcome.status, 503, "{store:?} {face:?}: {}", outcome.text);
            }
        }
        assert_eq!(asked().await, before, "{store:?}: counted");
        drop(places);
        for face in Face::ALL {
            login(&anyone, face, "user@example.com", PASSWORD).await.expect(200);
        }
        service.stop().await;
    }
}
