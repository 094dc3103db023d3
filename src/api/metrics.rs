//! `GET /metrics`: what Prometheus reads. It is no route: whoever may not read it finds what is at any other path, nothing.

use axum::{body::Body, extract::Request, response::Response};
use http::{HeaderValue, Method, header};

use super::gate::{self, Face, Gate, Policy, refuse};
use crate::{
    app::App,
    error::{Cause, Error},
    metrics::whole,
};

static METRICS: Policy = Policy::probe("Metrics");

const CONTENT_TYPE: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
/// What proxies add: behind one, anybody may be the peer's client.
const OF_PROXIES: [&str; 9] = [
    "cf-connecting-ip",
    "forwarded",
    "true-client-ip",
    "via",
    "x-envoy-external-address",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
];

/// Whether the request is for the metrics, and by somebody who may read them.
pub fn are_asked_for(app: &App, request: &Request) -> bool {
    let peer = gate::peer(request);
    request.uri().path() == "/metrics"
        && matches!(*request.method(), Method::GET | Method::HEAD)
        && app.config.telemetry.metrics_from.iter().any(|network| network.contains(&peer))
        && !app.config.trusts_proxy(peer)
        && !OF_PROXIES.iter().any(|name| request.headers().contains_key(*name))
}

/// The answer to whoever may read them.
pub async fn answer(app: &App, gate: &Gate, request: Request) -> Response {
    let read = |_| async {
        match render(app).await {
            Ok(text) => {
                let mut response = Response::new(Body::from(text));
                response.headers_mut().insert(header::CONTENT_TYPE, CONTENT_TYPE);
                response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
                response
            }
            Err(error) => refuse(Face::Rest, Error::internal(error)),
        }
    };
    gate.pass(Face::Rest, &METRICS, request, read).await
}

/// The text, once what is there anyway was read.
async fn render(app: &App) -> Result<String, Cause> {
    app.metrics.connections.read(app.clock.now().timestamp());
    let readings = &app.metrics.readings;
    for pool in app.db.pools() {
        readings.set_pool(&pool);
    }
    readings.hash_queue.set(whole(app.hash_pool.queued()));
    readings.hash_queue_max.set(whole(app.hash_pool.capacity()));
    readings.hash_threads.set(whole(app.hash_pool.threads()));
    let (sessions, users) = app.feed.held();
    readings.set_feed(sessions, users);
    readings.feed_age.set(app.feed.age().as_secs_f64());
    if let Some(redis) = &app.redis {
        readings.set_redis(redis.ping().await);
    }
    Ok(app.metrics.render()?)
}
