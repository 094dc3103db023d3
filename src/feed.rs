//! The feed of what changed: sessions that ended, users who are other than tokens or the cache say.
//!
//! A token is let in, and a user shown, without asking the database. So each such change writes a row in its own
//! transaction, and every replica holds in memory the rows of as long a time as a token or a cached value lives: it applies its own
//! at once, is told those of others through Redis where there is one, and polls for them in any case. A replica that can't
//! poll lets nobody in, rather than somebody who was locked out.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveEnum,
    ActiveValue::Set,
    ColumnTrait, EntityTrait, Iterable, QueryFilter, QueryOrder, QuerySelect,
    sea_query::{Expr, Query, TableRef},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    clock::Clock,
    db::{Db, Inserts, Script},
    entity::{
        revocation::{self, Column, Kind},
        user,
    },
    error::{Dependency, Error, Result},
};

/// The version of a user who was deleted, or of whom nothing may be kept: higher than any.
const DELETED: i64 = i64::MAX;

/// How often the rows of others are asked for. With the time of a poll, "everywhere within a second" follows.
pub const POLL_EVERY: Duration = Duration::from_millis(500);
/// How long an answer of the database may take.
const POLL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the last answer can be trusted.
const STALE_AFTER: Duration = Duration::from_secs(5);
/// How long it can be trusted by the cache, which has another way: the database.
const CACHE_STALE_AFTER: Duration = Duration::from_secs(2);
/// How far back each poll reads again: a row can become visible after rows with higher ids, but no change lasts so long.
const OVERLAP: Duration = Duration::from_secs(10);
/// Tokens issued so long after a change bears its time are still doubted: a change may take 8 s, until whose end others read
/// what was before; and the clocks of two replicas may be 5 s apart.
const DOUBT: chrono::Duration = chrono::Duration::seconds(13);
/// How often rows that ran out are forgotten.
const FORGET_EVERY: Duration = Duration::from_mins(1);

/// One entry of the feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    subject: Subject,
    changed_at: DateTime<Utc>,
    /// No token or cached value that this concerns lives longer.
    expires_at: DateTime<Utc>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Subject {
    Session(Uuid),
    User { id: i64, version: i64 },
    Account { id: i64, version: i64 },
    Groups { version: i64 },
}

impl Entry {
    /// The session is over.
    pub fn of_session(id: Uuid, now: DateTime<Utc>, expires_at: DateTime<Utc>) -> Self {
        Self { subject: Subject::Session(id), changed_at: now, expires_at }
    }

    /// The user's roles, address or standing changed: what a token says of it must be looked up, and what is cached of it is no
    /// longer so, if its version is lower.
    pub fn of_user(id: i64, version: i64, now: DateTime<Utc>, expires_at: DateTime<Utc>) -> Self {
        Self { subject: Subject::User { id, version }, changed_at: now, expires_at }
    }

    /// The user is gone.
    pub fn of_deleted_user(id: i64, now: DateTime<Utc>, expires_at: DateTime<Utc>) -> Self {
        Self::of_user(id, DELETED, now, expires_at)
    }

    /// Of the user something else that is shown changed: tokens say nothing of it, but the cache does.
    pub fn of_account(id: i64, version: i64, now: DateTime<Utc>, expires_at: DateTime<Utc>) -> Self {
        Self { subject: Subject::Account { id, version }, changed_at: now, expires_at }
    }

    /// What groups bring their members changed; `version` counts these changes.
    pub fn of_groups(version: i64, now: DateTime<Utc>, expires_at: DateTime<Utc>) -> Self {
        Self { subject: Subject::Groups { version }, changed_at: now, expires_at }
    }

    /// The user whose cached value is outdated, and the version from which on it is not.
    pub fn outdated(&self) -> Option<(i64, i64)> {
        match self.subject {
            Subject::User { id, version } | Subject::Account { id, version } => Some((id, version)),
            Subject::Session(_) | Subject::Groups { .. } => None,
        }
    }

