//! Somebody who calls the service, by REST or by gRPC: the same rpc, the same fields, the same outcome to look at.

use futures_util::{StreamExt, stream};
use std::{
    collections::BTreeMap,
    error::Error,
    net::SocketAddr,
    sync::LazyLock,
    time::{Duration, Instant},
};

use identity::pb;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, SerializeOptions, Value as Reflected};
use reqwest::Method;
use serde_json::{Value, json};
use tonic::{
    Code, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

use super::PASSWORD;

/// The two ways in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    Rest,
    Grpc,
}

impl Face {
    pub const ALL: [Self; 2] = [Self::Rest, Self::Grpc];
}

/// How a call ended, whichever face it went through.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The HTTP status; of a gRPC call the one that REST has for the same error.
    pub status: u16,
    /// The answer; of a failed call `null`.
    pub answer: Value,
    /// What is wrong, by field.
    pub fields: BTreeMap<String, Vec<String>>,
    /// The whole body on REST, the message on gRPC.
    pub text: String,
    /// `google.rpc.ErrorInfo`'s reason. gRPC only.
    pub reason: Option<String>,
    /// Seconds after which to try again.
    pub retry_after: Option<u64>,
    pub request_id: Option<String>,
}

impl Outcome {
    /// The answer, if the call ended with this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        self.answer
    }

    /// The messages at `field`, if the call ended with this status.
    #[track_caller]
    pub fn expect_field(self, status: u16, field: &str) -> Vec<String> {
        assert_eq!(self.status, status, "{self:?}");
        self.fields.get(field).cloned().unwrap_or_else(|| panic!("nothing is wrong with {field}: {self:?}"))
    }
}

/// Somebody who calls the service.
#[derive(Clone)]
pub struct Actor {
    pub base: String,
    pub http: reqwest::Client,
    pub channel: Channel,
    pub access_token: Option<String>,
    pub refresh_token: Option<String>,
    /// What a proxy in front of the service says of where the calls come from.
    pub forwarded_for: Option<String>,
}

impl Actor {
    pub fn new(address: SocketAddr) -> Self {
        let base = format!("http://{address}");
        let channel = Endpoint::from_shared(base.clone()).unwrap().connect_lazy();
        Self {
            base,
            http: reqwest::Client::new(),
            channel,
            access_token: None,
            refresh_token: None,
            forwarded_for: None,
        }
    }

    /// Keeps the tokens of an answer for the calls to come.
    pub fn take_tokens(&mut self, answer: &Value) {
        self.access_token = answer["access_token"].as_str().map(str::to_owned);
        self.refresh_token = answer["refresh_token"].as_str().map(str::to_owned);
    }

    /// The same actor at another replica.
    pub fn at(&self, address: SocketAddr) -> Self {
        Self {
            access_token: self.access_token.clone(),
            refresh_token: self.refresh_token.clone(),
            ..Self::new(address)
        }
    }

    pub fn with_token(&self, token: &str) -> Self {
        Self { access_token: Some(token.to_owned()), ..self.clone() }
    }

    /// The same actor at this address, for a service that trusts `x-forwarded-for`.
    pub fn coming_from(&self, address: &str) -> Self {
        Self { forwarded_for: Some(address.to_owned()), ..self.clone() }
    }

    /// Registers Jane Doe with this address and `PASSWORD`. Returns the user's id.
    pub async fn register(&self, email: &str) -> i64 {
        self.registered(email).await["id"].as_i64().unwrap()
    }

    /// Registers Jane Doe with this address and `PASSWORD`, and makes the calls to come as that user.
    pub async fn sign_up(mut self, email: &str) -> Self {
        let registered = self.registered(email).await;
        self.take_tokens(&registered);
        self
    }

    /// Registers ten, at addresses that begin with `why`, none of whom may have to wait. Returns the addresses.
    pub async fn register_ten(&self, why: &str) -> Vec<String> {
        let emails: Vec<_> = (0..10).map(|n| format!("{why}{n}@example.com")).collect();
        for email in &emails {
            let begun = Instant::now();
            self.register(email).await;
            assert!(begun.elapsed() < Duration::from_secs(2), "{why}: a registration took {:?}", begun.elapsed());
        }
        emails
    }

    async fn registered(&self, email: &str) -> Value {
        let account = json!({ "email": email, "password": PASSWORD, "first_name": "Jane", "last_name": "Doe" });
        self.call(Face::Rest, "AuthService.Register", account).await.expect(201)
    }

    /// Calls `Service.Rpc` with these fields. Panics if the rpc has no REST route and `face` is REST.
    pub async fn call(&self, face: Face, rpc: &str, fields: Value) -> Outcome {
        match face {
            Face::Rest => self.call_rest(rpc, fields).await,
            Face::Grpc => self.call_grpc(rpc, fields).await,
        }
    }

