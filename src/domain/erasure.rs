//! Erasure: what the audit keeps of a user who was deleted. What was done, when and to whom stays, by the number of the user, which
//! nobody gets again; where the user did it from, and with what, goes.
//!
//! A long trail takes longer than a deletion may. So the deletion itself takes the newest part, and notes that there is
//! more to do; housekeeping does it.

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait, Condition, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
    sea_query::{Expr, OnConflict},
};

use crate::{
    app::App,
    domain::{
        change::Transaction,
        trail::{Filter, Place},
    },
    entity::{
        audit_event::{self, Column},
        erasure,
    },
    error::Result,
};

/// How many events lose their traces in one transaction.
const BATCH: u64 = 1000;
/// How many users one sweep looks after.
const USERS: u64 = 100;
/// Longer than any change may take: none that the user began is still to come then.
const DONE_AFTER: TimeDelta = TimeDelta::minutes(1);

impl Transaction {
    /// Takes out of the audit where the user acted from, and sees to it that what is left follows.
    pub async fn erase_traces(&mut self, user_id: i64) -> Result<()> {
        self.put_now().await?; // Of what this very change noted, too.
        for trail in trails(user_id) {
            erase_behind(&self.db, &trail, user_id, None).await?;
        }
        let row = erasure::ActiveModel { user_id: Set(user_id), created_at: Set(self.now) };
        let known = OnConflict::column(erasure::Column::UserId).do_nothing().to_owned();
        erasure::Entity::insert(row).on_conflict(known).exec_without_returning(&self.db).await?;
        Ok(())
    }
}

impl App {
    /// Goes on with what deletions began. The answer is the number of users of whom nothing is left.
    ///
    /// # Errors
    /// `Unavailable`; what was taken out until then is.
    pub(super) async fn sweep_traces(&self, now: DateTime<Utc>) -> Result<u64> {
        let deleted = erasure::Entity::find().order_by_asc(erasure::Column::CreatedAt).limit(USERS);
        let mut done = 0;
        for erasure::Model { user_id, created_at } in deleted.all(self.db.reader()).await? {
            for trail in trails(user_id) {
                let mut place = None;
                loop {
                    let tx = self.db.begin().await?;
                    place = erase_behind(&tx, &trail, user_id, place).await?;
                    tx.commit().await?;
                    if place.is_none() {
                        break;
                    }
                }
            }
            if created_at < now - DONE_AFTER {
                let tx = self.db.begin().await?;
                done += erasure::Entity::delete_by_id(user_id).exec(&tx).await?.rows_affected;
                tx.commit().await?;
            }
        }
        Ok(done)
    }
}

/// What the user did, and what was done to the user by somebody who isn't known.
fn trails(user_id: i64) -> [Filter; 2] {
    [Filter { actor_id: Some(user_id), ..Filter::default() }, Filter::of_user(user_id)]
}

/// Takes the traces out of at most [`BATCH`] events behind `place`. The answer is where it ended, or `None` at the end of the trail.
///
/// What administrators did to the user keeps theirs: they are not the user's.
async fn erase_behind(
    db: &impl ConnectionTrait,
    trail: &Filter,
    user_id: i64,
    place: Option<Place>,
) -> Result<Option<Place>> {
    let part = trail.select(place, BATCH).select_only().columns([Column::CreatedAt, Column::Id]);
    let part: Vec<Place> = part.into_tuple().all(db).await?;
    let Some(last) = part.last().copied() else { return Ok(None) };
    let nothing = || Expr::value(Option::<String>::None);
    let is_traced = [Column::Ip, Column::UserAgent, Column::RequestId];
    let is_traced = is_traced.into_iter().fold(Condition::any(), |any, column| any.add(column.is_not_null()));
    audit_event::Entity::update_many()
        .col_expr(Column::Ip, nothing())
        .col_expr(Column::UserAgent, nothing())
        .col_expr(Column::RequestId, nothing())
        .filter(Column::Id.is_in(part.iter().map(|(_, id)| *id)))
        .filter(Condition::any().add(Column::ActorId.eq(user_id)).add(Column::ActorId.is_null()))
        .filter(is_traced)
        .exec(db)
        .await?;
    Ok(Some(last).filter(|_| part.len() as u64 == BATCH))
}
