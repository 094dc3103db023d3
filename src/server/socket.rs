//! The bytes of one connection, with what the library doesn't see to: whether they move, how much of them is no request, and a body for
//! what the library refuses by itself.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep, sleep_until},
};
use tokio_rustls::server::TlsStream;

use super::{
    frames::{Flood, Speech},
    line::{Line, Stuck},
};
use crate::domain::caller::RequestId;

/// How long what a refused client still sends is read, so that it gets to read the refusal: a socket that is closed with
/// something unread takes back what was sent.
const LINGER: Duration = Duration::from_secs(1);

/// A socket, with or without TLS.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A [`Stream`] that is watched.
pub struct Socket {
    stream: Stream,
    line: Arc<Line>,
    /// Lines that each answer has.
    told: Arc<str>,
    speech: Speech,
    stalled: Option<Pin<Box<Sleep>>>,
    refusal: Refusal,
    lingers: Option<Pin<Box<Sleep>>>,
}

/// The library's own refusal of what is no request, with a body.
enum Refusal {
    None,
    /// It is on its way, in place of so many bytes of the library's.
    Sending {
        text: Bytes,
        in_place_of: usize,
    },
    Sent,
}

impl Socket {
    /// A refusal of what is no request has these lines in its head, each with its end.
    pub fn new(stream: Stream, line: Arc<Line>, told: Arc<str>) -> Self {
        let speech = Speech::new(line.speaks_for_many());
        Self { stream, line, told, speech, stalled: None, refusal: Refusal::None, lingers: None }
    }

    /// What came of a write; an error, if none has come to anything for long.
    fn moved<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(self.line.write_timeout())));
        ready!(stalled.as_mut().poll(cx));
        self.line.broke(Stuck::Answer);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing of what is sent to it")))
    }

    /// Begins a refusal of our own, if that is what the library writes.
    fn begin_refusal(&mut self, bytes: &[u8]) {
        // With nothing under way nothing is left to be written either: these bytes are the library's own.
        if matches!(self.refusal, Refusal::None)
            && self.speech.is_http1()
            && bytes.starts_with(b"HTTP/1.")
            && self.line.is_free()
            && let Some(text) = refusal(bytes, self.line.has_first_line(), &self.told)
        {
            self.refusal = Refusal::Sending { text, in_place_of: bytes.len() };
        }
    }

    /// Goes on with a refusal; `None` if there is none.
    fn poll_refusal(&mut self, cx: &mut Context<'_>) -> Option<Poll<io::Result<usize>>> {
        let Refusal::Sending { text, in_place_of } = &mut self.refusal else { return None };
        while !text.is_empty() {
            match self.stream.pinned().poll_write(cx, text) {
                Poll::Ready(Ok(0)) => return Some(Poll::Ready(Ok(0))),
                Poll::Ready(Ok(written)) => *text = text.slice(written..),
                Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(error))),
                Poll::Pending => return Some(Poll::Pending),
            }
        }
        let written = *in_place_of;
        self.refusal = Refusal::Sent;
        Some(Poll::Ready(Ok(written)))
    }
}

/// What is said in place of the library's empty refusal; `None` if this is none.
fn refusal(bytes: &[u8], has_first_line: bool, told: &str) -> Option<Bytes> {
    let head = std::str::from_utf8(bytes).ok()?.strip_suffix("\r\n\r\n")?;
    let (status_line, headers) = head.split_once("\r\n")?;
    if !headers.split("\r\n").any(|header| header == "content-length: 0") {
        return None;
    }
    let (status_line, error) = match status_line.split(' ').nth(1)? {
        "400" => (status_line, "Malformed request"),
        // A head that is too large before its first line is over has a URI that is too long.
        "431" if has_first_line => (status_line, "The headers are too large"),
        "414" | "431" => ("HTTP/1.1 414 URI Too Long", "The URI is too long"),
        _ => return None,
    };
    let id = RequestId::given_or_new(None);
    tracing::debug!(request_id = %id, status_line, "what came is no request");
    let body = format!(r#"{{"error":"{error}"}}"#);
    let rest: String = headers
        .split("\r\n")
        .filter(|header| !header.starts_with("content-length"))
        .flat_map(|header| [header, "\r\n"])
        .collect();
    let length = body.len();
    Some(
        format!(
            "{status_line}\r\n{rest}{told}content-type: application/json\r\ncache-control: no-store\r\nx-request-id: {id}\r\n\
             content-length: {length}\r\n\r\n{body}"
        )
        .into(),
    )
}

impl Stream {
    fn pinned(&mut self) -> Pin<&mut (dyn Duplex + Unpin)> {
        match self {
            Self::Plain(stream) => Pin::new(stream),
            Self::Tls(stream) => Pin::new(stream),
        }
    }
}

trait Duplex: AsyncRead + AsyncWrite {}
impl<T: AsyncRead + AsyncWrite> Duplex for T {}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(self.stream.pinned().poll_read(cx, buffer))?;
        let heard = &buffer.filled()[before..];
        if !heard.is_empty() {
            if let Err(Flood) = self.speech.heard(heard) {
                self.line.broke(Stuck::Flood);
                return Poll::Ready(Err(io::Error::other("a flood of frames that ask for nothing")));
            }
            self.line.heard(heard, self.speech.is_http2());
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.begin_refusal(bytes);
        let polled = match self.poll_refusal(cx) {
            Some(polled) => polled,
            None => self.stream.pinned().poll_write(cx, bytes),
        };
        if let Poll::Ready(Ok(written)) = polled {
            self.speech.said(written);
        }
        self.moved(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // The library's refusals are one piece.
        if let [bytes] = slices {
            return self.poll_write(cx, bytes);
        }
        let polled = self.stream.pinned().poll_write_vectored(cx, slices);
        if let Poll::Ready(Ok(written)) = polled {
            self.speech.said(written);
        }
        self.moved(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.stream.pinned().poll_flush(cx);
        self.moved(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingers.is_none() {
            let polled = self.stream.pinned().poll_shutdown(cx);
            ready!(self.moved(cx, polled))?;
            if !matches!(self.refusal, Refusal::Sent) {
                return Poll::Ready(Ok(()));
            }
        }
        let Self { stream, lingers, .. } = &mut *self;
        let until = lingers.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + LINGER)));
        let mut thrown_away = [0; 4096];
        while until.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut thrown_away);
            match ready!(stream.pinned().poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