    /// The same; `None` if no whole answer came.
    pub async fn try_call(&self, face: Face, rpc: &str, fields: Value) -> Option<Outcome> {
        match face {
            Face::Rest => self.try_call_rest(rpc, fields).await.ok(),
            Face::Grpc => self.try_call_grpc(rpc, fields).await.ok(),
        }
    }

    /// A request of any kind, with the token if there is one.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(address) = &self.forwarded_for {
            request = request.header("x-forwarded-for", address);
        }
        match &self.access_token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn call_rest(&self, rpc: &str, fields: Value) -> Outcome {
        self.try_call_rest(rpc, fields).await.unwrap()
    }

    async fn try_call_rest(&self, rpc: &str, fields: Value) -> reqwest::Result<Outcome> {
        let Value::Object(mut fields) = fields else { panic!("fields are an object") };
        let (method, path, has_body) = route(rpc).unwrap_or_else(|| panic!("{rpc} has no REST route"));
        let mut path = path
            .split('/')
            .map(|segment| match segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')) {
                Some(name) => plain(&fields.remove(name).unwrap_or_else(|| panic!("{rpc} needs {name}"))),
                None => segment.to_owned(),
            })
            .collect::<Vec<String>>()
            .join("/");
        if !has_body && !fields.is_empty() {
            let query: Vec<_> = fields.iter().map(|(k, v)| (k.clone(), plain(v))).collect();
            let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
            path = format!("{path}?{query}");
        }
        let mut request = self.request(method, &path);
        if has_body {
            request = request.json(&fields);
        }
        let outcome = try_outcome_of(request.send().await?).await?;
        assert!(is_documented(rpc, outcome.status), "openapi.json doesn't say that {rpc} answers this: {outcome:?}");
        Ok(outcome)
    }

    async fn call_grpc(&self, rpc: &str, fields: Value) -> Outcome {
        self.try_call_grpc(rpc, fields).await.unwrap_or_else(|broken| outcome_of_status(&broken))
    }

    /// An error is the client's own: the connection broke.
    async fn try_call_grpc(&self, rpc: &str, fields: Value) -> Result<Outcome, Status> {
        let method = method(rpc);
        let fields = fields.to_string();
        let message = DynamicMessage::deserialize(method.input(), &mut serde_json::Deserializer::from_str(&fields))
            .unwrap_or_else(|error| panic!("{fields} is no {}: {error}", method.input().name()));
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        match self.call_grpc_raw(&path, message.encode_to_vec()).await {
            Ok(response) => {
                let request_id = response.metadata().get("x-request-id").map(|id| id.to_str().unwrap().to_owned());
                let answer = DynamicMessage::decode(method.output(), response.into_inner().as_slice()).unwrap();
                let options = SerializeOptions::new()
                    .use_proto_field_name(true)
                    .stringify_64_bit_integers(false)
                    .skip_default_fields(false);
                let answer = answer.serialize_with_options(serde_json::value::Serializer, &options).unwrap();
                Ok(Outcome { status: success_status(rpc), request_id, ..success(answer) })
            }
            Err(status) if status.source().is_some() => Err(status),
            Err(status) => Ok(outcome_of_status(&status)),
        }
    }

    /// Sends these bytes as the request message.
    pub async fn call_grpc_raw(&self, path: &str, message: Vec<u8>) -> Result<tonic::Response<Vec<u8>>, Status> {
        let mut request = tonic::Request::new(message);
        if let Some(token) = &self.access_token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        if let Some(address) = &self.forwarded_for {
            request.metadata_mut().insert("x-forwarded-for", address.parse().unwrap());
        }
        self.send_grpc(path, request).await
    }

    /// Sends this request, with its metadata and nothing added.
    pub async fn send_grpc(
        &self,
        path: &str,
        request: tonic::Request<Vec<u8>>,
    ) -> Result<tonic::Response<Vec<u8>>, Status> {
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        client.unary(request, path.parse().unwrap(), Bytes).await
    }

    /// Begins a stream with this message, and says nothing more without ending it.
    pub async fn leave_open(&self, path: &str, first: Vec<u8>) -> tonic::Streaming<Vec<u8>> {
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.unwrap();
        let messages = stream::once(std::future::ready(first)).chain(stream::pending());
        client.streaming(tonic::Request::new(messages), path.parse().unwrap(), Bytes).await.unwrap().into_inner()
    }
}

/// What an HTTP response amounts to.
pub async fn outcome_of(response: reqwest::Response) -> Outcome {
    try_outcome_of(response).await.unwrap()
}

