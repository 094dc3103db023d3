//! What the generated REST routes call: request in, fields bound, the gRPC handler called, JSON out.

use std::{borrow::Cow, error::Error as _, fmt, future::Future, sync::Arc};

use axum::{
    body::{Body as HttpBody, Bytes},
    extract::{FromRequestParts, RawPathParams, Request},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header, request::Parts};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::MapAccess};
use serde_json::value::RawValue;
use tonic::{Status, metadata::MetadataMap};

use super::{
    gate::{Face, Gate, Policy},
    status,
};
use crate::error::FieldErrors;

/// Nothing that is a request of ours nests deeper.
const MAX_JSON_DEPTH: usize = 32;
/// Nothing that is a request of ours has more fields, known and unknown; and each is held against all the others.
const MAX_FIELDS: usize = 256;
/// A file doesn't travel in JSON, so nothing that does is larger, whatever the route takes as a form.
const MAX_JSON_BYTES: usize = 65_536;

/// What is said of a text that is no time.
pub const NOT_A_TIME: &str = "Not a valid time. Write it as 2026-11-23T10:00:00Z.";

/// A REST route, as its annotation describes it.
pub struct Route {
    pub policy: &'static Policy,
    /// The status of success.
    pub status: u16,
    pub body: Body,
}

/// Where the fields come from that the path does not name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// The query; a body is not looked at.
    None,
    Json,
    JsonOrForm,
}

/// The state of the generated routes: the service that they call, behind the gate.
pub struct Rest<S> {
    service: Arc<S>,
    gate: Gate,
}

impl<S> Clone for Rest<S> {
    fn clone(&self) -> Self {
        Self { service: Arc::clone(&self.service), gate: self.gate.clone() }
    }
}

impl<S> Rest<S> {
    pub fn new(service: Arc<S>, gate: Gate) -> Self {
        Self { service, gate }
    }

    /// One call: through the gate, to the handler that a gRPC call reaches, and its answer as JSON.
    pub async fn call<Q, P, F, Fut>(self, route: &'static Route, request: Request, handler: F) -> Response
    where
        S: Send + Sync,
        Q: Bind + Send,
        P: Serialize + Send,
        F: FnOnce(Arc<S>, tonic::Request<Q>) -> Fut + Send,
        Fut: Future<Output = Result<tonic::Response<P>, Status>> + Send,
    {
        let service = self.service;
        self.gate
            .pass(Face::Rest, route.policy, request, move |request| async move {
                let request = match read(route, request).await {
                    Ok(request) => request,
                    Err(refusal) => return refusal.into_response(),
                };
                match handler(service, request).await {
                    Ok(reply) => {
                        let (_, message, extensions) = reply.into_parts();
                        let mut response = answer(route.status, &message);
                        response.extensions_mut().extend(extensions);
                        response
                    }
                    Err(status) => status::to_http(&status),
                }
            })
            .await
    }
}

/// The query as it came, among the extensions of a request whose fields it holds: links to other pages keep all of it.
#[derive(Clone)]
pub struct RawQuery(pub String);

/// A message that can be made of the fields of a REST request.
pub trait Bind {
    /// The message has an update mask, which tells null from absent.
    const IS_PATCH: bool;

