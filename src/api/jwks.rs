//! The public keys by which others verify tokens without asking: `/.well-known/jwks.json` (RFC 7517 §5).

use axum::{Router, extract::Request, response::Response, routing};
use bytes::Bytes;
use http::{HeaderValue, header};

use super::gate::{Face, Gate, Limit, Policy};
use crate::app::App;

static JWKS: Policy = Policy::open("Jwks", Limit::Api);

/// How long a verifier may keep the set. `JWT_NEXT_KEY` has to be in it for longer before it signs.
const CACHE: HeaderValue = HeaderValue::from_static("public, max-age=300");

/// The set, without shared secrets: with HS256 alone it is empty.
pub fn routes(app: &App, gate: &Gate) -> serde_json::Result<Router> {
    let set = Bytes::from(serde_json::to_vec(&app.keys.public())?);
    let gate = gate.clone();
    let answer =
        move |request: Request| async move { gate.pass(Face::Rest, &JWKS, request, |_| async { response(set) }).await };
    Ok(Router::new().route("/.well-known/jwks.json", routing::get(answer)))
}

fn response(set: Bytes) -> Response {
    let mut response = Response::new(set.into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"));
    headers.insert(header::CACHE_CONTROL, CACHE);
    response
}
