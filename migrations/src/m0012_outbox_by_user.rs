//! The way from a user to what was ever posted to him or her: who is deleted takes it along.

use sea_orm_migration::{
    prelude::*,
    sea_orm::{ConnectionTrait, DbBackend},
};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        if manager.get_database_backend() == DbBackend::Sqlite {
            db.execute_unprepared(&SCHEMA[1].replace("CONCURRENTLY ", "")).await?;
            return Ok(());
        }
        for statement in SCHEMA {
            crate::concurrently(db, statement).await?;
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(false)
    }
}

/// The first is for a run that broke off: it leaves an index that isn't valid.
const SCHEMA: [&str; 2] = [
    "DROP INDEX CONCURRENTLY IF EXISTS outbox_by_user",
    "CREATE INDEX CONCURRENTLY outbox_by_user ON outbox (user_id)",
];
