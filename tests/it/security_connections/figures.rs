//! What attacks cost, in figures: `scripts/floods` runs it.

use std::{
    fs,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use image::ImageFormat;
use reqwest::Method;
use rustix::process::Pid;
use serde_json::json;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{HEALTH, closed_after, connect, noise};
use crate::{
    avatar::{encoded, upload},
    harness::{
        Actor, Face,
        floods::{Flood, floods},
        frames::{INITIAL_WINDOW_SIZE, Speaker, request},
        process::{Installation, Serving},
    },
};

/// Attackers at once, each with a connection; who was cut off comes again.
const ATTACKERS: usize = 16;
/// For how long they come again.
const ATTACK: Duration = Duration::from_secs(5);
/// Longer than any attack takes to be ended.
const BOUND: Duration = Duration::from_mins(2);

/// Resident memory, in MiB.
fn memory(pid: Pid) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    kib.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

/// Memory at its most, and how long somebody else's calls took.
struct Watch {
    stop: CancellationToken,
    took: Arc<Mutex<Vec<Duration>>>,
    most: Arc<Mutex<f64>>,
    before: f64,
    pid: Pid,
}

impl Watch {
    fn start(service: &Serving<'_>, user: &Actor) -> Self {
        let (stop, pid) = (CancellationToken::new(), service.pid());
        let (took, most) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0_f64)));
        let before = memory(pid);
        for face in Face::ALL {
            // A connection of its own.
            let (stop, took, user) = (stop.clone(), Arc::clone(&took), user.at(service.address));
            tokio::spawn(async move {
                while !stop.is_cancelled() {
                    let begun = Instant::now();
                    user.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(200);
                    took.lock().unwrap().push(begun.elapsed());
                    sleep(Duration::from_millis(10)).await;
                }
            });
        }
        let (until, seen) = (stop.clone(), Arc::clone(&most));
        tokio::spawn(async move {
            while !until.is_cancelled() {
                let now = memory(pid);
                if let Ok(mut most) = seen.lock() {
                    *most = now.max(*most);
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
        Self { stop, took, most, before, pid }
    }

    async fn report(self, what: &str, mut ended: Vec<Duration>) {
        sleep(Duration::from_secs(1)).await;
        self.stop.cancel();
        ended.sort_unstable();
        let mut took = self.took.lock().unwrap().clone();
        took.sort_unstable();
        let (count, p99) = (took.len(), took[took.len() * 99 / 100]);
        println!(
            "| {what} | {} | {:.2?} | {:.2?} | {:.0} → {:.0} → {:.0} | {:.1?} of {count} |",
            ended.len(),
            ended[ended.len() / 2],
            ended[ended.len() - 1],
            self.before,
            *self.most.lock().unwrap(),
            memory(self.pid),
            p99,
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/floods runs it"]
async fn what_each_attack_costs() {
    let settings = [("RATE_LIMIT_API", "off"), ("MAX_CONNECTIONS_PER_CLIENT", "5000"), ("LOG_LEVEL", "warn")];
    let installation = Installation::with(&settings);
    let service = installation.serve().await;
    let address = service.address;
    let user = service.anonymous().sign_up("user@example.com").await;
    let profile = upload(&user, Face::Rest, encoded(&noise(), ImageFormat::Png)).await.expect(200);
    let picture = format!("/media/{}", profile["avatar"].as_str().unwrap().split_once("/media/").unwrap().1);
    let size = user.request(Method::GET, &picture).send().await.unwrap().bytes().await.unwrap().len();
    println!("a picture has {size} bytes; {ATTACKERS} attackers come again for {ATTACK:?}\n");
    println!("| attack | connections | ended after, half of them | all | MiB before → most → after | others' p99 |");
    println!("|---|---|---|---|---|---|");
    let quiet = Watch::start(&service, &user);
    sleep(ATTACK).await;
    quiet.report("none", vec![Duration::ZERO]).await;

    for kind in 0..floods().len() {
        let watch = Watch::start(&service, &user);
        let begun = Instant::now();
        let attackers = (0..ATTACKERS).map(async |_| {
            let mut ended = Vec::new();
            while begun.elapsed() < ATTACK {
                let Flood { first, next, .. } = floods().swap_remove(kind);
                let mut speaker = Speaker::connect(address, &[]).await;
                speaker.say(&first).await.unwrap();
                ended.push(speaker.flood(next, BOUND).await.expect("it is ended"));
            }
            ended
        });
        let ended = join_all(attackers).await.concat();
        watch.report(floods()[kind].what, ended).await;
    }

    let watch = Watch::start(&service, &user);
    let slow = (0..1000).map(async |n| {
        let words = if n % 2 == 0 { "" } else { "GET /api/health/ HTTP/1.1\r\nx: " };
        closed_after(connect(address, words).await, BOUND).await.expect("it is closed")
    });
    watch.report("1000 sockets that say little (slowloris)", join_all(slow).await).await;

    // A hundred connections with a hundred pictures each: a gigabyte and more, were all of them in memory.
    for (what, path, connections) in [
        ("no window, 100 × 128 pictures", &*picture, 100),
        ("no window, 100 × 128 documents", "/api/openapi.json", 100),
    ] {
        let watch = Watch::start(&service, &user);
        let deaf = (0..connections).map(async |_| {
            let mut speaker = Speaker::connect(address, &[(INITIAL_WINDOW_SIZE, 0)]).await;
            for n in 0..128 {
                let _ = speaker.say(&request(2 * n + 1, path, &[])).await;
            }
            speaker.end(BOUND).await.expect("it is ended").0
        });
        watch.report(what, join_all(deaf).await).await;
    }

    let watch = Watch::start(&service, &user);
    let idle =
        (0..1000).map(async |_| closed_after(connect(address, HEALTH).await, BOUND).await.expect("it is closed"));
    watch.report("1000 connections that asked once (HTTP/1.1)", join_all(idle).await).await;
    service.stop().await;
}
