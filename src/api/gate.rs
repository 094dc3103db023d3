//! What every call passes on its way in and out, on every face. The order stands here, once:
//!
//! 1. request id: first, so that whatever happens next can be found in the log;
//! 2. host, and HTTPS: what is not meant for us is nobody's call; probes, who ask by address and in the clear, are let by;
//! 3. caller: the token, held against the sessions that were ended; from a cookie only if a page of ours sends it;
//! 4. limits: after the caller, since a user's calls are counted by user; a refused token counts against its client;
//! 5. access: after the limits, so that guessing is counted;
//! 6. uploads: what turns out to be large waits for its turn, once it may come in at all;
//! 7. deadline and panics: around all of the above and the handler, whose own changes run on in a task of theirs;
//! 8. cookies, and what browsers are told with each answer;
//! 9. one line in the log, with the cause of a fault, and the metrics: last, so that they know how the call ended.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Deref,
    panic::AssertUnwindSafe,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use http_body_util::Limited;
use tokio::time::Instant;
use tonic::Status;
use tracing::Instrument;

use super::{
    body::{self, SMALL_REQUEST_BYTES, Taken},
    browser::Browsers,
    cookies::{Cookies, Use},
    hosts, policies, status, streams,
};
use crate::{
    app::App,
    domain::caller::{Call, Caller, RequestId},
    error::{AuthFailure, Chain, Denial, Error, Misdirection, Result},
    metrics::{CallUnderWay, Code},
    places::Places,
    trace::CallSpan,
};

/// Who may call an rpc. Finer rules stand with their subject in the domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone; a token that comes along is not looked at.
    Anyone,
    /// Whoever bears a good access token.
    User,
    /// Admins only.
    Admin,
}

/// What counts a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The general limit: by user, or by client where there is no user.
    Api,
    /// A rule of the domain, in place of the general limit: the key is in the request.
    ByRule,
    /// Nothing.
    None,
}

/// What its proto says of an rpc.
#[derive(Debug)]
pub struct Policy {
    /// `AuthService.Register`.
    pub rpc: &'static str,
    pub access: Access,
    pub limit: Limit,
    /// The longest that a call may take.
    pub deadline: Duration,
    pub max_request_bytes: usize,
    /// Machines ask it all the time, by address and in the clear.
    pub is_probe: bool,
}

impl Policy {
    /// For what is no rpc of the contract: health, reflection, documentation, unknown paths.
    pub const fn open(name: &'static str, limit: Limit) -> Self {
        Self {
            rpc: name,
            access: Access::Anyone,
            limit,
            deadline: Duration::from_secs(15),
            max_request_bytes: 65_536,
            is_probe: false,
        }
    }

    /// For what tells orchestrators and the like how the service is. Nothing counts it.
    pub const fn probe(name: &'static str) -> Self {
        Self { is_probe: true, ..Self::open(name, Limit::None) }
    }
}

/// For calls of what there is not.
pub static UNKNOWN: Policy = Policy::open("Unknown", Limit::Api);

/// How a call came in, and so how its answer goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    Rest,
    Grpc,
}

impl Face {
    /// As the metrics name it.
    fn name(self) -> &'static str {
        match self {
            Self::Rest => "rest",
            Self::Grpc => "grpc",
        }
    }
}

/// The other end of the connection. The server puts it into each request.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: SocketAddr,
    /// The connection is TLS, and ends here.
    pub is_tls: bool,
    /// The name in the certificate that it showed, if it did: for the log.
    pub client: Option<Arc<str>>,
}

/// Marks a call that came as gRPC-Web, from a browser then: behind the layer that translates it, it looks as any of gRPC.
#[derive(Clone)]
struct FromWeb;

/// What lets calls in and their answers out. Each call has a clone or two of it, which are cheap.
#[derive(Clone)]
pub struct Gate(Arc<Parts>);

pub struct Parts {
    app: Arc<App>,
    browsers: Browsers,
    /// Large requests that may be in memory at once.
    uploads: Places,
    /// Of a proxy that is not trusted; once is enough.
    warned: AtomicBool,
}

