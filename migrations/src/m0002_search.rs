//! What makes a search for any part of an e-mail address or a name quick: trigrams.

use sea_orm_migration::{
    prelude::*,
    sea_orm::{ConnectionTrait, DbBackend},
};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let sql = match manager.get_database_backend() {
            DbBackend::Sqlite => SQLITE,
            _ => POSTGRES,
        };
        manager.get_connection().execute_unprepared(sql).await?;
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// The texts come folded: the tokenizer compares them as they are, like PostgreSQL's LIKE does. The triggers keep the
/// index in step; one with a changed text alone does the work, though an ORM sets every column.
const SQLITE: &str = "
CREATE VIRTUAL TABLE users_search USING fts5(
    search_text, name_text,
    content = 'users', content_rowid = 'id', tokenize = 'trigram case_sensitive 1'
);
INSERT INTO users_search (users_search) VALUES ('rebuild');

CREATE TRIGGER users_search_insert AFTER INSERT ON users BEGIN
    INSERT INTO users_search (rowid, search_text, name_text) VALUES (new.id, new.search_text, new.name_text);
END;
CREATE TRIGGER users_search_delete AFTER DELETE ON users BEGIN
    INSERT INTO users_search (users_search, rowid, search_text, name_text)
        VALUES ('delete', old.id, old.search_text, old.name_text);
END;
CREATE TRIGGER users_search_update AFTER UPDATE OF search_text, name_text ON users
WHEN old.search_text <> new.search_text OR old.name_text <> new.name_text BEGIN
    INSERT INTO users_search (users_search, rowid, search_text, name_text)
        VALUES ('delete', old.id, old.search_text, old.name_text);
    INSERT INTO users_search (rowid, search_text, name_text) VALUES (new.id, new.search_text, new.name_text);
END;
";

/// `pg_trgm` is a trusted extension: the owner of the database may create it. Where that is not allowed, or it isn't
/// installed, or it lies in a schema that isn't searched, the service runs without the indexes; the warning shows in
/// the log, and `docs/operations.md` says how to add them later.
const POSTGRES: &str = "
DO $$ BEGIN
    CREATE EXTENSION IF NOT EXISTS pg_trgm;
    CREATE INDEX users_search_text ON users USING gin (search_text gin_trgm_ops);
    CREATE INDEX users_name_text ON users USING gin (name_text gin_trgm_ops);
EXCEPTION WHEN insufficient_privilege OR undefined_file OR feature_not_supported OR undefined_object THEN
    RAISE WARNING 'searches scan the table, for want of pg_trgm: %', SQLERRM;
END $$
";
