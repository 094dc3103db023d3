//! What the tests stand on: the service on a real store, and actors who call it on both faces.

pub mod actor;
pub mod authority;
pub mod collector;
pub mod floods;
pub mod frames;
pub mod gallery;
pub mod load;
pub mod metrics;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod receiver;
pub mod redis;
pub mod service;
pub mod shared;
pub mod smtp;
pub mod stores;
pub mod tls;

use std::{panic::Location, time::Duration};

use tokio::time::Instant;

pub use actor::{Actor, Face, Outcome};
pub use service::Service;
pub use stores::Store;
use stores::setting;

/// A password that every rule allows.
pub const PASSWORD: &str = "Tr0ub4dor&3x";

/// Runs the test on each store, called through each face: a rule that holds on one holds on all.
pub async fn everywhere(test: impl AsyncFn(&Service, Face)) {
    for store in Store::all() {
        for face in Face::ALL {
            let service = Service::start(store).await;
            eprintln!("on {store:?}, through {face:?}");
            test(&service, face).await;
            service.stop().await;
        }
    }
}

/// Says that a test, or a part of it, is left out here. In CI nothing is: with `CI=true` this panics.
#[track_caller]
pub fn skip(why: &str) {
    assert!(setting("CI").as_deref() != Some("true"), "nothing is skipped in CI: {why}");
    eprintln!("skipped: {why}");
}

/// The Python with clients to test against, if there is one; without it the test is to be skipped.
#[track_caller]
pub fn python() -> Option<String> {
    let python = setting("IDENTITY_TEST_PYTHON");
    if python.is_none() {
        skip("IDENTITY_TEST_PYTHON names no Python; `scripts/test` makes one");
    }
    python
}

/// Whether there is PostgreSQL to test on; without it the test is to be skipped.
#[track_caller]
pub fn has_postgres() -> bool {
    let has = Store::all().contains(&Store::Postgres);
    if !has {
        skip("TEST_STORES leaves PostgreSQL out");
    }
    has
}

/// What `ask` finds, as soon as it finds something; panics, naming the caller's line, if it doesn't within `bound`.
#[track_caller]
pub fn wait_for<T>(bound: Duration, what: &str, ask: impl AsyncFn() -> Option<T>) -> impl Future<Output = T> {
    let caller = Location::caller();
    async move {
        let begun = Instant::now();
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            assert!(begun.elapsed() < bound, "{what}: not within {bound:?}; {caller}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Waits until it is so; panics, naming the caller's line, if it isn't within `bound`.
#[track_caller]
pub fn wait_until(bound: Duration, what: &str, is_so: impl AsyncFn() -> bool) -> impl Future<Output = ()> {
    wait_for(bound, what, async move || is_so().await.then_some(()))
}

/// Waits until it is so, for as long as a change may take to count on every replica.
#[track_caller]
pub fn within_a_second(is_so: impl AsyncFn() -> bool) -> impl Future<Output = ()> {
    wait_until(Duration::from_secs(1), "what every replica has to know", is_so)
}

/// Runs the test on each store.
pub async fn on_each_store(test: impl AsyncFn(&Service)) {
    for store in Store::all() {
        let service = Service::start(store).await;
        eprintln!("on {store:?}");
        test(&service).await;
        service.stop().await;
    }
}
