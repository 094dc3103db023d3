//! What the rules work with: stores, keys, clock, configuration.

use std::{net::IpAddr, sync::Arc, time::Duration};

use aws_lc_rs::hmac;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use crate::{
    avatar_store::AvatarStore,
    cache::Cache,
    clock::Clock,
    config::{self, Config},
    db::Db,
    entity::user::PasswordHash,
    error::{Cause, Chain, Error},
    feed::{self, Feed},
    hash_pool::HashPool,
    limiter::{Limiter, network},
    mail::Mailer,
    metrics::{self, Metrics},
    model::{
        password::{self, Argon2Params},
        token::Keys,
        user::Account,
    },
    notifier::Notifier,
    places::Places,
    redis::Redis,
    seal::Seal,
};

/// Where replicas tell each other of changes.
const FEED_CHANNEL: &str = "feed";

/// How late replicas know what others counted.
const SETTLE_EVERY: Duration = Duration::from_millis(100);

/// The service without its faces. The rules are `impl App` blocks in `domain`.
pub struct App {
    pub config: Config,
    pub clock: Clock,
    pub db: Db,
    pub keys: Keys,
    pub feed: Feed,
    /// All that is shown of users.
    pub(crate) accounts: Cache<Account>,
    pub limiter: Limiter,
    /// What replicas share, if anything.
    pub redis: Option<Redis>,
    pub hash_pool: HashPool,
    pub metrics: Metrics,
    pub mailer: Mailer,
    /// Where avatars are, if they aren't in the database.
    pub(crate) avatar_store: Option<Arc<AvatarStore>>,
    /// Where events go, if anywhere.
    pub(crate) notifier: Option<Notifier>,
    /// Seals what replicas tell each other through Redis.
    feed_seal: Seal,
    /// Seals what lies in the outbox.
    pub(crate) seal: Seal,
    /// Seals the tokens of pages, which clients hold.
    pub(crate) page_seal: Seal,
    /// Keys the hashes of verification codes.
    pub(crate) code_key: hmac::Key,
    /// Something was put into the outbox.
    pub(crate) posted: watch::Sender<()>,
    pub argon2: Argon2Params,
    /// What a password is held against where there is no user, so that it takes as long as where there is one.
    pub decoy: PasswordHash,
    /// Searches of the directory at once: half of the connections stay for all other calls.
    pub(crate) searches: Places,
    /// Pictures that may be decoded at once: each takes as much memory as a hundred calls.
    pub(crate) decoding: Places,
    /// What runs on when its caller has gone.
    pub(crate) changes: TaskTracker,
}

impl App {
    /// The service over a database that is migrated.
    ///
    /// # Errors
    /// If a key or a place of the configuration can't be used, or the database is away.
    pub async fn new(config: Config, clock: Clock, db: Db, mailer: Mailer) -> Result<Self, Cause> {
        let keys = config.keys()?;
        let notifier = match &config.notification_service_url {
            Some(url) => Some(Notifier::new(url, &keys.of_events())?),
            None => None,
        };
        let config::Keys { tokens, secret } = keys;
        let hashing = &config.hashing;
        let redis = config.redis.as_ref().map(Redis::connect).transpose()?;
        let argon2 = Argon2Params::new(hashing.memory_kib, hashing.iterations, hashing.parallelism)?;
        let limiter = Limiter::new(config.limits.clone(), &secret.derive("limits"), redis.clone());
        let hash_pool = HashPool::start(hashing.threads, hashing.queue)?;
        let accounts = Cache::new(redis.clone(), Seal::new(&secret.derive("cache"))?, Account::size);
        let sources = metrics::Sources {
            transactions: db.metrics().clone(),
            limits: limiter.metrics().clone(),
            hashing: hash_pool.metrics().clone(),
            redis: redis.as_ref().map(|redis| redis.metrics().clone()).unwrap_or_default(),
            cache: accounts.metrics().clone(),
        };
        Ok(Self {
            metrics: Metrics::new(clock.now().timestamp(), &sources),
            keys: Keys::new(&config.jwt, tokens, &secret),
            seal: Seal::new(&secret.derive("outbox"))?,
            page_seal: Seal::new(&secret.derive("page tokens"))?,
            code_key: hmac::Key::new(hmac::HMAC_SHA256, &secret.derive("verification codes")),
            posted: watch::Sender::new(()),
            mailer,
            avatar_store: AvatarStore::open(&config.accounts.avatar_store)?.map(Arc::new),
            notifier,
            feed: Feed::load(&db, &clock).await?,
            accounts,
            feed_seal: Seal::new(&secret.derive("feed"))?,
            limiter,
            redis,
            hash_pool,
            argon2,
            decoy: PasswordHash(password::decoy(argon2)),
            searches: Places::new(db.max_reads() / 2, 2.min((db.max_reads() / 2).saturating_sub(1))),
            decoding: Places::new(2, 1),
            changes: TaskTracker::new(),
            config,
            clock,
            db,
        })
    }

