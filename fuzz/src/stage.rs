//! The service as it runs, but for the socket: its router over a database in a folder of this process.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use axum::{Router, body::Body, response::Response};
use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderValue, Method, Request, header};
use http_body_util::BodyExt;
use identity::{
    api::router,
    app::App,
    clock::Clock,
    config::Config,
    db::{Db, DbOptions},
    domain::user::EmailAddress,
    mail::Mailer,
    model::password::Password,
};
use libfuzzer_sys::Corpus;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::{Given, Kind, Who, request::HOST};

/// Signs the tokens.
pub const KEY: &str = "a-key-for-fuzzing-that-is-long-enough-0123456789";
const PASSWORD: &str = "Tr0ub4dor&3x";

/// Nothing stands in the way: no limits, and hashes that cost nothing.
const SETTINGS: [(&str, &str); 8] = [
    ("JWT_SECRET_KEY", KEY),
    ("DEBUG", "true"),
    ("ARGON2_MEMORY_KIB", "8"),
    ("ARGON2_ITERATIONS", "1"),
    ("RATE_LIMIT_REGISTER", "off"),
    ("RATE_LIMIT_LOGIN", "off"),
    ("RATE_LIMIT_API", "off"),
    ("RATE_LIMIT_VERIFICATION", "off"),
];

struct Stage {
    runtime: Runtime,
    app: Arc<App>,
    router: Router,
    /// Who are logged in: a user, and an admin.
    tokens: Mutex<[Option<HeaderValue>; 2]>,
    /// How many have been registered.
    count: Mutex<u64>,
    _files: TempDir,
}

fn stage() -> &'static Stage {
    static STAGE: OnceLock<Stage> = OnceLock::new();
    STAGE.get_or_init(|| {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let files = tempfile::tempdir().expect("a folder");
        let (app, router) = runtime.block_on(start(&files));
        Stage { runtime, app, router, tokens: Mutex::default(), count: Mutex::default(), _files: files }
    })
}

async fn start(files: &TempDir) -> (Arc<App>, Router) {
    let url = format!("sqlite:{}", files.path().join("fuzz.db").display());
    let config = Config::load(|name| match name {
        "DATABASE_URL" => Some(url.clone()),
        "DATA_DIR" => Some(files.path().display().to_string()),
        _ => SETTINGS.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()),
    });
    let config = config.unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let db = Db::connect(&DbOptions { url, ..DbOptions::default() }).await.expect("a database");
    db.migrate().await.expect("a schema");
    let (mailer, _) = Mailer::memory(&config.mail).expect("a mailer");
    let clock = Clock::frozen(Clock::System.now());
    let app = Arc::new(App::new(config, clock, db, mailer).await.expect("a service"));
    let routers = router::routers(&app, &CancellationToken::new()).await.expect("a router");
    (app, routers.all)
}

/// The service itself.
pub fn app() -> &'static App {
    &stage().app
}

/// What the service's clock shows: it stands still.
pub fn now() -> DateTime<Utc> {
    app().clock.now()
}

/// Sends the request that `data` describes, and panics unless the answer is one of ours and no fault.
pub fn exchange(data: &[u8], kind: Kind) -> Corpus {
    let Some(given) = Given::parse(data, kind) else { return Corpus::Reject };
    let stage = stage();
    stage.runtime.block_on(stage.exchange(given));
    Corpus::Keep
}

impl Stage {
    async fn exchange(&self, given: Given) {
        // No task does it here.
        if self.app.feed.age() > Duration::from_secs(1) {
            self.app.feed.poll(&self.app.db, &self.app.clock).await.expect("the feed");
        }
        let Given { who, mut request, has_credentials } = given;
        if !request.headers().contains_key(header::HOST) && request.uri().authority().is_none() {
            request.headers_mut().insert(header::HOST, HeaderValue::from_static("localhost"));
        }
        if who != Who::Anyone {
            let token = self.token(who).await;
            request.headers_mut().append(header::AUTHORIZATION, token);
        }
        let (asked, deadline) = (request.method().clone(), request.headers().contains_key("grpc-timeout"));
        let response = self.send(request).await;
        if response.status() == 401 && who != Who::Anyone && !has_credentials {
            self.tokens.lock().unwrap_or_else(PoisonError::into_inner)[usize::from(who == Who::Admin)] = None;
        }
        judge(response, &asked, deadline).await;
    }

    async fn send(&self, request: Request<Body>) -> Response {
        self.router.clone().oneshot(request).await.unwrap_or_else(|never| match never {})
    }