impl Deref for Gate {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Uploads at once: what bounds the memory that they take together.
const MAX_UPLOADS: usize = 32;
/// Uploads of one user at once.
const MAX_UPLOADS_OF_ONE: usize = 2;
/// Whose uploads those are that come without a user: no user has this id.
const NOBODY: i64 = 0;
/// What gRPC puts before a message.
const GRPC_FRAME_HEAD_BYTES: usize = 5;
/// Who leaves a call less than this finds out nothing but that.
const HURRIED: Duration = Duration::from_secs(1);
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

impl Gate {
    pub fn new(app: Arc<App>) -> Self {
        let browsers = Browsers::new(&app.config);
        let uploads = Places::new(MAX_UPLOADS, MAX_UPLOADS_OF_ONE);
        Self(Arc::new(Parts { app, browsers, uploads, warned: AtomicBool::new(false) }))
    }

    /// Lets a call in, runs `handler`, and lets its answer out.
    pub async fn pass<F, Fut>(&self, face: Face, policy: &'static Policy, request: Request, handler: F) -> Response
    where
        F: FnOnce(Request) -> Fut + Send,
        Fut: Future<Output = Response> + Send,
    {
        let started = Instant::now();
        let request_id = RequestId::given_or_new(request.headers().get(X_REQUEST_ID));
        let call_span = CallSpan::begin(policy.rpc, request_id.as_str(), request.headers(), policy.is_probe);
        let span = call_span.span.clone();
        if let Some(name) = request.extensions().get::<Peer>().and_then(|peer| peer.client.as_deref()) {
            span.record("certificate", name);
        }
        async move {
            let (client, is_secure) = (self.client(&request), self.is_secure(&request));
            let mut cookies = None;
            let under_way = self.app.metrics.calls.begin(policy.rpc, face.name());
            let deadline = deadline(face, policy, request.headers());
            let is_hurried = deadline < policy.deadline.min(HURRIED);
            let user_id = None;
            let mut line =
                LogLine { face, policy, client, user_id, started, is_hurried, under_way, call_span, is_written: false };
            let (mut request, taken) = Taken::watch(request);
            let answered = async {
                let admitted = match self.direct(policy, &request, is_secure) {
                    Ok(host) => {
                        cookies = self.cookies(face, policy, &request, host.as_ref(), is_secure);
                        let caller = self.admit(policy, request.headers(), client, cookies.as_ref()).await;
                        caller.map(|caller| (host, caller))
                    }
                    Err(error) => Err(error),
                };
                let (host, caller) = match admitted {
                    Ok(admitted) => admitted,
                    Err(error) => return self.turn_away(face, request, error).await,
                };
                line.user_id = caller.as_ref().map(|caller| caller.user_id);
                let call = Call {
                    request_id: request_id.clone(),
                    client,
                    user_agent: request.headers().get(header::USER_AGENT).cloned(),
                    authority: host,
                    is_secure,
                    caller,
                };
                request.extensions_mut().insert(Arc::new(call));
                if let Some(cookies) = &cookies {
                    request.extensions_mut().insert(cookies.clone());
                }
                // Its turn comes within the deadline or never, and whoever sends slowly loses the place with it.
                let place = Arc::new(OnceLock::new());
                if policy.max_request_bytes > SMALL_REQUEST_BYTES {
                    let (uploads, place) = (self.uploads.clone(), Arc::clone(&place));
                    let sender = line.user_id.unwrap_or(NOBODY);
                    request = request.map(|body| body::in_turn(body, uploads, sender, place));
                }
                let response = handler(request).await;
                drop(place); // Not before: what was sent is in memory until now.
                response
            };
            let answered = tokio::time::timeout(deadline, AssertUnwindSafe(answered).catch_unwind()).await;
            let mut response = match answered {
                Ok(Ok(response)) => response,
                Ok(Err(_panic)) => refuse(face, Error::internal("the handler panicked")),
                Err(_elapsed) => refuse(face, Error::DeadlineExceeded),
            };
            response.headers_mut().insert(X_REQUEST_ID, request_id.into_header());
            if let Some(cookies) = &cookies {
                cookies.settle(&mut response, &self.app.config.jwt);
            }
            if taken.is_some_and(|taken| !taken.is_whole()) {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            self.browsers.tell(response.headers_mut(), is_secure);
            line.write(&response);
            response
        }
        .instrument(span)
        .await
    }

    /// Passes a call over HTTP that nothing here handles, for that `answer`.
    pub async fn turn_down(&self, request: Request, answer: Response) -> Response {
        let answer = async |request| {
            body::discard(request).await;
            answer
        };
        self.pass(Face::Rest, &UNKNOWN, request, answer).await
    }

    /// The host that the call names, if it is meant for us and comes as it must.
    fn direct(&self, policy: &Policy, request: &Request, is_secure: bool) -> Result<Option<HeaderValue>> {
        let host = hosts::named(request, &self.app.config, policy.is_probe)?;
        if self.app.config.http.ssl_redirect && !is_secure && !policy.is_probe {
            return Err(Error::Misdirected(Misdirection::Insecure));
        }
        Ok(host)
    }

    /// A refusal, or the way to HTTPS.
    async fn turn_away(&self, face: Face, request: Request, error: Error) -> Response {
        let is_insecure = matches!(error, Error::Misdirected(Misdirection::Insecure));
        let redirect = (face == Face::Rest && is_insecure).then(|| hosts::redirect(&request, &self.app.config));
        body::discard(request).await;
        redirect.flatten().unwrap_or_else(|| refuse(face, error))
    }

    /// The caller, where the rpc asks for one, once limits and access allow the call.
    async fn admit(
        &self,
        policy: &Policy,
        headers: &HeaderMap,
        client: IpAddr,
        cookies: Option<&Cookies>,
    ) -> Result<Option<Caller>> {
        let caller = match policy.access {
            Access::Anyone => Ok(None),
            Access::User | Access::Admin => match token(headers, cookies) {
                Ok(token) => self.app.caller(token).await.map(Some),
                Err(error) => Err(error),
            },
        };
        if policy.limit == Limit::Api {
            let user_id = caller.as_ref().ok().and_then(|c| c.as_ref()).map(|c| c.user_id);
            self.app.limiter.count_call(user_id, client, self.app.clock.now())?;
        }
        let caller = caller?;
        match (policy.access, &caller) {
            (Access::Anyone, _) => Ok(None),
            (Access::User, Some(_)) => Ok(caller),
            (Access::Admin, Some(c)) if c.roles.is_admin() => Ok(caller),
            (Access::Admin, Some(_)) => Err(Error::PermissionDenied(Denial::Role)),
            (_, None) => Err(Error::Unauthenticated(AuthFailure::NoToken)),
        }
    }

    /// What the call says of cookies, where they are in use and it comes from where browsers call.
    fn cookies(
        &self,
        face: Face,
        policy: &Policy,
        request: &Request,
        host: Option<&HeaderValue>,
        is_secure: bool,
    ) -> Option<Cookies> {
        let is_web = face == Face::Rest || request.extensions().get::<FromWeb>().is_some();
        if !self.app.config.accounts.cookies || !is_web {
            return None;
        }
        let headers = request.headers();
        let used = match policy.access {
            Access::Anyone if policy.rpc == policies::AUTH_SERVICE_REFRESH_TOKEN.rpc => Use::Refresh,
            Access::User | Access::Admin if !headers.contains_key(header::AUTHORIZATION) => Use::Access,
            _ => Use::None,
        };
        let page = self.browsers.page(headers, host, is_secure);
        Some(Cookies::of(request.method(), headers, used, page))
    }

    /// The peer's address; where the peer is a trusted proxy, the nearest address in front of it that is none.
    fn client(&self, request: &Request) -> IpAddr {
        let peer = peer(request);
        let forwarded = request.headers().get_all(X_FORWARDED_FOR);
        if forwarded.iter().next().is_none() {
            return peer;
        }
        if !self.app.config.trusts_proxy(peer) {
            if !self.warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(%peer, "x-forwarded-for from an address that TRUSTED_PROXIES doesn't name is ignored, here and later");
            }
            return peer;
        }
        let mut nearest = peer;
        // Byte by byte: what somebody put before it must not hide what our proxy put at the end.
        let lines: Vec<_> = forwarded.iter().map(HeaderValue::as_bytes).collect();
        for hop in lines.iter().rev().flat_map(|line| line.rsplit(|byte| *byte == b',')) {
            let Some(ip) = std::str::from_utf8(hop).ok().and_then(|hop| hop.trim().parse::<IpAddr>().ok()) else {
                break;
            };
            nearest = ip.to_canonical();
            if !self.app.config.trusts_proxy(nearest) {
                break;
            }
        }
        nearest
    }

    /// The caller reached us over TLS, or the proxy in front of us, whose word counts for more: it may speak TLS with us alone.
    fn is_secure(&self, request: &Request) -> bool {
        let mut said = request.headers().get_all(X_FORWARDED_PROTO).iter().peekable();
        match said.peek() {
            Some(_) if self.app.config.trusts_proxy(peer(request)) => said.all(|proto| proto == "https"),
            _ => request.extensions().get::<Peer>().is_some_and(|peer| peer.is_tls),
        }
    }
}

/// The address at the other end of the connection.
pub fn peer(request: &Request) -> IpAddr {
    let peer = request.extensions().get::<Peer>();
    peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.address.ip().to_canonical())
}

/// The gate of the gRPC services, as a layer around all of them.
pub async fn grpc(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    static HEALTH: Policy = Policy::probe("grpc.health");
    // Streams cost memory for as long as they last, so who begins them is counted.
    static WATCH: Policy = Policy::open("grpc.health.watch", Limit::Api);
    static REFLECTION: Policy = Policy::open("grpc.reflection", Limit::Api);
    let path = request.uri().path();
    match policies::by_path(path) {
        Some(policy) => {
            let most = policy.max_request_bytes + GRPC_FRAME_HEAD_BYTES;
            let request = request.map(|body| Body::new(Limited::new(body, most)));
            let handler = |request| async { status::own_words(next.run(request).await) };
            gate.pass(Face::Grpc, policy, request, handler).await
        }
        None if path.starts_with("/identity.v1.") => {
            gate.pass(Face::Grpc, &UNKNOWN, request, |_| async { status::unknown_rpc() }).await
        }
        // These speak for themselves.
        None => {
            let policy = match path {
                "/grpc.health.v1.Health/Watch" => &WATCH,
                path if path.starts_with("/grpc.health.") => &HEALTH,
                _ => &REFLECTION,
            };
            let most = policy.max_request_bytes + GRPC_FRAME_HEAD_BYTES;
            let request =
                request.map(|body| streams::asked_until(Body::new(Limited::new(body, most)), policy.deadline));
            let handler = |request| async {
                streams::answered_within_bounds(status::own_words_of_others(next.run(request).await))
            };
            gate.pass(Face::Grpc, policy, request, handler).await
        }
    }
}

/// Turns away what is neither gRPC over HTTP/2 nor gRPC-Web, with an id and a line in the log as for any other call: the
/// layer that translates gRPC-Web would drop it without a word.
pub async fn grpc_only(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    let content_type = request.headers().get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let is_web = content_type.starts_with(b"application/grpc-web");
    let is_native = content_type.starts_with(b"application/grpc") && request.version() == Version::HTTP_2;
    if request.method() == Method::POST && (is_web || is_native) {
        if is_web {
            request.extensions_mut().insert(FromWeb);
        }
        return next.run(request).await;
    }
    let error = "Unsupported media type: this is a path of gRPC over HTTP/2, and of gRPC-Web";
    gate.turn_down(request, status::plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, error, None)).await
}

