//! `GET /media/avatars/{file}`: a picture, for anyone who knows its name. A picture never changes under its name.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Request, rejection::PathRejection},
    response::Response,
    routing,
};
use http::{HeaderValue, StatusCode, header};

use super::gate::{Face, Gate, Limit, Policy, refuse};
use crate::{
    app::App,
    domain::{avatar::Avatar, caller::Call},
    error::{Error, Resource},
    limiter::network,
    places::{Place, Places},
};

static MEDIA: Policy = Policy::open("Media", Limit::Api);

/// A picture of a stranger's, should a browser take it for anything else.
const POLICY: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; sandbox");

/// Pictures that are in memory on their way out, and those of one client: whoever asks for many and takes none waits for itself.
const MAX_SENT: usize = 64;
const MAX_SENT_TO_ONE: usize = 4;

/// A picture on its way out. Its place is free once the last of it was taken.
struct Sent {
    picture: Vec<u8>,
    _place: Place<IpAddr>,
}

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.picture
    }
}

pub fn routes(app: &Arc<App>, gate: &Gate) -> Router {
    let (app, gate) = (Arc::clone(app), gate.clone());
    let sending = Places::new(MAX_SENT, MAX_SENT_TO_ONE);
    let serve = async move |name: Result<Path<String>, PathRejection>, request: Request| {
        let seen = request.headers().get(header::IF_NONE_MATCH).cloned();
        let (app, sending) = (&app, &sending);
        let find = move |request: Request| {
            let client = request.extensions().get::<Arc<Call>>().map(|call| network(call.client));
            let client = client.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            async move {
                let place = sending.enter(client).await;
                let found = match name {
                    Ok(Path(name)) => app.avatar(&name).await,
                    Err(_) => Ok(None), // No text, and so no name of ours.
                };
                match found {
                    Ok(Some(avatar)) => picture(avatar, seen.as_ref(), place),
                    Ok(None) => refuse(Face::Rest, Error::NotFound(Resource::Avatar)),
                    Err(error) => refuse(Face::Rest, error),
                }
            }
        };
        gate.pass(Face::Rest, &MEDIA, request, find).await
    };
    Router::new().route("/media/avatars/{file}", routing::get(serve))
}

/// The picture, or only that it is the one that the caller has.
fn picture(avatar: Avatar, seen: Option<&HeaderValue>, place: Place<IpAddr>) -> Response {
    let tag = format!("\"{}\"", avatar.name);
    let is_known = seen.and_then(|tags| tags.to_str().ok()).is_some_and(|tags| tags == "*" || tags.contains(&tag));
    let bytes = || Bytes::from_owner(Sent { picture: avatar.bytes, _place: place });
    let mut response = Response::new(if is_known { Body::empty() } else { Body::from(bytes()) });
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
