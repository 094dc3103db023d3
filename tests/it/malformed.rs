//! A storm of malformed calls: each is answered in our own words or cut off, and none is a fault. The memory stays level, and
//! whoever calls rightly is served, during the storm and after it.
//!
//! Short here; `scripts/malformed` has 100 000 calls of REST and 50 000 of gRPC against the release build.

mod calls;
mod wire;

use std::{
    collections::BTreeMap,
    fs,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::Instant;

use crate::harness::{
    Actor, Face, PASSWORD, Store,
    load::{Dice, installation},
    process::Serving,
    smtp::MailServer,
    stores::setting,
    wait_until,
};
use calls::Forger;
use wire::{Answer, GrpcLine, RestLine};

/// How many call at once.
const CALLERS: usize = 8;
/// How much more memory a storm may leave in use than its first fifth: nothing is kept of a call.
const LEVEL_BYTES: u64 = 32 << 20;

/// How many calls of each kind.
#[derive(Clone, Copy)]
struct Size {
    rest: usize,
    grpc: usize,
}

/// What came of the calls, by what each was answered.
type Figures = BTreeMap<String, usize>;

/// Runs so many malformed calls against the program over this store.
async fn storm(store: Store, size: Size) {
    let seed = setting("SEED").map_or_else(|| u64::from(std::process::id()), |seed| seed.parse().expect("a number"));
    println!("SEED={seed}");
    let mails = MailServer::start().await;
    let (_database, installation) = installation(store, &mails).await;
    let service = installation.serve().await;
    let anyone = service.anonymous();
    let is_well =
        async || anyone.request(reqwest::Method::GET, "/api/health/").send().await.is_ok_and(|a| a.status() == 200);
    wait_until(Duration::from_secs(10), "health", is_well).await;

    let begun = Instant::now();
    let fifth = Size { rest: size.rest / 5, grpc: size.grpc / 5 };
    let mut figures = Figures::new();
    callers(&service, seed, fifth, &mut figures).await;
    let before = resident_bytes(&service);
    callers(&service, seed + 1, Size { rest: size.rest - fifth.rest, grpc: size.grpc - fifth.grpc }, &mut figures)
        .await;
    let after = resident_bytes(&service);

    println!(
        "{store:?}: {} calls in {:.0?}; {} MiB of memory in use after a fifth of them, {} MiB after all",
        figures.values().sum::<usize>(),
        begun.elapsed(),
        before >> 20,
        after >> 20,
    );
    for (answer, count) in &figures {
        println!("  {count:>7}  {answer}");
    }
    assert_eq!(figures.values().sum::<usize>(), size.rest + size.grpc);
    assert!(after < before + LEVEL_BYTES, "memory grows: from {before} to {after} bytes");
    let log = service.log();
    let bad: Vec<_> = log.lines().filter(|line| line.contains("panicked") || line.contains("ERROR")).collect();
    assert!(bad.is_empty(), "{} lines of the log tell of faults, such as\n{}", bad.len(), bad[0]);
    well_served(&service.anonymous()).await;
    service.stop().await;
}

async fn callers(service: &Serving<'_>, seed: u64, size: Size, figures: &mut Figures) {
    let admin = json!({ "email": "admin@example.com", "password": PASSWORD });
    let admin = service.anonymous().call(Face::Rest, "AuthService.Login", admin).await.expect(200);
    let admin = admin["access_token"].as_str().expect("a token");
    let user = service.anonymous().sign_up(&format!("user{seed}@example.com")).await;
    let tokens = [user.access_token.expect("a token"), admin.to_owned()];
    let (rest_left, grpc_left) = (AtomicUsize::new(size.rest), AtomicUsize::new(size.grpc));
    let is_left =
        |left: &AtomicUsize| left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
    let each = (0..CALLERS as u64).map(async |n| {
        let mut forger = Forger::new(Dice::new(seed ^ (n << 32)), tokens.clone(), service.address);
        let (mut rest, grpc) = (RestLine::new(service.address), GrpcLine::new(service.address));
        let mut seen = Figures::new();
        while is_left(&rest_left) {
            let call = forger.rest();
            let answer = rest.send(&call).await;
            *seen.entry(format!("REST {}", answer.judged(&call.shown()))).or_default() += 1;
        }
        while is_left(&grpc_left) {
            let call = forger.grpc();
            let (face, shown, has_deadline) = (call.face(), call.shown(), call.has_deadline());
            let answer = grpc.send(call).await;
            assert!(has_deadline || !matches!(answer, Answer::Grpc(4)), "it took too long: {shown}");
            *seen.entry(format!("{face} {}", answer.judged(&shown))).or_default() += 1;
        }
        seen
    });
    // Whoever calls rightly is served all the while.
    let right = async {
        for _ in 0..3 {
            well_served(&service.anonymous()).await;
        }
    };
    let (seen, ()) = tokio::join!(join_all(each), right);
    for (answer, count) in seen.into_iter().flatten() {
        *figures.entry(answer).or_default() += count;
    }
}

/// The admin logs in, and looks at the directory.
async fn well_served(anyone: &Actor) {
    for face in Face::ALL {
        let login = json!({ "email": "admin@example.com", "password": PASSWORD });
        let answer = anyone.call(face, "AuthService.Login", login).await.expect(200);
        let admin = anyone.with_token(answer["access_token"].as_str().expect("a token"));
        admin.call(face, "UserService.ListUsers", json!({})).await.expect(200);
    }
}

/// What of the process's memory is in use: `VmRSS`.
fn resident_bytes(service: &Serving<'_>) -> u64 {
    let pid = service.pid().as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process that runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_calls_are_no_faults() {
    for store in Store::all() {
        storm(store, Size { rest: 600, grpc: 300 }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/malformed runs it"]
async fn as_many_malformed_calls_as_were_asked_for() {
    let count = |name, fallback| setting(name).map_or(fallback, |count| count.parse().expect("a number"));
    let size = Size { rest: count("MALFORMED_REST", 100_000), grpc: count("MALFORMED_GRPC", 50_000) };
    for store in Store::all() {
        storm(store, size).await;
    }
}
