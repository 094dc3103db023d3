//! gRPC as a client sees it: reflection, health, status codes and their details, limits of size and time.

use std::{
    env,
    path::Path,
    process::{Command, Output, Stdio},
};

use futures_util::{StreamExt, stream};
use identity::pb;
use prost::Message;
use serde_json::json;
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_types::StatusExt;

use crate::{
    harness::{Actor, Face, PASSWORD, Service, Store, actor::outcome_of_status, python, skip, stores::setting},
    rest_parity::rpcs,
};

pub const LOGIN: &str = "/identity.v1.AuthService/Login";

/// What a client finds by reflection.
const SERVICES: [&str; 8] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "identity.v1.AuditService",
    "identity.v1.AuthService",
    "identity.v1.ProfileService",
    "identity.v1.RoleService",
    "identity.v1.UserService",
];

macro_rules! reflected_services {
    ($version:ident, $actor:expr) => {{
        use tonic_reflection::pb::$version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let ask = |what| ServerReflectionRequest { host: String::new(), message_request: Some(what) };
        let questions = vec![
            ask(MessageRequest::ListServices(String::new())),
            ask(MessageRequest::FileContainingSymbol("identity.v1.AuthService".into())),
        ];
        let mut client = ServerReflectionClient::new($actor.channel.clone());
        let answers = client.server_reflection_info(stream::iter(questions)).await.unwrap().into_inner();
        let answers: Vec<_> = answers.map(|answer| answer.unwrap().message_response.unwrap()).collect().await;
        let [MessageResponse::ListServicesResponse(services), MessageResponse::FileDescriptorResponse(files)] =
            answers.as_slice()
        else {
            panic!("{answers:?}")
        };
        assert!(!files.file_descriptor_proto.is_empty());
        services.service.iter().map(|service| service.name.clone()).collect::<Vec<_>>()
    }};
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_of_reflection_tell_of_every_service() {
    let service = Service::start(Store::Sqlite).await;
    let actor = service.anonymous();
    for mut found in [reflected_services!(v1, actor), reflected_services!(v1alpha, actor)] {
        found.sort();
        for name in SERVICES.iter().filter(|name| !name.starts_with("grpc.reflection")) {
            assert!(found.iter().any(|f| f == name), "{name} is not among {found:?}");
        }
        assert!(found.iter().all(|f| SERVICES.contains(&f.as_str())), "{found:?}");
    }
    service.stop().await;
}

/// Runs a program that calls the service, while the service goes on.
async fn run(command: &mut Command) -> Output {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    tokio::task::spawn_blocking(move || command.wait_with_output().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_readme_list_describe_and_call() {
    let Some(python) = python() else { return };
    let program = Path::new(&python).with_file_name("grpcurl");
    if !Command::new(&program).arg("--version").output().is_ok_and(|run| run.status.success()) {
        return skip(&format!("no {} that runs here; `scripts/test` makes one for x86-64", program.display()));
    }
    let path = setting("PATH").unwrap_or_default();
    let service = Service::start(Store::Sqlite).await;
    let user = service.user("user@example.com").await;
    let folders = env::join_paths(program.parent().map(Path::to_owned).into_iter().chain(env::split_paths(&path)));
    let readme = include_str!("../../README.md").lines().filter(|line| line.starts_with("grpcurl "));
    let mut printed = Vec::new();
    for command in readme {
        let here = command.replace("localhost:8000", &service.address.to_string());
        assert_ne!(here, command, "it calls somebody else");
        let mut bash = Command::new("bash");
        bash.args(["-c", &here])
            .env("PATH", folders.as_ref().unwrap())
            .env("TOKEN", user.access_token.as_ref().unwrap());
        let run = run(&mut bash).await;
        assert!(run.status.success(), "{command}: {}", String::from_utf8_lossy(&run.stderr));
        printed.push(String::from_utf8(run.stdout).unwrap());
    }
    let [listed, described, answer] = printed.as_slice() else { panic!("three commands: {printed:?}") };
    assert_eq!(listed.lines().filter(|name| SERVICES.contains(name)).count(), listed.lines().count(), "{listed}");
    assert!(SERVICES.iter().filter(|name| name.starts_with("identity.")).all(|name| listed.contains(name)), "{listed}");
    assert!(described.contains("rpc Login ( .identity.v1.LoginRequest )"), "{described}");
    let answer: serde_json::Value = serde_json::from_str(answer).unwrap();
    assert_eq!(answer["user"]["email"], "user@example.com");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_in_python_learns_the_contract_by_reflection_and_calls_it() {
    let Some(python) = python() else { return };
    let service = Service::start(Store::Sqlite).await;
    service.user("user@example.com").await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/reflection_client.py");
    let arguments = [script, &service.address.to_string(), "user@example.com", PASSWORD];
    let run = run(Command::new(python).args(arguments)).await;
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let told: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(told["profile"]["user"]["email"], "user@example.com");
    assert_eq!(told["services"].as_array().unwrap().len(), 5);
    assert_eq!(told["without_token"], "UNAUTHENTICATED");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_service_knows_every_service() {
    let service = Service::start(Store::Sqlite).await;
    let mut client = HealthClient::new(service.anonymous().channel);
    for name in [
        "",
        "identity.v1.AuthService",
        "identity.v1.UserService",
        "identity.v1.ProfileService",
        "identity.v1.RoleService",
        "identity.v1.AuditService",
    ] {
        let answer = client.check(HealthCheckRequest { service: name.into() }).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{name:?}");
    }
    let status = client.check(HealthCheckRequest { service: "identity.v1.Nothing".into() }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    service.stop().await;
}

#[track_caller]
pub fn assert_told(status: &Status, code: Code, reason: &str) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("there is no ErrorInfo: {status:?}"));
    assert_eq!(
        (status.code(), info.reason.as_str(), info.domain.as_str()),
        (code, reason, "identity.v1"),
        "{status:?}"
    );
    assert!(status.metadata().contains_key("x-request-id"), "{status:?}");
    assert!(!status.message().is_empty(), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_rpc_that_there_is_not_is_unimplemented() {
    let service = Service::start(Store::Sqlite).await;
    let user = service.user("user@example.com").await;
    let paths = [
        "/identity.v1.AuthService/Nothing",
        "/identity.v1.AuthService/login",
        "/identity.v1.NothingService/Login",
        "/identity.v2.AuthService/Login",
        "/nothing.at.All/Login",
        "/Login",
        "/identity.v1.AuthService/Login/",
        "//identity.v1.AuthService/Login",
    ];
    for path in paths {
        let status = user.call_grpc_raw(path, Vec::new()).await.unwrap_err();
        assert_told(&status, Code::Unimplemented, "UNKNOWN_RPC");
        assert_eq!(status.message(), "There is no such rpc", "{path}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_can_not_be_decoded_is_the_callers_fault() {
    let service = Service::start(Store::Sqlite).await;
    let not_utf8 = b"\x0a\x02\xff\xfe".to_vec();
    let cut_short = b"\x0a\x7f".to_vec();
    let wrong_type = b"\x08\x01".to_vec();
    for bytes in [not_utf8, cut_short, wrong_type, b"\xff".to_vec()] {
        let status = service.anonymous().call_grpc_raw(LOGIN, bytes.clone()).await.unwrap_err();
        assert_told(&status, Code::InvalidArgument, "MALFORMED");
        assert_eq!(status.message(), "The request message can't be decoded", "{bytes:?}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_has_a_reason_for_programs() {
    let service = Service::start_with(Store::Sqlite, &[("RATE_LIMIT_LOGIN", "1/15m")]).await;
    let user = service.user("user@example.com").await;
    let call = async |actor: &Actor, rpc: &str, fields| actor.call(Face::Grpc, rpc, fields).await;
    let wrong = json!({ "email": "user@example.com", "password": "wrong" });
    let taken = json!({ "email": "user@example.com", "password": PASSWORD });
    let nobody = json!({ "email": "nobody@example.com", "password": PASSWORD });
    let anonymous = service.anonymous();
    let outcomes = [
        (call(&anonymous, "AuthService.Login", json!({})).await, 422, "REQUIRED"),
        (call(&anonymous, "AuthService.Login", json!({ "email": "x", "password": "x" })).await, 400, "INVALID"),
        (call(&anonymous, "AuthService.Register", taken).await, 400, "EMAIL_TAKEN"),
        (call(&anonymous, "AuthService.Login", nobody).await, 404, "USER_NOT_FOUND"),
        (call(&anonymous, "AuthService.Login", wrong.clone()).await, 401, "INVALID_CREDENTIALS"),
        (call(&anonymous, "AuthService.Login", wrong).await, 429, "THROTTLED"),
        (call(&anonymous, "AuthService.Logout", json!({})).await, 401, "TOKEN_MISSING"),
        (call(&anonymous.with_token("x"), "AuthService.Logout", json!({})).await, 401, "TOKEN_INVALID"),
        (call(&user, "UserService.CreateUser", json!({})).await, 403, "PERMISSION_DENIED"),
        (call(&user, "UserService.GetUser", json!({ "id": 999 })).await, 404, "USER_NOT_FOUND"),
        (call(&user, "ProfileService.GetProfile", json!({ "user_id": 999 })).await, 404, "PROFILE_NOT_FOUND"),
    ];
    for (outcome, status, reason) in outcomes {
        assert_eq!((outcome.status, outcome.reason.as_deref()), (status, Some(reason)), "{outcome:?}");
        assert!(outcome.request_id.is_some(), "{outcome:?}");
        let retry = outcome.retry_after.is_some_and(|secs| (1..=900).contains(&secs));
        assert_eq!(retry, status == 429, "RetryInfo comes with the limits: {outcome:?}");
    }
    call(&user, "AuthService.Logout", json!({})).await.expect(200);
    assert_eq!(call(&user, "AuthService.Logout", json!({})).await.reason.as_deref(), Some("SESSION_ENDED"));
    let late = service.user("late@example.com").await;
    service.clock.advance(chrono::Duration::hours(2));
    assert_eq!(call(&late, "AuthService.Logout", json!({})).await.reason.as_deref(), Some("TOKEN_EXPIRED"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_field_is_told_with_a_reason_of_its_own() {
    let service = Service::start(Store::Sqlite).await;
    let register = pb::RegisterRequest { email: Some("x".into()), ..Default::default() }.encode_to_vec();
    let status = service.anonymous().call_grpc_raw("/identity.v1.AuthService/Register", register).await.unwrap_err();
    let details = status.get_error_details();
    let violations: Vec<_> = details
        .bad_request()
        .unwrap()
        .field_violations
        .iter()
        .map(|v| (v.field.as_str(), v.reason.as_str(), v.description.as_str()))
        .collect();
    assert_eq!(
        violations,
        [("email", "INVALID", "Enter a valid email address."), ("password", "REQUIRED", "This field is required.")]
    );
    service.stop().await;
}

/// The refusal of a login that is framed by hand: tonic's client would act on these headers itself.
pub async fn refusal(service: &Service, header: (&str, &str), flag: u8, message: &[u8]) -> (Status, http::HeaderMap) {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let request = client.post(format!("http://{}{LOGIN}", service.address)).header("content-type", "application/grpc");
    let request = request.header("te", "trailers").header(header.0, header.1);
    let response = request.body([&[flag], &length[..], message].concat()).send().await.unwrap();
    let status = Status::from_header_map(response.headers()).expect("a refusal comes without a body");
    (status, response.headers().clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_message_is_refused_with_what_is_taken() {
    let service = Service::start(Store::Sqlite).await;
    let (status, headers) = refusal(&service, ("grpc-encoding", "gzip"), 1, b"").await;
    assert_told(&status, Code::Unimplemented, "UNKNOWN_ENCODING");
    assert_eq!(headers["grpc-accept-encoding"], "identity");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_grpc_is_turned_away_from_its_paths() {
    let service = Service::start(Store::Sqlite).await;
    let url = format!("http://{}{LOGIN}", service.address);
    let http1 = reqwest::Client::new();
    let http2 = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let json = |client: &reqwest::Client| client.post(&url).header("content-type", "application/json").body("{}");
    let grpc_over_http1 = http1.post(&url).header("content-type", "application/grpc").body(vec![0; 5]);
    let get_web = http1.get(&url).header("content-type", "application/grpc-web");
    for request in [http1.get(&url), http2.get(&url), json(&http1), json(&http2), grpc_over_http1, get_web] {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 415, "{response:?}");
        assert!(response.headers().contains_key("x-request-id"), "{response:?}");
        assert_eq!(
            response.text().await.unwrap(),
            r#"{"error":"Unsupported media type: this is a path of gRPC over HTTP/2, and of gRPC-Web"}"#
        );
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_message_breaks_no_rpc() {
    let service = Service::start(Store::Sqlite).await;
    for rpc in rpcs().iter().filter(|rpc| *rpc != "AuthService.Logout") {
        let admin = service.admin(&format!("{}@example.com", rpc.to_lowercase())).await;
        let path = format!("/identity.v1.{}", rpc.replace('.', "/"));
        if let Err(status) = admin.call_grpc_raw(&path, Vec::new()).await {
            let outcome = outcome_of_status(&status);
            assert!(outcome.status < 500, "{rpc}: {outcome:?}");
            assert!(outcome.reason.is_some(), "{rpc}: {outcome:?}");
        }
    }
    service.stop().await;
}
