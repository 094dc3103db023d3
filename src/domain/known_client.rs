//! Clients that logged in as a user before. However many strangers guess at an address, they are not locked out with them.

use std::net::IpAddr;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait, EntityTrait, QueryFilter, QuerySelect, RelationTrait,
    sea_query::{JoinType, OnConflict},
};

use crate::{
    app::App,
    db::Tx,
    domain::user::EmailAddress,
    entity::{known_client, user},
    error::Result,
    limiter::{Reservation, network},
};

/// How long a client stays known after its last login.
pub const KNOWN_FOR: TimeDelta = TimeDelta::days(400);

impl App {
    /// Counts a login as if it had failed, before it is looked at; one from a client that never logged in with this address
    /// counts against all of its kind together as well.
    ///
    /// # Errors
    /// `Throttled` if it is one too many.
    pub(super) async fn reserve_login(&self, email: &EmailAddress, client: IpAddr) -> Result<Reservation> {
        let now = self.clock.now();
        let reservation = self.limiter.reserve_login(email.key(), client, now).await?;
        if !self.limiter.counts_logins() {
            return Ok(reservation);
        }
        match self.is_known_client(email, client).await.map(|is_known| is_known && !self.limiter.is_exempt(client)) {
            Ok(true) => Ok(reservation),
            Ok(false) => self.limiter.reserve_login_by_stranger(reservation, email.key(), now).await,
            Err(error) => {
                self.limiter.give_back(reservation).await;
                Err(error)
            }
        }
    }

    /// One statement, whether there is such a user or not: it takes as long.
    async fn is_known_client(&self, email: &EmailAddress, client: IpAddr) -> Result<bool> {
        let known: Option<i64> = known_client::Entity::find()
            .select_only()
            .column(known_client::Column::UserId)
            .join(JoinType::InnerJoin, known_client::Relation::User.def())
            .filter(user::Column::EmailKey.eq(email.key()))
            .filter(known_client::Column::Network.eq(network(client).to_string()))
            .into_tuple()
            .one(self.db.reader())
            .await?;
        Ok(known.is_some())
    }

    /// Forgets clients whose last login is too long ago, `at_most` so many. The answer is their number.
    ///
    /// # Errors
    /// `Unavailable` if the database is away.
    pub async fn sweep_known_clients(&self, at_most: u64) -> Result<u64> {
        let edge = self.clock.now() - KNOWN_FOR;
        let old: Vec<(i64, String)> = known_client::Entity::find()
            .select_only()
            .columns([known_client::Column::UserId, known_client::Column::Network])
            .filter(known_client::Column::LastLoginAt.lt(edge))
            .limit(at_most)
            .into_tuple()
            .all(self.db.reader())
            .await?;
        let tx = self.db.begin().await?;
        let mut forgotten = 0;
        for key in old {
            let delete = known_client::Entity::delete_by_id(key);
            // Not one that logged in meanwhile.
            let deleted = delete.filter(known_client::Column::LastLoginAt.lt(edge)).exec(&tx).await?;
            forgotten += deleted.rows_affected;
        }
        tx.commit().await?;
        Ok(forgotten)
    }
}

/// Notes within `tx` that the client logged in as this user.
pub(super) async fn remember_client(tx: &Tx, user_id: i64, client: IpAddr, now: DateTime<Utc>) -> Result<()> {
    let row = known_client::ActiveModel {
        user_id: Set(user_id),
        network: Set(network(client).to_string()),
        last_login_at: Set(now),
    };
    let known = OnConflict::columns([known_client::Column::UserId, known_client::Column::Network])
        .update_column(known_client::Column::LastLoginAt)
        .to_owned();
    known_client::Entity::insert(row).on_conflict(known).exec_without_returning(tx).await?;
    Ok(())
}
