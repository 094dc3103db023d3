//! `GET /api/health/`: whether the service can do its work. Asked often, and so not limited.

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::Request, response::Response, routing};
use http::{HeaderValue, StatusCode, header};

use super::gate::{Face, Gate, Limit, Policy};
use crate::{app::App, error::Chain};

static HEALTH: Policy = Policy::open("Health", Limit::None);

/// The database gets this long to answer.
const DATABASE_TIMEOUT: Duration = Duration::from_millis(1500);

pub fn routes(app: &Arc<App>, gate: &Gate) -> Router {
    let (app, gate) = (Arc::clone(app), gate.clone());
    let health = move |request: Request| {
        let (app, gate) = (Arc::clone(&app), gate.clone());
        async move { gate.pass(Face::Rest, &HEALTH, request, |_| health(app)).await }
    };
    Router::new().route("/api/health/", routing::get(health.clone())).route("/api/health", routing::get(health))
}

async fn health(app: Arc<App>) -> Response {
    let (status, body) = match app.db.ping(DATABASE_TIMEOUT).await {
        Ok(()) => (StatusCode::OK, r#"{"status":"ok","database":"ok","cache":"ok"}"#),
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "unhealthy");
            (StatusCode::SERVICE_UNAVAILABLE, r#"{"status":"unavailable","database":"unavailable","cache":"ok"}"#)
        }
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
