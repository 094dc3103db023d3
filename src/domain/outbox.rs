//! The outbox: messages are written in the transaction of the change that they tell of, and sent outside of any, by
//! `delivery.rs`.

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect, sea_query::Expr,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    app::App,
    db::Db,
    domain::{change::Transaction, letter::Letter},
    entity::outbox::{self, State},
    error::{Error, Result},
    random,
};

/// A letter as it lies in the outbox. The time is its own: the row's begins anew where it is put in again.
#[derive(Serialize, Deserialize)]
pub(super) struct PostedLetter<L> {
    #[serde(flatten)]
    pub letter: L,
    /// Microseconds of Unix time.
    pub written_at_us: Option<i64>,
}

impl Transaction {
    /// Puts a letter into the outbox.
    pub fn post(&mut self, letter: &Letter, user_id: i64) -> Result<()> {
        let posted = PostedLetter { letter, written_at_us: Some(self.now.timestamp_micros()) };
        self.put_into_outbox(letter.kind(), new_message_id(), &posted, user_id)
    }

    /// Takes the user's messages out that are settled, and the codes: nobody is there any more who could use them. What tells the
    /// owner, or other services, of a change still goes.
    pub async fn forget_messages(&self, user_id: i64) -> Result<()> {
        let codes = outbox::Column::Kind.eq(Letter::KIND_OF_CODES);
        outbox::Entity::delete_many()
            .filter(outbox::Column::UserId.eq(user_id))
            .filter(Condition::any().add(outbox::Column::State.ne(State::Pending)).add(codes))
            .exec(&self.db)
            .await?;
        Ok(())
    }

    /// Puts in a message, which whoever gets it twice knows by its id.
    pub fn put_into_outbox(&mut self, kind: &str, id: Uuid, payload: &impl Serialize, user_id: i64) -> Result<()> {
        let payload = serde_json::to_vec(payload).map_err(Error::internal)?;
        let row = outbox::ActiveModel {
            kind: Set(kind.to_owned()),
            dedup_id: Set(id),
            payload: Set(self.app.seal.close(id.as_bytes(), payload)?),
            user_id: Set(Some(user_id)),
            attempts: Set(0),
            next_attempt_at: Set(self.now),
            leased_until: Set(None),
            state: Set(State::Pending),
            last_error: Set(None),
            created_at: Set(self.now),
            ..Default::default()
        };
        self.put(&row);
        self.has_posted();
        Ok(())
    }
}

impl App {
    /// Tells those who deliver that there is something to do.
    pub(super) fn wake_outbox(&self) {
        self.posted.send_replace(());
    }
}

/// A random id for a message.
pub(super) fn new_message_id() -> Uuid {
    uuid::Builder::from_random_bytes(random::bytes()).into_uuid()
}

/// What was not sent, for an operator's eyes: everything but the payload.
pub struct Unsent {
    /// What was given up first, then what waits; each the oldest first.
    pub rows: Vec<outbox::Model>,
    /// How many there are, shown or not.
    pub count: u64,
}

/// The messages that wait or were given up, at most `limit` of them.
///
/// # Errors
/// `Unavailable` if the database is away.
pub async fn unsent(db: &Db, limit: u64) -> Result<Unsent> {
    use sea_orm::PaginatorTrait;
    let unsent = outbox::Entity::find().filter(outbox::Column::State.is_in([State::Pending, State::Abandoned]));
    let count = unsent.clone().count(db.reader()).await?;
    let oldest_first = unsent.order_by_desc(outbox::Column::State).order_by_asc(outbox::Column::Id);
    let mut rows = oldest_first.limit(limit).all(db.reader()).await?;
    for row in &mut rows {
        row.payload.clear();
    }
    Ok(Unsent { rows, count })
}

/// Which of the messages that were given up.
#[derive(Debug, Clone, Copy)]
pub enum GivenUp {
    One(i64),
    All,
}

/// Puts messages that were given up in again, as if they had just been posted; how many there were. A service that runs finds
/// them within seconds.
///
/// # Errors
/// `Unavailable` if the database is away.
pub async fn requeue(db: &Db, which: GivenUp, now: DateTime<Utc>) -> Result<u64> {
    let mut update = outbox::Entity::update_many()
        .col_expr(outbox::Column::State, Expr::value(State::Pending))
        .col_expr(outbox::Column::Attempts, Expr::value(0))
        .col_expr(outbox::Column::NextAttemptAt, Expr::value(now))
        // The time for which it is tried begins anew.
        .col_expr(outbox::Column::CreatedAt, Expr::value(now))
        .filter(State::Abandoned.is_of(outbox::Column::State));
    if let GivenUp::One(id) = which {
        update = update.filter(outbox::Column::Id.eq(id));
    }
    let tx = db.begin().await?;
    let requeued = update.exec(&tx).await?.rows_affected;
    tx.commit().await?;
    Ok(requeued)
}
