//! The listener: sockets in, the router behind them, and an orderly end.

use std::{
    net::SocketAddr,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::Router;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::{
    api::{gate::Peer, health, router},
    app::App,
    error::{Cause, Chain},
};

/// How long a client may take over the head of a request, the first one included.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How many connections are served at once; more wait in the kernel.
const MAX_CONNECTIONS: usize = 10_000;
/// How many calls one HTTP/2 connection may have under way.
const MAX_STREAMS: u32 = 128;
/// How long calls under way may take to finish once the service was told to stop.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);
/// How long what runs beside the calls may take to stop.
const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a silent HTTP/2 peer is asked whether it is still there, and how long it may take to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// A socket that listens, and all that answers behind it.
pub struct Server {
    app: Arc<App>,
    listener: TcpListener,
}

impl Server {
    /// # Errors
    /// If nobody can listen there.
    pub async fn bind(app: Arc<App>, address: SocketAddr) -> Result<Self, Cause> {
        let listener =
            TcpListener::bind(address).await.map_err(|error| format!("can't listen on {address}: {error}"))?;
        Ok(Self { app, listener })
    }

    /// Where it listens: the port that the system chose, where it was asked to choose.
    ///
    /// # Errors
    /// If the socket has gone.
    pub fn local_addr(&self) -> Result<SocketAddr, Cause> {
        Ok(self.listener.local_addr()?)
    }

    /// Serves until `stop`; then accepts nothing more, lets what runs finish, and closes the stores.
    ///
    /// # Errors
    /// If a task that it can't do without ended by itself.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Cause> {
        let (router, reporter) = router::router(&self.app, &stop).await?;
        let died = CancellationToken::new();
        let mut background = JoinSet::new();
        background.spawn(supervise(Arc::clone(&self.app).follow_feed(stop.clone()), stop.clone(), died.clone()));
        background.spawn(supervise(Arc::clone(&self.app).settle_limits(stop.clone()), stop.clone(), died.clone()));
        background.spawn(supervise(Arc::clone(&self.app).hear_replicas(stop.clone()), stop.clone(), died.clone()));
        background.spawn(supervise(Arc::clone(&self.app).deliver_outbox(stop.clone()), stop.clone(), died.clone()));
        background.spawn(supervise(Arc::clone(&self.app).keep_house(stop.clone()), stop.clone(), died.clone()));
        background.spawn(supervise(Arc::clone(&self.app).follow_figures(stop.clone()), stop.clone(), died.clone()));
        let health = health::follow_database(Arc::clone(&self.app), reporter, stop.clone());
        background.spawn(supervise(health, stop.clone(), died.clone()));

        let connections = self.serve(&router, &stop).await;

        drop(self.listener);
        if tokio::time::timeout(DRAIN_TIMEOUT, connections.shutdown()).await.is_err() {
            tracing::warn!("some calls did not finish in time and were cut off");
        }
        // A mail on its way may arrive; one that doesn't goes out again later, under the same id.
        let _ = tokio::time::timeout(BACKGROUND_TIMEOUT, background.join_all()).await;
        // A change that a client began is finished even where the client is cut off; it has bounds of its own.
        if tokio::time::timeout(DRAIN_TIMEOUT, self.app.close()).await.is_err() {
            tracing::error!("some changes did not finish in time");
        }
        if died.is_cancelled() {
            Err("a task of the service ended by itself; the log says which".into())
        } else {
            Ok(())
        }
    }

    /// Accepts connections and serves them, each in a task of its own, until `stop`. The answer is what watches those left.
    async fn serve(&self, router: &Router, stop: &CancellationToken) -> GracefulShutdown {
        let connections = GracefulShutdown::new();
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
        http.http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);

        while let Some(accepted) = stop.run_until_cancelled(self.accept(&places)).await {
            let (stream, peer, place) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file handles, most likely: a moment's rest, and those in use come back.
                    tracing::error!(error = %Chain(&*error), "a connection can't be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let has_asked = Arc::new(AtomicBool::new(false));
            let service = TowerToHyperService::new(with_peer(router.clone(), peer, Arc::clone(&has_asked)));
            let connection = http.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
            let connection = connections.watch(connection);
            tokio::spawn(async move {
                // The protocol is not known before the first bytes, and so neither is a protocol's own timeout.
                let silence = async {
                    tokio::time::sleep(HEADER_TIMEOUT).await;
                    if has_asked.load(Ordering::Relaxed) {
                        std::future::pending::<()>().await;
                    }
                };
                tokio::select! {
                    ended = connection => if let Err(error) = ended {
                        tracing::debug!(%peer, %error, "a connection broke");
                    },
                    () = silence => tracing::debug!(%peer, "a connection asked for nothing and was closed"),
                }
                drop(place);
            });
        }
        connections
    }

    async fn accept(
        &self,
        places: &Arc<Semaphore>,
    ) -> Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit), Cause> {
        let place = Arc::clone(places).acquire_owned().await?;
        let (stream, peer) = self.listener.accept().await?;
        // Without it Nagle holds back the trailers of each small answer: a tenth of the calls a second.
        stream.set_nodelay(true)?;
        Ok((stream, peer, place))
    }
}

/// Runs what the service can't do without: if it ends before `stop`, the service stops too, and is started again by
/// whoever watches over it.
async fn supervise(task: impl Future<Output = ()>, stop: CancellationToken, died: CancellationToken) {
    let ended = AssertUnwindSafe(task).catch_unwind().await;
    if !stop.is_cancelled() {
        tracing::error!(panicked = ended.is_err(), "a task of the service ended by itself: stopping");
        died.cancel();
        stop.cancel();
    }
}

/// The router for one connection: each of its requests knows the peer, and is noticed.
fn with_peer(
    router: Router,
    peer: SocketAddr,
    has_asked: Arc<AtomicBool>,
) -> impl tower::Service<
    http::Request<hyper::body::Incoming>,
    Response = axum::response::Response,
    Error = std::convert::Infallible,
    Future: Send,
> + Clone
+ Send {
    router.map_request(move |mut request: http::Request<hyper::body::Incoming>| {
        has_asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(Peer { address: peer, is_tls: false });
        request.map(|body| axum::body::Body::new(body.map_err(axum::Error::new)))
    })
}
