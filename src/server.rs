//! The service as it runs: its listeners, what goes on beside the calls, and an orderly end.

mod frames;
mod line;
mod listener;
mod socket;
pub mod tls;

use std::{net::SocketAddr, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::OptionFuture};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{health, router},
    app::App,
    error::Cause,
};
pub use line::Patience;
use listener::{Listener, Seats};
use tls::Tls;

/// How long calls under way may take to finish once the service was told to stop.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);
/// How long what runs beside the calls may take to stop.
const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(3);

/// Sockets that listen, and all that answers behind them.
pub struct Server {
    app: Arc<App>,
    all: TcpListener,
    grpc: Option<TcpListener>,
    tls: Option<Arc<Tls>>,
    pub patience: Patience,
}

impl Server {
    /// Listens at `address` for every kind of call, and at `GRPC_ADDR` for gRPC, if that is set; by TLS, if there is a
    /// certificate.
    ///
    /// # Errors
    /// If nobody can listen there; `ConfigErrors` if the certificate can't be used.
    pub async fn bind(app: Arc<App>, address: SocketAddr) -> Result<Self, Cause> {
        let tls = app.config.tls.as_ref();
        let tls = tls.map(|tls| Tls::load(tls, &app.clock, &app.metrics.connections)).transpose()?.map(Arc::new);
        let all = listen(address).await?;
        let grpc = match app.config.server.grpc_addr {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        Ok(Self { app, all, grpc, tls, patience: Patience::default() })
    }

    /// Where it listens: the port that the system chose, where it was asked to choose.
    ///
    /// # Errors
    /// If the socket has gone.
    pub fn local_addr(&self) -> Result<SocketAddr, Cause> {
        Ok(self.all.local_addr()?)
    }

    /// Where it listens for gRPC alone, if it does.
    ///
    /// # Errors
    /// If the socket has gone.
    pub fn grpc_addr(&self) -> Result<Option<SocketAddr>, Cause> {
        Ok(self.grpc.as_ref().map(TcpListener::local_addr).transpose()?)
    }

    /// Serves until `stop`; then accepts nothing more, lets what runs finish, and closes the stores.
    ///
    /// # Errors
    /// If a task that it can't do without ended by itself.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Cause> {
        let routers = router::routers(&self.app, &stop).await?;
        let died = CancellationToken::new();
        let mut background = JoinSet::new();
        background.spawn(supervise(Arc::clone(&self.app).follow_feed(stop.clone()), stop.clone(), died.clone()));
        background.spawn(supervise(Arc::clone(&self.app).settle_limits(stop.clone()), stop.clone(), died.clone()));
        background.spawn(supervise(Arc::clone(&self.app).hear_replicas(stop.clone()), stop.clone(), died.clone()));
        background.spawn(supervise(Arc::clone(&self.app).deliver_outbox(stop.clone()), stop.clone(), died.clone()));
        background.spawn(supervise(Arc::clone(&self.app).keep_house(stop.clone()), stop.clone(), died.clone()));
        background.spawn(supervise(Arc::clone(&self.app).follow_figures(stop.clone()), stop.clone(), died.clone()));
        let health = health::follow_database(Arc::clone(&self.app), routers.health, stop.clone());
        background.spawn(supervise(health, stop.clone(), died.clone()));
        if let Some(tls) = &self.tls {
            background.spawn(supervise(Arc::clone(tls).follow_files(stop.clone()), stop.clone(), died.clone()));
        }

        let seats = Seats::new(&self.app);
        let all = Listener::new(self.all, routers.all, self.tls.clone(), seats.clone(), self.patience);
        let grpc = self.grpc;
        let grpc = grpc.map(|socket| Listener::new(socket, routers.grpc, self.tls, seats.clone(), self.patience));
        let grpc = OptionFuture::from(grpc.map(|grpc| grpc.serve(stop.clone())));
        tokio::join!(all.serve(stop.clone()), grpc);
        if tokio::time::timeout(DRAIN_TIMEOUT, seats.emptied()).await.is_err() {
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
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Cause> {
    Ok(TcpListener::bind(address).await.map_err(|error| format!("can't listen on {address}: {error}"))?)
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