    fn bind(fields: &mut Fields<'_>) -> Self;
}

/// The fields of one request, as they came, and what is wrong with those read so far.
#[derive(Default)]
pub struct Fields<'a> {
    items: Vec<(Cow<'a, str>, Value<'a>)>,
    errors: FieldErrors,
    path: Option<&'a RawPathParams>,
    is_patch: bool,
    /// A variable of the path can't be what it should be: there is no such resource.
    no_such_path: bool,
}

/// A field as it came.
enum Value<'a> {
    /// From the query.
    Text(Cow<'a, str>),
    Json(&'a RawValue),
    /// A part of a form.
    Part(Bytes),
}

/// A type that a field can have.
pub trait FromValue: Sized {
    /// The value, or what is wrong with it.
    ///
    /// # Errors
    /// What is wrong, in words for whoever sent it.
    fn from_json(json: &RawValue) -> Result<Self, &'static str>;
    /// The same from a path or a query.
    ///
    /// # Errors
    /// What is wrong, in words for whoever sent it.
    fn from_text(text: &str) -> Result<Self, &'static str>;
    /// The same from a part of a form.
    ///
    /// # Errors
    /// What is wrong, in words for whoever sent it.
    fn from_part(part: &Bytes) -> Result<Self, &'static str> {
        Self::from_text(std::str::from_utf8(part).map_err(|_| "Not valid UTF-8.")?)
    }
}

impl Fields<'_> {
    /// A field, or `None` where it is absent, or can't be read and that is noted. Which fields are required, and what null
    /// clears in a PATCH, is the handler's to say.
    pub fn optional<T: FromValue>(&mut self, name: &'static str) -> Option<T> {
        let value = match self.items.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)? {
            Value::Text(text) => T::from_text(text),
            Value::Part(part) => T::from_part(part),
            Value::Json(json) if json.get() == "null" => {
                if !self.is_patch {
                    self.errors.wrong(name, "This field may not be null.");
                }
                return None;
            }
            Value::Json(json) => T::from_json(json),
        };
        value.map_err(|message| self.errors.wrong(name, message)).ok()
    }

    /// A variable of the path.
    pub fn variable<T: FromValue + Default>(&mut self, name: &'static str) -> T {
        let text = self.path.and_then(|path| path.iter().find(|(key, _)| *key == name)).map(|(_, text)| text);
        if let Some(Ok(value)) = text.map(T::from_text) {
            return value;
        }
        self.no_such_path = true;
        T::default()
    }

    /// Which of `names` came with the request, be it as null: absent and null differ in a PATCH.
    pub fn update_mask(&mut self, names: &[&str]) -> prost_types::FieldMask {
        let came = |name: &&&str| self.items.iter().any(|(key, _)| key == **name);
        prost_types::FieldMask { paths: names.iter().filter(came).map(|name| (*name).to_owned()).collect() }
    }
}

impl FromValue for String {
    fn from_json(json: &RawValue) -> Result<Self, &'static str> {
        serde_json::from_str(json.get()).map_err(|_| "Not a valid string.")
    }

    fn from_text(text: &str) -> Result<Self, &'static str> {
        Ok(text.to_owned())
    }
}

impl FromValue for bool {
    fn from_json(json: &RawValue) -> Result<Self, &'static str> {
        serde_json::from_str(json.get()).map_err(|_| "Must be a valid boolean.")
    }

    fn from_text(text: &str) -> Result<Self, &'static str> {
        match text {
            "true" | "True" | "1" => Ok(true),
            "false" | "False" | "0" => Ok(false),
            _ => Err("Must be a valid boolean."),
        }
    }
}

impl FromValue for i64 {
    fn from_json(json: &RawValue) -> Result<Self, &'static str> {
        // `7.0` is an integer too: JSON has one kind of number, and some clients write all of them like that.
        let whole = || json.get().split_once('.').filter(|(_, zeros)| zeros.bytes().all(|b| b == b'0'))?.0.parse().ok();
        serde_json::from_str(json.get()).ok().or_else(whole).ok_or("A valid integer is required.")
    }

    fn from_text(text: &str) -> Result<Self, &'static str> {
        // Digits, and at most a minus: `+1` would be a second name for what is at `1`.
        let is_plain = !text.starts_with('+');
        text.parse().ok().filter(|_| is_plain).ok_or("A valid integer is required.")
    }
}

/// RFC 3339, as times are written in answers.
impl FromValue for prost_types::Timestamp {
    fn from_json(json: &RawValue) -> Result<Self, &'static str> {
        Self::from_text(&String::from_json(json).map_err(|_| NOT_A_TIME)?)
    }

    fn from_text(text: &str) -> Result<Self, &'static str> {
        let time = chrono::DateTime::parse_from_rfc3339(text).map_err(|_| NOT_A_TIME)?;
        Ok(super::timestamp(time.to_utc()))
    }
}

