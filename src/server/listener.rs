//! Connections: taken as long as there are seats, each served in a task of its own, and ended when they keep a seat for nothing.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body};
use http::{HeaderMap, Request};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustix::io::Errno;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use super::{
    line::{Line, Look, Patience, Stuck},
    socket::{Socket, Stream},
    tls::Tls,
};
use crate::{
    api::{browser::Browsers, gate::Peer},
    app::App,
    error::{Cause, Chain},
    metrics::connections::{Connections, Ended},
};

/// How many calls one HTTP/2 connection may have under way.
const MAX_STREAMS: u32 = 128;
/// How large the head of a request may be: by HTTP/1 with its first line, by HTTP/2 as its fields count (RFC 9113 §6.5.2).
const MAX_HEAD_BYTES: u32 = 32 * 1024;
/// How much of requests may lie unread, in all of a connection's streams together.
const WINDOW_BYTES: u32 = 256 * 1024;
/// How much of one stream's answer HTTP/2 takes into its own memory.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Streams that broke the protocol, or were refused, before the connection is at an end.
const MAX_FAULTY_STREAMS: usize = 256;
/// Streams that the client took back before we had looked at them.
const MAX_UNSEEN_RESETS: usize = 20;
/// How often a silent HTTP/2 peer is asked whether it is still there, and how long it may take to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long a connection may take to end that was told good-bye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(10);

/// How many connections there may be, on all listeners. Clones share them.
#[derive(Clone)]
pub struct Seats {
    app: Arc<App>,
    all: Arc<Semaphore>,
    of_client: Arc<Mutex<HashMap<IpAddr, usize>>>,
    /// The log says already that a client had too many.
    warned: Arc<AtomicBool>,
    tasks: TaskTracker,
}

/// One connection's. It is free again once this is dropped.
struct Seat {
    _one_of_all: OwnedSemaphorePermit,
    /// Whose it is, if those are counted.
    client: Option<IpAddr>,
    seats: Seats,
}

impl Seats {
    pub fn new(app: &Arc<App>) -> Self {
        let all = Arc::new(Semaphore::new(app.config.server.max_connections));
        let (of_client, warned) = (Arc::default(), Arc::default());
        Self { app: Arc::clone(app), all, of_client, warned, tasks: TaskTracker::new() }
    }

    /// Waits until no connection is left. No more may be taken by then.
    pub async fn emptied(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Fewer than a tenth of the seats are free: those who do nothing with theirs must leave them soon.
    fn are_scarce(&self) -> bool {
        self.all.available_permits() * 10 < self.app.config.server.max_connections
    }

    fn metrics(&self) -> &Connections {
        &self.app.metrics.connections
    }

    /// A seat for this peer; `None` if its client has as many as it may.
    fn take(&self, one_of_all: OwnedSemaphorePermit, peer: SocketAddr) -> Option<Seat> {
        let client = self.app.counted_client(peer.ip());
        if let Some(client) = client {
            let mut of_client = self.of_client.lock().unwrap_or_else(PoisonError::into_inner);
            let count = of_client.entry(client).or_default();
            if *count >= self.app.config.server.max_connections_per_client {
                return None;
            }
            *count += 1;
        }
        self.metrics().open.inc();
        Some(Seat { _one_of_all: one_of_all, client, seats: self.clone() })
    }

    /// Takes note of a peer that got no seat.
    fn turn_away(&self, peer: SocketAddr) {
        self.metrics().ended(Ended::TooMany);
        if self.warned.swap(true, Ordering::Relaxed) {
            tracing::debug!(%peer, "its client has as many connections as it may");
        } else {
            let most = self.app.config.server.max_connections_per_client;
            tracing::warn!(
                %peer,
                most,
                "a client has as many connections as it may, and gets no more, here and later: a proxy belongs into TRUSTED_PROXIES"
            );
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.metrics().open.dec();
        let Some(client) = self.client else { return };
        let mut of_client = self.seats.of_client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = of_client.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                of_client.remove(&client);
            }
        }
    }
}

/// A socket that listens, and what answers there.
pub struct Listener {
    socket: TcpListener,
    seats: Seats,
    answers: Arc<Answers>,
}

/// What each connection of a listener needs.
struct Answers {
    http: auto::Builder<TokioExecutor>,
    router: Router,
    tls: Option<Arc<Tls>>,
    patience: Patience,
    /// What browsers are told with each answer, as lines of a head.
    told: Arc<str>,
}

