//! `GET /media/avatars/{file}`: a picture, for anyone who knows its name. A picture never changes under its name.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, rejection::PathRejection},
    response::Response,
    routing,
};
use http::{HeaderValue, StatusCode, header};

use super::gate::{Face, Gate, Limit, Policy, refuse};
use crate::{
    app::App,
    domain::avatar::Avatar,
    error::{Error, Resource},
};

static MEDIA: Policy = Policy::open("Media", Limit::Api);

/// A picture of a stranger's, should a browser take it for anything else.
const POLICY: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; sandbox");

pub fn routes(app: &Arc<App>, gate: &Gate) -> Router {
    let (app, gate) = (Arc::clone(app), gate.clone());
    let serve = async move |name: Result<Path<String>, PathRejection>, request: Request| {
        let seen = request.headers().get(header::IF_NONE_MATCH).cloned();
        let find = |_| async move {
            let found = match name {
                Ok(Path(name)) => app.avatar(&name).await,
                Err(_) => Ok(None), // No text, and so no name of ours.
            };
            match found {
                Ok(Some(avatar)) => picture(avatar, seen.as_ref()),
                Ok(None) => refuse(Face::Rest, Error::NotFound(Resource::Avatar)),
                Err(error) => refuse(Face::Rest, error),
            }
        };
        gate.pass(Face::Rest, &MEDIA, request, find).await
    };
    Router::new().route("/media/avatars/{file}", routing::get(serve))
}

/// The picture, or only that it is the one that the caller has.
fn picture(avatar: Avatar, seen: Option<&HeaderValue>) -> Response {
    let tag = format!("\"{}\"", avatar.name);
    let is_known = seen.and_then(|tags| tags.to_str().ok()).is_some_and(|tags| tags == "*" || tags.contains(&tag));
    let mut response = Response::new(if is_known { Body::empty() } else { Body::from(avatar.bytes) });
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(avatar.content_type));
    // A name is made of characters that a header may have.
    if let Ok(tag) = HeaderValue::try_from(tag) {
        headers.insert(header::ETAG, tag);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY);
    response
}