async fn try_outcome_of(response: reqwest::Response) -> reqwest::Result<Outcome> {
    let header = |name: &str| response.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
    let (status, request_id) = (response.status().as_u16(), header("x-request-id"));
    let retry_after = header("retry-after").map(|secs| secs.parse().unwrap());
    let text = response.text().await?;
    let body: Value = serde_json::from_str(&text).unwrap_or_default();
    if status < 400 {
        return Ok(Outcome { status, text, request_id, ..success(body) });
    }
    let messages = |value: &Value| {
        value.as_array().map(|list| list.iter().map(|m| m.as_str().unwrap().to_owned()).collect::<Vec<_>>())
    };
    let fields = body.as_object().into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), messages(v)?))).collect();
    Ok(Outcome { status, answer: Value::Null, fields, text, reason: None, retry_after, request_id })
}

fn success(answer: Value) -> Outcome {
    Outcome {
        status: 200,
        answer,
        fields: BTreeMap::new(),
        text: String::new(),
        reason: None,
        retry_after: None,
        request_id: None,
    }
}

/// What a gRPC status amounts to, with the HTTP status that REST has for the same error.
pub fn outcome_of_status(status: &Status) -> Outcome {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.clone());
    let http = match status.code() {
        Code::InvalidArgument if reason.as_deref() == Some("REQUIRED") => 422,
        Code::InvalidArgument | Code::AlreadyExists => 400,
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::NotFound => 404,
        Code::FailedPrecondition => 409,
        Code::ResourceExhausted => 429,
        Code::Internal => 500,
        Code::Unavailable => 503,
        Code::DeadlineExceeded => 504,
        other => panic!("no error of ours is {other:?}: {status:?}"),
    };
    let mut fields: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for violation in details.bad_request().into_iter().flat_map(|bad| &bad.field_violations) {
        fields.entry(violation.field.clone()).or_default().push(violation.description.clone());
    }
    Outcome {
        status: http,
        answer: Value::Null,
        fields,
        text: status.message().to_owned(),
        reason,
        retry_after: details.retry_info().and_then(|info| info.retry_delay).map(|delay| delay.as_secs()),
        request_id: status.metadata().get("x-request-id").map(|id| id.to_str().unwrap().to_owned()),
    }
}

/// Everything that the contract declares.
pub fn contract() -> &'static DescriptorPool {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| DescriptorPool::decode(pb::DESCRIPTORS).unwrap());
    &POOL
}

/// The rpc of this name: `AuthService.Register`.
pub fn method(rpc: &str) -> MethodDescriptor {
    let (service, name) = rpc.split_once('.').expect("Service.Rpc");
    let service = contract().get_service_by_name(&format!("identity.v1.{service}"));
    let service = service.unwrap_or_else(|| panic!("there is no {rpc}"));
    service.methods().find(|m| m.name() == name).unwrap_or_else(|| panic!("there is no {rpc}"))
}

/// Verb, path, and whether the fields travel in the body.
pub fn route(rpc: &str) -> Option<(Method, String, bool)> {
    let http = contract().get_extension_by_name("google.api.http").unwrap();
    let options = method(rpc).options();
    if !options.has_extension(&http) {
        return None;
    }
    let rule = options.get_extension(&http).as_message().cloned()?;
    let text = |field: &str| rule.get_field_by_name(field).and_then(|v| v.as_str().map(str::to_owned));
    [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE].into_iter().find_map(|verb| {
        let path = text(&verb.as_str().to_lowercase()).filter(|path| !path.is_empty())?;
        Some((verb, path, text("body").is_some_and(|body| body == "*")))
    })
}

fn success_status(rpc: &str) -> u16 {
    let policy = contract().get_extension_by_name("identity.v1.policy").unwrap();
    let method = method(rpc);
    let policy = method.options().get_extension(&policy).as_message().cloned().unwrap();
    match policy.get_field_by_name("success_status").as_deref() {
        Some(Reflected::I32(status)) if *status != 0 => u16::try_from(*status).unwrap(),
        _ if method.output().full_name() == "google.protobuf.Empty" => 204,
        _ => 200,
    }
}

/// Whether the OpenAPI document says that the rpc's route may answer with this status.
fn is_documented(rpc: &str, status: u16) -> bool {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(identity::api::OPENAPI).unwrap());
    let (method, path, _) = route(rpc).unwrap();
    DOCUMENT["paths"][path][method.as_str().to_lowercase()]["responses"][status.to_string()].is_object()
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The claims of a token, not verified.
pub fn claims(token: &str) -> Value {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    let payload = token.split('.').nth(1).expect("a token has three parts");
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap_or(json!(null))
}

/// Messages as the bytes they are.
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(buffer, &message);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        use bytes::Buf;
        let mut message = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}
