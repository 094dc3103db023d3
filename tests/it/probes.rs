//! What an orchestrator asks: does it live, is it ready.

use std::time::Duration;

use axum::{body::Body, extract::Request};
use identity::api::router;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::harness::{Service, Store, on_each_store, process::Installation, wait_until};

async fn ask(service: &Service, path: &str) -> (u16, Value) {
    let answer = service.anonymous().request(Method::GET, path).send().await.unwrap();
    assert_eq!(answer.headers()["cache-control"], "no-store");
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_database_it_lives_but_is_not_ready() {
    on_each_store(async |service| {
        assert_eq!(ask(service, "/livez").await, (200, json!({ "status": "ok" })));
        let ready = json!({ "status": "ok", "database": "ok", "feed": "ok" });
        assert_eq!(ask(service, "/readyz").await, (200, ready));
        service.app.db.close().await;
        let (status, said) = ask(service, "/readyz").await;
        assert_eq!((status, &said["status"], &said["database"]), (503, &json!("unavailable"), &json!("unavailable")));
        // Nothing is known of logouts on other replicas any more.
        wait_until(Duration::from_secs(7), "the feed to be stale", async || {
            ask(service, "/readyz").await.1["feed"] == "stale"
        })
        .await;
        assert_eq!(ask(service, "/livez").await, (200, json!({ "status": "ok" })));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_are_counted_against_nobody() {
    let service = Service::start_with(Store::Sqlite, &[("RATE_LIMIT_API", "3/1m")]).await;
    for path in ["/livez", "/readyz"].repeat(10) {
        assert_eq!(ask(&service, path).await.0, 200);
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn once_it_is_to_stop_it_is_not_ready() {
    let service = Service::start(Store::Sqlite).await;
    let stop = CancellationToken::new();
    let router = router::routers(&service.app, &stop).await.unwrap().all;
    let ready = async || {
        let request = Request::builder().uri("/readyz").header("host", "localhost").body(Body::empty()).unwrap();
        router.clone().oneshot(request).await.unwrap().status()
    };
    assert_eq!(ready().await, 200);
    stop.cancel();
    assert_eq!(ready().await, 503);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_on_a_connection_from_before_the_stop_hears_that_it_stops() {
    let installation = Installation::new();
    let mut service = installation.serve().await;
    // The end of the head is still to come.
    let mut probe = TcpStream::connect(service.address).await.unwrap();
    probe.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    service.signal(Signal::TERM);
    wait_until(Duration::from_secs(5), "it to listen no more", async || {
        TcpStream::connect(service.address).await.is_err()
    })
    .await;
    probe.write_all(b"\r\n").await.unwrap();
    let mut answer = String::new();
    probe.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with(r#"{"status":"stopping"}"#), "{answer:?}");
    assert_eq!(service.exit_code(Duration::from_secs(20)).await, Some(0), "{}", service.log());
}
