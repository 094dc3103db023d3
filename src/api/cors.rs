//! Which pages of other origins may call the service and read its answers: those of `CORS_ALLOWED_ORIGINS`, to the letter.

use std::time::Duration;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::{HeaderName, HeaderValue, Method, header};
use tower::{Layer, Service};
use tower_http::cors::CorsLayer;

use super::gate::{Face, Gate, Limit, Policy};
use crate::config::Config;

/// What a browser asks before a call. It is no call itself: it bears no token, and no page sees the answer.
static PREFLIGHT: Policy = Policy { is_probe: true, ..Policy::open("Preflight", Limit::None) };

const METHODS: [Method; 5] = [Method::GET, Method::HEAD, Method::POST, Method::PATCH, Method::DELETE];

/// What a page may send: what such pages send to Django, what clients of gRPC-Web send, and what we look at.
const TAKEN: [HeaderName; 12] = [
    header::ACCEPT,
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::IF_NONE_MATCH,
    header::USER_AGENT,
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("x-csrftoken"),
    HeaderName::from_static("x-grpc-web"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-requested-with"),
    HeaderName::from_static("x-user-agent"),
];

/// What a page may read beside what any page may.
const SHOWN: [HeaderName; 8] = [
    header::ALLOW,
    header::ETAG,
    header::RETRY_AFTER,
    header::WWW_AUTHENTICATE,
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-status-details-bin"),
    HeaderName::from_static("x-request-id"),
];

/// How long a browser may go by an answer to a preflight: what is struck off the list is heard of then.
const MAX_AGE: Duration = Duration::from_mins(10);

/// What pages are allowed; `None` where no origin is.
pub fn rules(config: &Config) -> Option<CorsLayer> {
    let origins: Vec<_> = config.http.cors_allowed_origins.iter().flat_map(HeaderValue::try_from).collect();
    if origins.is_empty() {
        return None;
    }
    let rules = CorsLayer::new().allow_origin(origins).allow_methods(METHODS).allow_headers(TAKEN);
    Some(rules.expose_headers(SHOWN).max_age(MAX_AGE).allow_credentials(config.accounts.cookies))
}

/// Answers preflights, and has browsers show the other answers to pages that may see them.
pub async fn apply(State((rules, gate)): State<(CorsLayer, Gate)>, request: Request, next: Next) -> Response {
    let asks_before =
        [header::ORIGIN, header::ACCESS_CONTROL_REQUEST_METHOD].iter().all(|name| request.headers().contains_key(name));
    let is_options = request.method() == Method::OPTIONS;
    if is_options && !asks_before {
        return next.run(request).await; // The layer takes any OPTIONS for a preflight.
    }
    let mut rest = rules.layer(next);
    let answer = |request| async move { rest.call(request).await.unwrap_or_else(|never| match never {}) };
    if is_options { gate.pass(Face::Rest, &PREFLIGHT, request, answer).await } else { answer(request).await }
}
