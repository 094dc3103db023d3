//! What the generated REST code costs over handlers written by hand, in process: the same gate, the same service behind
//! it, the same bytes in the answer. `cargo bench --bench transcode`.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a benchmark may fail loudly")]

mod support;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Path, Query, Request, State},
    response::{IntoResponse, Response},
    routing,
};
use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderValue, StatusCode, header};
use identity::{
    api::{
        gate::{Face, Gate},
        policies,
    },
    pb::{self, user_service_server::UserService},
};
use support::{Service, Stub, answer};
use tokio::runtime::Runtime;
use tonic::metadata::MetadataMap;

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

fn transcode(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let service = runtime.block_on(async {
        let service = Service::start(folder.path(), "off").await;
        service.follow_feed();
        service
    });
    let generated = service.stub_routes();
    let by_hand = Router::new()
        .route("/api/users/", routing::get(list_by_hand))
        .route("/api/users/{id}/", routing::get(get_by_hand))
        .with_state((Arc::new(Stub), service.gate.clone()));
    for (name, path) in
        [("one user", "/api/users/1/"), ("a list of 20", "/api/users/?page=1&page_size=20&search=john&role=freelancer")]
    {
        let body = async |router: &Router| answer(router, service.get(path)).await.0;
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
