//! Every table, with its constraints and indexes.

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

/// No column has a default: the service sets each of them, the times by its own clock.
const SCHEMA: &str = r"
CREATE TABLE users (
    id            {id},
    email         {text} NOT NULL CHECK (length(email) <= 254),         -- as typed, the domain in lower case
    email_key     {text} NOT NULL,                                      -- NFC and case-folded
    password      text NOT NULL,                                        -- the hash
    first_name    {text} NOT NULL CHECK (length(first_name) <= 150),
    last_name     {text} NOT NULL CHECK (length(last_name) <= 150),
    is_active     boolean NOT NULL,
    is_staff      boolean NOT NULL,
    is_superuser  boolean NOT NULL,
    is_verified   boolean NOT NULL,
    is_freelancer boolean NOT NULL,
    is_seller     boolean NOT NULL,
    is_moderator  boolean NOT NULL,
    listed        boolean NOT NULL,                                     -- active, and the profile public
    search_text   {text} NOT NULL,                                      -- e-mail and names, folded
    name_text     {text} NOT NULL,                                      -- names, folded
    version       bigint NOT NULL,                                      -- rises with each change that events tell of
    date_joined   {time} NOT NULL,
    updated_at    {time} NOT NULL,
    last_login    {time}
);

-- One account an address. Serves the order by e-mail as well.
CREATE UNIQUE INDEX users_email_key ON users (email_key);
-- The other orders of a list, each ended by the id that makes it total.
CREATE INDEX users_by_date_joined ON users (date_joined, id);
CREATE INDEX users_by_first_name ON users (first_name, id);
CREATE INDEX users_by_last_name ON users (last_name, id);
-- The role filters, and the count of superusers that guards the last one. With `= true`, for SQLite to recognise the
-- bound `is_seller = ?` of a query; PostgreSQL takes either.
CREATE INDEX users_freelancers ON users (id) WHERE is_freelancer = true;
CREATE INDEX users_sellers ON users (id) WHERE is_seller = true;
CREATE INDEX users_moderators ON users (id) WHERE is_moderator = true;
CREATE INDEX users_admins ON users (id) WHERE is_staff = true OR is_superuser = true;
CREATE INDEX users_superusers ON users (id) WHERE is_superuser = true;

CREATE TABLE profiles (
    id                {id},
    user_id           bigint NOT NULL UNIQUE REFERENCES users (id) ON DELETE CASCADE,
    avatar            text,                                             -- a file name
    bio               text NOT NULL,
    is_public         boolean NOT NULL,
    timezone          varchar(64) NOT NULL,                             -- an IANA name
    streak_visibility boolean NOT NULL
);

CREATE TABLE groups (
    id   {id},
    name {text} NOT NULL UNIQUE
);

CREATE TABLE permissions (
    id        {id},
    app_label {text} NOT NULL,
    codename  {text} NOT NULL,
    name      text NOT NULL,
    UNIQUE (app_label, codename)
);

CREATE TABLE group_permissions (
    group_id      bigint NOT NULL REFERENCES groups (id) ON DELETE CASCADE,
    permission_id bigint NOT NULL REFERENCES permissions (id) ON DELETE CASCADE,
    PRIMARY KEY (group_id, permission_id)
);
CREATE INDEX group_permissions_by_permission ON group_permissions (permission_id);

CREATE TABLE user_groups (
    user_id  bigint NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    group_id bigint NOT NULL REFERENCES groups (id) ON DELETE CASCADE,
    PRIMARY KEY (user_id, group_id)
);
CREATE INDEX user_groups_by_group ON user_groups (group_id);

CREATE TABLE user_permissions (
    user_id       bigint NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    permission_id bigint NOT NULL REFERENCES permissions (id) ON DELETE CASCADE,
    PRIMARY KEY (user_id, permission_id)
);
CREATE INDEX user_permissions_by_permission ON user_permissions (permission_id);

CREATE TABLE sessions (
    id         {uuid} NOT NULL PRIMARY KEY,
    user_id    bigint NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    generation bigint NOT NULL,                                         -- rises with each refresh
    created_at {time} NOT NULL,
    rotated_at {time} NOT NULL,                                         -- of the last refresh
    expires_at {time} NOT NULL,                                         -- of the present refresh token
    ends_at    {time} NOT NULL,                                         -- no refresh reaches beyond
    revoked_at {time},
    ip         text,
    user_agent text
);
CREATE INDEX sessions_by_user ON sessions (user_id);
CREATE INDEX sessions_by_expiry ON sessions (expires_at);

CREATE TABLE verification_codes (
    id         {id},
    user_id    bigint NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    email_key  {text} NOT NULL,                                         -- the address that the code proves
    code_hash  {bytes} NOT NULL,                                        -- keyed
    requested  boolean NOT NULL,                                        -- asked for by send-verification: counted
    misses     integer NOT NULL,
    created_at {time} NOT NULL,
    expires_at {time} NOT NULL,
    used_at    {time},
    voided_at  {time}
);
-- In the order of time: the limits count what a user asked for since a minute and a day ago.
CREATE INDEX verification_codes_by_user ON verification_codes (user_id, created_at);

-- Without foreign keys: a row outlives the session and the user that it names.
CREATE TABLE revocations (
    id         {id},
    kind       smallint NOT NULL,
    session_id {uuid},
    user_id    bigint,
    created_at {time} NOT NULL,
    expires_at {time} NOT NULL                                          -- no access token from before lives longer
);
-- Read by a replica that starts: the last row of half a minute ago. Polls go by the id.
CREATE INDEX revocations_by_creation ON revocations (created_at);
CREATE INDEX revocations_by_expiry ON revocations (expires_at);

CREATE TABLE outbox (
    id              {id},
    kind            text NOT NULL,
    dedup_id        {uuid} NOT NULL UNIQUE,                             -- the Message-ID, or the id of the event
    payload         text NOT NULL,
    user_id         bigint,                                             -- no foreign key: news of a deletion is sent after it
    attempts        integer NOT NULL,
    next_attempt_at {time} NOT NULL,
    leased_until    {time},
    state           smallint NOT NULL,
    last_error      text,
    created_at      {time} NOT NULL
);
CREATE INDEX outbox_pending ON outbox (next_attempt_at) WHERE state = 0;

-- Without foreign keys: what happened stays when the user goes.
CREATE TABLE audit_events (
    id         {id},
    kind       text NOT NULL,
    actor_id   bigint,
    user_id    bigint,
    ip         text,
    user_agent text,
    request_id text,
    detail     text NOT NULL,                                           -- JSON
    created_at {time} NOT NULL
);
CREATE INDEX audit_events_by_user ON audit_events (user_id, id);
CREATE INDEX audit_events_by_actor ON audit_events (actor_id, id);
CREATE INDEX audit_events_by_time ON audit_events (created_at);

CREATE TABLE avatars (
    name         {text} NOT NULL PRIMARY KEY,                           -- the file name
    user_id      bigint NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    content_type text NOT NULL,
    bytes        {bytes} NOT NULL,
    created_at   {time} NOT NULL
);
CREATE INDEX avatars_by_user ON avatars (user_id);
";
