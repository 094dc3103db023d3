//! The streams of health and reflection, which nobody else ends: the deadline of a call is over once it is answered, and theirs is
//! answered when it begins.

use std::time::Duration;

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::time::{Instant, timeout_at};

/// How long an answer may go on. Whoever watches health begins anew then, as after any restart.
const LONGEST_ANSWER: Duration = Duration::from_mins(10);

/// What is asked within `bound`; nothing that comes later is heard.
pub fn asked_until(body: Body, bound: Duration) -> Body {
    let end = Instant::now() + bound;
    ended(body, end, || None)
}

/// An answer that goes on for too long ends with `UNAVAILABLE`.
pub fn answered_within_bounds(answer: Response) -> Response {
    let end = Instant::now() + LONGEST_ANSWER;
    answer.map(|body| ended(body, end, || Some(Frame::trailers(unavailable()))))
}

fn unavailable() -> HeaderMap {
    let status = (HeaderName::from_static("grpc-status"), HeaderValue::from_static("14"));
    let message = (HeaderName::from_static("grpc-message"), HeaderValue::from_static("Begin again"));
    HeaderMap::from_iter([status, message])
}

/// The body up to `end`, and after that `last`.
fn ended(body: Body, end: Instant, last: fn() -> Option<Frame<Bytes>>) -> Body {
    let frames = stream::unfold(Some(body), move |body| async move {
        let mut body = body?;
        match timeout_at(end, body.frame()).await {
            Ok(frame) => frame.map(|frame| (frame, Some(body))),
            Err(_elapsed) => last().map(|frame| (Ok(frame), None)),
        }
    });
    Body::new(StreamBody::new(frames))
}