/// A file: it comes as a part of a form and not otherwise.
impl FromValue for Vec<u8> {
    fn from_json(_: &RawValue) -> Result<Self, &'static str> {
        Err("The submitted data was not a file. Check the encoding type on the form.")
    }

    fn from_text(_: &str) -> Result<Self, &'static str> {
        Err("The submitted data was not a file. Check the encoding type on the form.")
    }

    fn from_part(part: &Bytes) -> Result<Self, &'static str> {
        Ok(part.to_vec())
    }
}

/// A request that HTTP itself refuses, before there are any fields to speak of.
enum Refusal {
    /// 400: the body is not what its type says.
    Malformed(String),
    NotFound,
    /// 413: the body has more bytes than this.
    TooLarge(usize),
    /// 415: the body is not of the types that the route takes.
    UnsupportedMediaType(Body),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Malformed(detail) => status::plain(StatusCode::BAD_REQUEST, "Malformed request", Some(&detail)),
            Self::NotFound => status::plain(StatusCode::NOT_FOUND, "Not found", None),
            Self::TooLarge(max) => {
                let error = format!("The request is too large: a body may have {max} bytes at most");
                status::plain(StatusCode::PAYLOAD_TOO_LARGE, &error, None)
            }
            Self::UnsupportedMediaType(taken) => {
                let error = match taken {
                    Body::JsonOrForm => {
                        "Unsupported media type: send application/json or multipart/form-data with its boundary"
                    }
                    Body::Json | Body::None => "Unsupported media type: send application/json",
                };
                status::plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, error, None)
            }
        }
    }
}

async fn read<Q: Bind>(route: &Route, request: Request) -> Result<tonic::Request<Q>, Refusal> {
    let (mut parts, body) = request.into_parts();
    let path = RawPathParams::from_request_parts(&mut parts, &()).await.map_err(|_| Refusal::NotFound)?;
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let mut fields = Fields { path: Some(&path), is_patch: Q::IS_PATCH, ..Fields::default() };
    let bytes;
    match route.body {
        Body::None => {
            fields.items = form_urlencoded::parse(query.as_bytes()).map(|(k, v)| (k, Value::Text(v))).collect();
        }
        Body::Json | Body::JsonOrForm => match media_type(&parts) {
            MediaType::Json => {
                bytes = whole_body(&parts, body, route.policy.max_request_bytes.min(MAX_JSON_BYTES)).await?;
                fields.items = json_fields(&bytes)?;
            }
            MediaType::Form(boundary) if route.body == Body::JsonOrForm => {
                bytes = whole_body(&parts, body, route.policy.max_request_bytes).await?;
                fields.items = form_fields(bytes, boundary).await?;
            }
            MediaType::None | MediaType::Form(_) | MediaType::Other => {
                return Err(Refusal::UnsupportedMediaType(route.body));
            }
        },
    }
    let message = Q::bind(&mut fields);
    if fields.no_such_path {
        return Err(Refusal::NotFound);
    }
    let Fields { errors, items, .. } = fields;
    drop(items);
    drop(path);
    if route.body == Body::None {
        parts.extensions.insert(RawQuery(query));
    }
    if !errors.is_empty() {
        parts.extensions.insert(errors);
    }
    Ok(tonic::Request::from_parts(MetadataMap::from_headers(parts.headers), parts.extensions, message))
}

enum MediaType {
    None,
    Json,
    /// With the boundary between its parts.
    Form(String),
    Other,
}

fn media_type(parts: &Parts) -> MediaType {
    let Some(value) = parts.headers.get(header::CONTENT_TYPE) else { return MediaType::None };
    let Ok(value) = value.to_str() else { return MediaType::Other };
    let essence = value.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        MediaType::Json
    } else if essence.eq_ignore_ascii_case("multipart/form-data") {
        multer::parse_boundary(value).map_or(MediaType::Other, MediaType::Form)
    } else {
        MediaType::Other
    }
}

