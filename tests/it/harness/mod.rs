//! What the tests stand on: the service on a real store, and actors who call it on both faces.

pub mod actor;
pub mod gallery;
pub mod postgres;
pub mod process;
pub mod receiver;
pub mod service;
pub mod smtp;
pub mod stores;

use std::time::Duration;

use tokio::time::Instant;

pub use actor::{Actor, Face, Outcome};
pub use service::Service;
pub use stores::Store;

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

/// Waits until it is so; panics if it isn't within `bound`.
pub async fn wait_until(bound: Duration, what: &str, is_so: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < bound, "{what}: not within {bound:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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
