//! Redis: what replicas share and may lose. It is never the truth: whoever asks it has an answer for when it is away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use fred::{
    clients::Client,
    error::ErrorKind,
    interfaces::{ClientLike, EventInterface, PubsubInterface},
    types::{
        Builder, Message,
        config::{Config, ReconnectPolicy, Server, TcpConfig, UnresponsiveConfig},
    },
};
use secrecy::ExposeSecret;
use tokio::{sync::broadcast, time::Instant};
use tracing::Instrument;

use crate::{
    config,
    error::Cause,
    metrics::{self, Asked},
    trace,
};

/// How long a new connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a server may owe an answer before the connection counts as dead. Until then each call waits for its own timeout.
const SILENCE: Duration = Duration::from_millis(300);
/// How often at least a connection that was lost is tried again: Redis is used within a second of its return.
const RECONNECT_EVERY: Duration = Duration::from_millis(250);
/// How long Redis isn't asked after it owed an answer: of all that wait for one that hangs, each waits once.
const DOUBT: Duration = Duration::from_millis(500);

/// A connection to Redis, which comes back by itself. Clones share it.
#[derive(Clone)]
pub struct Redis {
    client: Client,
    /// How it is reached, for those who listen: that takes a connection of its own.
    builder: Builder,
    /// Before each name of ours, in a Redis that others use as well.
    prefix: String,
    started: Instant,
    /// Milliseconds from `started` until which it isn't asked.
    doubted_until_ms: Arc<AtomicU64>,
    metrics: metrics::Redis,
}

impl Redis {
    /// Begins to connect, and doesn't wait for it: the service starts without Redis as well.
    ///
    /// # Errors
    /// If the URL can't be used.
    pub fn connect(to: &config::Redis) -> Result<Self, Cause> {
        let config::Redis { url, prefix, timeout } = to;
        let mut config = Config::from_url(url.expose_secret()).map_err(|error| hushed(&error))?;
        config.fail_fast = false;
        let mut builder = Builder::from_config(config);
        builder
            .set_policy(patience()?)
            .with_connection_config(|connection| {
                connection.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
                connection.connection_timeout = CONNECT_TIMEOUT;
                connection.internal_command_timeout = CONNECT_TIMEOUT;
                connection.unresponsive = UnresponsiveConfig {
                    max_timeout: Some(SILENCE.max(*timeout)),
                    interval: Duration::from_millis(100),
                };
                // A command that was cut off may have been done.
                connection.max_command_attempts = 1;
            })
            .with_performance_config(|performance| performance.default_command_timeout = *timeout);
        let client = builder.build().map_err(|error| hushed(&error))?;
        follow(&client);
        drop(client.connect());
        Ok(Self {
            client,
            builder,
            prefix: prefix.to_owned(),
            started: Instant::now(),
            doubted_until_ms: Arc::default(),
            metrics: metrics::Redis::default(),
        })
    }

    pub fn metrics(&self) -> &metrics::Redis {
        &self.metrics
    }

    /// What it answers to a command; `None` if there is no connection now, or no answer in time: what holds without Redis is
    /// better than a wait for it.
    pub async fn ask<T>(&self, command: impl AsyncFnOnce(&Client) -> Result<T, fred::error::Error>) -> Option<T> {
        if !self.client.is_connected() || self.now_ms() < self.doubted_until_ms.load(Ordering::Relaxed) {
            self.metrics.asked(Asked::Spared);
            return None;
        }
        // Boxed: within a span it would count twice in the size of every future above.
        match Box::pin(command(&self.client)).instrument(trace::of_request("redis")).await {
            Ok(answer) => {
                self.metrics.asked(Asked::Answered);
                Some(answer)
            }
            Err(error) => {
                self.metrics.asked(Asked::Failed);
                tracing::debug!(error = error.details(), "Redis did not answer, or with an error");
                // An error is an answer: the next command need not have one.
                if !matches!(error.kind(), ErrorKind::Timeout | ErrorKind::IO | ErrorKind::Canceled) {
                    return None;
                }
                let until = self.now_ms() + u64::try_from(DOUBT.as_millis()).unwrap_or_default();
                self.doubted_until_ms.store(until, Ordering::Relaxed);
                None
            }
        }
    }

    /// Says `message` to whoever listens under this name.
    pub async fn publish(&self, name: &str, message: String) {
        self.ask(async |client| client.publish::<(), _, _>(self.key(name), message).await).await;
    }

    /// Listens to what is said under this name, while Redis is there.
    ///
    /// # Errors
    /// If there is no connection to be made of the configuration.
    pub fn listen(&self, name: &str) -> Result<Listener, Cause> {
        let client = self.builder.build().map_err(|error| hushed(&error))?;
        let (messages, connections) = (client.message_rx(), client.reconnect_rx());
        drop(client.connect());
        Ok(Listener { client, channel: self.key(name), messages, connections, is_subscribed: false })
    }

    /// Whether it answers.
    pub async fn ping(&self) -> bool {
        self.ask(async |client| client.ping::<()>(None).await).await.is_some()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// `name` as it is called in Redis.
    pub fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.prefix)
    }

    /// Ends the connection.
    pub async fn close(&self) {
        let _ = tokio::time::timeout(CONNECT_TIMEOUT, self.client.quit()).await;
    }
}

/// What others say under a name.
pub struct Listener {
    client: Client,
    channel: String,
    messages: broadcast::Receiver<Message>,
    connections: broadcast::Receiver<Server>,
    is_subscribed: bool,
}

impl Listener {
    /// The next message. Those that were said while Redis was away are lost.
    pub async fn next(&mut self) -> String {
        loop {
            if !self.is_subscribed && self.client.is_connected() {
                self.is_subscribed = self.client.subscribe(self.channel.as_str()).await.is_ok();
            }
            tokio::select! {
                message = self.messages.recv() => if let Ok(Ok(text)) = message.map(|message| message.value.convert()) {
                    return text;
                },
                _ = self.connections.recv() => self.is_subscribed = false,
                () = tokio::time::sleep(RECONNECT_EVERY), if !self.is_subscribed => {}
            }
        }
    }
}

/// The log says when Redis goes and comes, once each.
fn follow(client: &Client) {
    let is_away = Arc::new(AtomicBool::new(false));
    client.on_error({
        let is_away = Arc::clone(&is_away);
        move |(error, _)| {
            // Each attempt to connect that fails comes here as well.
            if !is_away.swap(true, Ordering::Relaxed) {
                tracing::warn!(error = error.details(), "Redis is away: each replica goes by what it knows itself");
            }
            async { Ok(()) }
        }
    });
    client.on_reconnect(move |_| {
        is_away.store(false, Ordering::Relaxed);
        tracing::info!("Redis is there");
        async { Ok(()) }
    });
}

/// The waits before an attempt to connect, the first one included: at once, then less and less often.
fn patience() -> Result<ReconnectPolicy, Cause> {
    let mut policy = ReconnectPolicy::new_exponential(0, 1, u32::try_from(RECONNECT_EVERY.as_millis())?, 4);
    policy.set_jitter(10);
    Ok(policy)
}

/// Without the URL, which may hold a password.
fn hushed(error: &fred::error::Error) -> Cause {
    format!("REDIS_URL can't be used: {:?}", error.kind()).into()
}
