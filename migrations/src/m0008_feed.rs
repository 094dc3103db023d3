//! What the cache goes by: the feed tells versions, and what groups bring their members has one.

use sea_orm_migration::{prelude::*, sea_orm::ConnectionTrait};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        db.execute_unprepared(&crate::in_dialect(manager.get_database_backend(), SCHEMA)).await?;
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

const SCHEMA: &str = "
ALTER TABLE revocations ADD COLUMN version bigint;

-- One row a counter. Whoever counts holds the row until the commit, so that counts are in the order of the commits.
CREATE TABLE counters (
    name  {text} PRIMARY KEY,
    value bigint NOT NULL
);
INSERT INTO counters (name, value) VALUES ('groups', 1);
";
