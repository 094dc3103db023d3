//! One connection: what is under way on it, and whether anything moves. Whoever holds a connection and lets nothing move loses it:
//! nobody keeps a place, or answers in memory, by doing nothing.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::{Buf, Bytes};
use hyper::body::{Frame, SizeHint};
use tokio::time::Instant;

/// How much of an answer a client has to take each second, once it had its time to begin.
const ANSWER_BYTES_PER_SECOND: usize = 32 * 1024;

/// How long clients may take. Tests are less patient.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the head of a request; for the first one, with the handshake of TLS before it.
    pub head: Duration,
    /// With nothing under way. Proxies and load balancers keep their connections for 60 s or so, and must be the first to let go:
    /// else a request of theirs meets a connection that is just being closed.
    pub http1_idle: Duration,
    pub http2_idle: Duration,
    /// By either protocol, while few seats are left for others.
    pub crowded_idle: Duration,
    /// For an answer, with a second more for each 32 KiB of it.
    pub answer: Duration,
    /// With nothing going out of what is written.
    pub write: Duration,
    /// How often a connection is looked at: what is due is found so much later at most.
    pub look_every: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            http1_idle: Duration::from_secs(75),
            http2_idle: Duration::from_mins(5),
            crowded_idle: Duration::from_secs(5),
            answer: Duration::from_secs(30),
            write: Duration::from_secs(30),
            look_every: Duration::from_secs(2),
        }
    }
}

/// What is known of a connection.
pub struct Line {
    patience: Patience,
    speaks_for_many: bool,
    state: Mutex<State>,
}

struct State {
    began: Instant,
    has_asked: bool,
    is_http2: bool,
    /// Since when the head of a request comes in, by HTTP/1. HTTP/2 can't tell: there the connection as a whole idles.
    head_since: Option<Instant>,
    /// Its first line is there.
    has_first_line: bool,
    /// Since when nothing is under way, if nothing is.
    idle_since: Instant,
    calls: BTreeMap<u64, Under>,
    calls_so_far: u64,
    /// When something of an answer was taken last, or a call ended.
    moved_at: Instant,
    broken_by: Option<Stuck>,
}

/// A call under way.
#[derive(Default)]
struct Under {
    /// When its answer must have been taken; `None` while we are at work on it.
    due: Option<Instant>,
    /// Pieces of the answer that the client hasn't taken yet.
    waiting: usize,
    /// The answer goes on, and there is no more of it for now.
    has_more_to_come: bool,
}

impl Under {
    /// With nothing there that could be taken it is we who are waited for.
    fn settle(&mut self) {
        if self.has_more_to_come && self.waiting == 0 {
            self.due = None;
        }
    }
}

/// What to do about a connection.
pub enum Look {
    /// Nothing; look again then.
    Fine(Instant),
    /// Nothing was under way for long: say good-bye.
    Idle,
    /// Cut it off.
    Stuck(Stuck),
}

/// What does not move, or moves too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stuck {
    /// No request came at all.
    Silent,
    /// The head of a request never ended.
    Head,
    /// An answer is not taken.
    Answer,
    /// Much comes, and nothing that asks for anything.
    Flood,
}

impl Line {
    /// A connection that was accepted then. If its client speaks for many, as a proxy does, none of them is to suffer for another.
    pub fn new(began: Instant, patience: Patience, speaks_for_many: bool) -> Arc<Self> {
        let state = State {
            began,
            has_asked: false,
            is_http2: false,
            head_since: None,
            has_first_line: false,
            idle_since: began,
            calls: BTreeMap::new(),
            calls_so_far: 0,
            moved_at: began,
            broken_by: None,
        };
        Arc::new(Self { patience, speaks_for_many, state: Mutex::new(state) })
    }

    /// There may be many behind its client.
    pub fn speaks_for_many(&self) -> bool {
        self.speaks_for_many
    }

    /// The client sent this.
    pub fn heard(&self, bytes: &[u8], is_http2: bool) {
        let mut state = self.state();
        state.is_http2 = is_http2;
        if !is_http2 && state.calls.is_empty() {
            // Empty lines in front of a request are none of it (RFC 9112 §2.2): some clients send one behind a body.
            let is_empty_line = |byte: &u8| matches!(byte, b'\r' | b'\n');
            if state.head_since.is_none() && bytes.iter().all(is_empty_line) {
                return;
            }
            state.head_since.get_or_insert_with(Instant::now);
            state.has_first_line |= bytes.contains(&b'\n');
        }
    }

