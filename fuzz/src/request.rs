//! A request as a corpus holds it: a head to read, an empty line, and the body.
//!
//! ```text
//! PATCH /api/users/{id}/
//! as: admin
//! ?id: 2
//! content-type: application/json
//!
//! {"first_name": "Jane"}
//! ```
//!
//! `as` says who calls, `?name` gives a variable of the path or a parameter of the query before it is encoded, and `frame`
//! puts gRPC's five bytes before the body, the first of them as it says.

use axum::body::Body;
use http::{HeaderName, HeaderValue, Method, Request, Uri, Version, header};
use libfuzzer_sys::fuzzer_mutate;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};

/// Where the service is reached, if nothing else is said.
pub const HOST: &str = "identity.example";

/// What a target is about: what a request is that doesn't say what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Json,
    Form,
    Query,
    Grpc,
}

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Anyone,
    User,
    Admin,
}

/// A request, but for the token.
pub struct Given {
    pub who: Who,
    pub request: Request<Body>,
    /// The request brings credentials of its own.
    pub has_credentials: bool,
}

impl Given {
    /// `None` for what no client of HTTP could send.
    pub fn parse(data: &[u8], kind: Kind) -> Option<Self> {
        let (head, body) = split(data);
        let mut lines = head.split(|byte| *byte == b'\n');
        let first = lines.next()?;
        let space = first.iter().position(|byte| *byte == b' ')?;
        let method = Method::from_bytes(&first[..space]).ok()?;
        let mut target = first[space + 1..].to_vec();
        let (mut who, mut frame, mut query) = (Who::Anyone, None, Vec::new());
        let mut request = Request::builder().method(method).version(Version::HTTP_2);
        let headers = request.headers_mut()?;
        for line in lines.filter(|line| !line.is_empty()) {
            let colon = line.iter().skip(1).position(|byte| *byte == b':')? + 1;
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            match name {
                b"as" => who = if value == b"admin" { Who::Admin } else { Who::User },
                b"frame" => frame = value.first().map(|flag| flag.wrapping_sub(b'0')),
                [b'?', name @ ..] => query.push((name, value)),
                _ => {
                    headers.append(HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?);
                }
            }
        }
        if let Some(content_type) = kind.content_type()
            && !headers.contains_key(header::CONTENT_TYPE)
        {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        if !headers.contains_key(header::HOST) {
            headers.insert(header::HOST, HeaderValue::from_static(HOST));
        }
        let has_credentials = headers.contains_key(header::AUTHORIZATION);
        for (name, value) in query {
            put(&mut target, name, value);
        }
        let body = match frame {
            Some(flag) => framed(flag, body),
            None => body.to_vec(),
        };
        let request = request.uri(Uri::from_maybe_shared(target).ok()?).body(Body::from(body)).ok()?;
        Some(Self { who, request, has_credentials })
    }
}

impl Kind {
    fn content_type(self) -> Option<&'static str> {
        match self {
            Self::Json => Some("application/json"),
            Self::Form => Some("multipart/form-data; boundary=b"),
            Self::Grpc => Some("application/grpc"),
            Self::Query => None,
        }
    }
}

/// A variable of the path, if the path has it; a parameter of the query otherwise.
fn put(target: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let encoded = percent_encode(value, NON_ALPHANUMERIC).to_string();
    let variable = [b"{", name, b"}"].concat();
    if let Some(at) = target.windows(variable.len()).position(|part| part == variable) {
        target.splice(at..at + variable.len(), encoded.into_bytes());
    } else {
        target.push(if target.contains(&b'?') { b'&' } else { b'?' });
        target.extend(percent_encode(name, NON_ALPHANUMERIC).to_string().into_bytes());
        target.push(b'=');
        target.extend(encoded.into_bytes());
    }
}

/// gRPC's length-prefixed message.
fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[flag][..], &length.to_be_bytes(), message].concat()
}

fn split(data: &[u8]) -> (&[u8], &[u8]) {
    match data.windows(2).position(|two| two == b"\n\n") {
        Some(at) => (&data[..at], &data[at + 2..]),
        None => (data, &[]),
    }
}

/// Mutates the body three times of four, and anything else otherwise: most of what can be wrong with a head the libraries
/// find before any code of ours.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let head = size - split(&data[..size]).1.len();
    if head >= size.min(max_size) || seed % 4 == 0 {
        return fuzzer_mutate(data, size, max_size);
    }
    head + fuzzer_mutate(&mut data[head..], size - head, max_size - head)
}
