//! The audit can be read: by user, actor, kind and time, each from the newest on. What it says stands; only the traces of whoever
//! is deleted are taken out of it.

use sea_orm_migration::{
    prelude::*,
    sea_orm::{ConnectionTrait, DbBackend},
};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let (db, backend) = (manager.get_connection(), manager.get_database_backend());
        let own = match backend {
            DbBackend::Sqlite => SQLITE,
            _ => POSTGRES,
        };
        for sql in [SCHEMA, own] {
            db.execute_unprepared(&crate::in_dialect(backend, &sql.replace("{altered}", ALTERED))).await?;
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// The indexes bear the names of before: each takes the place of one that it can do all the work of.
const SCHEMA: &str = "
DROP INDEX audit_events_by_user;
CREATE INDEX audit_events_by_user ON audit_events (user_id, created_at, id);
DROP INDEX audit_events_by_actor;
CREATE INDEX audit_events_by_actor ON audit_events (actor_id, created_at, id);
DROP INDEX audit_events_by_time;
CREATE INDEX audit_events_by_time ON audit_events (created_at, id);
CREATE INDEX audit_events_by_kind ON audit_events (kind, created_at, id);

-- Users who were deleted, until nothing in the audit tells any more where they acted from.
CREATE TABLE erasures (
    user_id    bigint NOT NULL PRIMARY KEY,
    created_at {time} NOT NULL
);
";

/// Anything but that the traces of a row are taken away, all of them.
const ALTERED: &str = "
    new.ip IS NOT NULL OR new.user_agent IS NOT NULL OR new.request_id IS NOT NULL
    OR new.id IS DISTINCT FROM old.id OR new.kind IS DISTINCT FROM old.kind OR new.detail IS DISTINCT FROM old.detail
    OR new.actor_id IS DISTINCT FROM old.actor_id OR new.user_id IS DISTINCT FROM old.user_id
    OR new.created_at IS DISTINCT FROM old.created_at
";

/// The search forgets what is deleted at once, and not when it next tidies up (<https://sqlite.org/fts5.html#the_secure_delete_configuration_option>).
const SQLITE: &str = "
CREATE TRIGGER audit_events_stand BEFORE UPDATE ON audit_events WHEN {altered} BEGIN
    SELECT RAISE(ABORT, 'what the audit says stands');
END;
INSERT INTO users_search (users_search, rank) VALUES ('secure-delete', 1);
";

const POSTGRES: &str = "
CREATE FUNCTION audit_events_stand() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    RAISE EXCEPTION 'what the audit says stands';
END $$;
CREATE TRIGGER audit_events_stand BEFORE UPDATE ON audit_events FOR EACH ROW
WHEN ({altered}) EXECUTE FUNCTION audit_events_stand();
";
