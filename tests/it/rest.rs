//! REST as HTTP sees it: bodies, media types, methods, paths, headers. What the rpcs mean stands with their subjects.

use std::net::SocketAddr;

use reqwest::{Method, StatusCode, header, multipart};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    harness::{
        Actor, PASSWORD, Service, Store,
        actor::{outcome_of, route},
    },
    rest_parity::rest_routes,
};

pub const LOGIN: &str = "/api/auth/login/";
const MY_PROFILE: &str = "/api/profile/me/";
/// The longest body of a route that says nothing of it.
pub const MAX_BYTES: usize = 65_536;

/// Words of the libraries that read a request. None of them is ours to say.
const FOREIGN_WORDS: [&str; 10] =
    ["serde", "expected", "EOF", "trailing", "hyper", "tonic", "multer", "axum", "invalid type", "stream"];

pub async fn post(actor: &Actor, path: &str, body: impl Into<reqwest::Body>) -> crate::harness::actor::Outcome {
    let request = actor.request(Method::POST, path).header(header::CONTENT_TYPE, "application/json").body(body);
    outcome_of(request.send().await.unwrap()).await
}

pub fn nested(depth: usize) -> String {
    // The object itself is the first level.
    format!("{{\"x\": {}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_not_json_is_malformed() {
    let service = Service::start(Store::Sqlite).await;
    let anonymous = service.anonymous();
    let too_deep = nested(33);
    let bodies: [&[u8]; 17] = [
        b"{",
        b"{\"email\":}",
        b"{\"email\": \"a\",}",
        b"{'email': 'a'}",
        b"{\"email\": NaN}",
        b"{\"email\": \"\xff\"}",
        b"{\"x\": \"\xc3\"}",
        b"{\"email\": \"\x01\"}",
        b"{} {}",
        b"[]",
        b"[{\"email\": \"a\"}]",
        b"\"email\"",
        b"null",
        b"1",
        b"\xef\xbb\xbf{}",
        b"e=mail",
        too_deep.as_bytes(),
    ];
    for body in bodies {
        let shown = String::from_utf8_lossy(body).into_owned();
        let outcome = post(&anonymous, LOGIN, body.to_vec()).await;
        assert_eq!(outcome.status, 400, "{shown}: {outcome:?}");
        let answer: Value = serde_json::from_str(&outcome.text).unwrap();
        assert_eq!(answer["error"], "Malformed request", "{shown}");
        assert!(answer["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{shown}: {answer}");
        assert_eq!(answer.as_object().unwrap().len(), 2, "{shown}: {answer}");
        for word in FOREIGN_WORDS {
            assert!(!outcome.text.contains(word), "{shown}: {}", outcome.text);
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_body_is_no_fields() {
    let service = Service::start(Store::Sqlite).await;
    for body in ["", "{}", " \r\n\t "] {
        let outcome = post(&service.anonymous(), LOGIN, body).await;
        assert_eq!(outcome.status, 422, "{body:?}: {outcome:?}");
        let answer: Value = serde_json::from_str(&outcome.text).unwrap();
        let required = json!(["This field is required."]);
        assert_eq!(answer, json!({ "email": required, "password": required }), "{body:?}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_mean_nothing_are_ignored() {
    let service = Service::start(Store::Sqlite).await;
    service.user("user@example.com").await;
    let login = json!({
        "email": "user@example.com", "password": PASSWORD, "remember_me": true, "": null, "user": {"id": 1}, "Email": 5,
    });
    assert_eq!(post(&service.anonymous(), LOGIN, login.to_string()).await.status, 200);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_a_wrong_type_is_named_at_once() {
    let service = Service::start(Store::Sqlite).await;
    let user = service.user("user@example.com").await;
    let wrong = json!({ "bio": 5, "is_public": "yes", "timezone": ["UTC"], "streak_visibility": 1, "avatar": "a.png" });
    let outcome = user.call(crate::harness::Face::Rest, "ProfileService.UpdateMyProfile", wrong).await;
    assert_eq!(outcome.status, 400);
    assert_eq!(
        serde_json::from_str::<Value>(&outcome.text).unwrap(),
        json!({
            "bio": ["Not a valid string."],
            "is_public": ["Must be a valid boolean."],
            "timezone": ["Not a valid string."],
            "streak_visibility": ["Must be a valid boolean."],
            "avatar": ["The submitted data was not a file. Check the encoding type on the form."],
        })
    );
    let outcome = post(&service.anonymous(), LOGIN, r#"{"email": 5, "password": null}"#).await;
    assert_eq!(outcome.status, 400);
    assert_eq!(outcome.fields["email"], ["Not a valid string."]);
    assert_eq!(outcome.fields["password"], ["This field may not be null."]);
    // One that is missing outranks one that is wrong; both are told.
    let outcome = post(&service.anonymous(), LOGIN, r#"{"email": 5}"#).await;
    assert_eq!(outcome.status, 422);
    assert_eq!(outcome.fields["email"], ["Not a valid string."]);
    assert_eq!(outcome.fields["password"], ["This field is required."]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_surrogate_is_no_string() {
    let service = Service::start(Store::Sqlite).await;
    let outcome = post(&service.anonymous(), LOGIN, r#"{"email": "\ud800", "password": "x"}"#).await;
    assert_eq!(outcome.expect_field(400, "email"), ["Not a valid string."]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_media_types_of_the_route_are_taken() {
    let service = Service::start(Store::Sqlite).await;
    let user = service.user("user@example.com").await;
    let send = async |method: Method, path: &str, media_type: Option<&str>, body: &str| {
        let mut request = user.request(method, path).body(body.to_owned());
        if let Some(media_type) = media_type {
            request = request.header(header::CONTENT_TYPE, media_type);
        }
        outcome_of(request.send().await.unwrap()).await
    };
    let taken =
        ["application/json", "Application/JSON", "application/json; charset=utf-8", " application/json ;charset=utf-8"];
    for media_type in taken {
        assert_eq!(send(Method::POST, LOGIN, Some(media_type), "{}").await.status, 422, "{media_type}");
    }
    let refused = [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
        Some("application/problem+json"),
        Some("application/jsonp"),
        Some("multipart/form-data; boundary=x"),
        Some("application/grpc-json"),
        Some(";"),
    ];
    for media_type in refused {
        let outcome = send(Method::POST, LOGIN, media_type, "{}").await;
        assert_eq!(outcome.status, 415, "{media_type:?}: {outcome:?}");
        assert_eq!(outcome.text, r#"{"error":"Unsupported media type: send application/json"}"#);
    }
    // A form without its boundary can't be read.
    let outcome = send(Method::PATCH, MY_PROFILE, Some("multipart/form-data"), "{}").await;
    assert_eq!(outcome.status, 415, "{outcome:?}");
    let told = "Unsupported media type: send application/json or multipart/form-data with its boundary";
    assert_eq!(outcome.text, json!({ "error": told }).to_string());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_ends_early_changes_nothing_and_breaks_nothing() {
    let service = Service::start(Store::Sqlite).await;
    let account = json!({ "email": "early@example.com", "password": PASSWORD }).to_string();
    let cut = &account[..account.len() - 1];
    let request = format!(
        "POST /api/auth/register/ HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{cut}",
        account.len()
    );
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(post(&service.anonymous(), "/api/auth/register/", account).await.status, 201);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_changes_a_profile_as_json_does() {
    let service = Service::start(Store::Sqlite).await;
    let user = service.user("user@example.com").await;
    let form = multipart::Form::new()
        .text("bio", "Line one\r\nLine two")
        .text("is_public", "false")
        .text("timezone", "europe/moscow")
        .text("something_else", "ignored");
    let outcome = send_form(&user, form).await;
    assert_eq!(outcome.status, 200, "{outcome:?}");
    let profile = user.call(crate::harness::Face::Grpc, "ProfileService.GetMyProfile", json!({})).await.expect(200);
    assert_eq!(profile["bio"], "Line one\r\nLine two");
    assert_eq!(profile["is_public"], false);
    assert_eq!(profile["timezone"], "Europe/Moscow");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_is_held_to_the_same_rules_as_json() {
    let service = Service::start(Store::Sqlite).await;
    let user = service.user("user@example.com").await;
    let long = "x".repeat(1001);
    let form =
        multipart::Form::new().text("bio", long.clone()).text("timezone", "Nowhere/Land").text("is_public", "maybe");
    let by_form = send_form(&user, form).await;
    let fields = json!({ "bio": long, "timezone": "Nowhere/Land", "is_public": "maybe" });
    let by_json = user.call(crate::harness::Face::Rest, "ProfileService.UpdateMyProfile", fields).await;
    assert_eq!(by_form.status, 400);
    assert_eq!(by_form.fields, by_json.fields);
    assert_eq!(by_form.fields.len(), 3);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_not_utf_8_is_a_fault_of_its_field() {
    let service = Service::start(Store::Sqlite).await;
    let user = service.user("user@example.com").await;
    let form = multipart::Form::new().part("bio", multipart::Part::bytes(b"\xff\xfe".to_vec()));
    assert_eq!(send_form(&user, form).await.expect_field(400, "bio"), ["Not valid UTF-8."]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_form_is_malformed() {
    let service = Service::start(Store::Sqlite).await;
    let user = service.user("user@example.com").await;
    let part = |name: &str| format!("--x\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\nvalue\r\n");
    let broken = [
        String::new(),
        "nothing like a form".into(),
        part("bio"),                                        // never closed
        format!("{}{}--x--\r\n", part("bio"), part("bio")), // twice
        "--x\r\ncontent-disposition: form-data; name=\"bio\"\r\n".into(),
        "--x\r\n\0\0\r\n\r\nvalue\r\n--x--\r\n".into(),
    ];
    for body in broken {
        let request = user.request(Method::PATCH, MY_PROFILE).body(body.clone());
        let request = request.header(header::CONTENT_TYPE, "multipart/form-data; boundary=x");
        let outcome = outcome_of(request.send().await.unwrap()).await;
        assert_eq!(outcome.status, 400, "{body:?}: {outcome:?}");
        assert!(outcome.text.contains("Malformed request"), "{body:?}: {}", outcome.text);
        for word in FOREIGN_WORDS {
            assert!(!outcome.text.contains(word), "{body:?}: {}", outcome.text);
        }
    }
    service.stop().await;
}

async fn send_form(actor: &Actor, form: multipart::Form) -> crate::harness::actor::Outcome {
    outcome_of(actor.request(Method::PATCH, MY_PROFILE).multipart(form).send().await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn logout_needs_neither_body_nor_media_type() {
    let service = Service::start(Store::Sqlite).await;
    let bodies: [(Option<&str>, &str); 4] =
        [(None, ""), (None, "not json"), (Some("text/plain"), "{"), (Some("application/json"), "{{{")];
    for (n, (media_type, body)) in bodies.into_iter().enumerate() {
        let user = service.user(&format!("user{n}@example.com")).await;
        let mut request = user.request(Method::POST, "/api/auth/logout/").body(body);
        if let Some(media_type) = media_type {
            request = request.header(header::CONTENT_TYPE, media_type);
        }
        let outcome = outcome_of(request.send().await.unwrap()).await;
        assert_eq!(outcome.expect(200), json!({ "message": "Successfully logged out" }), "{media_type:?} {body:?}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slash_at_the_end_of_a_path_may_be_left_out() {
    let service = Service::start(Store::Sqlite).await;
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let others = ["/api/health/", "/api/docs/"].map(|path| (Method::GET, path.to_owned()));
    for (method, path) in rest_routes().into_iter().map(|(_, method, path)| (method, path)).chain(others) {
        let status = async |path: &str| {
            let url = format!("http://{}{path}", service.address);
            client.request(method.clone(), url).send().await.unwrap().status()
        };
        let (with, without) = (status(&path).await, status(path.strip_suffix('/').unwrap()).await);
        assert_eq!(with, without, "{method} {path}");
        assert_ne!(with, StatusCode::NOT_FOUND, "{method} {path}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_a_path_does_not_know_is_refused_with_those_it_knows() {
    let service = Service::start(Store::Sqlite).await;
    let anonymous = service.anonymous();
    let others = ["/api/health/", "/api/openapi.json"].map(|path| ("", Method::GET, path.to_owned()));
    let routes: Vec<_> = rest_routes().into_iter().chain(others).collect();
    for (_, _, path) in &routes {
        let mut known: Vec<_> = routes.iter().filter(|(_, _, p)| p == path).map(|(_, m, _)| m.to_string()).collect();
        if known.contains(&"GET".to_owned()) {
            known.push("HEAD".into());
        }
        known.sort();
        for path in [path.as_str(), path.trim_end_matches('/')] {
            for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"] {
                if known.iter().any(|k| k == method) {
                    continue;
                }
                let response = anonymous.request(method.parse().unwrap(), path).send().await.unwrap();
                assert_eq!(response.status(), 405, "{method} {path}");
                let allow = response.headers()[header::ALLOW].to_str().unwrap().to_owned();
                let mut allowed: Vec<_> = allow.split(',').map(|m| m.trim().to_owned()).collect();
                allowed.sort();
                assert_eq!(allowed, known, "{method} {path}");
                assert!(response.headers().contains_key("x-request-id"), "{method} {path}");
                assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store", "{method} {path}");
                let body = response.text().await.unwrap();
                let expected = if method == "HEAD" { "" } else { r#"{"error":"Method not allowed"}"# };
                assert_eq!(body, expected, "{method} {path}");
            }
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn head_is_get_without_the_body() {
    let service = Service::start(Store::Sqlite).await;
    let user = service.user("user@example.com").await;
    for path in [MY_PROFILE, "/api/users/1/", "/api/users/999/", "/api/health/", "/api/openapi.json"] {
        let get = user.request(Method::GET, path).send().await.unwrap();
        let head = user.request(Method::HEAD, path).send().await.unwrap();
        assert_eq!(head.status(), get.status(), "{path}");
        for name in [header::CONTENT_TYPE, header::CONTENT_LENGTH, header::CACHE_CONTROL] {
            assert_eq!(head.headers().get(&name), get.headers().get(&name), "{path} {name}");
        }
        assert!(head.bytes().await.unwrap().is_empty(), "{path}");
        assert!(!get.bytes().await.unwrap().is_empty(), "{path}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_whose_name_is_no_text_is_not_found() {
    let service = Service::start(Store::Sqlite).await;
    for name in ["%ff", "%00", "x%2fy", "..%2f..%2fjwt.key", "%c3%28"] {
        let response =
            service.anonymous().request(Method::GET, &format!("/media/avatars/{name}")).send().await.unwrap();
        assert_eq!(response.status(), 404, "{name}");
        assert!(response.headers().contains_key("x-request-id"), "{name}");
        assert_eq!(response.text().await.unwrap(), r#"{"error":"Avatar not found"}"#, "{name}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encoded_letter_is_the_letter() {
    let service = Service::start(Store::Sqlite).await;
    let user = service.user("user@example.com").await;
    let response = user.request(Method::GET, "/api/users/%31/").send().await.unwrap();
    assert_eq!(outcome_of(response).await.expect(200)["id"], 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_api_is_stored_by_anyone_on_the_way() {
    let service = Service::start(Store::Sqlite).await;
    let admin = service.admin("admin@example.com").await;
    let others = ["/api/health/", "/api/openapi.json", "/api/docs/", "/api/nothing/"]
        .map(|path| ("", Method::GET, path.to_owned()));
    for (_, method, path) in rest_routes().into_iter().chain(others) {
        // The login of an admin lasts until the route that ends it.
        for actor in [&service.anonymous(), &admin] {
            if path.ends_with("/logout/") && actor.access_token.is_some() {
                continue;
            }
            let response = actor.request(method.clone(), &path).send().await.unwrap();
            let kind = response.headers().get(header::CONTENT_TYPE).map(|v| v.to_str().unwrap().to_owned());
            assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store", "{method} {path}");
            assert!(response.headers().contains_key("x-request-id"), "{method} {path}");
            assert!(!response.headers().contains_key(header::SERVER), "{method} {path}");
            if path != "/api/docs/" {
                assert_eq!(kind.as_deref(), Some("application/json"), "{method} {path}");
            }
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_route_breaks_whatever_comes() {
    let service = Service::start(Store::Sqlite).await;
    let admin = service.admin("admin@example.com").await;
    let bodies =
        ["{}", "{", "null", r#"{"email": {"$gt": ""}, "role": [], "token": 1, "id": 100000000000000000000000}"#];
    let queries =
        ["", "?", "?page=0&page=1", "?page=99999999999999999999&page_size=-1&is_verified=x&role=%00", "?%ff=%ff&=&&"];
    for (rpc, method, path) in rest_routes() {
        if rpc == "AuthService.Logout" {
            continue;
        }
        for (body, query) in bodies.iter().zip(queries).chain(bodies.iter().rev().zip(queries)) {
            for actor in [&service.anonymous(), &admin] {
                let request = actor.request(method.clone(), &format!("{path}{query}")).body(*body);
                let request = request.header(header::CONTENT_TYPE, "application/json");
                let outcome = outcome_of(request.send().await.unwrap()).await;
                assert!(outcome.status < 500, "{rpc} {query} {body}: {outcome:?}");
                if outcome.status >= 400 {
                    let answer: Value = serde_json::from_str(&outcome.text).unwrap();
                    assert!(answer.is_object(), "{rpc} {query} {body}: {answer}");
                }
            }
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_failed_authentication_says_which_scheme_is_wanted() {
    let service = Service::start(Store::Sqlite).await;
    service.user("user@example.com").await;
    let (_, path, _) = route("ProfileService.GetMyProfile").unwrap();
    let mut responses = vec![
        service.anonymous().request(Method::GET, &path).send().await.unwrap(),
        service.anonymous().with_token("nonsense").request(Method::GET, &path).send().await.unwrap(),
    ];
    let login = json!({ "email": "user@example.com", "password": "wrong" });
    responses.push(service.anonymous().request(Method::POST, LOGIN).json(&login).send().await.unwrap());
    for response in responses {
        assert_eq!(response.status(), 401);
        assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer");
        let answer: Value = response.json().await.unwrap();
        let keys: Vec<_> = answer.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["detail", "error"]);
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_without_tls_serves_the_same_routes() {
    let service = Service::start(Store::Sqlite).await;
    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let response = client.get(format!("http://{}/api/health/", service.address)).send().await.unwrap();
    assert_eq!((response.version(), response.status()), (reqwest::Version::HTTP_2, StatusCode::OK));
    let answer: Value = response.json().await.unwrap();
    assert_eq!(answer, json!({ "status": "ok", "database": "ok", "cache": "ok" }));
    service.stop().await;
}

/// Sends these very bytes, which no client would, and reads all that comes back.
pub async fn raw(address: SocketAddr, request: String) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let (mut read, mut write) = stream.split();
    let mut answer = Vec::new();
    // A refusal may come before the body is sent.
    let (_, received) = tokio::join!(write.write_all(request.as_bytes()), read.read_to_end(&mut answer));
    assert!(received.is_ok() || !answer.is_empty(), "{received:?}");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_a_great_many_fields_is_refused_at_once() {
    let service = Service::start(Store::all()[0]).await;
    let user = service.user("user@example.com").await;
    let started = std::time::Instant::now();
    let keys = (0..6000).map(|n| format!("\"{n}\":1,")).collect::<Vec<_>>().concat();
    let refused = post(&user, LOGIN, format!("{{{keys}\"email\":\"x\"}}")).await;
    assert_eq!(refused.status, 400);
    assert!(refused.text.contains("at most 256 keys"), "{refused:?}");

    let form = (0..300).fold(multipart::Form::new(), |form, n| form.text(format!("field{n}"), "x"));
    let refused = outcome_of(user.request(Method::PATCH, MY_PROFILE).multipart(form).send().await.unwrap()).await;
    assert_eq!(refused.status, 400);
    assert!(refused.text.contains("more than 256 parts"), "{refused:?}");

    // A form may be as large as a picture; JSON can't hold one.
    let json = format!("{{\"bio\":\"{}\"}}", "x".repeat(100_000));
    let request = user.request(Method::PATCH, MY_PROFILE).header(header::CONTENT_TYPE, "application/json").body(json);
    assert_eq!(request.send().await.unwrap().status(), 413);
    assert!(started.elapsed().as_millis() < 1000, "{:?}", started.elapsed());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_asks_for_nothing_is_closed_within_fifteen_seconds() {
    let service = Service::start(Store::all()[0]).await;
    let silent = [&b""[..], b"PRI * HT", b"GET /api/health/ HTTP/1.1\r\nhost: x\r\n"].map(async |beginning| {
        let mut socket = TcpStream::connect(service.address).await.unwrap();
        socket.write_all(beginning).await.unwrap();
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(std::time::Duration::from_secs(15), socket.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "{:?} is still open", String::from_utf8_lossy(beginning));
    });
    futures_util::future::join_all(silent).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_call_does_not_cost_its_connection() {
    let service = Service::start(Store::all()[0]).await;
    let mut socket = TcpStream::connect(service.address).await.unwrap();
    for _ in 0..20 {
        let body = format!("{{\"bio\":\"{}\"}}", "x".repeat(30_000));
        let head = format!("PATCH {MY_PROFILE} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        socket.write_all(head.as_bytes()).await.unwrap();
        socket.write_all(body.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let length = socket.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]);
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    }
    service.stop().await;
}
