//! The end of the service: asked for, or not.

use std::{fs, time::Duration};

use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use reqwest::Method;
use rustix::process::{Pid, Signal};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::harness::{
    Face, PASSWORD, Service, Store, has_postgres,
    process::{Installation, Serving},
};

/// The end of a service that has nothing left to do.
pub const PROMPT: Duration = Duration::from_secs(2);
/// What the calls under way get, and a little for the rest of the work.
pub const BOUND: Duration = Duration::from_secs(18);

pub async fn connect(service: &Serving<'_>) -> TcpStream {
    TcpStream::connect(service.address).await.unwrap()
}

/// Reads until the text ends so, or the connection does.
pub async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        match stream.read_u8().await {
            Ok(byte) => text.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(text).unwrap()
}

/// A registration whose body is still to come. The service works at it: it has asked for the body.
pub async fn begin_a_registration(service: &Serving<'_>, body: &str) -> TcpStream {
    let mut stream = connect(service).await;
    let head = format!(
        "POST /api/auth/register/ HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nexpect: 100-continue\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(read_until(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream
}

/// Waits until nobody can connect any more.
pub async fn refused(service: &Serving<'_>) {
    let refused = async {
        while TcpStream::connect(service.address).await.is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(BOUND / 4, refused).await.expect("it still takes connections");
}

/// What the threads that hash have computed so far, in ticks of the kernel's clock.
fn hashing_time(pid: Pid) -> u64 {
    let threads = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).unwrap();
    threads
        .filter_map(|thread| fs::read_to_string(thread.unwrap().path().join("stat")).ok())
        .filter(|stat| stat.contains("(hash-"))
        // proc(5): the name is the second field, utime the 14th.
        .map(|stat| stat.rsplit(") ").next().unwrap().split(' ').nth(11).unwrap().parse::<u64>().unwrap())
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_whose_passwords_are_being_hashed_are_answered() {
    let slow_hashes = [("ARGON2_ITERATIONS", "50"), ("HASH_THREADS", "1")];
    let installation = Installation::with(&slow_hashes);
    let mut service = installation.serve().await;
    let account = json!({ "email": "user@example.com", "password": PASSWORD });
    service.anonymous().call(Face::Rest, "AuthService.Register", account.clone()).await.expect(201);

    let before = hashing_time(service.pid());
    let logins = [Face::Rest, Face::Grpc, Face::Rest, Face::Grpc].map(|face| {
        let (anonymous, account) = (service.anonymous(), account.clone());
        tokio::spawn(async move { anonymous.call(face, "AuthService.Login", account).await })
    });
    while hashing_time(service.pid()) == before {
        assert!(!logins.iter().all(JoinHandle::is_finished), "nothing was hashed");
        sleep(Duration::from_millis(5)).await;
    }
    // Those that wait for the one thread came in as well.
    sleep(Duration::from_millis(100)).await;
    service.signal(Signal::TERM);
    refused(&service).await;
    assert!(!logins.iter().all(JoinHandle::is_finished), "the hashes were too quick to tell");
    for login in logins {
        login.await.unwrap().expect(200);
    }
    assert_eq!(service.exit_code(BOUND).await, Some(0), "{}", service.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_do_not_hold_up_the_end() {
    let installation = Installation::new();
    let mut service = installation.serve().await;
    // HTTP/1.1 kept alive, HTTP/2 with nothing under way, one that watches gRPC's health, and one that never said a word.
    let mut kept_alive = connect(&service).await;
    kept_alive.write_all(b"GET /api/health/ HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(read_until(&mut kept_alive, "}").await.starts_with("HTTP/1.1 200"));
    let http2 = service.anonymous();
    http2.call(Face::Grpc, "ProfileService.GetMyProfile", json!({})).await.expect(401);
    let mut watching = HealthClient::new(service.anonymous().channel);
    let mut watched = watching.watch(HealthCheckRequest { service: String::new() }).await.unwrap().into_inner();
    assert_eq!(watched.next().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let silent = connect(&service).await;

    service.signal(Signal::TERM);
    assert_eq!(service.exit_code(PROMPT).await, Some(0), "{}", service.log());
    assert_eq!(read_until(&mut kept_alive, "}").await, "", "the connection was closed");
    assert_eq!(watched.next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert!(watched.next().await.is_none());
    drop((http2, silent));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_on_the_heels_of_the_greeting_ends_it_in_order() {
    let installation = Installation::new();
    for _ in 0..20 {
        let mut service = installation.serve().await;
        service.signal(Signal::TERM);
        assert_eq!(service.exit_code(BOUND).await, Some(0), "{}", service.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_the_service_can_not_do_without_takes_it_along_when_it_dies() {
    // SQLite compares times as text, where the last of all times is not the greatest.
    if !has_postgres() {
        return;
    }
    let nowhere = [("EMAIL_BACKEND", "smtp"), ("EMAIL_HOST", "127.0.0.1"), ("EMAIL_PORT", "1")];
    let service = Service::start_with(Store::Postgres, &nowhere).await;
    let address = service.address;
    service.user("user@example.com").await;
    // A mail waits, and there is no time until which it could be leased: what works at the outbox panics.
    service.set_clock(DateTime::<Utc>::MAX_UTC);
    let said = service.end(BOUND).await;
    assert_eq!(said, "a task of the service ended by itself; the log says which");
    assert!(TcpStream::connect(address).await.is_err(), "it still listens");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_holds_up_no_call_and_no_end() {
    let (unread, log) = std::io::pipe().unwrap();
    let mut installation = Installation::with(&[("LOG_FORMAT", "json")]);
    installation.log_to(std::os::fd::OwnedFd::from(log).into());
    let mut service = installation.serve().await;
    let anyone = service.anonymous();
    // Some 300 bytes each, and a pipe takes 64 KiB.
    for _ in 0..600 {
        let answer = anyone.request(Method::GET, "/api/profile/me/").timeout(BOUND).send().await.unwrap();
        assert_eq!(answer.status(), 401);
    }
    service.signal(Signal::TERM);
    assert_eq!(service.exit_code(BOUND).await, Some(0));
    drop(unread);
}

/// The time that the thread which writes the log has computed.
#[cfg(target_os = "linux")]
fn computed_by_log(pid: Pid) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).unwrap();
    let mut nanos = tasks.filter_map(|task| {
        let task = task.unwrap().path();
        let is_log = fs::read_to_string(task.join("comm")).ok()?.trim() == "log";
        let schedstat = fs::read_to_string(task.join("schedstat")).ok()?;
        is_log.then(|| schedstat.split(' ').next().unwrap().parse().unwrap())
    });
    Duration::from_nanos(nanos.next().expect("a thread for the log"))
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_can_not_be_written_is_tried_again_now_and_then_and_not_all_the_time() {
    let mut installation = Installation::with(&[("LOG_FORMAT", "json")]);
    installation.log_to(fs::File::options().write(true).open("/dev/full").unwrap());
    let mut service = installation.serve().await;
    for _ in 0..50 {
        let answer = service.anonymous().request(Method::GET, "/api/profile/me/").timeout(BOUND).send().await.unwrap();
        assert_eq!(answer.status(), 401);
    }
    let before = computed_by_log(service.pid());
    sleep(Duration::from_secs(2)).await;
    let computed = computed_by_log(service.pid()).saturating_sub(before);
    assert!(computed < Duration::from_millis(100), "{computed:?} of two seconds");
    service.signal(Signal::TERM);
    assert_eq!(service.exit_code(BOUND).await, Some(0));
}
