//! The body of a request on its way in.

use std::{
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::Request,
};
use futures_util::stream;
use http::Version;
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::places::{Place, Places};

/// What any request may have, in bytes: beyond, it is an upload.
pub const SMALL_REQUEST_BYTES: usize = 65_536;
/// How much of a refused request's body is read, and for how long, to spare its connection.
const DISCARD_MAX_BYTES: usize = 65_536;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

/// The body, of which more than a small request has is handed on only once its sender has a `place` among the uploads. What
/// it says of its length counts for nothing: gRPC says none, and who sends slowly may say any.
pub fn in_turn(body: Body, uploads: Places, sender: i64, place: Arc<OnceLock<Place>>) -> Body {
    let frames = stream::try_unfold((body, 0), move |(mut body, before)| {
        let (uploads, place) = (uploads.clone(), Arc::clone(&place));
        async move {
            let Some(frame) = body.frame().await.transpose()? else { return Ok(None) };
            let received = before + frame.data_ref().map_or(0, Bytes::len);
            if received > SMALL_REQUEST_BYTES && place.get().is_none() {
                let _ = place.set(uploads.enter(sender).await);
            }
            Ok::<_, axum::Error>(Some((frame, (body, received))))
        }
    });
    Body::new(StreamBody::new(frames))
}

/// Takes what is left of a refused request off the wire, so that the connection can go on; within bounds.
pub async fn discard(request: Request) {
    let rest = Limited::new(request.into_body(), DISCARD_MAX_BYTES).collect();
    // What is more, or comes slower, costs the client the connection.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, rest).await;
}

/// Whether a request was taken to its end. Of one over HTTP/1 that was not, the connection can't go on after the answer.
#[derive(Clone)]
pub struct Taken(Arc<AtomicBool>);

impl Taken {
    /// Watches the body, if what becomes of it makes a difference.
    pub fn watch(request: Request) -> (Request, Option<Self>) {
        if request.version() > Version::HTTP_11 || request.body().is_end_stream() {
            return (request, None);
        }
        let taken = Self(Arc::default());
        let request = request.map(|body| Body::new(Watched { body, taken: taken.clone() }));
        (request, Some(taken))
    }

    pub fn is_whole(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

struct Watched {
    body: Body,
    taken: Taken,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.taken.0.store(true, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