/// A refusal in the caller's protocol.
pub fn refuse(face: Face, error: Error) -> Response {
    match face {
        Face::Rest => status::to_http(&Status::from(error)),
        Face::Grpc => Status::from(error).into_http(),
    }
}

/// The token to let a call in by: that of a cookie is there only where no `authorization` came.
fn token<'a>(headers: &'a HeaderMap, cookies: Option<&'a Cookies>) -> Result<&'a str> {
    match cookies.map(Cookies::token).transpose()?.flatten() {
        Some(token) => Ok(token),
        None => bearer(headers).map_err(Error::Unauthenticated),
    }
}

/// The token of the one `authorization` that may come with a call.
fn bearer(headers: &HeaderMap) -> Result<&str, AuthFailure> {
    let mut entries = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(entry), None) = (entries.next(), entries.next()) else { return Err(AuthFailure::NoToken) };
    let (scheme, token) = entry.to_str().ok().and_then(|v| v.split_once(' ')).ok_or(AuthFailure::BadToken)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim()) } else { Err(AuthFailure::NoToken) }
}

/// The rpc's deadline, or the caller's where that is shorter.
fn deadline(face: Face, policy: &Policy, headers: &HeaderMap) -> Duration {
    match (face, headers.get(GRPC_TIMEOUT).and_then(|v| v.to_str().ok()).and_then(parse_grpc_timeout)) {
        (Face::Grpc, Some(asked)) => asked.min(policy.deadline),
        _ => policy.deadline,
    }
}