async fn whole_body(parts: &Parts, body: HttpBody, max: usize) -> Result<Bytes, Refusal> {
    let announced = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|n| n > max) {
        return Err(Refusal::TooLarge(max));
    }
    axum::body::to_bytes(body, max).await.map_err(|error| {
        if error.source().is_some_and(<dyn std::error::Error>::is::<http_body_util::LengthLimitError>) {
            Refusal::TooLarge(max)
        } else {
            Refusal::Malformed("The body ended early.".into())
        }
    })
}

fn json_fields(bytes: &[u8]) -> Result<Vec<(Cow<'_, str>, Value<'_>)>, Refusal> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new()); // No body is no fields, and the handler says which are required.
    }
    if json_depth(bytes) > MAX_JSON_DEPTH {
        return Err(Refusal::Malformed(format!("The body nests deeper than {MAX_JSON_DEPTH} levels.")));
    }
    let object: RawObject<'_> = serde_json::from_slice(bytes).map_err(|error| {
        Refusal::Malformed(match error.classify() {
            serde_json::error::Category::Data => {
                format!("The body must be one JSON object of at most {MAX_FIELDS} keys, all different.")
            }
            _ => format!("The body is not valid JSON: line {}, column {}.", error.line(), error.column()),
        })
    })?;
    Ok(object.0.into_iter().map(|(key, value)| (key, Value::Json(value))).collect())
}

/// How deep the brackets nest. What is wrong otherwise is the parser's to find.
fn json_depth(bytes: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in bytes {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (true, b'"') => in_string = false,
            (false, b'"') => in_string = true,
            (false, b'{' | b'[') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// A JSON object, its values not yet looked into: one pass over the body, and no tree.
struct RawObject<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for RawObject<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = RawObject<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::with_capacity(8);
                while let Some((key, value)) = map.next_entry::<String, _>()? {
                    if entries.len() == MAX_FIELDS {
                        return Err(serde::de::Error::custom("too many keys"));
                    }
                    // Which of two values counts is a question that two parsers answer differently.
                    if entries.iter().any(|(other, _)| *other == key) {
                        return Err(serde::de::Error::custom("a key comes twice"));
                    }
                    entries.push((Cow::Owned(key), value));
                }
                Ok(RawObject(entries))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

async fn form_fields<'a>(bytes: Bytes, boundary: String) -> Result<Vec<(Cow<'a, str>, Value<'a>)>, Refusal> {
    let malformed = |_| Refusal::Malformed("The body is not a valid form.".into());
    let body = futures_util::stream::once(async move { Ok::<_, std::convert::Infallible>(bytes) });
    let mut form = multer::Multipart::new(body, boundary);
    let mut fields: Vec<(Cow<'a, str>, Value<'a>)> = Vec::new();
    while let Some(part) = form.next_field().await.map_err(malformed)? {
        if fields.len() == MAX_FIELDS {
            return Err(Refusal::Malformed(format!("The form has more than {MAX_FIELDS} parts.")));
        }
        let Some(name) = part.name().map(str::to_owned) else { continue };
        if fields.iter().any(|(other, _)| *other == name) {
            return Err(Refusal::Malformed("A part of the form comes twice.".into()));
        }
        let content = part.bytes().await.map_err(malformed)?;
        fields.push((Cow::Owned(name), Value::Part(content)));
    }
    Ok(fields)
}

fn answer(status: u16, reply: &impl Serialize) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let mut response = Response::new(HttpBody::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status != StatusCode::NO_CONTENT {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut json = Vec::with_capacity(512);
        if let Err(error) = serde_json::to_writer(&mut json, reply) {
            return status::to_http(&crate::error::Error::internal(error).into());
        }
        *response.body_mut() = HttpBody::from(json);
    }
    response
}

/// How serde writes the times of answers: RFC 3339 in UTC, ending in `Z`.
///
/// # Errors
/// Those of the serializer.
#[allow(clippy::ref_option, reason = "serde passes the field by reference")]
pub fn rfc3339<S: Serializer>(time: &Option<prost_types::Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(time),
        None => serializer.serialize_none(),
    }
}
