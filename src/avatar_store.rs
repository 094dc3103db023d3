//! Pictures outside of the database: files in a folder, or objects in a bucket, by their names.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    BackoffConfig, ClientOptions, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey},
    local::LocalFileSystem,
    path::Path,
};
use secrecy::ExposeSecret;

use crate::{
    config::{self, Bucket, Credentials},
    error::{Cause, Dependency, Error, Result},
};

/// How long one thing may take, with all attempts at it.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long one attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_RETRIES: usize = 2;
/// The largest picture that is ours: as large as it is kept, uncompressed, and some air.
const PICTURE_MAX_BYTES: u64 = 2 << 20;
/// How many names a page of a list has at most.
const PAGE: usize = 500;
/// How much time is at least between two sweeps: a list of a bucket costs a request for each thousand pictures.
const SWEEP_EVERY: TimeDelta = TimeDelta::hours(1);

/// A folder or a place in a bucket that holds pictures.
pub struct AvatarStore {
    objects: Box<dyn ObjectStore>,
    prefix: Path,
    /// The folder, if it is one.
    folder: Option<PathBuf>,
    swept_at: Mutex<Option<DateTime<Utc>>>,
}

impl AvatarStore {
    /// The store that is configured; `None` where it is the database. A bucket is not asked for yet, so that a service may
    /// start before it.
    ///
    /// # Errors
    /// The folder can't be made or written to; the bucket's client can't be made.
    pub fn open(config: &config::AvatarStore) -> Result<Option<Self>, Cause> {
        let swept_at = Mutex::default();
        Ok(match config {
            config::AvatarStore::Database => None,
            config::AvatarStore::Folder(folder) => {
                let folder = folder.made()?;
                // On disk before a profile names it, also if the power fails.
                let files = LocalFileSystem::new_with_prefix(folder)?.with_fsync(true);
                Some(Self { objects: Box::new(files), prefix: Path::ROOT, folder: Some(folder.clone()), swept_at })
            }
            config::AvatarStore::Bucket(place) => {
                let prefix = Path::parse(&place.prefix)?;
                Some(Self { objects: Box::new(bucket(place)?), prefix, folder: None, swept_at })
            }
        })
    }

    /// Keeps a picture. It appears whole, or not at all.
    ///
    /// # Errors
    /// `Unavailable`; the picture may be there all the same, where the answer was lost.
    pub async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        let put = bounded(self.objects.put(&self.path(name), bytes.into())).await?;
        put.map(drop).ok_or_else(|| away("the bucket is missing"))
    }

    /// The picture of this name; `None` where there is none.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path(name);
        let read = async {
            let found = self.objects.get(&path).await?;
            // Somebody else's, and who knows how large.
            if found.meta.size > PICTURE_MAX_BYTES {
                return Ok(None);
            }
            found.bytes().await.map(Some)
        };
        Ok(bounded(read).await?.flatten().map(Vec::from))
    }

    /// Removes a picture; one that is not there is removed.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn delete(&self, name: &str) -> Result<()> {
        bounded(self.objects.delete(&self.path(name))).await.map(drop)
    }

    /// The names of what was put here before `edge`, whoever put it.
    pub fn older_than(&self, edge: DateTime<Utc>) -> Names {
        Names { objects: self.objects.list(Some(&self.prefix)).fuse().boxed(), prefix: self.prefix.clone(), edge }
    }

    /// Removes the files that a crash left half written before `edge`, which no list shows, and tells how many. A bucket has
    /// none.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn remove_drafts(&self, edge: DateTime<Utc>) -> Result<u64> {
        let Some(folder) = self.folder.clone() else { return Ok(0) };
        let remove = move || {
            let mut removed = 0;
            for entry in std::fs::read_dir(folder)? {
                let entry = entry?;
                let is_draft = entry.file_name().to_str().is_some_and(is_draft);
                if is_draft && DateTime::<Utc>::from(entry.metadata()?.modified()?) < edge {
                    std::fs::remove_file(entry.path())?;
                    removed += 1;
                }
            }
            Ok::<u64, std::io::Error>(removed)
        };
        let removed = tokio::time::timeout(TIMEOUT, tokio::task::spawn_blocking(remove)).await.map_err(away)?;
        removed.map_err(Error::internal)?.map_err(away)
    }

    /// Whether it is time for a sweep. Told so, a caller does it.
    pub fn is_sweep_due(&self, now: DateTime<Utc>) -> bool {
        let mut swept_at = self.swept_at.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = swept_at.is_none_or(|at| now - at >= SWEEP_EVERY);
        if is_due {
            *swept_at = Some(now);
        }
        is_due
    }

    fn path(&self, name: &str) -> Path {
        self.prefix.clone().join(name)
    }
}

