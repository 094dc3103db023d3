//! How many users there are of each kind. The database keeps it: each change of a user changes the table `user_counts` with it, so a
//! count is as exact as if all had been counted.

use sea_orm::{ConnectionTrait, DbBackend, Statement, sea_query::Expr};

use crate::{app::App, error::Result, model::role::Role};

// What the triggers of the migration `m0010_user_counts` make of a user's columns.
const LISTED: u8 = 1;
const VERIFIED: u8 = 2;
const FREELANCER: u8 = 4;
const SELLER: u8 = 8;
const MODERATOR: u8 = 16;
const ADMIN: u8 = 32;

/// Of whom to say how many they are: users for whom all of this holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tally {
    pub listed_only: bool,
    pub is_verified: Option<bool>,
    pub role: Option<Role>,
}

impl Tally {
    /// How many they are, in SQL.
    pub fn count(self) -> Expr {
        let role = self.role.map(|role| match role {
            Role::Freelancer => FREELANCER,
            Role::Seller => SELLER,
            Role::Moderator => MODERATOR,
            Role::Admin => ADMIN,
        });
        let looked_at =
            if self.listed_only { LISTED } else { 0 } | self.is_verified.map_or(0, |_| VERIFIED) | role.unwrap_or(0);
        let set = if self.is_verified == Some(false) { looked_at & !VERIFIED } else { looked_at };
        Expr::cust(format!(
            "(SELECT CAST(COALESCE(SUM(users), 0) AS bigint) FROM user_counts WHERE (flags & {looked_at}) = {set})"
        ))
    }
}

/// How many rows are folded at once, and how often in a row.
const FOLD_MAX: i64 = 20_000;
const FOLDS: usize = 500;

impl App {
    /// Folds the rows of `user_counts`, to which each change adds on PostgreSQL, so that a count adds up few. What others fold at the
    /// same time is passed over.
    pub(super) async fn fold_user_counts(&self) -> Result<()> {
        if self.db.reader().get_database_backend() == DbBackend::Sqlite {
            return Ok(());
        }
        let fold = Statement::from_string(
            DbBackend::Postgres,
            format!(
                "WITH folded AS (
                    DELETE FROM user_counts
                    WHERE id IN (SELECT id FROM user_counts ORDER BY id LIMIT {FOLD_MAX} FOR UPDATE SKIP LOCKED)
                    RETURNING flags, users
                ), kept AS (
                    INSERT INTO user_counts (flags, users) SELECT flags, SUM(users) FROM folded GROUP BY flags
                )
                SELECT count(*) AS folded FROM folded"
            ),
        );
        for _ in 0..FOLDS {
            let tx = self.db.begin().await?;
            let row = tx.query_one_raw(fold.clone()).await?;
            tx.commit().await?;
            let folded: Option<i64> = row.map(|row| row.try_get("", "folded")).transpose()?;
            if folded.is_none_or(|folded| folded < FOLD_MAX) {
                break;
            }
        }
        Ok(())
    }
}
