//! What is shown often, kept in this process and in Redis.
//!
//! No change has to find and remove what is kept: each value bears the version that it was read with, and is used only as long as
//! the feed of changes, which comes with the changes themselves from the database, tells of no higher one. So a value that
//! somebody puts back late, a message that got lost, a process that died between two steps and a Redis that was away
//! for an hour all come to the same: the value is read anew.
//!
//! It holds as long as nothing is kept for longer than the feed remembers (see [`LIFETIME`]).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use fred::interfaces::{KeysInterface, LuaInterface};
use moka::future::Cache as Local;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    error::{Chain, Error, Result},
    feed::{Feed, Floor},
    metrics,
    redis::Redis,
    seal::Seal,
};

/// How long a value is used. The feed remembers each change for longer, by more than clocks may differ.
pub const LIFETIME: chrono::Duration = chrono::Duration::hours(1);
/// How much memory the values of this process may take, in bytes as they are weighed.
const LOCAL_MAX_BYTES: u64 = 64 << 20;
/// How often a value is looked for that is outdated again and again; then it is read past the cache.
const ATTEMPTS: usize = 3;

/// Keeps a value, unless one of a higher version is there. Such a one may be empty: then it only keeps lower ones out.
const STORE: &str = "
local held = redis.call('GET', KEYS[1])
if held and tonumber(string.match(held, '^%d+') or '0') > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1] .. ':' .. ARGV[2], 'PX', ARGV[3])
return 1
";

/// A value, and as of when it is right. It may be newer than its versions say, but not older.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Versioned<T> {
    /// Of the user whose value it is.
    pub version: i64,
    /// Of what groups bring their members.
    pub groups_version: i64,
    /// When it was about to be read.
    pub read_at: DateTime<Utc>,
    pub value: T,
}

impl<T> Versioned<T> {
    fn shared(self) -> Versioned<Arc<T>> {
        let Self { version, groups_version, read_at, value } = self;
        Versioned { version, groups_version, read_at, value: Arc::new(value) }
    }

    fn is_current(&self, floor: Floor, now: DateTime<Utc>) -> bool {
        self.version >= floor.version && self.groups_version >= floor.groups_version && now - self.read_at < LIFETIME
    }
}

/// Values by the user's id.
pub struct Cache<T> {
    local: Local<i64, Arc<Versioned<Arc<T>>>>,
    shared: Option<Redis>,
    seal: Seal,
    metrics: metrics::Cache,
}