    /// A row for each, to be put in within the transaction of the change.
    pub fn inserts(all: &[Self]) -> Inserts {
        let mut rows = Inserts::default();
        for entry in all {
            rows.add(&entry.row());
        }
        rows
    }

    /// Puts into a script what [`Entry::of_account`] is, where only the database knows the version: that of the user of this id in
    /// `written`.
    ///
    /// # Errors
    /// `Internal` if it can't be put in so.
    pub fn account_step(
        script: &mut Script,
        written: TableRef,
        id: i64,
        now: DateTime<Utc>,
        expires_at: DateTime<Utc>,
    ) -> Result<()> {
        let mut version = Query::select();
        version.expr(Expr::val(Kind::AccountChanged.to_value())).expr(Expr::val(id)).column(user::Column::Version);
        version.expr(Expr::val(now)).expr(Expr::val(expires_at));
        version.from(written).and_where(sea_orm::ExprTrait::eq(Expr::col(user::Column::Id), id));
        let columns = [Column::Kind, Column::UserId, Column::Version, Column::CreatedAt, Column::ExpiresAt];
        let mut entry = Query::insert();
        entry.into_table(revocation::Entity).columns(columns);
        entry.select_from(version).map_err(Error::internal)?;
        script.insert("entry", entry);
        Ok(())
    }

    fn row(self) -> revocation::ActiveModel {
        let (kind, session_id, user_id, version) = match self.subject {
            Subject::Session(id) => (Kind::Session, Some(id), None, None),
            Subject::User { id, version } => (Kind::UserChanged, None, Some(id), Some(version)),
            Subject::Account { id, version } => (Kind::AccountChanged, None, Some(id), Some(version)),
            Subject::Groups { version } => (Kind::GroupsChanged, None, None, Some(version)),
        };
        revocation::ActiveModel {
            kind: Set(kind),
            session_id: Set(session_id),
            user_id: Set(user_id),
            version: Set(version),
            created_at: Set(self.changed_at),
            expires_at: Set(self.expires_at),
            ..Default::default()
        }
    }

    fn read(row: &revocation::Model) -> Option<Self> {
        let subject = match row.kind {
            Kind::Session => Subject::Session(row.session_id?),
            // A row without a version is of a release that knew none: then nothing that is kept is right.
            Kind::UserChanged => Subject::User { id: row.user_id?, version: row.version.unwrap_or(DELETED) },
            Kind::AccountChanged => Subject::Account { id: row.user_id?, version: row.version.unwrap_or(DELETED) },
            Kind::GroupsChanged => Subject::Groups { version: row.version? },
        };
        Some(Self { subject, changed_at: row.created_at, expires_at: row.expires_at })
    }
}

/// What the feed says of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The token is right in all it says.
    Unchanged,
    /// The user is to be looked up.
    Changed,
    /// The token is worth nothing.
    Ended,
}

/// From which versions on what is cached of a user is not outdated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floor {
    /// Of the user.
    pub version: i64,
    /// Of what groups bring.
    pub groups_version: i64,
}

/// The feed in memory.
pub struct Feed {
    held: RwLock<Held>,
    polls: Mutex<Polls>,
    started: Instant,
    /// Milliseconds from `started` to the last answer of the database.
    fresh_at_ms: AtomicU64,
}

#[derive(Default)]
struct Held {
    /// When each entry runs out.
    sessions: HashMap<Uuid, DateTime<Utc>>,
    /// When each user last changed, and when the entry runs out.
    users: HashMap<i64, (DateTime<Utc>, DateTime<Utc>)>,
    /// The version of each user who changed, and when the entry runs out.
    accounts: HashMap<i64, (i64, DateTime<Utc>)>,
    /// The version of what groups bring, and when the entry runs out.
    groups: Option<(i64, DateTime<Utc>)>,
}

