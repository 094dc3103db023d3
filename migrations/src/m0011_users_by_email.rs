//! The order by e-mail address, with all that a list asks of it in the index: pages far behind don't look at the rows then.
//! SQLite's index has the id, as each has, and stays as it is.

use sea_orm_migration::{
    prelude::*,
    sea_orm::{ConnectionTrait, DbBackend, Statement},
};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        if manager.get_database_backend() == DbBackend::Sqlite {
            return Ok(());
        }
        // Of a run that broke off; a valid one may be all there is by now.
        if db.query_one_raw(Statement::from_string(DbBackend::Postgres, IS_INVALID)).await?.is_some() {
            crate::concurrently(db, "DROP INDEX CONCURRENTLY users_by_email_key").await?;
        }
        // One by one: several at once would be a transaction.
        for statement in POSTGRES {
            crate::concurrently(db, statement).await?;
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(false)
    }
}

const IS_INVALID: &str =
    "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass('users_by_email_key') AND NOT indisvalid";

const POSTGRES: [&str; 2] = [
    "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS users_by_email_key ON users (email_key)
     INCLUDE (id, listed, is_verified)",
    "DROP INDEX CONCURRENTLY IF EXISTS users_email_key",
];