/// A list of names that is read page by page.
pub struct Names {
    objects: BoxStream<'static, object_store::Result<ObjectMeta>>,
    prefix: Path,
    edge: DateTime<Utc>,
}

impl Names {
    /// The names among the next few objects, maybe none of them; `None` at the end.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn next_page(&mut self) -> Result<Option<Vec<String>>> {
        let page: Option<Vec<_>> = bounded((&mut self.objects).take(PAGE).try_collect()).await?;
        let page = page.ok_or_else(|| away("the folder or bucket is missing"))?;
        let old = page.iter().filter(|object| object.last_modified < self.edge);
        let names = old.filter_map(|object| {
            let mut parts = object.location.prefix_match(&self.prefix)?;
            match (parts.next(), parts.next()) {
                (Some(name), None) => Some(name.as_ref().to_owned()),
                _ => None, // Deeper down, and so not ours.
            }
        });
        Ok((!page.is_empty()).then(|| names.collect()))
    }
}

/// `LocalFileSystem` writes a file under its name and `#1` (or the next number that is free), and then renames it.
fn is_draft(name: &str) -> bool {
    name.split_once('#').is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// What comes of it in time; `None` if what it is about is not there.
async fn bounded<T>(work: impl Future<Output = object_store::Result<T>>) -> Result<Option<T>> {
    match tokio::time::timeout(TIMEOUT, work).await {
        Ok(Ok(done)) => Ok(Some(done)),
        Ok(Err(object_store::Error::NotFound { .. })) => Ok(None),
        Ok(Err(error)) => Err(away(error)),
        Err(late) => Err(away(late)),
    }
}

fn away(cause: impl Into<Cause>) -> Error {
    Error::Unavailable { what: Dependency::AvatarStore, cause: Some(cause.into()) }
}

fn bucket(place: &Bucket) -> object_store::Result<AmazonS3> {
    let is_plain = place.endpoint.as_ref().is_some_and(|url| url.scheme() == "http");
    let client = ClientOptions::new()
        .with_allow_http(is_plain)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout(ATTEMPT_TIMEOUT)
        .with_content_type_for_suffix("jpg", "image/jpeg")
        .with_content_type_for_suffix("png", "image/png");
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_millis(500), base: 2.0 };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&place.name)
        .with_region(&place.region)
        .with_client_options(client)
        .with_retry(RetryConfig { backoff, max_retries: MAX_RETRIES, retry_timeout: TIMEOUT })
        // One by one: not every server that speaks S3 knows how to delete many.
        .with_disable_bulk_delete(true);
    if let Some(endpoint) = &place.endpoint {
        builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/'));
    }
    match &place.credentials {
        Credentials::Keys { id, secret, session_token } => {
            builder = builder.with_access_key_id(id).with_secret_access_key(secret.expose_secret());
            if let Some(token) = session_token {
                builder = builder.with_token(token.expose_secret());
            }
        }
        Credentials::Role(variables) => {
            for (name, value) in variables {
                let key: AmazonS3ConfigKey = name.to_ascii_lowercase().parse()?;
                builder = builder.with_config(key, value);
            }
        }
    }
    builder.build()
}