impl Held {
    fn take(&mut self, entry: Entry) {
        let Entry { subject, changed_at, expires_at } = entry;
        match subject {
            Subject::Session(id) => {
                let held = self.sessions.entry(id).or_insert(expires_at);
                *held = expires_at.max(*held);
            }
            Subject::User { id, version } => {
                let held = self.users.entry(id).or_insert((changed_at, expires_at));
                *held = (changed_at.max(held.0), expires_at.max(held.1));
                self.raise(id, version, expires_at);
            }
            Subject::Account { id, version } => self.raise(id, version, expires_at),
            Subject::Groups { version } => {
                let held = self.groups.get_or_insert((version, expires_at));
                *held = (version.max(held.0), expires_at.max(held.1));
            }
        }
    }

    fn raise(&mut self, user_id: i64, version: i64, expires_at: DateTime<Utc>) {
        let held = self.accounts.entry(user_id).or_insert((version, expires_at));
        *held = (version.max(held.0), expires_at.max(held.1));
    }
}

/// Where the polls of the last seconds stood.
struct Polls {
    /// The time of each poll, and the highest id seen by then.
    seen: VecDeque<(Instant, i64)>,
    forgot_at: Instant,
}

impl Feed {
    /// The feed as the database has it now.
    ///
    /// # Errors
    /// `Unavailable` if the database is away.
    pub async fn load(db: &Db, clock: &Clock) -> Result<Self> {
        let started = Instant::now();
        let feed = Self {
            held: RwLock::default(),
            polls: Mutex::new(Polls { seen: VecDeque::new(), forgot_at: started }),
            started,
            fresh_at_ms: AtomicU64::new(0),
        };
        let now = clock.now();
        // Nothing is known yet of the polls before this one: the rows of the last half minute are read again, which
        // is more than the overlap by as much as clocks may differ.
        let settled: Option<i64> = revocation::Entity::find()
            .select_only()
            .column(revocation::Column::Id)
            .filter(revocation::Column::CreatedAt.lt(now - chrono::Duration::seconds(30)))
            .order_by_desc(revocation::Column::CreatedAt)
            .into_tuple()
            .one(db.reader())
            .await?;
        feed.lock_polls().seen.push_back((started, settled.unwrap_or_default()));
        feed.apply(&entries(&newest_rows(db, now).await?));
        Ok(feed)
    }

    /// What the feed says of a token of this session and user, issued then.
    ///
    /// # Errors
    /// `Unavailable` if the feed is too old to be trusted.
    pub fn verdict(&self, session_id: Uuid, user_id: i64, issued_at: DateTime<Utc>) -> Result<Verdict> {
        if !self.is_fresh() {
            return Err(Error::Unavailable { what: Dependency::Feed, cause: None });
        }
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        Ok(if held.sessions.contains_key(&session_id) {
            Verdict::Ended
        } else if held.users.get(&user_id).is_some_and(|(changed_at, _)| issued_at <= *changed_at + DOUBT) {
            Verdict::Changed
        } else {
            Verdict::Unchanged
        })
    }

    /// Whether what tokens are held against can be trusted.
    pub fn is_fresh(&self) -> bool {
        self.age() <= STALE_AFTER
    }

    /// How many sessions that ended, and how many users who changed, are held.
    pub fn held(&self) -> (usize, usize) {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        (held.sessions.len(), held.accounts.len())
    }

    /// From which versions on a cached value of the user may be used; `None` while that isn't known well enough, and the
    /// database is to be asked.
    pub fn floor(&self, user_id: i64) -> Option<Floor> {
        if self.age() > CACHE_STALE_AFTER {
            return None;
        }
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let version = held.accounts.get(&user_id).map_or(0, |(version, _)| *version);
        Some(Floor { version, groups_version: held.groups.map_or(0, |(version, _)| version) })
    }

