//! Housekeeping: rows that ran out leave their tables.
//!
//! Every replica does it. Rows go in transactions of at most a thousand, so that nobody waits long for one; on PostgreSQL most
//! are chosen past those that another replica is at.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait,
    sea_query::{IntoCondition, LockBehavior, LockType},
};
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    domain::event::UserEvent,
    entity::{
        audit_event,
        outbox::{self, State},
        revocation, session, verification_code as code,
    },
    error::{Chain, Result},
    random,
};

/// How many rows go in one transaction.
const BATCH: u64 = 1000;
/// The first sweep comes within this time of the start, but not at once: there is enough to do then.
const FIRST_WITHIN: Duration = Duration::from_secs(10);
const EVERY: Duration = Duration::from_mins(5);

/// Sessions stay for a day after their last refresh token ran out. A refresh token that is reused is found out by its
/// session, but only one that has not run out is looked up at all: so nothing is missed, even where clocks differ.
const KEEP_SESSIONS: TimeDelta = TimeDelta::days(1);
/// Codes are counted for as long as the longest window that `RATE_LIMIT_VERIFICATION` may have, 30 days.
const KEEP_CODES: TimeDelta = TimeDelta::days(31);
/// No replica's clock lags so far behind that it would still read the row.
const KEEP_REVOCATIONS: TimeDelta = TimeDelta::hours(1);
/// Somebody may ask whether a mail has left.
const KEEP_SENT: TimeDelta = TimeDelta::days(1);
/// As long as that an operator may requeue what was given up.
const KEEP_UNSENT: TimeDelta = TimeDelta::days(30);

/// How many rows a sweep removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    pub sessions: u64,
    pub codes: u64,
    pub revocations: u64,
    pub messages: u64,
    pub audit_events: u64,
    /// Users who were deleted, and of whom the audit now keeps nothing but what it needs.
    pub erasures: u64,
    pub known_clients: u64,
    /// Pictures that no profile names.
    pub avatars: u64,
}

impl App {
    /// Sweeps soon after the start and then every few minutes, until `stop`.
    pub async fn keep_house(self: Arc<Self>, stop: CancellationToken) {
        let mut failing = false;
        // At random, so that replicas that start together don't sweep together.
        let mut wait = FIRST_WITHIN.mul_f64(0.2 + 0.8 * chance());
        while stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
            match stop.run_until_cancelled(self.sweep()).await {
                None => return,
                Some(Ok(swept)) => {
                    failing = false;
                    if swept != Swept::default() {
                        tracing::info!(?swept, "rows that ran out were removed");
                    }
                }
                Some(Err(error)) if !failing => {
                    failing = true;
                    tracing::error!(error = %Chain(&error), "rows that ran out can't be removed");
                }
                Some(Err(_)) => {}
            }
            wait = EVERY.mul_f64(0.8 + 0.4 * chance());
        }
    }

    /// Removes what ran out, one subject after the other, and folds what adds up.
    ///
    /// # Errors
    /// `Unavailable`; what was removed until then is.
    pub async fn sweep(&self) -> Result<Swept> {
        let now = self.clock.now();
        let swept = Swept {
            sessions: self.sweep_sessions(now).await?,
            codes: self.sweep_codes(now).await?,
            revocations: self.sweep_revocations(now).await?,
            messages: self.sweep_outbox(now).await?,
            audit_events: self.sweep_audit(now).await?,
            erasures: self.sweep_traces(now).await?,
            known_clients: self.sweep_clients().await?,
            avatars: self.sweep_orphan_avatars().await?,
        };
        self.fold_user_counts().await?;
        Ok(swept)
    }

    async fn sweep_sessions(&self, now: DateTime<Utc>) -> Result<u64> {
        let over = session::Column::ExpiresAt.lt(now - KEEP_SESSIONS);
        self.remove::<session::Entity>(session::Column::Id, over, session::Column::ExpiresAt).await
    }

    async fn sweep_codes(&self, now: DateTime<Utc>) -> Result<u64> {
        let old = code::Column::CreatedAt.lt(now - KEEP_CODES);
        self.remove::<code::Entity>(code::Column::Id, old, code::Column::CreatedAt).await
    }

    async fn sweep_revocations(&self, now: DateTime<Utc>) -> Result<u64> {
        let over = revocation::Column::ExpiresAt.lt(now - KEEP_REVOCATIONS);
        self.remove::<revocation::Entity>(revocation::Column::Id, over, revocation::Column::ExpiresAt).await
    }

    /// What was sent, what was given up, and events that nobody waits for any more, since `NOTIFICATION_SERVICE_URL` is gone.
    async fn sweep_outbox(&self, now: DateTime<Utc>) -> Result<u64> {
        let mut removed = 0;
        let settled = [(State::Sent, KEEP_SENT), (State::Abandoned, KEEP_UNSENT)];
        let nobody_listens = self.notifier.is_none().then_some((State::Pending, KEEP_UNSENT));
        for (state, keep) in settled.into_iter().chain(nobody_listens) {
            let settled = state.is_of((outbox::Entity, outbox::Column::State));
            let mut old = Condition::all().add(settled).add(outbox::Column::NextAttemptAt.lt(now - keep));
            if state == State::Pending {
                old = old.add(outbox::Column::Kind.is_in(UserEvent::KINDS));
            }
            removed += self.remove::<outbox::Entity>(outbox::Column::Id, old, outbox::Column::NextAttemptAt).await?;
        }
        Ok(removed)
    }

    async fn sweep_audit(&self, now: DateTime<Utc>) -> Result<u64> {
        let Some(keep) = self.config.audit_retention.and_then(|keep| TimeDelta::from_std(keep).ok()) else {
            return Ok(0);
        };
        let old = audit_event::Column::CreatedAt.lt(now - keep);
        self.remove::<audit_event::Entity>(audit_event::Column::Id, old, audit_event::Column::CreatedAt).await
    }

    async fn sweep_clients(&self) -> Result<u64> {
        let mut removed = 0;
        loop {
            let gone = self.sweep_known_clients(BATCH).await?;
            removed += gone;
            if gone < BATCH {
                return Ok(removed);
            }
        }
    }

    /// Removes the rows that `old` holds for, the least by `order` first, batch after batch; how many there were.
    async fn remove<E: EntityTrait>(&self, key: E::Column, old: impl IntoCondition, order: E::Column) -> Result<u64> {
        let old: Condition = old.into_condition();
        let mut removed = 0;
        loop {
            let batch = E::find()
                .select_only()
                .column(key)
                .filter(old.clone())
                .order_by_asc(order)
                .limit(BATCH)
                .lock_with_behavior(LockType::Update, LockBehavior::SkipLocked);
            let tx = self.db.begin().await?;
            let gone = E::delete_many().filter(key.in_subquery(batch.into_query())).exec(&tx).await?.rows_affected;
            tx.commit().await?;
            removed += gone;
            if gone < BATCH {
                return Ok(removed);
            }
        }
    }
}

/// From 0 to 1.
fn chance() -> f64 {
    let [byte] = random::bytes();
    f64::from(byte) / 255.0
}
