//! What every call passes, whatever it calls: its request id, its line in the log, what a panic comes to.

use std::collections::BTreeSet;

use axum::{body::Body, extract::Request};
use identity::{
    api::gate::{self, Gate, Policy},
    pb,
};
use prost::Message;
use reqwest::Method;
use serde_json::{Value, json};
use tonic::Code;
use tonic_types::StatusExt;

use crate::harness::{Actor, Face, PASSWORD, Service, Store, process::Installation, wait_for};

const WELL_FORMED: [&str; 4] =
    ["a", "0af7651916cd43dd-8448_eb21.1c80319c", "A.B-C_9", "00000000-0000-0000-0000-000000000000"];

/// The id of the answer to a call that comes with `given`, at a handler, at a refusal, and where there is nothing.
async fn ids(actor: &Actor, face: Face, given: Option<&str>) -> Vec<String> {
    let mut ids = Vec::new();
    match face {
        Face::Rest => {
            for (method, path) in [
                (Method::GET, "/api/profile/me/"),
                (Method::GET, "/api/users/999/"),
                (Method::POST, "/api/auth/login/"),
                (Method::GET, "/nothing"),
                (Method::DELETE, "/api/health/"),
                (Method::GET, "/api/health/"),
            ] {
                let mut request = actor.request(method, path);
                if let Some(given) = given {
                    request = request.header("x-request-id", given);
                }
                let response = request.send().await.unwrap();
                assert_eq!(response.headers().get_all("x-request-id").iter().count(), 1, "{path}");
                ids.push(response.headers()["x-request-id"].to_str().unwrap().to_owned());
            }
        }
        Face::Grpc => {
            for rpc in
                ["ProfileService/GetMyProfile", "UserService/GetUser", "AuthService/Login", "AuthService/Nothing"]
            {
                let mut request = tonic::Request::new(Vec::new());
                if let Some(given) = given {
                    request.metadata_mut().insert("x-request-id", given.parse().unwrap());
                }
                if let Some(token) = &actor.access_token {
                    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
                }
                let metadata = match actor.send_grpc(&format!("/identity.v1.{rpc}"), request).await {
                    Ok(response) => response.metadata().clone(),
                    Err(status) => status.metadata().clone(),
                };
                ids.push(metadata.get("x-request-id").unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn a_well_formed_request_id_is_kept() {
    let service = Service::start(Store::Sqlite).await;
    let user = service.user("user@example.com").await;
    let longest = "x".repeat(128);
    for face in Face::ALL {
        for given in WELL_FORMED.into_iter().chain([longest.as_str()]) {
            assert!(ids(&user, face, Some(given)).await.iter().all(|id| id == given), "{given} by {face:?}");
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_other_request_id_is_replaced_by_a_new_one() {
    let service = Service::start(Store::Sqlite).await;
    let user = service.user("user@example.com").await;
    let too_long = "x".repeat(129);
    let mut seen = BTreeSet::new();
    for face in Face::ALL {
        for given in
            // No control characters: neither face's headers can hold one.
            [None, Some(""), Some("a b"), Some("a,b"), Some("<script>"), Some(too_long.as_str())]
        {
            for id in ids(&user, face, given).await {
                assert!(id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{given:?} by {face:?}: {id}");
                assert!(seen.insert(id), "two calls have one id");
            }
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_one_calls_fault() {
    static POLICY: Policy = Policy::probe("Panicking");
    let service = Service::start(Store::Sqlite).await;
    let gate = Gate::new(service.app.clone());
    for face in [gate::Face::Rest, gate::Face::Grpc] {
        let request = Request::builder()
            .header("host", "localhost")
            .header("x-request-id", "panicking")
            .body(Body::empty())
            .unwrap();
        let response = gate.pass(face, &POLICY, request, |_| async { panic!("a secret cause") }).await;
        assert_eq!(response.headers()["x-request-id"], "panicking");
        if face == gate::Face::Grpc {
            let status = tonic::Status::from_header_map(response.headers()).unwrap();
            assert_eq!(status.code(), Code::Internal);
            assert_eq!(status.get_error_details().error_info().unwrap().reason, "INTERNAL");
            assert!(!status.message().contains("secret"), "{status:?}");
        } else {
            assert_eq!(response.status(), 500);
            let body = axum::body::to_bytes(response.into_body(), 1000).await.unwrap();
            let answer: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(answer, json!({ "error": "Internal server error", "detail": "An unexpected error occurred" }));
        }
    }
    service.user("user@example.com").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_takes_too_long_is_cut_off() {
    static POLICY: Policy = Policy { deadline: std::time::Duration::from_millis(20), ..Policy::probe("Slow") };
    let service = Service::start(Store::Sqlite).await;
    let gate = Gate::new(service.app.clone());
    let request = Request::builder().header("host", "localhost").body(Body::empty()).unwrap();
    let response = gate.pass(gate::Face::Rest, &POLICY, request, |_| std::future::pending()).await;
    assert_eq!(response.status(), 504);
    let body = axum::body::to_bytes(response.into_body(), 1000).await.unwrap();
    assert_eq!(body, r#"{"error":"The deadline passed"}"#);
    service.stop().await;
}

/// An installation that logs as JSON, at this level.
pub fn logging(level: &str) -> Installation {
    Installation::with(&[("LOG_LEVEL", level), ("LOG_FORMAT", "json")])
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_leaves_one_line_that_says_how_it_ended() {
    let installation = logging("info");
    let program = installation.serve().await;
    let mut user = program.anonymous();
    let account = json!({ "email": "user@example.com", "password": PASSWORD });
    let registered = user.call(Face::Rest, "AuthService.Register", account.clone()).await.expect(201);
    user.take_tokens(&registered);
    let id = registered["id"].as_i64().unwrap();
    let anonymous = program.anonymous();
    let mut made = Vec::new();
    let wrong = json!({ "email": "user@example.com", "password": "wrong" });
    for (face, outcomes) in [
        (Face::Rest, ["200 OK", "401 Unauthorized", "401 Unauthorized", "404 Not Found"]),
        (Face::Grpc, ["Ok", "Unauthenticated", "Unauthenticated", "NotFound"]),
    ] {
        for ((actor, rpc, fields, user_id), outcome) in [
            (&user, "ProfileService.GetMyProfile", json!({}), Some(id)),
            (&anonymous, "ProfileService.GetMyProfile", json!({}), None),
            (&anonymous, "AuthService.Login", wrong.clone(), None),
            (&user, "UserService.GetUser", json!({ "id": 999 }), Some(id)),
        ]
        .into_iter()
        .zip(outcomes)
        {
            let told = actor.call(face, rpc, fields).await;
            made.push((told.request_id.unwrap(), rpc, face, user_id, outcome));
        }
    }
    let log = program.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (request_id, rpc, face, user_id, outcome) in made {
        let of_call: Vec<_> = lines.iter().filter(|line| line["span"]["request_id"] == request_id).collect();
        let [line] = of_call.as_slice() else { panic!("one line for {rpc} by {face:?}: {of_call:?}") };
        assert_eq!(line["span"]["rpc"], rpc);
        assert_eq!(line["face"], format!("{face:?}"), "{line}");
        assert_eq!(line["user_id"].as_i64(), user_id, "{line}");
        assert_eq!(line["client"], "127.0.0.1", "{line}");
        assert!(line["took_us"].is_u64(), "{line}");
        let shown = line["outcome"].as_str().unwrap();
        assert!(shown == outcome || outcome.starts_with(shown), "{line}: {outcome} expected");
        assert_eq!(line["level"], "INFO", "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_client_goes_away_leaves_its_line_too() {
    let mut installation = logging("info");
    // A hash that takes its time, for the client to lose patience.
    installation.set("ARGON2_MEMORY_KIB", "262144");
    installation.set("ARGON2_ITERATIONS", "4");
    let program = installation.serve().await;
    let actor = program.anonymous();
    let login = pb::LoginRequest { email: Some("nobody@example.com".into()), password: Some(PASSWORD.into()) };
    let mut request = tonic::Request::new(login.encode_to_vec());
    request.metadata_mut().insert("x-request-id", "gone".parse().unwrap());
    let call = actor.send_grpc("/identity.v1.AuthService/Login", request);
    assert!(tokio::time::timeout(std::time::Duration::from_millis(150), call).await.is_err(), "it should take longer");
    let line = wait_for(std::time::Duration::from_secs(2), "a line of the call", async || {
        let log = program.log();
        let mut lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.find(|line| line["span"]["request_id"] == "gone")
    })
    .await;
    assert_eq!((&line["span"]["rpc"], &line["outcome"]), (&json!("AuthService.Login"), &json!("Cancelled")));
}