    /// Of somebody new, where the last one was logged out or deleted.
    async fn token(&self, who: Who) -> HeaderValue {
        let place = usize::from(who == Who::Admin);
        let kept = self.tokens.lock().unwrap_or_else(PoisonError::into_inner)[place].clone();
        if let Some(kept) = kept {
            return kept;
        }
        let n = {
            let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
            *count += 1;
            *count
        };
        let email = format!("somebody{n}@example.com");
        let address = EmailAddress::parse(&email).expect("an address");
        let account = json!({ "email": email, "password": PASSWORD, "first_name": "Jane", "last_name": "Doe" });
        let path = if who == Who::Admin {
            let password = Password::parse_new(PASSWORD, &[]).expect("a password");
            self.app.create_superuser(address, password).await.expect("a superuser");
            "/api/auth/login/"
        } else {
            "/api/auth/register/"
        };
        let request = Request::post(path).header(header::HOST, HOST).header(header::CONTENT_TYPE, "application/json");
        let response = self.send(request.body(Body::from(account.to_string())).expect("a request")).await;
        let status = response.status();
        let body = response.into_body().collect().await.expect("an answer").to_bytes();
        let answer: Value = serde_json::from_slice(&body).expect("an answer");
        let token = answer["access_token"].as_str().unwrap_or_else(|| panic!("{path}: {status} {answer}"));
        let token = HeaderValue::from_str(&format!("Bearer {token}")).expect("a header");
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)[place] = Some(token.clone());
        token
    }
}

async fn judge(response: Response, asked: &Method, has_deadline: bool) {
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a whole answer");
    let trailers = body.trailers().cloned().unwrap_or_default();
    let body = body.to_bytes();
    let text = || String::from_utf8_lossy(&body);
    let status = head.status.as_u16();
    assert!(head.headers.contains_key("x-request-id"), "no request id: {status} {}", text());
    let content_type = head.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if content_type.starts_with(b"application/grpc") {
        let code = grpc_code(&head.headers, &trailers, content_type, &body);
        match code.as_deref() {
            // What UNKNOWN, INTERNAL, UNAVAILABLE and DATA_LOSS are to HTTP: a fault.
            Some("2" | "13" | "14" | "15") => panic!("a fault: {code:?} {head:?}"),
            Some("4") => assert!(has_deadline, "it took too long"),
            Some(code) => assert!(code.parse::<u8>().is_ok_and(|code| code <= 16), "no status: {code}"),
            // A stream that goes on, such as reflection's.
            None => panic!("no status: {head:?} {}", text()),
        }
        return;
    }
    assert!(status < 500, "a fault: {status} {}", text());
    if status < 400 || *asked == Method::HEAD {
        if content_type == b"application/json" && !body.is_empty() {
            serde_json::from_slice::<Value>(&body).expect("JSON");
        }
        return;
    }
    assert!(head.headers.get("cache-control").is_some_and(|v| v == "no-store"), "{status} may be stored: {}", text());
    let Ok(Value::Object(fields)) = serde_json::from_slice(&body) else {
        panic!("no JSON object: {status} {}", text())
    };
    assert!(
        !fields.is_empty() && (fields.contains_key("error") || !fields.contains_key("detail")),
        "{status} {}",
        text()
    );
    for (name, value) in &fields {
        let is_ours = match value {
            Value::String(_) => name == "error" || name == "detail",
            Value::Array(texts) => !texts.is_empty() && texts.iter().all(Value::is_string),
            _ => false,
        };
        assert!(is_ours, "not in the form of the contract: {status} {}", text());
    }
}

/// From the head where there is no message, from the trailers otherwise; gRPC-Web writes those into the body.
fn grpc_code(head: &HeaderMap, trailers: &HeaderMap, content_type: &[u8], body: &[u8]) -> Option<String> {
    let in_headers = head.get("grpc-status").or_else(|| trailers.get("grpc-status"));
    if let Some(code) = in_headers {
        return code.to_str().ok().map(str::to_owned);
    }
    let decoded;
    let body = if content_type.starts_with(b"application/grpc-web-text") {
        // Each frame is encoded by itself, with padding of its own.
        decoded = decode_chunks(body)?;
        &decoded
    } else {
        body
    };
    let at = body.windows(12).rposition(|part| part == b"grpc-status:")? + 12;
    let code: Vec<u8> = body[at..].iter().copied().take_while(|byte| *byte != b'\r').collect();
    Some(String::from_utf8_lossy(&code).trim().to_owned())
}

fn decode_chunks(body: &[u8]) -> Option<Vec<u8>> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let mut all = Vec::new();
    for four in body.chunks(4) {
        all.extend(BASE64_STANDARD.decode(four).ok()?);
    }
    Some(all)
}
