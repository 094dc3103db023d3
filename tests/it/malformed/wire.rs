//! How malformed calls go out: those of REST byte by byte, since no client would send them; those of gRPC through a client
//! that looks at HTTP/2 alone.

use std::{net::SocketAddr, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::calls::{GrpcCall, RestCall};

/// How long an answer may take: longer than any deadline, for the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// What came back.
#[derive(Debug)]
pub enum Answer {
    Http {
        status: u16,
        content_type: String,
        body: Vec<u8>,
    },
    /// `grpc-status`.
    Grpc(u8),
    /// The connection, or the stream, was ended without an answer.
    CutOff,
}

impl Answer {
    /// What it is for the figures. Panics if it is a fault, or not ours.
    pub fn judged(&self, call: &str) -> String {
        match self {
            Self::CutOff => "cut off".into(),
            Self::Grpc(code) => {
                // UNKNOWN, INTERNAL, UNAVAILABLE, DATA_LOSS.
                assert!(*code <= 16 && ![2, 13, 14, 15].contains(code), "a fault: {code} to {call}");
                format!("{:?}", tonic::Code::from(i32::from(*code)))
            }
            Self::Http { status, content_type, body } => {
                let text = || String::from_utf8_lossy(body);
                assert!(*status < 500, "a fault: {status} {} to {call}", text());
                if *status >= 400 && !body.is_empty() {
                    assert_eq!(content_type, "application/json", "{status} {} to {call}", text());
                    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else {
                        panic!("no JSON object: {status} {} to {call}", text())
                    };
                    let is_ours = |(name, value): (&String, &Value)| match value {
                        Value::String(_) => name == "error" || name == "detail",
                        Value::Array(texts) => !texts.is_empty() && texts.iter().all(Value::is_string),
                        _ => false,
                    };
                    assert!(!fields.is_empty() && fields.iter().all(is_ours), "{status} {} to {call}", text());
                }
                status.to_string()
            }
        }
    }
}

/// A line to the service for calls of REST, kept from one to the next where it outlives the first.
pub struct RestLine {
    address: SocketAddr,
    stream: Option<TcpStream>,
}

impl RestLine {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, stream: None }
    }

    pub async fn send(&mut self, call: &RestCall) -> Answer {
        let exchange = timeout(PATIENCE, self.exchange(call));
        exchange.await.unwrap_or_else(|_| panic!("no answer within {PATIENCE:?} to {}", call.shown()))
    }

    async fn exchange(&mut self, call: &RestCall) -> Answer {
        if let Some(stream) = self.stream.take()
            && !call.breaks_the_line
            && let Some((answer, stream)) = self.try_over(stream, call).await
        {
            self.stream = stream;
            return answer;
        }
        // The service may have ended the line of before: only what a line of its own doesn't get an answer to is cut off.
        let stream = TcpStream::connect(self.address).await.expect("it listens");
        match self.try_over(stream, call).await {
            Some((answer, stream)) => {
                self.stream = stream;
                answer
            }
            None => Answer::CutOff,
        }
    }

    /// The answer, and the line if it goes on.
    async fn try_over(&self, mut stream: TcpStream, call: &RestCall) -> Option<(Answer, Option<TcpStream>)> {
        // Whoever is refused early may not be read to the end.
        let _ = stream.write_all(&call.bytes).await;
        if call.breaks_the_line {
            let _ = stream.shutdown().await;
        }
        let mut read = Vec::new();
        let (head_end, status, headers) = loop {
            if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                let (status, headers) = head(&read[..end]);
                if status >= 200 {
                    break (end + 4, status, headers);
                }
                read.drain(..end + 4);
            } else if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                return None;
            }
        };
        let has_body = call.method != "HEAD" && status != 204 && status != 304;
        let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
        let mut body = read.split_off(head_end);
        let is_whole = if !has_body {
            body.clear();
            true
        } else if let Some(length) = length {
            while body.len() < length && stream.read_buf(&mut body).await.unwrap_or(0) > 0 {}
            // Behind it there may be the answer to what looked like another request.
            let is_whole = body.len() >= length;
            body.truncate(length);
            is_whole
        } else {
            // Only large documents come in chunks: it is enough to know that they end.
            while !body.ends_with(b"0\r\n\r\n") && stream.read_buf(&mut body).await.unwrap_or(0) > 0 {}
            true
        };
        // Where more was sent than was read, TCP takes back what was on its way.
        if !is_whole {
            return None;
        }
        let goes_on = !call.breaks_the_line && headers.get(header::CONNECTION).is_none_or(|v| v != "close");
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let content_type = content_type.to_owned();
        Some((Answer::Http { status, content_type, body }, goes_on.then_some(stream)))
    }
}

/// Status and headers.
fn head(text: &[u8]) -> (u16, HeaderMap) {
    let text = std::str::from_utf8(text).expect("the head of an answer is ASCII");
    let (first, lines) = text.split_once("\r\n").unwrap_or((text, ""));
    let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
    let headers = lines.split("\r\n").filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.trim().parse().unwrap()));
    (status.unwrap_or_else(|| panic!("no answer of HTTP: {text:?}")), headers.collect())
}

/// Connections for gRPC over HTTP/2, and for gRPC-Web over HTTP/1.1.
pub struct GrpcLine {
    address: SocketAddr,
    native: Client<HttpConnector, Full<Bytes>>,
    web: Client<HttpConnector, Full<Bytes>>,
}

impl GrpcLine {
    pub fn new(address: SocketAddr) -> Self {
        let native = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        Self { address, native, web: Client::builder(TokioExecutor::new()).build_http() }
    }

    pub async fn send(&self, call: GrpcCall) -> Answer {
        let shown = call.shown();
        let exchange = timeout(PATIENCE, self.exchange(call));
        exchange.await.unwrap_or_else(|_| panic!("no answer within {PATIENCE:?} to {shown}"))
    }

    async fn exchange(&self, call: GrpcCall) -> Answer {
        let uri = format!("http://{}{}", self.address, call.path);
        let mut request = Request::post(uri).body(Full::from(call.body)).expect("a request");
        *request.headers_mut() = call.headers;
        let client = if call.is_web { &self.web } else { &self.native };
        let Ok(response) = client.request(request).await else { return Answer::CutOff };
        let (head, body) = response.into_parts();
        let Ok(body) = body.collect().await else { return Answer::CutOff };
        let trailers = body.trailers().cloned().unwrap_or_default();
        let body = body.to_bytes().to_vec();
        let content_type = head.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if !content_type.starts_with("application/grpc") {
            let (status, content_type) = (head.status.as_u16(), content_type.to_owned());
            return Answer::Http { status, content_type, body };
        }
        let code = head.headers.get("grpc-status").or_else(|| trailers.get("grpc-status"));
        let code = code.map(|code| code.to_str().expect("a number").to_owned());
        let code = code.or_else(|| code_in(&body, content_type.contains("text")));
        Answer::Grpc(code.expect("a status").parse().expect("a number"))
    }
}

/// The status that gRPC-Web writes into the body, behind the message.
fn code_in(body: &[u8], is_text: bool) -> Option<String> {
    let decoded: Vec<u8>;
    let body = if is_text {
        // Pieces, each padded for itself.
        decoded = body.chunks(4).flat_map(|four| BASE64_STANDARD.decode(four).expect("base64")).collect();
        &decoded
    } else {
        body
    };
    let at = body.windows(12).rposition(|part| part == b"grpc-status:")? + 12;
    let code: Vec<u8> = body[at..].iter().copied().take_while(|byte| *byte != b'\r').collect();
    Some(String::from_utf8(code).ok()?.trim().to_owned())
}
