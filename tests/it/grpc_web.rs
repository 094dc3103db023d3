//! gRPC-Web over HTTP/1.1, framed by hand as a browser's client frames it.

use base64::{Engine, prelude::BASE64_STANDARD};
use identity::pb;
use prost::Message;
use reqwest::header;
use serde_json::json;

use tonic_types::StatusExt;

use crate::harness::{Face, PASSWORD, Service, Store};

const LOGIN: &str = "/identity.v1.AuthService/Login";

/// What came back: the message if there was one, then the trailers.
pub struct Reply {
    pub message: Option<Vec<u8>>,
    pub trailers: Vec<(String, String)>,
}

impl Reply {
    pub fn trailer(&self, name: &str) -> Option<&str> {
        self.trailers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A frame: a flag, four bytes of length, the content.
pub fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], message].concat()
}

pub fn read(response_headers: &header::HeaderMap, mut body: &[u8]) -> Reply {
    let text = |value: &header::HeaderValue| value.to_str().unwrap().to_owned();
    let mut reply = Reply { message: None, trailers: Vec::new() };
    // A refusal may come without a body: its trailers are headers then.
    for (name, value) in response_headers {
        reply.trailers.push((name.to_string(), text(value)));
    }
    while let [flag, a, b, c, d, rest @ ..] = body {
        let (content, after) = rest.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        if *flag & 0x80 == 0 {
            reply.message = Some(content.to_vec());
        } else {
            let lines = std::str::from_utf8(content).unwrap().split("\r\n").filter_map(|line| line.split_once(':'));
            reply.trailers.extend(lines.map(|(k, v)| (k.trim().to_lowercase(), v.trim().to_owned())));
        }
        body = after;
    }
    assert!(body.is_empty(), "half a frame: {body:?}");
    reply
}

pub async fn call(service: &Service, path: &str, token: Option<&str>, message: &[u8], as_text: bool) -> Reply {
    let mut request =
        reqwest::Client::new().post(format!("http://{}{path}", service.address)).header("x-request-id", "web-1");
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let (kind, body) = if as_text {
        ("application/grpc-web-text+proto", BASE64_STANDARD.encode(frame(message)).into_bytes())
    } else {
        ("application/grpc-web+proto", frame(message))
    };
    let request = request.header(header::CONTENT_TYPE, kind).header(header::ACCEPT, kind).body(body);
    let response = request.send().await.unwrap();
    assert_eq!(response.version(), reqwest::Version::HTTP_11);
    assert_eq!(response.status(), 200);
    let headers = response.headers().clone();
    assert_eq!(headers["x-request-id"], "web-1");
    let body = response.bytes().await.unwrap();
    let came_as_text = headers[header::CONTENT_TYPE].to_str().unwrap().contains("grpc-web-text");
    assert_eq!(came_as_text, as_text, "{headers:?}");
    read(&headers, &if as_text { decode_text(&body) } else { body.to_vec() })
}

/// Base64, its pieces each padded for themselves.
fn decode_text(body: &[u8]) -> Vec<u8> {
    body.chunks(4).flat_map(|four| BASE64_STANDARD.decode(four).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_logs_in_and_reads_its_profile() {
    let service = Service::start(Store::Sqlite).await;
    service.user("user@example.com").await;
    for as_text in [false, true] {
        let login = pb::LoginRequest { email: Some("user@example.com".into()), password: Some(PASSWORD.into()) };
        let reply = call(&service, LOGIN, None, &login.encode_to_vec(), as_text).await;
        assert_eq!(reply.trailer("grpc-status"), Some("0"), "{:?}", reply.trailers);
        let answer = pb::LoginResponse::decode(reply.message.unwrap().as_slice()).unwrap();
        assert_eq!(answer.user.unwrap().email, "user@example.com");

        let path = "/identity.v1.ProfileService/GetMyProfile";
        let reply = call(&service, path, Some(&answer.access_token), &[], as_text).await;
        let profile = pb::Profile::decode(reply.message.unwrap().as_slice()).unwrap();
        assert_eq!(profile.user.unwrap().first_name, "Jane");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_is_told_what_went_wrong() {
    let service = Service::start(Store::Sqlite).await;
    service.user("user@example.com").await;
    for as_text in [false, true] {
        let wrong = pb::LoginRequest { email: Some("user@example.com".into()), password: Some("wrong".into()) };
        let reply = call(&service, LOGIN, None, &wrong.encode_to_vec(), as_text).await;
        assert_eq!(reply.trailer("grpc-status"), Some("16"), "{:?}", reply.trailers);
        assert!(reply.trailer("grpc-status-details-bin").is_some(), "{:?}", reply.trailers);
        assert!(reply.message.is_none());

        let reply = call(&service, "/identity.v1.AuthService/Nothing", None, &[], as_text).await;
        assert_eq!(reply.trailer("grpc-status"), Some("12"), "{:?}", reply.trailers);
        let reply = call(&service, LOGIN, None, b"\xff\xff", as_text).await;
        assert_eq!(reply.trailer("grpc-status"), Some("3"), "{:?}", reply.trailers);
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_is_told_when_to_come_back() {
    let service = Service::start_with(Store::Sqlite, &[("RATE_LIMIT_LOGIN", "1/15m")]).await;
    service.user("user@example.com").await;
    // One counter serves all faces.
    let wrong = json!({ "email": "user@example.com", "password": "wrong" });
    service.anonymous().call(Face::Rest, "AuthService.Login", wrong).await.expect(401);
    for as_text in [false, true] {
        let login = pb::LoginRequest { email: Some("user@example.com".into()), password: Some(PASSWORD.into()) };
        let reply = call(&service, LOGIN, None, &login.encode_to_vec(), as_text).await;
        let trailers = reply.trailers.iter().filter(|(name, _)| name.starts_with("grpc-"));
        let trailers = trailers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let status = tonic::Status::from_header_map(&trailers).unwrap();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status:?}");
        let retry_after = status.get_error_details().retry_info().and_then(|info| info.retry_delay);
        assert_eq!(retry_after, Some(std::time::Duration::from_mins(15)), "{status:?}");
    }
    service.stop().await;
}