    /// The client whose share of connections and the like this address counts for; `None` if there may be anybody behind it.
    pub fn counted_client(&self, ip: IpAddr) -> Option<IpAddr> {
        let ip = ip.to_canonical();
        let is_counted = !self.config.trusts_proxy(ip) && !self.limiter.is_exempt(ip);
        is_counted.then(|| network(ip))
    }

    /// Begins what follows upon a change: it runs to its end, and shutdown waits for it. Its own bound is its own affair.
    pub(crate) fn follow_up(&self, work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.changes.spawn(work.in_current_span())
    }

    /// Tells the other replicas of changes that are committed, before they ask the database for them.
    pub(crate) fn tell_replicas(self: &Arc<Self>, entries: Vec<feed::Entry>) {
        if self.redis.is_none() || entries.is_empty() {
            return;
        }
        let app = Arc::clone(self);
        drop(self.follow_up(async move {
            let Some(redis) = &app.redis else { return };
            let sealed = serde_json::to_vec(&entries)
                .map_err(Error::internal)
                .and_then(|plain| app.feed_seal.close(FEED_CHANNEL.as_bytes(), plain));
            match sealed {
                Ok(sealed) => redis.publish(FEED_CHANNEL, sealed).await,
                Err(error) => tracing::warn!(error = %Chain(&error), "other replicas can't be told of a change"),
            }
            for (id, version) in entries.iter().filter_map(feed::Entry::outdated) {
                app.accounts.outdate(id, version).await;
            }
        }));
    }

    /// Hears what other replicas tell, until `stop`. What is missed the polls bring.
    pub async fn hear_replicas(self: Arc<Self>, stop: CancellationToken) {
        let Some(redis) = &self.redis else { return stop.cancelled().await };
        let mut listener = match redis.listen(FEED_CHANNEL) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "other replicas can't be heard: what they change is known half a second later");
                return stop.cancelled().await;
            }
        };
        while let Some(sealed) = stop.run_until_cancelled(listener.next()).await {
            let opened = self.feed_seal.open(FEED_CHANNEL.as_bytes(), &sealed);
            match opened.and_then(|plain| Ok(serde_json::from_slice::<Vec<feed::Entry>>(&plain)?)) {
                Ok(entries) => self.feed.apply(&entries),
                // Of another release, perhaps.
                Err(error) => tracing::debug!(%error, "a message of another replica can't be read"),
            }
        }
    }

    /// Settles the counts of calls with the other replicas until `stop`.
    pub async fn settle_limits(self: Arc<Self>, stop: CancellationToken) {
        if self.redis.is_none() {
            return stop.cancelled().await;
        }
        while stop.run_until_cancelled(tokio::time::sleep(SETTLE_EVERY)).await.is_some() {
            self.limiter.settle(self.clock.now()).await;
        }
    }

    /// Keeps the feed of changes fresh until `stop`.
    pub async fn follow_feed(self: Arc<Self>, stop: CancellationToken) {
        let mut failing = false;
        while stop.run_until_cancelled(tokio::time::sleep(feed::POLL_EVERY)).await.is_some() {
            match self.feed.poll(&self.db, &self.clock).await {
                Ok(()) if failing => {
                    failing = false;
                    tracing::info!("the feed of changes is followed again");
                }
                Err(error) if !failing => {
                    failing = true;
                    tracing::error!(error = %Chain(&error), "the feed of changes can't be read");
                }
                Ok(()) | Err(_) => {}
            }
        }
    }

    /// Waits for the changes that are under way, then closes the database.
    pub async fn close(&self) {
        self.changes.close();
        self.changes.wait().await;
        self.db.close().await;
        if let Some(redis) = &self.redis {
            redis.close().await;
        }
    }
}
