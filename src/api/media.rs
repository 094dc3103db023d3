//! `GET /media/avatars/{file}`: a picture, for anyone who knows its name. A picture never changes under its name.

use std::{net::IpAddr, sync::Arc, time::Duration};

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
    error::{Dependency, Error, Resource, Result},
    places::{Place, Places},
};

static MEDIA: Policy = Policy::open("Media", Limit::Api);

/// A picture of a stranger's, should a browser take it for anything else.
const POLICY: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; sandbox");

/// Pictures that are in memory on their way out, and those of one client: whoever asks for many and takes none waits for itself.
/// Most are a hundred kilobytes, and none is more than about a megabyte.
const MAX_SENT: usize = 1024;
const MAX_SENT_TO_ONE: usize = 4;
/// How long a picture waits for its place.
const PLACE_TIMEOUT: Duration = Duration::from_secs(2);

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
            let call = request.extensions().get::<Arc<Call>>();
            let client = call.and_then(|call| app.counted_client(call.client));
            async move {
                let place = match place(sending, client).await {
                    Ok(place) => place,
                    Err(error) => return refuse(Face::Rest, error),
                };
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

/// A place for a picture that this client asked for; anybody's, if there may be many behind it.
async fn place(sending: &Places<IpAddr>, client: Option<IpAddr>) -> Result<Place<IpAddr>> {
    let place = async {
        match client {
            Some(client) => sending.enter(client).await,
            None => sending.enter_uncounted().await,
        }
    };
    let place = tokio::time::timeout(PLACE_TIMEOUT, place).await;
    place.map_err(|late| Error::Unavailable { what: Dependency::Pictures, cause: Some(late.into()) })
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
