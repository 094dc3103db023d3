//! What most calls do, one thing at a time: `cargo bench --bench hot`. `scripts/instructions` watches over the same by counting
//! instructions, which no other program on the machine disturbs.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a benchmark may fail loudly")]

mod support;

use std::{hint::black_box, net::IpAddr, time::Duration};

use chrono::TimeDelta;
use criterion::{Criterion, criterion_group, criterion_main};
use identity::{domain::user::EmailAddress, model::token::Kind, pb};
use support::{Service, answer};
use tokio::runtime::Runtime;

/// How many callers the limiter knows of while it is asked.
const CALLERS: i64 = 100_000;

fn hot(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let start = async |name: &str, limit| {
        let folder = folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let service = Service::start(&folder, limit).await;
        service.follow_feed();
        service
    };
    let service = runtime.block_on(start("free", "off"));
    let (app, token) = (&service.app, &service.token);

    let mut group = criterion.benchmark_group("token");
    group.bench_function("signature and claims", |bencher| {
        bencher.iter(|| app.keys.verify(black_box(token), Kind::Access, app.clock.now()).unwrap());
    });
    group.bench_function("and the feed of changes", |bencher| {
        bencher.to_async(&runtime).iter(|| app.caller(black_box(token)));
    });
    group.finish();

    let caller = runtime.block_on(app.caller(token)).unwrap();
    criterion.bench_function("cache hit", |bencher| {
        bencher.to_async(&runtime).iter(async || app.my_profile(black_box(&caller)).await.unwrap());
    });

    let limited = runtime.block_on(start("limited", "1000/1m"));
    let limiter = &limited.app.limiter;
    let client = IpAddr::from([127, 0, 0, 1]);
    let mut group = criterion.benchmark_group("limiter");
    // Each caller calls ten times a second: the window is half full.
    let mut now = limited.app.clock.now();
    for (name, callers) in [("one caller", 1), ("100 000 callers", CALLERS)] {
        let mut user_id = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                user_id = (user_id + 1) % callers;
                if user_id == 0 {
                    now += TimeDelta::milliseconds(100);
                }
                limiter.count_call(Some(black_box(user_id)), client, now).unwrap();
            });
        });
    }
    group.finish();

    criterion.bench_function("mask", |bencher| {
        bencher.iter(|| EmailAddress::mask(black_box("somebody.with.a.name@mail.example.com")));
    });

    let mut group = criterion.benchmark_group("call, without its socket");
    let get_my_profile = pb::GetMyProfileRequest {};
    let verify_token = pb::VerifyTokenRequest { token: Some(token.clone()) };
    group.bench_function("GET /api/profile/me/", |bencher| {
        bencher.to_async(&runtime).iter(|| answer(&service.router, service.get("/api/profile/me/")));
    });
    group.bench_function("GetMyProfile", |bencher| {
        let request = || service.rpc("/identity.v1.ProfileService/GetMyProfile", &get_my_profile);
        bencher.to_async(&runtime).iter(|| answer(&service.router, request()));
    });
    group.bench_function("VerifyToken", |bencher| {
        let request = || service.rpc("/identity.v1.AuthService/VerifyToken", &verify_token);
        bencher.to_async(&runtime).iter(|| answer(&service.router, request()));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2));
    targets = hot
}
criterion_main!(benches);