/// `100m` is 100 milliseconds: up to eight digits and a unit, as gRPC over HTTP/2 defines it.
fn parse_grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

/// The one line that a call leaves in the log, and its place in the metrics, also where its client went away before the end. A fault brings its cause,
/// which no client ever sees.
struct LogLine {
    face: Face,
    policy: &'static Policy,
    client: IpAddr,
    user_id: Option<i64>,
    started: Instant,
    /// The caller leaves it less time than it may take.
    is_hurried: bool,
    under_way: CallUnderWay,
    call_span: CallSpan,
    is_written: bool,
}

impl LogLine {
    fn write(&mut self, response: &Response) {
        self.is_written = true;
        let Self { face, policy, client, user_id, .. } = *self;
        let status = response.extensions().get::<Status>();
        let is_fault = match (face, status) {
            // Otherwise anybody could fill the log with faults.
            (_, Some(status)) if self.is_hurried && status.code() == tonic::Code::DeadlineExceeded => false,
            (_, Some(status)) => status::is_fault(status.code()),
            (Face::Rest, None) => response.status().is_server_error(),
            (Face::Grpc, None) => false,
        };
        let outcome: &dyn std::fmt::Debug = match (face, status) {
            (Face::Grpc, Some(status)) => &status.code(),
            (Face::Grpc, None) => &tonic::Code::Ok,
            (Face::Rest, _) => &response.status(),
        };
        let code = match (face, status) {
            (Face::Rest, _) => Code::Http(response.status().as_u16()),
            (Face::Grpc, Some(status)) => Code::Grpc(status::code_name(status.code())),
            (Face::Grpc, None) => Code::Grpc("OK"),
        };
        let took = self.started.elapsed();
        self.under_way.end(code, took);
        self.call_span.end(&code, is_fault);
        let took_us = microseconds(took);
        if is_fault {
            let cause = status.and_then(std::error::Error::source).map(Chain);
            let cause = cause.map(tracing::field::display);
            tracing::error!(?face, ?outcome, took_us, %client, user_id, cause, "call failed");
        } else if policy.is_probe {
            // Asked all the time by machines: worth a line only to whoever looks for it.
            tracing::debug!(?face, ?outcome, took_us, %client, "call");
        } else {
            tracing::info!(?face, ?outcome, took_us, %client, user_id, "call");
        }
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Drop for LogLine {
    fn drop(&mut self) {
        if !self.is_written {
            let Self { face, client, user_id, .. } = *self;
            let took = self.started.elapsed();
            self.under_way.end(Code::Cancelled, took);
            self.call_span.end(&Code::Cancelled, false);
            tracing::info!(?face, outcome = "Cancelled", took_us = microseconds(took), %client, user_id, "call");
        }
    }
}