    /// Whether the first line of the head that comes in is there.
    pub fn has_first_line(&self) -> bool {
        self.state().has_first_line
    }

    /// The socket gave up, for this.
    pub fn broke(&self, why: Stuck) {
        self.state().broken_by = Some(why);
    }

    /// Why the socket gave up, if it did.
    pub fn broken_by(&self) -> Option<Stuck> {
        self.state().broken_by
    }

    /// Nothing that a handler said is on its way out.
    pub fn is_free(&self) -> bool {
        self.state().calls.is_empty()
    }

    /// A request has come in.
    pub fn begin(self: &Arc<Self>) -> Call {
        let mut state = self.state();
        state.has_asked = true;
        state.head_since = None;
        state.has_first_line = false;
        let id = state.calls_so_far;
        state.calls_so_far += 1;
        state.calls.insert(id, Under::default());
        Call(Arc::new(OnLine { line: Arc::clone(self), id }))
    }

    /// How long nothing may go out of what is written.
    pub fn write_timeout(&self) -> Duration {
        self.patience.write
    }

    /// What to do about it now; with `is_crowded` others wait for its seat, or soon will.
    pub fn look(&self, now: Instant, is_crowded: bool) -> Look {
        let state = self.state();
        let first = state.began + self.patience.head;
        if !state.has_asked {
            let next = first.min(now + self.patience.look_every);
            return if now < first { Look::Fine(next) } else { Look::Stuck(Stuck::Silent) };
        }
        if state.head_since.is_some_and(|since| now >= since + self.patience.head) {
            return Look::Stuck(Stuck::Head);
        }
        let is_moving = self.speaks_for_many && now < state.moved_at + self.patience.answer;
        if !is_moving && state.calls.values().any(|call| call.due.is_some_and(|due| now >= due)) {
            return Look::Stuck(Stuck::Answer);
        }
        let idle = if is_crowded {
            self.patience.crowded_idle
        } else if state.is_http2 {
            self.patience.http2_idle
        } else {
            self.patience.http1_idle
        };
        if state.calls.is_empty() && state.head_since.is_none() && now >= state.idle_since + idle {
            return Look::Idle;
        }
        Look::Fine(now + self.patience.look_every)
    }

    fn with_call(&self, id: u64, change: impl FnOnce(&mut Under)) {
        if let Some(call) = self.state().calls.get_mut(&id) {
            change(call);
        }
    }

    /// Nothing that panics runs under this lock, so that a poisoned one is as good as any.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call under way, until all of these are dropped: with the handler, with the answer, and with the last piece of it.
#[derive(Clone)]
pub struct Call(Arc<OnLine>);

struct OnLine {
    line: Arc<Line>,
    id: u64,
}

impl Call {
    /// Its answer: from here on the client is expected to take it.
    pub fn answer(self, body: Body) -> Answer {
        self.with(|call| call.due = Some(self.due()));
        Answer { body, call: self }
    }

    fn hand_out(&self, bytes: &Bytes) {
        let more = Duration::from_millis((bytes.len() * 1000 / ANSWER_BYTES_PER_SECOND) as u64);
        self.with(|call| {
            call.waiting += 1;
            call.due = Some(call.due.unwrap_or_else(|| self.due()) + more);
        });
    }

    /// When an answer must have been taken that begins now.
    fn due(&self) -> Instant {
        Instant::now() + self.0.line.patience.answer
    }

    fn with(&self, change: impl FnOnce(&mut Under)) {
        self.0.line.with_call(self.0.id, change);
    }
}

impl Drop for OnLine {
    fn drop(&mut self) {
        let mut state = self.line.state();
        state.calls.remove(&self.id);
        state.moved_at = Instant::now();
        if state.calls.is_empty() {
            state.idle_since = state.moved_at;
        }
    }
}

/// The body of an answer, which knows what of it was taken.
pub struct Answer {
    body: Body,
    call: Call,
}

impl hyper::body::Body for Answer {
    type Data = Piece;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.call.with(|call| {
            call.has_more_to_come = polled.is_pending();
            call.settle();
        });
        polled.map_ok(|frame| {
            frame.map_data(|bytes| {
                self.call.hand_out(&bytes);
                Piece { bytes, call: self.call.clone() }
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A piece of an answer. HTTP/1 drops it once the socket has it, HTTP/2 once the client's windows have let it through.
pub struct Piece {
    bytes: Bytes,
    call: Call,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.call.0.line.state().moved_at = Instant::now();
        self.call.with(|call| {
            call.waiting -= 1;
            call.settle();
        });
    }
}
