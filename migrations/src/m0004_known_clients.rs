//! Who logged in as whom from where before.

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

const SCHEMA: &str = r"
CREATE TABLE known_clients (
    user_id       bigint NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    network       {text} NOT NULL,                                      -- an address, or the first of its /64
    last_login_at {time} NOT NULL,
    PRIMARY KEY (user_id, network)
);
CREATE INDEX known_clients_by_last_login ON known_clients (last_login_at);
";
