//! What the generated REST code costs over handlers written by hand, in process: the same gate, the same service behind
//! it, the same bytes in the answer. `cargo bench --bench transcode`.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a benchmark may fail loudly")]

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Path, Query, Request, State},
    response::{IntoResponse, Response},
    routing,
};
use chrono::Utc;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderValue, StatusCode, header};
use identity::{
    api::{
        gate::{Face, Gate},
        policies,
        rest::Rest,
        routes,
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
use tokio::runtime::Runtime;
use tonic::{Status, metadata::MetadataMap};
use tower::ServiceExt;

/// Answers at once, always the same.
struct Stub;

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

type Answer<T> = Result<tonic::Response<T>, Status>;

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

#[derive(serde::Deserialize)]
struct ListQuery {
    page: Option<i64>,
    page_size: Option<i64>,
    search: Option<String>,
    role: Option<String>,
    is_verified: Option<bool>,
    ordering: Option<String>,
}

type ByHand = State<(Arc<Stub>, Gate)>;

async fn get_by_hand(State((service, gate)): ByHand, Path(id): Path<i64>, request: Request) -> Response {
    gate.pass(Face::Rest, &policies::USER_SERVICE_GET_USER, request, |request| async move {
        let (parts, _) = request.into_parts();
        let call = tonic::Request::from_parts(MetadataMap::default(), parts.extensions, pb::GetUserRequest { id });
        json(&service.get_user(call).await.unwrap().into_inner())
    })
    .await
}

async fn list_by_hand(State((service, gate)): ByHand, Query(query): Query<ListQuery>, request: Request) -> Response {
    gate.pass(Face::Rest, &policies::USER_SERVICE_LIST_USERS, request, |request| async move {
        let ListQuery { page, page_size, search, role, is_verified, ordering } = query;
        let message =
            pb::ListUsersRequest { page, page_size, search, role, is_verified, ordering, ..Default::default() };
        let (parts, _) = request.into_parts();
        let call = tonic::Request::from_parts(MetadataMap::default(), parts.extensions, message);
        json(&service.list_users(call).await.unwrap().into_inner())
    })
    .await
}

fn json(reply: &impl serde::Serialize) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    let mut body = Vec::with_capacity(512);
    serde_json::to_writer(&mut body, reply).unwrap();
    (StatusCode::OK, headers, Body::from(body)).into_response()
}

/// A service to have a gate of, and a token that it lets in.
async fn gate(folder: &std::path::Path) -> (Gate, String) {
    let url = format!("sqlite://{}", folder.join("identity.db").display());
    let config = Config::load(|name| match name {
        "DATABASE_URL" => Some(url.clone()),
        "JWT_SECRET_KEY" => Some("a-key-for-benchmarks-that-is-long-enough".into()),
        "RATE_LIMIT_API" => Some("off".into()),
        _ => None,
    })
    .unwrap();
    let db = Db::connect(&DbOptions { url: url.clone(), ..DbOptions::default() }).await.unwrap();
    db.migrate().await.unwrap();
    let (mailer, _) = Mailer::memory(&config.mail).unwrap();
    let app = Arc::new(App::new(config, Clock::frozen(Utc::now()), db, mailer).await.unwrap());
    let new = NewAccount {
        person: Person {
            email: EmailAddress::parse("user@example.com").unwrap(),
            first_name: PersonName::default(),
            last_name: PersonName::default(),
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
    tokio::spawn(Arc::clone(&app).follow_feed(tokio_util::sync::CancellationToken::new()));
    (Gate::new(app), token)
}

fn transcode(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (gate, token) = runtime.block_on(gate(folder.path()));
    let generated = routes::user_service(Rest::new(Arc::new(Stub), gate.clone()));
    let by_hand = Router::new()
        .route("/api/users/", routing::get(list_by_hand))
        .route("/api/users/{id}/", routing::get(get_by_hand))
        .with_state((Arc::new(Stub), gate));
    let request = |path: &str| {
        let bearer = format!("Bearer {token}");
        http::Request::get(path)
            .header(header::HOST, "localhost")
            .header(header::AUTHORIZATION, bearer)
            .body(Body::empty())
            .unwrap()
    };
    for (name, path) in
        [("one user", "/api/users/1/"), ("a list of 20", "/api/users/?page=1&page_size=20&search=john&role=freelancer")]
    {
        let body = async |router: &Router| {
            let response = router.clone().oneshot(request(path)).await.unwrap();
            assert_eq!(response.status(), 200);
            axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap()
        };
        runtime.block_on(async { assert_eq!(body(&generated).await, body(&by_hand).await) });
        let mut group = criterion.benchmark_group(name);
        for (how, router) in [("generated", &generated), ("by hand", &by_hand)] {
            group.bench_function(how, |bencher| bencher.to_async(&runtime).iter(|| body(router)));
        }
        group.finish();
    }
}

criterion_group!(benches, transcode);
criterion_main!(benches);
