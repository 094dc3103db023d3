//! What makes it quick to find rows that ran out, and whether a message has to wait for another of its user.

use sea_orm_migration::{prelude::*, sea_orm::ConnectionTrait};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(INDEXES).await?;
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// Of a message that is settled, `next_attempt_at` is the time of that.
const INDEXES: &str = "
CREATE INDEX outbox_pending_by_user ON outbox (user_id, kind, next_attempt_at, id) WHERE state = 0;
CREATE INDEX outbox_sent ON outbox (next_attempt_at) WHERE state = 1;
CREATE INDEX outbox_abandoned ON outbox (next_attempt_at) WHERE state = 2;
CREATE INDEX verification_codes_by_creation ON verification_codes (created_at);
";
