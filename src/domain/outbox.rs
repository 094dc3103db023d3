//! The outbox: messages are written in the transaction of the change that they tell of, and sent outside of any.
//!
//! A message is sent at least once. A replica claims it by a lease, so that no two send it at the same time; one whose
//! sender died is claimed again when the lease is over, and goes out a second time under the same id.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, Condition, EntityTrait, ExprTrait, QueryFilter, QueryOrder,
    QuerySelect, QueryTrait, sea_query::Expr,
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    app::App,
    db::Tx,
    entity::outbox::{self, State},
    error::{Cause, Chain, Error, Result},
    mail::Mail,
    random,
};

/// How often the outbox is looked into when nobody said that something is in it.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a replica may take to send what it claimed. Longer than any attempt.
const LEASE: TimeDelta = TimeDelta::seconds(60);
/// How long one attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
/// How many messages are claimed at once.
const BATCH: u64 = 10;
/// The longest wait between two attempts: what waits for a server goes out within 20 s of its return.
const MAX_BACKOFF: TimeDelta = TimeDelta::seconds(15);
/// A message that could not be sent for so long is given up; an operator can see it in the table.
const GIVE_UP_AFTER: TimeDelta = TimeDelta::hours(24);

/// What is sent. The names and fields are stored.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Letter {
    VerificationCode { to: String, code: String },
    PasswordChanged { to: String, name: Option<String> },
    EmailChanged { to: String, name: Option<String> },
}

impl Letter {
    fn kind(&self) -> &'static str {
        match self {
            Self::VerificationCode { .. } => "verification_code",
            Self::PasswordChanged { .. } => "password_changed",
            Self::EmailChanged { .. } => "email_changed",
        }
    }

    fn mail(self, id: Uuid, written_at: DateTime<Utc>) -> Mail {
        match self {
            Self::VerificationCode { to, code } => {
                // Without the name: whoever registers a stranger's address would choose words to be mailed there.
                let text = format!(
                    "Hello,\n\nyour verification code is {code}. It is valid for 24 hours.\n\n\
                     If you did not ask for it, you can ignore this message.\n"
                );
                Mail { id, to, subject: "Verify your email address".into(), text, written_at }
            }
            Self::PasswordChanged { to, .. } => {
                Mail { id, to, subject: "Your password was changed".into(), text: "x".into(), written_at }
            }
            Self::EmailChanged { to, .. } => {
                Mail { id, to, subject: "Your email address was changed".into(), text: "x".into(), written_at }
            }
        }
    }
}

impl App {
    /// Puts a letter into the outbox, within `tx`. Call [`App::outbox_has_mail`] after the commit.
    pub(super) async fn post(&self, tx: &Tx, letter: &Letter, user_id: i64, now: DateTime<Utc>) -> Result<()> {
        let id = Uuid::from_bytes(random::bytes());
        let row = outbox::ActiveModel {
            kind: Set(letter.kind().to_owned()),
            dedup_id: Set(id),
            payload: Set(self.seal.close(id.as_bytes(), serde_json::to_vec(letter).map_err(Error::internal)?)?),
            user_id: Set(Some(user_id)),
            attempts: Set(0),
            next_attempt_at: Set(now),
            leased_until: Set(None),
            state: Set(State::Pending),
            last_error: Set(None),
            created_at: Set(now),
            ..Default::default()
        };
        row.insert(tx).await?;
        Ok(())
    }

    /// Takes the user's letters out of the outbox, within `tx`: nobody is there any more who waits for them.
    pub(super) async fn forget_letters(&self, tx: &Tx, user_id: i64) -> Result<()> {
        let kinds = ["verification_code", "password_changed", "email_changed"];
        outbox::Entity::delete_many()
            .filter(outbox::Column::UserId.eq(user_id))
            .filter(outbox::Column::Kind.is_in(kinds))
            .exec(tx)
            .await?;
        Ok(())
    }

    /// Tells the one who delivers that there is something to do.
    pub(super) fn outbox_has_mail(&self) {
        self.posted.notify_one();
    }

    /// Delivers what is in the outbox, until `stop`.
    pub async fn deliver_outbox(self: Arc<Self>, stop: CancellationToken) {
        let mut failing = false;
        loop {
            match self.deliver_due().await {
                Ok(true) if !stop.is_cancelled() => continue, // there may be more
                Ok(_) => failing = false,
                Err(error) if !failing => {
                    failing = true;
                    tracing::error!(error = %Chain(&error), "the outbox can't be read");
                }
                Err(_) => {}
            }
            let woken = tokio::time::timeout(LOOK_EVERY, self.posted.notified());
            if stop.run_until_cancelled(woken).await.is_none() {
                return;
            }
        }
    }

