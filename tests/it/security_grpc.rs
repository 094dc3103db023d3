//! gRPC, as an attacker speaks it: long messages, long waits, and metadata that would be somebody.
//! The lines are those of `docs/security.md`.

use std::time::Duration;

use identity::pb;
use prost::Message;
use prost_reflect::Value;
use tonic::{Code, Request};

use crate::{
    grpc::{LOGIN, assert_told, refusal},
    harness::{
        PASSWORD, Service, Store,
        actor::{method, outcome_of_status},
        on_each_store,
    },
    rest_parity::rpcs,
};

const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// Line 53.
#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_take_no_more_than_64_kibibytes() {
    let service = Service::start(Store::Sqlite).await;
    for path in ["/grpc.health.v1.Health/Check", REFLECTION] {
        // Field 1, a string in both, and field 7: the services are to be listed, which reflection would do.
        let mut message = vec![0x0a];
        prost::encoding::encode_varint(70_000, &mut message);
        message.extend(vec![b'x'; 70_000]);
        message.extend(b"\x3a\x00");
        let answered = service.anonymous().call_grpc_raw(path, message).await;
        // Health says NOT_FOUND if it reads the message, and reflection answers.
        assert!(answered.as_ref().is_err_and(|status| status.code() != Code::NotFound), "{path}: {answered:?}");
    }
    service.stop().await;
}

/// Line 53.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_nobody_ends_is_ended() {
    let service = Service::start(Store::Sqlite).await;
    let mut answers = service.anonymous().leave_open(REFLECTION, b"\x3a\x00".to_vec()).await;
    assert!(answers.message().await.unwrap().is_some());
    let ended = tokio::time::timeout(Duration::from_secs(20), answers.message()).await.expect("an end within 15 s");
    assert!(!matches!(ended, Ok(Some(_))), "{ended:?}");
    service.stop().await;
}

/// Line 53.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_beyond_the_limit_is_too_large() {
    let service = Service::start(Store::Sqlite).await;
    let login = |length: usize| pb::LoginRequest { email: Some("x".repeat(length)), password: None }.encode_to_vec();
    // One byte for the field's number and three for its length.
    let status = service.anonymous().call_grpc_raw(LOGIN, login(65_536 - 4)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let status = service.anonymous().call_grpc_raw(LOGIN, login(65_536 - 3)).await.unwrap_err();
    assert_told(&status, Code::OutOfRange, "TOO_LARGE");
    service.stop().await;
}

