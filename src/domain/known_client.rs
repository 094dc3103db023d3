//! Clients that logged in as a user before. However many strangers guess at an address, they are not locked out with them.

use std::net::IpAddr;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait, EntityTrait, ExprTrait, FromQueryResult, QueryFilter, QuerySelect,
    sea_query::{Expr, OnConflict, Query},
};

use crate::{
    app::App,
    domain::user::EmailAddress,
    entity::{known_client, user},
    error::Result,
    limiter::{Reservation, network},
};

/// How long a client stays known after its last login.
pub const KNOWN_FOR: TimeDelta = TimeDelta::days(400);

/// Who has an address, as a login looks it up.
#[derive(FromQueryResult)]
pub(super) struct Holder {
    #[sea_orm(nested)]
    pub user: user::Model,
    /// The client that logs in did so before.
    pub is_known_client: bool,
}

impl App {
    /// Who has the address, and whether the client logged in as this user before. One statement, whether there is such a user or not: it
    /// takes as long.
    pub(super) async fn holder(&self, email: &EmailAddress, client: IpAddr) -> Result<Option<Holder>> {
        let known = Query::select()
            .expr(Expr::val(1))
            .from(known_client::Entity)
            .and_where(known_client::Column::UserId.into_expr().equals((user::Entity, user::Column::Id)))
            .and_where(known_client::Column::Network.eq(network(client).to_string()))
            .take();
        let holder = user::Entity::find()
            .filter(user::Column::EmailKey.eq(email.key()))
            .expr_as(Expr::exists(known), "is_known_client")
            .into_model();
        Ok(holder.one(self.db.reader()).await?)
    }

    /// Counts a login as if it had failed, before it is looked at; one from a client that never logged in with this address
    /// counts against all of its kind together as well.
    ///
    /// # Errors
    /// `Throttled` if it is one too many.
    pub(super) async fn reserve_login(
        &self,
        email: &EmailAddress,
        client: IpAddr,
    ) -> Result<(Reservation, Option<Holder>)> {
        let now = self.clock.now();
        let reservation = self.limiter.reserve_login(email.key(), client, now).await?;
        let holder = match self.holder(email, client).await {
            Ok(holder) => holder,
            Err(error) => {
                self.limiter.give_back(reservation).await;
                return Err(error);
            }
        };
        let is_known = holder.as_ref().is_some_and(|holder| holder.is_known_client) && !self.limiter.is_exempt(client);
        if is_known || !self.limiter.counts_logins() {
            return Ok((reservation, holder));
        }
        Ok((self.limiter.reserve_login_by_stranger(reservation, email.key(), now).await?, holder))
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

/// What notes that the client logged in as this user.
pub(super) fn known_from_now_on(user_id: i64, client: IpAddr, now: DateTime<Utc>) -> known_client::ActiveModel {
    known_client::ActiveModel {
        user_id: Set(user_id),
        network: Set(network(client).to_string()),
        last_login_at: Set(now),
    }
}

/// Where it is known already: it is so for longer.
pub(super) fn or_for_longer() -> OnConflict {
    let key = [known_client::Column::UserId, known_client::Column::Network];
    OnConflict::columns(key).update_column(known_client::Column::LastLoginAt).to_owned()
}
