//! The limit of guesses at one address from clients that never logged in with it: it holds against many clients at once, and
//! whoever was there before doesn't feel it.

use chrono::Duration;
use futures_util::future::join_all;

use crate::{
    harness::{Actor, Face, PASSWORD, Service, Store},
    limits::{DOCUMENTED, WRONG, login, tally},
};

pub const EMAIL: &str = "user@example.com";

/// The service on this store, which believes what is said of where calls come from.
pub async fn behind_a_proxy(store: Store, settings: &[(&str, &str)]) -> Service {
    let proxy = [("TRUSTED_PROXIES", "127.0.0.1")];
    let settings: Vec<_> = DOCUMENTED.iter().chain(&proxy).chain(settings).copied().collect();
    Service::start_with(store, &settings).await
}

/// Another client for each `n`.
pub fn stranger(service: &Service, n: usize) -> Actor {
    service.anonymous().coming_from(&format!("203.0.{}.{}", n / 250, n % 250 + 1))
}

/// Wrong logins from so many strangers, at once.
pub async fn guess(service: &Service, email: &str, strangers: std::ops::Range<usize>) -> Vec<u16> {
    let guesses = strangers.map(async |n| login(&stranger(service, n), Face::ALL[n % 2], email, WRONG).await);
    join_all(guesses).await.iter().map(|outcome| outcome.status).collect()
}

pub fn count(statuses: &[u16], status: u16) -> usize {
    statuses.iter().filter(|s| **s == status).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_logged_in_before_is_no_stranger_on_any_replica_and_after_a_restart() {
    for store in Store::all() {
        let service = behind_a_proxy(store, &[]).await;
        service.user(EMAIL).await;
        let known = ["198.51.100.7", "2001:db8:1:2::1"];
        for (face, address) in Face::ALL.into_iter().zip(known) {
            login(&service.anonymous().coming_from(address), face, EMAIL, PASSWORD).await.expect(200);
        }
        let service = service.restart().await;
        let replica = service.replica().await;
        for service in [&service, &replica] {
            guess(service, EMAIL, 0..100).await;
            for face in Face::ALL {
                let at = |address: &str| service.anonymous().coming_from(address);
                login(&at("198.51.100.7"), face, EMAIL, PASSWORD).await.expect(200);
                // With IPv6 one subscriber has a /64.
                login(&at("2001:db8:1:2:ffff::9"), face, EMAIL, PASSWORD).await.expect(200);
                login(&at("2001:db8:1:3::1"), face, EMAIL, PASSWORD).await.expect(429);
                login(&at("198.51.100.8"), face, EMAIL, PASSWORD).await.expect(429);
            }
        }
        replica.stop().await;
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_successes_nor_the_failures_of_known_clients_use_up_the_guesses_of_strangers() {
    for store in Store::all() {
        let service = behind_a_proxy(store, &[]).await;
        let owner = service.user(EMAIL).await;
        for n in 0..3 {
            assert_eq!(login(&owner, Face::ALL[n % 2], EMAIL, WRONG).await.status, 401);
            login(&stranger(&service, 600 + n), Face::ALL[n % 2], EMAIL, PASSWORD).await.expect(200);
        }
        let statuses = guess(&service, EMAIL, 0..101).await;
        assert_eq!((count(&statuses, 401), count(&statuses, 429)), (100, 1), "{store:?}: {statuses:?}");
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_stranger_uses_up_nothing_else() {
    let service = behind_a_proxy(Store::all()[0], &[]).await;
    service.user(EMAIL).await;
    guess(&service, EMAIL, 0..100).await;
    service.clock.advance(Duration::days(1) - Duration::minutes(1));
    let late = stranger(&service, 700);
    for n in 0..60 {
        let refused = login(&late, Face::ALL[n % 2], EMAIL, WRONG).await;
        assert_eq!((refused.status, refused.retry_after), (429, Some(60)), "{refused:?}");
    }
    // None of these was looked at, so none counts against the client.
    service.clock.advance(Duration::minutes(1));
    let again = join_all((0..6).map(|n| login(&late, Face::ALL[n % 2], EMAIL, WRONG))).await;
    assert_eq!(tally(&again), [(401, 5), (429, 1)].into());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_free_of_the_limits_of_one_client_only() {
    for (setting, (looked_at, refused)) in
        [(("RATE_LIMIT_EXEMPT", "127.0.0.1"), (100, 10)), (("RATE_LIMIT_LOGIN", "off"), (110, 0))]
    {
        let service = behind_a_proxy(Store::all()[0], &[setting]).await;
        let gateway = service.anonymous();
        // The owner came through it as well: that makes nobody else behind it the owner.
        service.user(EMAIL).await;
        login(&gateway, Face::Rest, EMAIL, PASSWORD).await.expect(200);
        for (email, failure) in [("nobody@example.com", 404), (EMAIL, 401)] {
            let guesses = (0..110).map(|n| login(&gateway, Face::ALL[n % 2], email, WRONG));
            let mut expected = std::collections::BTreeMap::from([(failure, looked_at)]);
            expected.extend((refused > 0).then_some((429, refused)));
            assert_eq!(tally(&join_all(guesses).await), expected, "{setting:?} {email}");
        }
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stays_away_for_long_is_forgotten() {
    for store in Store::all() {
        let service = behind_a_proxy(store, &[]).await;
        let [old, back] = ["198.51.100.7", "198.51.100.8"].map(|address| service.anonymous().coming_from(address));
        service.user(EMAIL).await;
        login(&old, Face::Rest, EMAIL, PASSWORD).await.expect(200);
        login(&back, Face::Rest, EMAIL, PASSWORD).await.expect(200);
        service.clock.advance(Duration::days(300));
        login(&back, Face::Rest, EMAIL, PASSWORD).await.expect(200);
        service.clock.advance(Duration::days(101));
        // That of the registration as well.
        assert_eq!(service.app.sweep_known_clients(1).await.unwrap(), 1, "so many and no more");
        assert_eq!(service.app.sweep_known_clients(1000).await.unwrap(), 1);
        assert_eq!(service.app.sweep_known_clients(1000).await.unwrap(), 0);
        guess(&service, EMAIL, 0..100).await;
        login(&old, Face::Rest, EMAIL, PASSWORD).await.expect(429);
        login(&back, Face::Rest, EMAIL, PASSWORD).await.expect(200);
        service.stop().await;
    }
}
