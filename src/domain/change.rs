//! A change: one transaction, and what follows on its commit.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, EntityTrait, ExprTrait, QueryFilter,
    sea_query::{Expr, OnConflict},
};
use tracing::Instrument;

use crate::{
    app::App,
    cache,
    db::{Inserts, Returned, Script, Tx},
    entity::{counter, user},
    error::{Dependency, Error, Result},
    feed::Entry,
    trace,
};

/// How long a change may take once it has begun; longer, and its transaction is undone, unless its commit was already sent. Less
/// than what the polls of the feed read again, than the margin by which it doubts a token, and than what shutdown waits.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(8);

/// By how much the clocks of two replicas may differ, and more.
const CLOCKS_DIFFER: chrono::Duration = chrono::Duration::minutes(5);

/// A transaction under way. What other parts of the service must learn of it is gathered here and told after the commit, so
/// that no rule can forget it, and none tells of what was undone.
pub(super) struct Transaction {
    pub app: Arc<App>,
    pub db: Tx,
    /// When it began: the time that all of it bears.
    pub now: DateTime<Utc>,
    /// What the feed gets.
    entries: Vec<Entry>,
    /// Rows that are put in before the commit.
    later: Inserts,
    has_posted: bool,
    replaced_avatar: Option<String>,
}

impl Transaction {
    /// The sessions are over: their access tokens are worth nothing.
    pub fn revoke_sessions(&mut self, ids: impl IntoIterator<Item = uuid::Uuid>) {
        let expires_at = self.app.keys.last_access_expiry(self.now);
        let ended = ids.into_iter().map(|id| Entry::of_session(id, self.now, expires_at)).collect();
        self.tell(ended);
    }

    /// What tokens say of the user, and what is shown of it, is no longer so. This is the row as it is now.
    pub fn user_changed(&mut self, user: &user::Model) {
        self.tell(vec![Entry::of_user(user.id, user.version, self.now, self.outlives_all())]);
    }

    /// The same of a user who is no more.
    pub fn user_deleted(&mut self, id: i64) {
        self.tell(vec![Entry::of_deleted_user(id, self.now, self.outlives_all())]);
    }

    /// What is shown of the user is no longer so, but what tokens say is. This is the row as it is now.
    pub fn account_changed(&mut self, user: &user::Model) {
        self.tell(vec![Entry::of_account(user.id, user.version, self.now, self.outlives_all())]);
    }

    /// What a group brings its members is no longer so. Until the commit no other group changes in that.
    pub async fn groups_changed(&mut self) -> Result<()> {
        let counted = counter::Entity::update_many()
            .col_expr(counter::Column::Value, Expr::col(counter::Column::Value).add(1))
            .filter(counter::Column::Name.eq(counter::GROUPS))
            .exec_with_returning(&self.db)
            .await?;
        let [counted] = counted.as_slice() else {
            return Err(Error::internal("the counter of groups is not there"));
        };
        self.tell(vec![Entry::of_groups(counted.value, self.now, self.outlives_all())]);
        Ok(())
    }

    fn outlives_all(&self) -> DateTime<Utc> {
        self.app.outlives_all(self.now)
    }

    fn tell(&mut self, entries: Vec<Entry>) {
        self.later.extend(Entry::inserts(&entries));
        self.entries.extend(entries);
    }

    /// Puts in a row before the commit, together with all others of which nothing here reads: in one round trip.
    pub fn put<A: ActiveModelTrait>(&mut self, row: &A) {
        self.later.add(row);
    }

    /// As [`Transaction::put`]; `conflict` says what becomes of a row that is there already.
    pub fn put_or<A: ActiveModelTrait>(&mut self, row: &A, conflict: OnConflict) {
        self.later.add_or(row, Some(conflict));
    }

    /// Puts in at once what is still to be.
    pub async fn put_now(&mut self) -> Result<()> {
        Ok(self.db.insert(std::mem::take(&mut self.later)).await?)
    }

    /// Something was put into the outbox.
    pub fn has_posted(&mut self) {
        self.has_posted = true;
    }

    /// No profile names this picture any more.
    pub fn has_replaced_avatar(&mut self, name: Option<String>) {
        self.replaced_avatar = name;
    }

    async fn commit(mut self) -> Result<()> {
        self.put_now().await?;
        let Self { app, db, entries, later: _, has_posted, replaced_avatar, now: _ } = self;
        Box::pin(db.commit()).instrument(trace::of_part("commit")).await?;
        app.feed.apply(&entries);
        app.tell_replicas(entries);
        if has_posted {
            app.wake_outbox();
        }
        app.forget_avatar(replaced_avatar).await;
        Ok(())
    }
}

impl App {
    /// Makes a change: what `work` does is committed if it returns `Ok`, and undone if not. Once begun it runs to its end,
    /// whether its caller waits or not.
    ///
    /// # Errors
    /// Those of `work`; `Unavailable` if the store is away, or the service is about to end.
    pub(super) async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl for<'a> FnOnce(&'a mut Transaction) -> BoxFuture<'a, Result<T>> + Send + 'static,
    ) -> Result<T> {
        let app = Arc::clone(self);
        self.run_to_end(async move { app.transaction(work).await }).await
    }

    /// Makes a change that is one script. What came of it `read` finds in what the steps returned, with the entries that they put into
    /// the feed. It runs to its end, too.
    ///
    /// # Errors
    /// Those of `read`; `Unavailable` if the store is away, or the service is about to end.
    pub(super) async fn change_at_once<T: Send + 'static>(
        self: &Arc<Self>,
        script: Script,
        read: impl FnOnce(&Returned) -> Result<(T, Vec<Entry>)> + Send + 'static,
    ) -> Result<T> {
        let app = Arc::clone(self);
        let run = async move {
            let returned = Box::pin(app.db.run(script)).instrument(trace::of_part("commit")).await?;
            let (done, entries) = read(&returned)?;
            app.feed.apply(&entries);
            app.tell_replicas(entries);
            Ok(done)
        };
        self.run_to_end(run).await
    }

    /// When neither a token nor a cached value of before `now` is left.
    pub(super) fn outlives_all(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        Ord::max(self.keys.last_access_expiry(now), now + cache::LIFETIME + CLOCKS_DIFFER)
    }

    /// Commits what `work` does if it returns `Ok`, and undoes it if not; also if its caller goes, so call it within
    /// [`App::run_to_end`].
    pub(super) async fn transaction<T>(
        self: &Arc<Self>,
        work: impl for<'a> FnOnce(&'a mut Transaction) -> BoxFuture<'a, Result<T>> + Send,
    ) -> Result<T> {
        let now = self.clock.now();
        let mut tx = Transaction {
            app: Arc::clone(self),
            db: self.db.begin().await?,
            now,
            entries: Vec::new(),
            later: Inserts::default(),
            has_posted: false,
            replaced_avatar: None,
        };
        let done = work(&mut tx).await?;
        tx.commit().await?;
        Ok(done)
    }

    /// Runs in a task of its own what must not stop half-way when its caller goes.
    pub(super) async fn run_to_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        if self.changes.is_closed() {
            return Err(Error::Unavailable { what: Dependency::Shutdown, cause: None });
        }
        let bounded = tokio::time::timeout(CHANGE_TIMEOUT, work.in_current_span());
        self.changes
            .spawn(bounded)
            .await
            // Not the panic's own words, which may quote what it worked on.
            .map_err(|_| Error::internal("a change panicked"))?
            .map_err(|late| Error::Unavailable { what: Dependency::Database, cause: Some(late.into()) })?
    }
}