    /// Sends what is due, as much as one claim takes; whether there was any.
    async fn deliver_due(&self) -> Result<bool> {
        let claimed = self.claim().await?;
        // All at once, so that one that hangs doesn't keep the others until their lease is over.
        let settled = join_all(claimed.iter().map(async |row| {
            let attempt = tokio::time::timeout(ATTEMPT_TIMEOUT, self.deliver(row)).await;
            self.settle(row, attempt.unwrap_or_else(|late| Err(late.into()))).await
        }));
        settled.await.into_iter().collect::<Result<()>>()?;
        Ok(!claimed.is_empty())
    }

    async fn claim(&self) -> Result<Vec<outbox::Model>> {
        let now = self.clock.now();
        let is_free =
            || Condition::any().add(outbox::Column::LeasedUntil.is_null()).add(outbox::Column::LeasedUntil.lte(now));
        let due = outbox::Entity::find()
            .select_only()
            .column(outbox::Column::Id)
            .filter(outbox::Column::State.eq(State::Pending))
            .filter(outbox::Column::NextAttemptAt.lte(now))
            .filter(is_free())
            .order_by_asc(outbox::Column::NextAttemptAt)
            .limit(BATCH);
        // Most looks find nothing, and need no write to know it.
        if due.clone().into_tuple::<i64>().one(self.db.reader()).await?.is_none() {
            return Ok(Vec::new());
        }
        let tx = self.db.begin().await?;
        let mut claimed = outbox::Entity::update_many()
            .col_expr(outbox::Column::LeasedUntil, Expr::value(now + LEASE))
            .col_expr(outbox::Column::Attempts, Expr::col(outbox::Column::Attempts).add(1))
            .filter(outbox::Column::Id.in_subquery(due.into_query()))
            // Again, for whoever waited here until another replica had claimed the row.
            .filter(is_free())
            .exec_with_returning(&tx)
            .await?;
        tx.commit().await?;
        claimed.sort_by_key(|row| row.id);
        Ok(claimed)
    }

    async fn deliver(&self, row: &outbox::Model) -> Result<(), Cause> {
        let letter: Letter = serde_json::from_slice(&self.seal.open(row.dedup_id.as_bytes(), &row.payload)?)?;
        self.mailer.send(&letter.mail(row.dedup_id, row.created_at)).await
    }

    /// Writes down how an attempt went.
    async fn settle(&self, row: &outbox::Model, sent: Result<(), Cause>) -> Result<()> {
        let now = self.clock.now();
        let update = outbox::Entity::update_many().filter(outbox::Column::Id.eq(row.id));
        let update = match sent {
            Ok(()) => update
                .col_expr(outbox::Column::State, Expr::value(State::Sent))
                .col_expr(outbox::Column::Payload, Expr::value("")),
            Err(error) => {
                let given_up = now - row.created_at > GIVE_UP_AFTER;
                tracing::warn!(
                    error = %Chain(&*error),
                    outbox_id = row.id,
                    attempts = row.attempts,
                    given_up,
                    "a message was not sent"
                );
                let state = if given_up { State::Abandoned } else { State::Pending };
                let reason: String = error.to_string().chars().take(500).collect();
                update
                    .col_expr(outbox::Column::State, Expr::value(state))
                    .col_expr(outbox::Column::LastError, Expr::value(reason))
                    .col_expr(outbox::Column::NextAttemptAt, Expr::value(now + backoff(row.attempts)))
                    .col_expr(outbox::Column::LeasedUntil, Expr::value(Option::<DateTime<Utc>>::None))
            }
        };
        let tx = self.db.begin().await?;
        update.exec(&tx).await?;
        Ok(tx.commit().await?)
    }
}

/// Doubles from a second to [`MAX_BACKOFF`]; a third of it is chance, so that what failed together doesn't return together.
fn backoff(attempts: i32) -> TimeDelta {
    let exponent = u32::try_from(attempts.clamp(1, 10) - 1).unwrap_or_default();
    let longest = (TimeDelta::seconds(1) * 2_i32.pow(exponent)).min(MAX_BACKOFF);
    let [chance] = random::bytes();
    longest - longest / 3 * i32::from(chance) / 255
}
