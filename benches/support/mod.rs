//! What the benchmarks share: a service in this process with a user who is logged in, calls of it that take no socket, and users
//! that take no database.

#![allow(dead_code, reason = "no benchmark wants all of it")]

use std::{path::Path, sync::Arc};

use axum::{Router, body::Body, extract::Request, response::Response};
use bytes::{BufMut, Bytes, BytesMut};
use chrono::Utc;
use http::{HeaderMap, Version, header};
use http_body_util::BodyExt;
use identity::{
    api::{
        gate::{Gate, Peer},
        rest::Rest,
        router, routes,
    },
    app::App,
    clock::Clock,
    config::Config,
    db::{Db, DbOptions},
    domain::{
        caller::{Call, RequestId},
        registration::{NewAccount, Person},
        user::{EmailAddress, PersonName},
    },
    mail::Mailer,
    model::password::Password,
    pb::{self, user_service_server::UserService},
};
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tower::ServiceExt;

/// The real one, over SQLite, with a clock that stands still.
pub struct Service {
    pub app: Arc<App>,
    pub gate: Gate,
    /// Every face.
    pub router: Router,
    /// The access token of its user.
    pub token: String,
    pub user_id: i64,
}

impl Service {
    /// With this for `RATE_LIMIT_API`. Its data lies in `folder`.
    pub async fn start(folder: &Path, limit: &str) -> Self {
        let url = format!("sqlite://{}", folder.join("identity.db").display());
        let config = Config::load(|name| match name {
            "DATABASE_URL" => Some(url.clone()),
            "JWT_SECRET_KEY" => Some("a-key-for-benchmarks-that-is-long-enough".into()),
            "RATE_LIMIT_API" => Some(limit.into()),
            "LOG_FORMAT" => Some("json".into()),
            _ => None,
        })
        .unwrap();
        let db = Db::connect(&DbOptions { url: url.clone(), ..DbOptions::default() }).await.unwrap();
        db.migrate().await.unwrap();
        let (mailer, _) = Mailer::memory(&config.mail).unwrap();
        let app = Arc::new(Box::pin(App::new(config, Clock::frozen(Utc::now()), db, mailer)).await.unwrap());
        let new = NewAccount {
            person: Person {
                email: EmailAddress::parse("user@example.com").unwrap(),
                first_name: PersonName::parse("John").unwrap(),
                last_name: PersonName::parse("Doe").unwrap(),
            },
            password: Password::parse_new("SecurePass123!", &[]).unwrap(),
        };
        let call = Call {
            request_id: RequestId::given_or_new(None),
            client: [127, 0, 0, 1].into(),
            user_agent: None,
            authority: None,
            is_secure: false,
            caller: None,
        };
        let token = app.register(Arc::new(call), new).await.unwrap().tokens.access;
        // The hash took its time, for which nobody followed the feed.
        app.feed.poll(&app.db, &app.clock).await.unwrap();
        let user_id = app.caller(&token).await.unwrap().user_id;
        let gate = Gate::new(Arc::clone(&app));
        let router = router::routers(&app, &CancellationToken::new()).await.unwrap().all;
        Self { app, gate, router, token, user_id }
    }

    /// The feed of changes is followed in the background, as the server does: without it nobody is let in.
    pub fn follow_feed(&self) {
        tokio::spawn(Arc::clone(&self.app).follow_feed(CancellationToken::new()));
    }

    /// The routes of users, over [`Stub`].
    pub fn stub_routes(&self) -> Router {
        routes::user_service(Rest::new(Arc::new(Stub), self.gate.clone()))
    }

    /// A GET of the user, as it comes from the server.
    pub fn get(&self, path: &str) -> Request {
        let request = http::Request::get(path).header(header::HOST, "localhost").header(header::USER_AGENT, "bench");
        self.sent(request, Body::empty())
    }

    /// A gRPC call of the user.
    pub fn rpc(&self, path: &str, message: &impl Message) -> Request {
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.encoded_len()).unwrap());
        message.encode(&mut frame).unwrap();
        let request = http::Request::post(format!("http://localhost{path}"))
            .version(Version::HTTP_2)
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header(header::USER_AGENT, "bench");
        self.sent(request, Body::from(frame.freeze()))
    }

    fn sent(&self, request: http::request::Builder, body: Body) -> Request {
        let peer = Peer { address: ([127, 0, 0, 1], 40_000).into(), is_tls: false, client: None };
        request.header(header::AUTHORIZATION, format!("Bearer {}", self.token)).extension(peer).body(body).unwrap()
    }
}

/// The body of what `router` answers, all of it, and what comes behind it.
///
/// # Panics
/// If the call fails, by its HTTP or by its gRPC status.
pub async fn answer(router: &Router, request: Request) -> (Bytes, Option<HeaderMap>) {
    let is_rpc = request.version() == Version::HTTP_2;
    let response: Response = router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap();
    let trailers = body.trailers().cloned();
    if is_rpc {
        assert!(trailers.as_ref().is_some_and(|trailers| trailers["grpc-status"] == "0"), "{trailers:?}");
    }
    (body.to_bytes(), trailers)
}

/// Answers at once, always the same.
pub struct Stub;

pub type Answer<T> = Result<tonic::Response<T>, Status>;

fn user(id: i64) -> pb::User {
    let time = Some(prost_types::Timestamp { seconds: 1_795_413_709, nanos: 113_681_000 });
    pb::User {
        id,
        email: "user@example.com".into(),
        first_name: "John".into(),
        last_name: "Doe".into(),
        is_active: true,
        is_verified: true,
        is_freelancer: true,
        roles: vec!["Freelancer".into()],
        date_joined: time,
        updated_at: time,
        ..Default::default()
    }
}

fn page(request: &pb::ListUsersRequest) -> pb::ListUsersResponse {
    pb::ListUsersResponse {
        count: 150,
        next: Some("http://localhost:8000/api/users/?page=2".into()),
        previous: None,
        results: (0..request.page_size.unwrap_or(20)).map(user).collect(),
        next_page_token: String::new(),
    }
}

#[tonic::async_trait]
impl UserService for Stub {
    async fn list_users(&self, request: tonic::Request<pb::ListUsersRequest>) -> Answer<pb::ListUsersResponse> {
        Ok(tonic::Response::new(page(request.get_ref())))
    }

    async fn create_user(&self, _: tonic::Request<pb::CreateUserRequest>) -> Answer<pb::User> {
        Err(Status::unimplemented(""))
    }

    async fn get_user(&self, request: tonic::Request<pb::GetUserRequest>) -> Answer<pb::User> {
        Ok(tonic::Response::new(user(request.get_ref().id)))
    }

    async fn batch_get_users(&self, _: tonic::Request<pb::BatchGetUsersRequest>) -> Answer<pb::BatchGetUsersResponse> {
        Err(Status::unimplemented(""))
    }

    async fn update_user(&self, _: tonic::Request<pb::UpdateUserRequest>) -> Answer<pb::User> {
        Err(Status::unimplemented(""))
    }

    async fn delete_user(&self, _: tonic::Request<pb::DeleteUserRequest>) -> Answer<()> {
        Err(Status::unimplemented(""))
    }

    async fn export_user(&self, _: tonic::Request<pb::ExportUserRequest>) -> Answer<pb::UserExport> {
        Err(Status::unimplemented(""))
    }
}