impl Listener {
    pub fn new(socket: TcpListener, router: Router, tls: Option<Arc<Tls>>, seats: Seats, patience: Patience) -> Self {
        let mut http = auto::Builder::new(TokioExecutor::new());
        // Heads that don't end are found by `Line`, which knows them from connections that idle.
        http.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(MAX_HEAD_BYTES as usize);
        http.http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEAD_BYTES)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .max_local_error_reset_streams(MAX_FAULTY_STREAMS)
            .max_pending_accept_reset_streams(MAX_UNSEEN_RESETS)
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        let mut headers = HeaderMap::new();
        Browsers::new(&seats.app.config).tell(&mut headers, tls.is_some());
        let lines = headers.iter().map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap_or_default()));
        let told = lines.collect::<String>().into();
        Self { socket, seats, answers: Arc::new(Answers { http, router, tls, patience, told }) }
    }

    /// Takes connections until `stop`, and listens no more. Those that are served say good-bye by themselves.
    pub async fn serve(self, stop: CancellationToken) {
        while let Some(accepted) = stop.run_until_cancelled(self.accept()).await {
            let (stream, peer, one_of_all) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_exhausted(&*error) => {
                    // A moment's rest, and what is in use comes back.
                    tracing::error!(error = %Chain(&*error), "a connection can't be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
                Err(error) => {
                    // Of this one connection, whose client went away: the next has nothing to do with it.
                    tracing::debug!(error = %Chain(&*error), "a connection was gone before it was taken");
                    continue;
                }
            };
            let Some(seat) = self.seats.take(one_of_all, peer) else {
                self.seats.turn_away(peer);
                continue;
            };
            let (answers, stop) = (Arc::clone(&self.answers), stop.clone());
            self.seats.tasks.spawn(async move {
                if let Err(ended) = answers.serve(stream, peer, &seat, stop).await {
                    seat.seats.metrics().ended(ended);
                    tracing::debug!(%peer, ?ended, "a connection was cut off");
                }
                drop(seat);
            });
        }
    }

    async fn accept(&self) -> Result<(TcpStream, SocketAddr, OwnedSemaphorePermit), Cause> {
        let one_of_all = Arc::clone(&self.seats.all).acquire_owned().await?;
        let (stream, peer) = self.socket.accept().await?;
        // Without it Nagle holds back the trailers of each small answer: a tenth of the calls a second.
        stream.set_nodelay(true)?;
        Ok((stream, peer, one_of_all))
    }
}

impl Answers {
    /// Serves one connection to its end.
    ///
    /// # Errors
    /// Why we ended it.
    async fn serve(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        seat: &Seat,
        stop: CancellationToken,
    ) -> Result<(), Ended> {
        let began = Instant::now();
        let mut peer = Peer { address, is_tls: false, client: None };
        let stream = match &self.tls {
            None => Stream::Plain(stream),
            Some(tls) => {
                let shaken = timeout_at(began + self.patience.head, tls.accept(stream));
                match stop.run_until_cancelled(shaken).await {
                    None => return Ok(()),
                    Some(Err(_elapsed)) => return Err(Ended::Silent),
                    Some(Ok(Err(error))) => {
                        tracing::debug!(peer = %address, %error, "no handshake of TLS");
                        return Err(Ended::Handshake);
                    }
                    Some(Ok(Ok((stream, client)))) => {
                        (peer.is_tls, peer.client) = (true, client);
                        Stream::Tls(Box::new(stream))
                    }
                }
            }
        };

        let line = Line::new(began, self.patience, seat.client.is_none());
        let service = service_fn(|request: Request<Incoming>| {
            let (router, call) = (self.router.clone(), line.begin());
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer.clone());
            async move {
                let response = router.oneshot(request).await?;
                Ok::<_, Infallible>(response.map(|body| call.answer(body)))
            }
        });
        let socket = TokioIo::new(Socket::new(stream, Arc::clone(&line), Arc::clone(&self.told)));
        let mut connection = pin!(self.http.serve_connection(socket, service));
        let mut leave_by = None;
        loop {
            let now = Instant::now();
            let look_at = match line.look(now, seat.seats.are_scarce()) {
                Look::Fine(at) => at,
                Look::Stuck(stuck) => return Err(ended_by(stuck)),
                Look::Idle => match leave_by {
                    None => {
                        connection.as_mut().graceful_shutdown();
                        *leave_by.insert(now + GOODBYE_TIMEOUT)
                    }
                    Some(at) if now < at => at,
                    Some(_) => return Err(Ended::Idle),
                },
            };
            tokio::select! {
                ended = &mut connection => return ended.map_err(|error| {
                    tracing::debug!(peer = %address, error = %Chain(&*error), "a connection broke");
                    line.broken_by().map_or(Ended::Broken, ended_by)
                }),
                () = stop.cancelled(), if leave_by.is_none() => {
                    connection.as_mut().graceful_shutdown();
                    // What is left to do is bounded by whoever stops.
                    leave_by = Some(now + Duration::from_hours(1));
                }
                () = sleep_until(look_at) => {}
            }
        }
    }
}

/// The machine is out of file handles or memory.
fn is_exhausted(error: &(dyn std::error::Error + 'static)) -> bool {
    let errno = error.downcast_ref().and_then(Errno::from_io_error);
    errno.is_some_and(|errno| [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM].contains(&errno))
}

fn ended_by(stuck: Stuck) -> Ended {
    match stuck {
        Stuck::Silent => Ended::Silent,
        Stuck::Head => Ended::Head,
        Stuck::Answer => Ended::Answer,
        Stuck::Flood => Ended::Flood,
    }
}