/// Why nothing was found.
enum Miss {
    Absent,
    Failed(Error),
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Cache<T> {
    /// With the values of all replicas in `shared`, sealed: nobody reads them there, nor puts others in their place. `weigh` tells how
    /// many bytes a value takes in memory.
    pub fn new(shared: Option<Redis>, seal: Seal, weigh: fn(&T) -> usize) -> Self {
        let local = Local::builder()
            .max_capacity(LOCAL_MAX_BYTES)
            .weigher(move |_, kept: &Arc<Versioned<Arc<T>>>| u32::try_from(weigh(&kept.value)).unwrap_or(u32::MAX))
            .time_to_live(LIFETIME.to_std().unwrap_or(Duration::MAX))
            .build();
        Self { local, shared, seal, metrics: metrics::Cache::default() }
    }

    pub fn metrics(&self) -> &metrics::Cache {
        &self.metrics
    }

    /// The value of the user, as `read` finds it in the database if it has to; `None` where there is none. Of several who miss the
    /// same value at once one reads it.
    ///
    /// # Errors
    /// Those of `read`.
    pub async fn get<F>(
        &self,
        id: i64,
        feed: &Feed,
        now: DateTime<Utc>,
        read: impl Fn() -> F + Send + Sync,
    ) -> Result<Option<Arc<T>>>
    where
        F: Future<Output = Result<Option<Versioned<T>>>> + Send,
    {
        let is_current = |found: &Versioned<Arc<T>>| feed.floor(id).is_some_and(|floor| found.is_current(floor, now));
        for _ in 0..ATTEMPTS {
            // Without the feed nothing that is kept can be trusted.
            if feed.floor(id).is_none() {
                break;
            }
            if let Some(found) = self.local.get(&id).await {
                if is_current(&found) {
                    self.metrics.in_memory.inc();
                    return Ok(Some(Arc::clone(&found.value)));
                }
                self.local.invalidate(&id).await;
            }
            let was_here = AtomicBool::new(false);
            // Boxed: it is large, and every call that shows a user waits for one.
            let find = Box::pin(async {
                was_here.store(true, Ordering::Relaxed);
                self.find(id, &is_current, now, &read).await
            });
            match self.local.try_get_with(id, find).await.as_deref() {
                Ok(found) if is_current(found) => {
                    if !was_here.load(Ordering::Relaxed) {
                        self.metrics.in_memory.inc();
                    }
                    return Ok(Some(Arc::clone(&found.value)));
                }
                Ok(_) => {}
                Err(miss) => match &**miss {
                    Miss::Absent if was_here.load(Ordering::Relaxed) => return Ok(None),
                    // Somebody else looked, perhaps before it came to be.
                    Miss::Absent => {}
                    Miss::Failed(error) => return Err(repeated(error)),
                },
            }
        }
        let found = read().await?;
        self.metrics.in_database.inc_by(found.iter().len() as u64);
        Ok(found.map(|found| Arc::new(found.value)))
    }

    /// From Redis, or else from the database; then Redis gets it.
    async fn find<F>(
        &self,
        id: i64,
        is_current: &(impl Fn(&Versioned<Arc<T>>) -> bool + Sync),
        now: DateTime<Utc>,
        read: &(impl Fn() -> F + Send + Sync),
    ) -> Result<Arc<Versioned<Arc<T>>>, Miss>
    where
        F: Future<Output = Result<Option<Versioned<T>>>> + Send,
    {
        if let Some(found) = self.load_shared(id).await.filter(is_current) {
            self.metrics.in_redis.inc();
            return Ok(Arc::new(found));
        }
        let found = read().await.map_err(Miss::Failed)?.ok_or(Miss::Absent)?;
        self.metrics.in_database.inc();
        self.store_shared(id, &found, now).await;
        Ok(Arc::new(found.shared()))
    }

    async fn load_shared(&self, id: i64) -> Option<Versioned<Arc<T>>> {
        let redis = self.shared.as_ref()?;
        let key = key(redis, id);
        let kept: Option<String> = redis.ask(async |client| client.get(&key).await).await?;
        let kept = kept?;
        let (_, sealed) = kept.split_once(':').filter(|(_, sealed)| !sealed.is_empty())?;
        let opened = self.seal.open(key.as_bytes(), sealed);
        let read = opened.and_then(|plain| Ok(serde_json::from_slice::<Versioned<T>>(&plain)?));
        match read {
            Ok(found) => Some(found.shared()),
            Err(error) => {
                // Of another release, or another key.
                tracing::debug!(%error, "a value in Redis can't be read");
                None
            }
        }
    }

    async fn store_shared(&self, id: i64, found: &Versioned<T>, now: DateTime<Utc>) {
        let Some(redis) = &self.shared else { return };
        let key = key(redis, id);
        let sealed =
            serde_json::to_vec(found).map_err(Error::internal).and_then(|plain| self.seal.close(key.as_bytes(), plain));
        match sealed {
            Ok(sealed) => put(redis, key, found.version, sealed, found.read_at + LIFETIME - now).await,
            Err(error) => tracing::warn!(error = %Chain(&error), "a value can't be put into Redis"),
        }
    }

    /// Empties what Redis has of the user in lower versions. Nothing depends on it but how soon what was deleted is gone.
    pub async fn outdate(&self, id: i64, version: i64) {
        if let Some(redis) = &self.shared {
            put(redis, key(redis, id), version, String::new(), LIFETIME).await;
        }
    }
}

async fn put(redis: &Redis, key: String, version: i64, sealed: String, life: chrono::Duration) {
    let arguments = vec![version.to_string(), sealed, life.num_milliseconds().max(1).to_string()];
    redis.ask(async |client| client.eval::<(), _, _, _>(STORE, key, arguments).await).await;
}

fn key(redis: &Redis, id: i64) -> String {
    redis.key(&format!("account:{id}"))
}

/// The error for each of those who waited for the same.
fn repeated(error: &Error) -> Error {
    match error {
        Error::Unavailable { what, .. } => {
            Error::Unavailable { what: *what, cause: Some(Chain(error).to_string().into()) }
        }
        other => Error::internal(Chain(other).to_string()),
    }
}
