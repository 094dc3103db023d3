//! Who holds a role, in any order that a list may have, without a look at the rows.

use sea_orm_migration::{
    prelude::*,
    sea_orm::{ConnectionTrait, DbBackend, Statement},
};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let (db, backend) = (manager.get_connection(), manager.get_database_backend());
        let is_sqlite = backend == DbBackend::Sqlite;
        for (holders, flag) in
            [("freelancers", "is_freelancer"), ("sellers", "is_seller"), ("moderators", "is_moderator")]
        {
            let named = |sql: &str| sql.replace("{holders}", holders).replace("{flag}", flag);
            // Of a run that broke off; a valid one may be all there is by now.
            let invalid = Statement::from_string(backend, named(IS_INVALID));
            if !is_sqlite && db.query_one_raw(invalid).await?.is_some() {
                crate::concurrently(db, &named("DROP INDEX CONCURRENTLY users_{holders}_in_order")).await?;
            }
            // One by one: several at once would be a transaction. SQLite has one writer and no word for it.
            for statement in SCHEMA {
                let statement = named(statement);
                if is_sqlite {
                    db.execute_unprepared(&statement.replace("CONCURRENTLY ", "")).await?;
                } else {
                    crate::concurrently(db, &statement).await?;
                }
            }
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(false)
    }
}

const IS_INVALID: &str =
    "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass('users_{holders}_in_order') AND NOT indisvalid";

/// Each takes the place of one that it can do all the work of.
const SCHEMA: [&str; 2] = [
    "CREATE INDEX CONCURRENTLY IF NOT EXISTS users_{holders}_in_order
     ON users (id, listed, is_verified, email_key, date_joined, first_name, last_name) WHERE {flag} = true",
    "DROP INDEX CONCURRENTLY IF EXISTS users_{holders}",
];
