//! How many users there are of each kind, kept by triggers: a list says how many it has, and a million are not counted in the time
//! that a page takes.

use sea_orm_migration::{
    prelude::*,
    sea_orm::{ConnectionTrait, DbBackend},
};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        let (sql, integer) = match backend {
            DbBackend::Sqlite => (SQLITE, "integer"),
            _ => (POSTGRES, "int"),
        };
        let flags = |of: &str| FLAGS.replace("{of}", of).replace("{int}", integer);
        let sql = sql.replace("{each}", &flags("each")).replace("{old}", &flags("old")).replace("{new}", &flags("new"));
        manager.get_connection().execute_unprepared(&crate::in_dialect(backend, &sql)).await?;
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// What lists filter by, a bit each.
const FLAGS: &str =
    "(CAST({of}.listed AS {int}) + 2 * CAST({of}.is_verified AS {int}) + 4 * CAST({of}.is_freelancer AS {int})
    + 8 * CAST({of}.is_seller AS {int}) + 16 * CAST({of}.is_moderator AS {int})
    + 32 * CAST({of}.is_staff OR {of}.is_superuser AS {int}))";

/// A row for each value of the flags: one writes at a time.
const SQLITE: &str = "
CREATE TABLE user_counts (
    flags integer PRIMARY KEY NOT NULL,
    users bigint NOT NULL
);
WITH RECURSIVE numbers (n) AS (VALUES (0) UNION ALL SELECT n + 1 FROM numbers WHERE n < 63)
INSERT INTO user_counts (flags, users) SELECT n, 0 FROM numbers;
UPDATE user_counts SET users = counted.users
FROM (SELECT {each} AS flags, count(*) AS users FROM users AS each GROUP BY 1) AS counted
WHERE counted.flags = user_counts.flags;

CREATE TRIGGER user_counts_added AFTER INSERT ON users BEGIN
    UPDATE user_counts SET users = users + 1 WHERE flags = {new};
END;
CREATE TRIGGER user_counts_removed AFTER DELETE ON users BEGIN
    UPDATE user_counts SET users = users - 1 WHERE flags = {old};
END;
CREATE TRIGGER user_counts_moved
AFTER UPDATE OF listed, is_verified, is_freelancer, is_seller, is_moderator, is_staff, is_superuser ON users
WHEN {old} <> {new} BEGIN
    UPDATE user_counts SET users = users - 1 WHERE flags = {old};
    UPDATE user_counts SET users = users + 1 WHERE flags = {new};
END;
";

/// Rows that add up, so that no change waits for another; housekeeping folds them. The triggers hold off all writes until the users
/// are counted: a third of a second for a million.
const POSTGRES: &str = "
CREATE TABLE user_counts (
    id    {id},
    flags smallint NOT NULL,
    users bigint NOT NULL                                               -- how many more there are
);

CREATE FUNCTION user_counts_added() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO user_counts (flags, users) SELECT {each}, count(*) FROM changed AS each GROUP BY 1;
    RETURN NULL;
END $$;
CREATE FUNCTION user_counts_removed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO user_counts (flags, users) SELECT {each}, -count(*) FROM changed AS each GROUP BY 1;
    RETURN NULL;
END $$;
CREATE FUNCTION user_counts_moved() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO user_counts (flags, users) VALUES ({old}, -1), ({new}, 1);
    RETURN NULL;
END $$;
CREATE TRIGGER user_counts_added AFTER INSERT ON users
REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION user_counts_added();
CREATE TRIGGER user_counts_removed AFTER DELETE ON users
REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION user_counts_removed();
CREATE TRIGGER user_counts_moved
AFTER UPDATE OF listed, is_verified, is_freelancer, is_seller, is_moderator, is_staff, is_superuser ON users
FOR EACH ROW WHEN ({old} <> {new}) EXECUTE FUNCTION user_counts_moved();

INSERT INTO user_counts (flags, users) SELECT {each}, count(*) FROM users AS each GROUP BY 1;
";
