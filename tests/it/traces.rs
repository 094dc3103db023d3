//! Traces: a call's spans reach the collector, in the trace of its caller; and none of it when there is no collector.

use std::time::{Duration, Instant};

use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::harness::{
    Actor, Face, PASSWORD,
    collector::{Collector, Span},
    process::{Installation, Serving},
    receiver::Receiver,
    redis::PrivateRedis,
    wait_for, wait_until,
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
/// OTLP's numbers for the kinds of spans.
const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const PRODUCER: i32 = 4;

fn sampled() -> String {
    format!("00-{TRACE}-{CALLER}-01")
}

/// A login through this face, with this header, by somebody who is there.
async fn login(face: Face, anyone: &Actor, traceparent: &str, password: &str) {
    let fields = json!({ "email": "user@example.com", "password": password });
    match face {
        Face::Rest => {
            let request = anyone.request(Method::POST, "/api/auth/login/").header("traceparent", traceparent);
            request.json(&fields).send().await.unwrap();
        }
        Face::Grpc => {
            let login =
                identity::pb::LoginRequest { email: Some("user@example.com".into()), password: Some(password.into()) };
            let mut request = tonic::Request::new(prost::Message::encode_to_vec(&login));
            request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
            let _ = anyone.send_grpc("/identity.v1.AuthService/Login", request).await;
        }
    }
}

async fn register(email: &str, service: &Serving<'_>) {
    let account = json!({ "email": email, "password": PASSWORD });
    service.anonymous().call(Face::Rest, "AuthService.Register", account).await.expect(201);
}

/// The lines of calls of this rpc in the log.
fn lines_of(rpc: &str, service: &Serving<'_>) -> Vec<Value> {
    let lines = service.log();
    let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["span"]["rpc"] == rpc && line["message"] == "call").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_shows_in_its_callers_trace_with_its_sql_its_redis_and_its_hash() {
    let Some(redis) = PrivateRedis::start().await else { return };
    let collector = Collector::start().await;
    let (endpoint, redis) = (collector.url(), redis.url());
    let installation = Installation::with(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("OTEL_SERVICE_NAME", "identity-under-test"),
        ("REDIS_URL", &redis),
    ]);
    let service = installation.serve().await;
    register("user@example.com", &service).await;
    let first = collector.span("AuthService.Register", |_| true).await;
    for (face, n) in Face::ALL.into_iter().zip(1..) {
        login(face, &service.anonymous(), &sampled(), PASSWORD).await;
        let ok = if face == Face::Rest { "200" } else { "OK" };
        let of_face = |span: &Span| {
            span.trace_id == TRACE && span.attributes.get("rpc.response.status_code").is_some_and(|code| code == ok)
        };
        let call = collector.span("AuthService.Login", of_face).await;
        assert_eq!((call.parent.as_str(), call.kind, call.is_error), (CALLER, SERVER, false), "{call:?}");
        assert_eq!(call.service, "identity-under-test");
        assert!(call.attributes.contains_key("request_id"), "{call:?}");
        // They ended before it, and so came before it.
        let parts = collector.below(&call);
        let part =
            |name: &str| parts.iter().find(|part| part.name == name).unwrap_or_else(|| panic!("no {name}: {parts:#?}"));
        assert_eq!(part("SELECT users").kind, CLIENT);
        assert_eq!(part("SELECT users").attributes["db.collection.name"], "users");
        // What begins the session, all at once.
        assert_eq!(part("UPDATE users").attributes["db.operation.name"], "UPDATE");
        assert_eq!(part("redis").kind, CLIENT);
        assert!(part("hash").took > Duration::from_millis(1) && part("hash").took < call.took, "{parts:#?}");
        for part in &parts {
            assert_eq!(part.trace_id, TRACE);
            assert!(part.took <= call.took, "{part:?}");
        }
        // And the log names the trace.
        let lines = lines_of("AuthService.Login", &service);
        assert_eq!(lines.len(), n);
        assert!(lines.iter().all(|line| line["span"]["trace_id"] == TRACE), "{lines:?}");
    }
    // The log has no line more than without traces.
    assert!(!service.log().contains("INSERT") && !service.log().contains("SELECT"), "{}", service.log());
    // Nothing that anybody sent is in it; and what machines ask all the time, or what happens by itself, begins no trace.
    for path in ["/api/health/", "/readyz", "/metrics"] {
        let request = service.anonymous().request(Method::GET, path).header("traceparent", sampled());
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
    register("other@example.com", &service).await;
    collector.span("AuthService.Register", |span| span.id != first.id).await;
    for span in collector.spans() {
        let text = format!("{span:?}");
        assert!(!text.contains("example.com") && !text.contains(PASSWORD), "{text}");
        assert!(!span.parent.is_empty() || span.name == "AuthService.Register", "{text}");
        assert!(span.parent != CALLER || span.name == "AuthService.Login", "{text}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_traceparent_is_ignored_and_one_that_says_no_is_obeyed() {
    let collector = Collector::start().await;
    let endpoint = collector.url();
    let installation =
        Installation::with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("RATE_LIMIT_LOGIN", "off")]);
    let service = installation.serve().await;
    let malformed = [
        String::new(),
        "nonsense".into(),
        format!("00-{TRACE}-{CALLER}"),
        format!("00-{}-{CALLER}-01", "0".repeat(32)),
        format!("00-{TRACE}-{}-01", "0".repeat(16)),
        format!("ff-{TRACE}-{CALLER}-01"),
        format!("00-{}-{CALLER}-01", TRACE.to_uppercase()),
        format!("00-{TRACE}-{CALLER}-0x"),
        "00-abc-def-01".into(),
        format!("00-+{}-{CALLER}-01", &TRACE[1..]),
        format!("00-{TRACE}-{CALLER}-01-more"),
    ];
    for face in Face::ALL {
        for traceparent in &malformed {
            login(face, &service.anonymous(), traceparent, PASSWORD).await;
        }
        login(face, &service.anonymous(), &format!("00-{TRACE}-{CALLER}-00"), PASSWORD).await;
    }
    let calls = wait_for(Duration::from_secs(10), "all but those that said no", async || {
        let mut calls = collector.spans();
        calls.retain(|span| span.name == "AuthService.Login");
        (calls.len() >= 2 * malformed.len()).then_some(calls)
    })
    .await;
    assert_eq!(calls.len(), 2 * malformed.len());
    assert!(calls.iter().all(|call| call.parent.is_empty() && call.trace_id != TRACE), "{calls:#?}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_wanted_part_of_calls_is_traced() {
    let collector = Collector::start().await;
    let endpoint = collector.url();
    let installation =
        Installation::with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_TRACES_SAMPLER_ARG", "0")]);
    let service = installation.serve().await;
    register("user@example.com", &service).await;
    login(Face::Rest, &service.anonymous(), &sampled(), PASSWORD).await;
    service.stop().await;
    let names: Vec<_> =
        collector.spans().into_iter().filter(|span| span.kind == SERVER).map(|span| span.name).collect();
    assert_eq!(names, ["AuthService.Login"], "its caller decided; of the others none is traced");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_spans_are_sent_before_the_end_and_a_fault_is_marked() {
    let collector = Collector::start().await;
    let endpoint = collector.url();
    // More logins than the one thread and its queue take: some are told 503.
    let installation = Installation::with(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("HASH_THREADS", "1"),
        ("HASH_QUEUE", "1"),
        ("ARGON2_ITERATIONS", "20"),
        ("RATE_LIMIT_LOGIN", "off"),
    ]);
    let service = installation.serve().await;
    let logins = (0..6).map(async |_| login(Face::Rest, &service.anonymous(), &sampled(), PASSWORD).await);
    futures_util::future::join_all(logins).await;
    service.stop().await;
    let calls: Vec<_> = collector.spans().into_iter().filter(|span| span.name == "AuthService.Login").collect();
    assert_eq!(calls.len(), 6);
    for call in &calls {
        assert_eq!(call.is_error, call.attributes["rpc.response.status_code"].starts_with('5'), "{call:?}");
    }
    assert!(calls.iter().any(|call| call.is_error), "{calls:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_carries_the_trace_of_its_delivery() {
    let (collector, receiver) = (Collector::start().await, Receiver::start().await);
    let (endpoint, events) = (collector.url(), receiver.url());
    let installation = Installation::with(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("NOTIFICATION_SERVICE_URL", events.as_str()),
    ]);
    let service = installation.serve().await;
    register("user@example.com", &service).await;
    let event = receiver.take(1, Duration::from_secs(10)).await.remove(0);
    let header = event.header("traceparent").to_owned();
    let delivery = collector.span("delivery", |_| true).await;
    assert_eq!(header, format!("00-{}-{}-01", delivery.trace_id, delivery.id));
    assert_eq!((delivery.kind, delivery.attributes["kind"].as_str()), (PRODUCER, "user.registered"));
    assert!(delivery.parent.is_empty(), "{delivery:?}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_nothing_is_traced_and_the_log_still_names_the_callers_trace() {
    let receiver = Receiver::start().await;
    let events = receiver.url();
    let installation = Installation::with(&[("NOTIFICATION_SERVICE_URL", events.as_str())]);
    let service = installation.serve().await;
    register("user@example.com", &service).await;
    login(Face::Rest, &service.anonymous(), &sampled(), PASSWORD).await;
    login(Face::Grpc, &service.anonymous(), "nonsense", PASSWORD).await;
    let lines = lines_of("AuthService.Login", &service);
    assert_eq!(lines[0]["span"]["trace_id"], TRACE, "{lines:?}");
    assert_eq!(lines[1]["span"].get("trace_id"), None, "{lines:?}");
    let event = receiver.take(1, Duration::from_secs(10)).await.remove(0);
    assert!(!event.headers.contains_key("traceparent"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_or_silent_holds_nothing_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_url = format!("http://{}", silent.local_addr().unwrap());
    for endpoint in ["http://127.0.0.1:1", silent_url.as_str()] {
        let installation =
            Installation::with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint), ("RATE_LIMIT_LOGIN", "off")]);
        let mut service = installation.serve().await;
        register("user@example.com", &service).await;
        let anyone = service.anonymous();
        let begun = Instant::now();
        // More than wait for the collector.
        for _ in 0..50 {
            let ask = async |_| drop(anyone.request(Method::GET, "/api/users/1/").send().await.unwrap());
            futures_util::future::join_all((0..100).map(ask)).await;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{endpoint}: {:?}", begun.elapsed());
        let is_away = "the collector of traces is away";
        wait_until(Duration::from_secs(10), "it gives up waiting", async || service.log().contains(is_away)).await;
        let begun = Instant::now();
        service.signal(Signal::TERM);
        assert_eq!(service.exit_code(Duration::from_secs(20)).await, Some(0), "{}", service.log());
        assert!(begun.elapsed() < Duration::from_secs(4), "{endpoint}: it took {:?} to stop", begun.elapsed());
        let said = service.log().matches(is_away).count();
        assert_eq!(said, 1, "{endpoint}: {}", service.log());
    }
}
