//! Redis: what replicas share through it, and what happens without it.

use std::time::{Duration, Instant};

use fred::interfaces::{ClientLike, KeysInterface};
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    harness::{
        Actor, Face, Outcome, PASSWORD, Service, Store,
        metrics::Metrics,
        proxy::{Proxy, Way},
        redis::PrivateRedis,
        wait_until,
    },
    user::user_id,
};

const EMAIL: &str = "user@example.com";
const WRONG: &str = "wr0ng-Passw0rd";
/// How soon Redis is used again once it is back, and how soon it is known to be away.
const SOON: Duration = Duration::from_secs(1);

/// The service on this store with this Redis, and logins limited as documented.
pub async fn service(store: Store, redis: &PrivateRedis) -> Service {
    let url = redis.url();
    let service = Service::start_with(store, &[("REDIS_URL", url.as_str()), ("RATE_LIMIT_LOGIN", "5/15m")]).await;
    until_cache_is("ok", &service).await;
    service
}

pub async fn login(service: &Service, face: Face, password: &str) -> Outcome {
    let fields = json!({ "email": EMAIL, "password": password });
    service.anonymous().call(face, "AuthService.Login", fields).await
}

async fn health(actor: &Actor) -> (u16, Value) {
    let answer = actor.request(Method::GET, "/api/health/").send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

pub async fn until_cache_is(state: &str, service: &Service) {
    let anyone = service.anonymous();
    wait_until(SOON, state, async || {
        health(&anyone).await == (200, json!({ "status": "ok", "database": "ok", "cache": state }))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_count_failed_logins_together_and_a_success_on_one_clears_them_on_all() {
    for store in Store::all() {
        let Some(redis) = PrivateRedis::start().await else { return };
        let service = service(store, &redis).await;
        let replica = service.replica().await;
        until_cache_is("ok", &replica).await;
        service.user(EMAIL).await;
        for n in 0..4 {
            let at = if n % 2 == 0 { &service } else { &replica };
            login(at, Face::ALL[n / 2], WRONG).await.expect(401);
        }
        login(&service, Face::Rest, PASSWORD).await.expect(200);
        // Ten at once, over both: as many are looked at as if there were one.
        let guesses =
            (0..10).map(async |n| login(if n % 2 == 0 { &service } else { &replica }, Face::ALL[n / 5], WRONG).await);
        let mut statuses: Vec<_> = join_all(guesses).await.iter().map(|outcome| outcome.status).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [401, 401, 401, 401, 401, 429, 429, 429, 429, 429], "{store:?}");
        for at in [&service, &replica] {
            let refused = login(at, Face::Grpc, PASSWORD).await;
            assert_eq!(refused.status, 429);
            assert!(refused.retry_after.is_some_and(|secs| (1..=900).contains(&secs)), "{refused:?}");
        }
        service.clock.advance(chrono::Duration::minutes(15));
        login(&service, Face::Rest, PASSWORD).await.expect(200);
        replica.stop().await;
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_settle_the_general_limit_without_a_wait_for_it() {
    for store in Store::all() {
        let Some(mut redis) = PrivateRedis::start().await else { return };
        let url = redis.url();
        let service = Service::start_with(store, &[("REDIS_URL", url.as_str()), ("RATE_LIMIT_API", "150/1m")]).await;
        let replica = service.replica().await;
        // Sliding windows that all replicas share begin at whole minutes.
        let now = service.clock.now();
        service.set_clock(now - chrono::Duration::microseconds(now.timestamp_micros() % 60_000_000));
        for at in [&service, &replica] {
            until_cache_is("ok", at).await;
        }
        let user = service.user(EMAIL).await;
        let calls = async |actor: &Actor, count: usize, face| {
            let mut let_through = 0;
            for _ in 0..count {
                let outcome = actor.call(face, "ProfileService.GetMyProfile", json!({})).await;
                assert!(outcome.status == 200 || outcome.status == 429, "{outcome:?}");
                let_through += usize::from(outcome.status == 200);
            }
            let_through
        };
        // In turns: each hears of the other in between.
        let there = user.at(replica.address);
        let mut all = 0;
        for turn in 0..16 {
            let (actor, face) = if turn % 2 == 0 { (&user, Face::Rest) } else { (&there, Face::Grpc) };
            all += calls(actor, 12, face).await;
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        // As many more may pass on the side that hasn't heard of the last twelve.
        assert!((150..=162).contains(&all), "{store:?}: {all}");
        let refused = there.call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await;
        assert!(
            refused.status == 429 && refused.retry_after.is_some_and(|secs| (1..=60).contains(&secs)),
            "{refused:?}"
        );

        // Two windows later nothing is left of it; and without Redis each counts by itself.
        redis.kill().await;
        service.clock.advance(chrono::Duration::minutes(2));
        assert_eq!(
            (calls(&user, 160, Face::Grpc).await, calls(&there, 160, Face::Rest).await),
            (150, 150),
            "{store:?}"
        );
        replica.stop().await;
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_waits_for_no_redis_and_what_is_told_late_counts_once() {
    let Some(redis) = PrivateRedis::start().await else { return };
    let line = Proxy::to(&redis.url()).await;
    let url = line.url(&redis.url());
    let service =
        Service::start_with(Store::Sqlite, &[("REDIS_URL", url.as_str()), ("RATE_LIMIT_API", "200/1m")]).await;
    until_cache_is("ok", &service).await;
    let user = service.user(EMAIL).await;
    let calls = async |count: usize| {
        for _ in 0..count {
            user.call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await.expect(200);
        }
    };
    calls(1).await;
    let commands = async || Metrics::of(&service).await.sum("identity_redis_commands_total", &[]);
    // Each answer comes too late, and what was asked is done all the same, again and again.
    line.set(Way::Delay(Duration::from_millis(80)));
    let (begun, before) = (Instant::now(), commands().await);
    calls(99).await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(commands().await - before < 60.0, "a hundred calls, and the seconds since");
    line.set(Way::Pass);
    tokio::time::sleep(Duration::from_secs(1)).await;
    calls(95).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_held_to_attempts_that_a_late_redis_counted_though_they_were_none() {
    for store in Store::all() {
        let Some(redis) = PrivateRedis::start().await else { return };
        let line = Proxy::to(&redis.url()).await;
        let url = line.url(&redis.url());
        let settings = [("REDIS_URL", url.as_str()), ("RATE_LIMIT_LOGIN", "5/15m"), ("RATE_LIMIT_REGISTER", "2/1h")];
        let service = Service::start_with(store, &settings).await;
        until_cache_is("ok", &service).await;
        service.user(EMAIL).await;
        let taken = json!({ "email": EMAIL, "password": PASSWORD });
        // Now and then an answer is late; each time something is counted that nobody hears of.
        for n in 0..7 {
            line.set(Way::Delay(Duration::from_millis(80)));
            login(&service, Face::ALL[n % 2], PASSWORD).await.expect(200);
            line.set(Way::Pass);
            tokio::time::sleep(Duration::from_millis(700)).await;
            line.set(Way::Delay(Duration::from_millis(80)));
            service.anonymous().call(Face::ALL[n % 2], "AuthService.Register", taken.clone()).await.expect(400);
            line.set(Way::Pass);
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        login(&service, Face::Rest, PASSWORD).await.expect(200);
        service.user("another@example.com").await;
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn through_redis_replicas_tell_each_other_of_changes_before_they_ask_the_database() {
    for store in Store::all() {
        let Some(redis) = PrivateRedis::start().await else { return };
        let service = service(store, &redis).await;
        let replica = service.replica().await;
        until_cache_is("ok", &replica).await;
        let user = service.user(EMAIL).await;
        let there = user.at(replica.address);
        let name = async || {
            let seen = there.call(Face::Grpc, "ProfileService.GetMyProfile", json!({})).await.expect(200);
            seen["user"]["first_name"].clone()
        };
        let mut took = Vec::new();
        for n in 0..9 {
            name().await;
            let new = json!(format!("Jane the {n}th"));
            let id = user_id(&user);
            user.call(Face::Rest, "UserService.UpdateUser", json!({ "id": id, "first_name": new })).await.expect(200);
            let answered = Instant::now();
            wait_until(SOON, "the other hears of it", async || name().await == new).await;
            took.push(answered.elapsed());
        }
        // Asking each half second, it would be a quarter of a second in the middle.
        took.sort_unstable();
        assert!(took[4] < Duration::from_millis(100), "{store:?}: {took:?}");
        replica.stop().await;
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_starts_without_its_redis_and_finds_it_later() {
    for store in Store::all() {
        let Some(mut redis) = PrivateRedis::start().await else { return };
        redis.kill().await;
        let url = redis.url();
        let service = Service::start_with(store, &[("REDIS_URL", url.as_str())]).await;
        let user = service.user(EMAIL).await;
        user.call(Face::Grpc, "ProfileService.GetMyProfile", json!({})).await.expect(200);
        until_cache_is("degraded", &service).await;
        redis.restart().await;
        until_cache_is("ok", &service).await;
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_named_in_redis_and_counts_run_out() {
    let Some(redis) = PrivateRedis::start().await else { return };
    let service = service(Store::Sqlite, &redis).await;
    service.user(EMAIL).await;
    login(&service, Face::Rest, WRONG).await.expect(401);
    let client =
        fred::clients::Client::new(fred::types::config::Config::from_url(&redis.url()).unwrap(), None, None, None);
    client.init().await.unwrap();
    let keys: Vec<String> =
        client.custom(fred::types::CustomCommand::new_static("KEYS", None, false), vec!["*"]).await.unwrap();
    assert!(!keys.is_empty());
    for key in keys {
        let names = ["limit", "account", "calls"].map(|kind| format!("identity:{kind}:"));
        assert!(names.iter().any(|name| key.starts_with(name)) && !key.contains("user"), "{key}");
        let left: i64 = client.pttl(&key).await.unwrap();
        assert!(left > 0, "{key} stays for ever");
    }
    service.stop().await;
}