    /// How long ago the database was asked what it then answered.
    pub fn age(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.fresh_at_ms.load(Ordering::Acquire)))
    }

    /// Takes note of changes whose transaction has committed: of all at once, or of none.
    pub fn apply(&self, entries: &[Entry]) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        for entry in entries {
            held.take(*entry);
        }
    }

    /// Reads what others wrote since.
    ///
    /// # Errors
    /// `Unavailable` if the database is away, or takes too long.
    pub async fn poll(&self, db: &Db, clock: &Clock) -> Result<()> {
        let asked_at = Instant::now();
        let (low, high) = {
            let mut polls = self.lock_polls();
            // As of the last answer, not of now: what became visible since, be it after a minute's outage, was in none.
            let answered_at = polls.seen.back().map_or(asked_at, |(at, _)| *at);
            while polls.seen.get(1).is_some_and(|(at, _)| answered_at.duration_since(*at) > OVERLAP) {
                polls.seen.pop_front();
            }
            let edge = |entry: Option<&(Instant, i64)>| entry.map_or(0, |(_, id)| *id);
            (edge(polls.seen.front()), edge(polls.seen.back()))
        };
        let rows = tokio::time::timeout(POLL_TIMEOUT, rows_above(db, low, clock.now()))
            .await
            .map_err(|late| Error::Unavailable { what: Dependency::Database, cause: Some(late.into()) })??;
        self.apply(&entries(&rows));
        let high = rows.last().map_or(high, |row| row.id.max(high));
        let forget = {
            let mut polls = self.lock_polls();
            polls.seen.push_back((asked_at, high));
            let due = asked_at.duration_since(polls.forgot_at) > FORGET_EVERY;
            if due {
                polls.forgot_at = asked_at;
            }
            due
        };
        if forget {
            let now = clock.now();
            let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
            held.sessions.retain(|_, expires_at| *expires_at > now);
            held.users.retain(|_, (_, expires_at)| *expires_at > now);
            held.accounts.retain(|_, (_, expires_at)| *expires_at > now);
            held.groups = held.groups.filter(|(_, expires_at)| *expires_at > now);
        }
        // As of when it was asked: what was written since may be missing.
        let fresh_at = asked_at.duration_since(self.started).as_millis();
        self.fresh_at_ms.store(u64::try_from(fresh_at).unwrap_or(u64::MAX), Ordering::Release);
        Ok(())
    }

    fn lock_polls(&self) -> std::sync::MutexGuard<'_, Polls> {
        self.polls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entries(rows: &[revocation::Model]) -> Vec<Entry> {
    rows.iter().filter_map(Entry::read).collect()
}

/// What still matters, once for each subject however often it changed: its newest version and times.
async fn newest_rows(db: &Db, now: DateTime<Utc>) -> Result<Vec<revocation::Model>> {
    use revocation::Column;
    let newest = revocation::Entity::find()
        .select_only()
        .columns([Column::Kind, Column::SessionId, Column::UserId])
        .column_as(Column::Id.max(), "id")
        .column_as(Column::Version.max(), "version")
        .column_as(Column::CreatedAt.max(), "created_at")
        .column_as(Column::ExpiresAt.max(), "expires_at")
        .filter(Column::Kind.is_in(Kind::iter()))
        .filter(Column::ExpiresAt.gt(now))
        .group_by(Column::Kind)
        .group_by(Column::SessionId)
        .group_by(Column::UserId);
    Ok(newest.into_model().all(db.reader()).await?)
}

/// The rows above this id that still matter, oldest first. Kinds that only a newer release knows are left out.
async fn rows_above(db: &Db, id: i64, now: DateTime<Utc>) -> Result<Vec<revocation::Model>> {
    let rows = revocation::Entity::find()
        .filter(revocation::Column::Id.gt(id))
        .filter(revocation::Column::Kind.is_in(Kind::iter()))
        .filter(revocation::Column::ExpiresAt.gt(now))
        .order_by_asc(revocation::Column::Id);
    Ok(rows.all(db.reader()).await?)
}
