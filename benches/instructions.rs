//! The paths whose instructions `scripts/instructions` counts; it says how and why. By itself it only walks them.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark may fail loudly")]

mod support;

use std::{net::IpAddr, time::Duration};

use axum::{Router, extract::Request};
use chrono::TimeDelta;
use identity::{pb, telemetry};
use support::{Service, answer};
use tokio::runtime::{Builder, Runtime};

/// Batches before the first that counts: what is made once, such as the metrics of an rpc, is there then.
const WARM_UP: usize = 8;
/// Each is counted by itself.
const BATCHES: usize = 20;
const CALLS_IN_BATCH: usize = 3;
/// How old the feed of changes may be while what is kept of users is believed, with a margin.
const TRUSTED: Duration = Duration::from_millis(1900);

/// The function that callgrind looks for: what runs in it is counted, and nothing else.
#[inline(never)]
fn counted(calls: &mut dyn FnMut()) {
    calls();
}

struct Paths {
    runtime: Runtime,
    service: Service,
}

impl Paths {
    /// Counts `call`, for which `prepare` gets ready what it takes. Says of each batch how many calls it had.
    fn count<T>(&self, name: &str, prepare: impl Fn() -> T, call: impl AsyncFn(T)) {
        // In a time of its own: the limit is on, and no path is to feel the one before.
        self.service.app.clock.advance(TimeDelta::minutes(2));
        let run = |calls: usize, runner: fn(&mut dyn FnMut())| {
            self.poll();
            let mut prepared: Vec<T> = (0..calls).map(|_| prepare()).collect();
            runner(&mut || {
                self.runtime.block_on(async {
                    while let Some(prepared) = prepared.pop() {
                        call(prepared).await;
                    }
                });
            });
        };
        for _ in 0..WARM_UP {
            run(CALLS_IN_BATCH, |calls| calls());
        }
        for _ in 0..BATCHES {
            run(CALLS_IN_BATCH, counted);
            // On a machine that does much else it took so long that some calls may have asked the database.
            let calls = if self.service.app.feed.age() < TRUSTED { CALLS_IN_BATCH } else { 0 };
            println!("{name} {calls}");
        }
    }

    fn count_calls(&self, name: &str, router: &Router, request: impl Fn() -> Request) {
        self.count(name, request, async |request| drop(answer(router, request).await));
    }

    /// Nothing follows the feed of changes in the background, where it would be counted. So it is asked in between, before it is too
    /// old to be trusted: under callgrind time flies.
    fn poll(&self) {
        let app = &self.service.app;
        self.runtime.block_on(app.feed.poll(&app.db, &app.clock)).unwrap();
    }
}

fn main() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let service = runtime.block_on(Service::start(folder.path(), "1000/1m"));
    // As in production: a line a call.
    telemetry::start(&service.app.config.log).unwrap();
    let paths = Paths { runtime, service };
    let (app, token) = (&paths.service.app, paths.service.token.clone());

    paths.count(
        "token",
        || token.clone(),
        async |token| {
            app.caller(&token).await.unwrap();
        },
    );
    let client = IpAddr::from([127, 0, 0, 1]);
    paths.count("limiter", || app.clock.now(), async |now| app.limiter.count_call(Some(7), client, now).unwrap());
    let router = &paths.service.router;
    paths.count_calls("rest_read", router, || paths.service.get("/api/profile/me/"));
    paths.count_calls("grpc_read", router, || {
        paths.service.rpc("/identity.v1.ProfileService/GetMyProfile", &pb::GetMyProfileRequest {})
    });
    let verify = pb::VerifyTokenRequest { token: Some(token.clone()) };
    paths.count_calls("grpc_verify", router, || paths.service.rpc("/identity.v1.AuthService/VerifyToken", &verify));
    let list = "/api/users/?page=1&page_size=20&search=john&role=freelancer";
    paths.count_calls("rest_list", &paths.service.stub_routes(), || paths.service.get(list));
}
