//! Whether the service can do its work: `GET /api/health/`, and gRPC's `grpc.health.v1.Health`; and for whoever starts and stops
//! it, `GET /livez` and `GET /readyz`, which are not in the OpenAPI document, as no client asks them. Asked often, and so not
//! limited.

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::Request, response::Response, routing};
use http::{HeaderValue, StatusCode, header};
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{
    Api,
    gate::{Face, Gate, Policy},
};
use crate::{
    app::App,
    error::Chain,
    pb::{
        audit_service_server::AuditServiceServer, auth_service_server::AuthServiceServer,
        profile_service_server::ProfileServiceServer, role_service_server::RoleServiceServer,
        user_service_server::UserServiceServer,
    },
};

static HEALTH: Policy = Policy::probe("Health");
static LIVE: Policy = Policy::probe("Live");
static READY: Policy = Policy::probe("Ready");

/// The database gets this long to answer.
const DATABASE_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long gRPC's health rests between two looks at the database. With the timeout, it is right within three seconds.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What gRPC's health is asked of: the service as a whole, and each service of the contract.
const SERVICES: [&str; 6] = [
    "",
    AuthServiceServer::<Api>::NAME,
    UserServiceServer::<Api>::NAME,
    ProfileServiceServer::<Api>::NAME,
    RoleServiceServer::<Api>::NAME,
    AuditServiceServer::<Api>::NAME,
];

pub fn routes(app: &Arc<App>, gate: &Gate, stop: &CancellationToken) -> Router {
    let shared = (Arc::clone(app), gate.clone(), stop.clone());
    let health = {
        let (app, gate, _) = shared.clone();
        move |request: Request| {
            let (app, gate) = (Arc::clone(&app), gate.clone());
            async move { gate.pass(Face::Rest, &HEALTH, request, |_| health(app)).await }
        }
    };
    let live = {
        let (_, gate, _) = shared.clone();
        move |request: Request| {
            let gate = gate.clone();
            async move { gate.pass(Face::Rest, &LIVE, request, |_| async { live() }).await }
        }
    };
    let ready = move |request: Request| {
        let (app, gate, stop) = shared.clone();
        async move { gate.pass(Face::Rest, &READY, request, |_| ready(app, stop)).await }
    };
    Router::new()
        .route("/api/health/", routing::get(health.clone()))
        .route("/api/health", routing::get(health))
        .route("/livez", routing::get(live))
        .route("/readyz", routing::get(ready))
}

/// It runs, or it would not say so. Nothing is looked at: to start a service anew brings no database back.
fn live() -> Response {
    json(StatusCode::OK, r#"{"status":"ok"}"#.to_owned())
}

/// Whether calls should come here. The schema needs no look: without all of it nothing listens.
async fn ready(app: Arc<App>, stop: CancellationToken) -> Response {
    if stop.is_cancelled() {
        return json(StatusCode::SERVICE_UNAVAILABLE, r#"{"status":"stopping"}"#.to_owned());
    }
    let database = app.db.ping(DATABASE_TIMEOUT).await;
    if let Err(error) = &database {
        tracing::warn!(error = %Chain(error), "not ready");
    }
    let are_fresh = app.feed.is_fresh();
    let (status, said) = if database.is_ok() && are_fresh {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "unavailable")
    };
    let database = if database.is_ok() { "ok" } else { "unavailable" };
    let feed = if are_fresh { "ok" } else { "stale" };
    json(status, format!(r#"{{"status":"{said}","database":"{database}","feed":"{feed}"}}"#))
}

async fn health(app: Arc<App>) -> Response {
    let cache_answers = async {
        match &app.redis {
            Some(redis) => redis.ping().await,
            None => true, // in process
        }
    };
    let (database, cache_answers) = tokio::join!(app.db.ping(DATABASE_TIMEOUT), cache_answers);
    let cache = if cache_answers { "ok" } else { "degraded" };
    let (status, body) = match database {
        Ok(()) => (StatusCode::OK, format!(r#"{{"status":"ok","database":"ok","cache":"{cache}"}}"#)),
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "unhealthy");
            let body = format!(r#"{{"status":"unavailable","database":"unavailable","cache":"{cache}"}}"#);
            (StatusCode::SERVICE_UNAVAILABLE, body)
        }
    };
    json(status, body)
}

fn json(status: StatusCode, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Has gRPC's health say that everything is served: as it is at the start, which has just read from the database.
pub async fn begin(reporter: &HealthReporter) {
    report(reporter, ServingStatus::Serving).await;
}

/// Has gRPC's health say how the database is, until `stop`; then that nothing is served any more.
pub async fn follow_database(app: Arc<App>, mut reporter: HealthReporter, stop: CancellationToken) {
    let mut last = ServingStatus::Serving;
    while let Some(answer) = stop.run_until_cancelled(app.db.ping(DATABASE_TIMEOUT)).await {
        let now = if answer.is_ok() { ServingStatus::Serving } else { ServingStatus::NotServing };
        // Whoever watches hears of changes only.
        if now != last {
            report(&reporter, now).await;
            last = now;
        }
        stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await;
    }
    report(&reporter, ServingStatus::NotServing).await;
    // Ends the calls of those who watch, which would keep the connections open until they are cut off.
    for name in SERVICES {
        reporter.clear_service_status(name).await;
    }
}

async fn report(reporter: &HealthReporter, status: ServingStatus) {
    for name in SERVICES {
        reporter.set_service_status(name, status).await;
    }
}