/// Line 53.
#[tokio::test(flavor = "multi_thread")]
async fn the_callers_deadline_holds_where_it_is_shorter() {
    let service = Service::start(Store::Sqlite).await;
    let login = pb::LoginRequest { email: Some("nobody@example.com".into()), password: Some(PASSWORD.into()) };
    let login = login.encode_to_vec();
    // A hash takes longer than any of these.
    for timeout in ["1m", "100u", "1n", "0S"] {
        let (status, _) = refusal(&service, ("grpc-timeout", timeout), 0, &login).await;
        assert_told(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    }
    // What is no timeout is none, and a long one doesn't overflow.
    for timeout in ["99999999H", "1", "m", "-1m", "123456789m", "1x", "1 m"] {
        let (status, _) = refusal(&service, ("grpc-timeout", timeout), 0, &login).await;
        assert_eq!(status.code(), Code::NotFound, "{timeout}");
    }
    service.stop().await;
}

/// Line 53.
#[tokio::test(flavor = "multi_thread")]
async fn no_header_names_an_identity() {
    let service = Service::start(Store::Sqlite).await;
    let (admin, user) = (service.admin("admin@example.com").await, service.user("user@example.com").await);
    for name in
        ["x-user-id", "user_id", "user-id", "x-identity", "caller", "x-forwarded-user", "x-session-id", "cookie"]
    {
        for value in ["1", "admin@example.com", admin.access_token.as_deref().unwrap()] {
            let mut request = Request::new(Vec::new());
            request.metadata_mut().insert(name, value.parse().unwrap());
            let path = "/identity.v1.ProfileService/GetMyProfile";
            let status = service.anonymous().send_grpc(path, request).await.unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{name}: {value}");
            let request = user.request(reqwest::Method::GET, "/api/profile/me/").header(name, value);
            let answer: serde_json::Value = request.send().await.unwrap().json().await.unwrap();
            assert_eq!(answer["user"]["email"], "user@example.com", "{name}: {value}");
        }
    }
    service.stop().await;
}

/// Line 53.
#[tokio::test(flavor = "multi_thread")]
async fn two_tokens_at_once_are_none() {
    let service = Service::start(Store::Sqlite).await;
    let user = service.user("user@example.com").await;
    let bearer = format!("Bearer {}", user.access_token.as_deref().unwrap());
    let mut request = Request::new(Vec::new());
    request.metadata_mut().append("authorization", bearer.parse().unwrap());
    request.metadata_mut().append("authorization", bearer.parse().unwrap());
    let status = user.send_grpc("/identity.v1.ProfileService/GetMyProfile", request).await.unwrap_err();
    assert_eq!(outcome_of_status(&status).status, 401);
    let response = user.request(reqwest::Method::GET, "/api/profile/me/").header("authorization", bearer);
    assert_eq!(response.send().await.unwrap().status(), 401);
    service.stop().await;
}

/// Line 53.
#[tokio::test(flavor = "multi_thread")]
async fn no_rpc_but_the_upload_takes_more_than_64_kibibytes() {
    on_each_store(async |service| {
        let admin = service.admin("admin@example.com").await;
        // A field that nobody knows, and that would be skipped.
        let long = [&[0xfa, 0x7f, 0xf0, 0xa2, 0x04][..], &vec![0; 70_000]].concat();
        for rpc in rpcs() {
            let descriptor = method(rpc);
            let path = format!("/{}/{}", descriptor.parent_service().full_name(), descriptor.name());
            let told = admin.call_grpc_raw(&path, long.clone()).await;
            if rpc == "ProfileService.UpdateMyProfile" {
                told.unwrap();
            } else {
                assert_told(&told.unwrap_err(), Code::OutOfRange, "TOO_LARGE");
            }
        }
    })
    .await;
}

/// Line 53.
#[test]
fn no_rpc_has_a_deadline_beyond_fifteen_seconds() {
    for rpc in rpcs() {
        let method = method(rpc);
        let policy = method.parent_pool().get_extension_by_name("identity.v1.policy").unwrap();
        let policy = method.options().get_extension(&policy).as_message().cloned().unwrap();
        let deadline = policy.get_field_by_name("deadline_ms").unwrap().into_owned();
        // Without a word on it they have the 15 s of `build/contract.rs`.
        assert!(matches!(deadline, Value::I32(0..=15_000)), "{rpc}: {deadline:?}");
    }
    let contract = std::fs::read_to_string("build/contract.rs").unwrap();
    assert!(contract.contains("DEFAULT_DEADLINE_MS: u32 = 15_000;"));
}

/// Line 52. What reflection doesn't know it says in a trailer, behind an answer that began.
#[tokio::test(flavor = "multi_thread")]
async fn reflection_repeats_nothing_of_what_it_was_asked() {
    let service = Service::start(Store::Sqlite).await;
    for version in ["v1", "v1alpha"] {
        let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        // Fields 3 and 4: a file, a symbol. Field 5: an extension, of which there is none.
        for (message, code, reason) in [
            (&b"\x1a\x04evil"[..], Code::NotFound, "NAME_NOT_FOUND"),
            (b"\x22\x04evil", Code::NotFound, "NAME_NOT_FOUND"),
            (b"\x2a\x06\x0a\x04evil", Code::NotFound, "NAME_NOT_FOUND"),
            (b"", Code::InvalidArgument, "MALFORMED"),
        ] {
            let status = service.anonymous().call_grpc_raw(&path, message.to_vec()).await.unwrap_err();
            assert_told(&status, code, reason);
            for word in ["evil", "symbol", "file", "extensions", "MessageRequest"] {
                assert!(!status.message().contains(word), "{path}: {}", status.message());
            }
        }
    }
    service.stop().await;
}
