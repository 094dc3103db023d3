//! What the rules work with: stores, keys, clock, configuration.

use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::hmac;
use chrono::{DateTime, Utc};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use crate::{
    avatar_store::AvatarStore,
    clock::Clock,
    config::{self, Config},
    db::Db,
    entity::user::PasswordHash,
    error::{Cause, Chain},
    hash_pool::HashPool,
    limiter::Limiter,
    mail::Mailer,
    model::{
        password::{self, Argon2Params},
        token::Keys,
    },
    notifier::Notifier,
    places::Places,
    redis::Redis,
    revocations::{self, Revocations},
    seal::Seal,
};

/// The service without its faces. The rules are `impl App` blocks in `domain`.
pub struct App {
    pub config: Config,
    pub clock: Clock,
    pub db: Db,
    pub keys: Keys,
    pub revocations: Revocations,
    pub limiter: Limiter,
    /// What replicas share, if anything.
    pub redis: Option<Redis>,
    pub hash_pool: HashPool,
    pub mailer: Mailer,
    /// Where avatars are, if they aren't in the database.
    pub(crate) avatar_store: Option<Arc<AvatarStore>>,
    /// Where events go, if anywhere.
    pub(crate) notifier: Option<Notifier>,
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
    /// Of the users that are listed, and of all of them.
    pub(crate) user_counts: [UserCount; 2],
    /// Searches of the directory at once: half of the connections stay for all other calls.
    pub(crate) searches: Places,
    /// Pictures that may be decoded at once: each takes as much memory as a hundred calls.
    pub(crate) decoding: Places,
    /// What runs on when its caller has gone.
    pub(crate) changes: TaskTracker,
}

/// How many users there were when they were last counted, and when that was.
#[derive(Default)]
pub(crate) struct UserCount(Mutex<Option<(DateTime<Utc>, u64)>>);

impl UserCount {
    /// The count, if it is less than a second old.
    pub(crate) fn fresh(&self, now: DateTime<Utc>) -> Option<u64> {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.filter(|(at, _)| (0..1000).contains(&(now - at).num_milliseconds())).map(|(_, count)| count)
    }

    pub(crate) fn set(&self, count: u64, now: DateTime<Utc>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, count));
    }
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
        let config::Keys { signing, secret } = keys;
        let hashing = &config.hashing;
        let redis = config.redis_url.as_ref().map(Redis::connect).transpose()?;
        let argon2 = Argon2Params::new(hashing.memory_kib, hashing.iterations, hashing.parallelism)?;
        Ok(Self {
            keys: Keys::new(&config.jwt, &signing),
            seal: Seal::new(&secret.derive("outbox"))?,
            page_seal: Seal::new(&secret.derive("page tokens"))?,
            code_key: hmac::Key::new(hmac::HMAC_SHA256, &secret.derive("verification codes")),
            posted: watch::Sender::new(()),
            mailer,
            avatar_store: AvatarStore::open(&config.accounts.avatar_store)?.map(Arc::new),
            notifier,
            revocations: Revocations::load(&db, &clock).await?,
            limiter: Limiter::new(config.limits.clone(), &secret.derive("limits"), redis.clone()),
            redis,
            hash_pool: HashPool::start(hashing.threads, hashing.queue)?,
            argon2,
            decoy: PasswordHash(password::decoy(argon2)),
            user_counts: Default::default(),
            searches: Places::new(db.max_reads() / 2, 2.min((db.max_reads() / 2).saturating_sub(1))),
            decoding: Places::new(2, 1),
            changes: TaskTracker::new(),
            config,
            clock,
            db,
        })
    }

    /// Begins what follows upon a change: it runs to its end, and shutdown waits for it. Its own bound is its own affair.
    pub(crate) fn follow_up(&self, work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.changes.spawn(work.in_current_span())
    }

    /// Keeps the list of ended sessions fresh until `stop`.
    pub async fn follow_revocations(self: Arc<Self>, stop: CancellationToken) {
        let mut failing = false;
        while stop.run_until_cancelled(tokio::time::sleep(revocations::POLL_EVERY)).await.is_some() {
            match self.revocations.poll(&self.db, &self.clock).await {
                Ok(()) if failing => {
                    failing = false;
                    tracing::info!("the revocations are followed again");
                }
                Err(error) if !failing => {
                    failing = true;
                    tracing::error!(error = %Chain(&error), "the revocations can't be read");
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
