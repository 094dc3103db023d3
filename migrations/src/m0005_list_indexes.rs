//! The orders of a list and the role filters, with the flags behind them that most lists filter by: a count, and the way to a
//! page far behind, don't look at the rows then.

use sea_orm_migration::{prelude::*, sea_orm::ConnectionTrait};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(SCHEMA).await?;
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// Under the names of before: each takes the place of one that it can do all the work of.
const SCHEMA: &str = "
CREATE INDEX users_by_id ON users (id, listed, is_verified);
DROP INDEX users_by_date_joined;
CREATE INDEX users_by_date_joined ON users (date_joined, id, listed, is_verified);
DROP INDEX users_by_first_name;
CREATE INDEX users_by_first_name ON users (first_name, id, listed, is_verified);
DROP INDEX users_by_last_name;
CREATE INDEX users_by_last_name ON users (last_name, id, listed, is_verified);
DROP INDEX users_freelancers;
CREATE INDEX users_freelancers ON users (id, listed, is_verified) WHERE is_freelancer = true;
DROP INDEX users_sellers;
CREATE INDEX users_sellers ON users (id, listed, is_verified) WHERE is_seller = true;
DROP INDEX users_moderators;
CREATE INDEX users_moderators ON users (id, listed, is_verified) WHERE is_moderator = true;
DROP INDEX users_admins;
CREATE INDEX users_admins ON users (id, listed, is_verified) WHERE is_staff = true OR is_superuser = true;
";
