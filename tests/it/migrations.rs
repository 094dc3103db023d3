//! The schema, the entities over it, and the connection: on each store, from an empty database.

use std::time::Duration;

use chrono::{DateTime, Utc};
use identity::{
    db::{Db, DbOptions, Tx},
    entity::{
        audit_event, avatar, group, group_permission, known_client, outbox, permission, profile, revocation, session,
        user::{self, PasswordHash},
        user_group, user_permission, verification_code,
    },
};
use sea_orm::{
    ActiveModelTrait, ActiveValue::NotSet, ColumnTrait, Condition, ConnectionTrait, EntityTrait, FromQueryResult,
    IntoActiveModel, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait, Set, SqlErr, Statement,
};
use sqlx::{ConnectOptions, Executor, sqlite::SqliteConnectOptions};
use uuid::Uuid;

use crate::harness::{
    has_postgres,
    stores::{Database, Store, empty_database},
};

pub fn options(url: &str) -> DbOptions {
    DbOptions {
        read_url: None,
        url: url.to_owned(),
        max_connections: 4,
        acquire_timeout: Duration::from_secs(2),
        statement_timeout: Duration::from_secs(5),
        lock_timeout: Duration::from_secs(2),
        max_age: Duration::from_mins(10),
    }
}

pub async fn connect(database: &Database) -> Db {
    Db::connect(&options(&database.url)).await.unwrap()
}

/// A database with the schema and no rows. Dropping the first part removes it.
pub async fn migrated(store: Store) -> (Database, Db) {
    let database = empty_database(store).await;
    let db = connect(&database).await;
    db.migrate().await.unwrap();
    (database, db)
}

fn noon() -> DateTime<Utc> {
    "2026-11-23T12:00:00.123456Z".parse().unwrap()
}

pub fn user(email: &str) -> user::ActiveModel {
    let row = user::Model {
        id: 0,
        email: email.into(),
        email_key: email.to_lowercase(),
        password: PasswordHash("$argon2id$secret".into()),
        first_name: "Ada".into(),
        last_name: "Lovelace".into(),
        is_active: true,
        is_staff: false,
        is_superuser: false,
        is_verified: false,
        is_freelancer: false,
        is_seller: false,
        is_moderator: false,
        listed: true,
        search_text: format!("{}\nada\nlovelace", email.to_lowercase()),
        name_text: "ada\nlovelace".into(),
        version: 1,
        date_joined: noon(),
        updated_at: noon(),
        last_login: None,
    };
    user::ActiveModel { id: NotSet, ..row.into_active_model().reset_all() }
}

pub async fn insert_user(db: &Db, email: &str) -> user::Model {
    let tx = db.begin().await.unwrap();
    let user = user(email).insert(&tx).await.unwrap();
    tx.commit().await.unwrap();
    user
}

pub async fn emails(db: &Db) -> Vec<String> {
    user::Entity::find().all(db.reader()).await.unwrap().into_iter().map(|user| user.email).collect()
}

/// The first column of what `sql` gives, as text.
pub async fn texts(connection: &impl ConnectionTrait, sql: &str) -> Vec<String> {
    let rows = connection.query_all_raw(Statement::from_string(connection.get_database_backend(), sql)).await.unwrap();
    rows.iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
}

#[tokio::test]
async fn migrations_run_twice_without_effect() {
    for store in Store::all() {
        let database = empty_database(store).await;
        let db = connect(&database).await;
        let all = [
            "m0001_init",
            "m0002_search",
            "m0003_profiles_by_avatar",
            "m0004_known_clients",
            "m0005_list_indexes",
            "m0006_outbox",
            "m0007_sessions",
            "m0008_feed",
            "m0009_audit",
            "m0010_user_counts",
            "m0011_users_by_email",
            "m0012_outbox_by_user",
            "m0013_roles_in_order",
        ];
        assert_eq!(db.pending_migrations().await.unwrap(), all, "{store:?}");
        assert_eq!(db.migrate().await.unwrap(), all, "{store:?}");
        assert!(db.pending_migrations().await.unwrap().is_empty(), "{store:?}");
        insert_user(&db, "ada@example.com").await;
        assert!(db.migrate().await.unwrap().is_empty(), "{store:?}");
        assert_eq!(emails(&db).await, ["ada@example.com"], "{store:?}");
        db.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_starters_at_once_migrate_once() {
    for store in Store::all() {
        let database = empty_database(store).await;
        let starters: Vec<_> = (0..10)
            .map(|_| {
                let options = options(&database.url);
                tokio::spawn(async move {
                    let db = Db::connect(&options).await.unwrap();
                    let applied = db.migrate().await.unwrap();
                    assert!(db.pending_migrations().await.unwrap().is_empty());
                    db.close().await;
                    applied.len()
                })
            })
            .collect();
        let mut applied = 0;
        for starter in starters {
            applied += starter.await.unwrap();
        }
        assert_eq!(applied, 13, "{store:?}");
    }
}

#[tokio::test]
async fn a_new_sqlite_file_that_another_process_holds_is_waited_for() {
    let database = empty_database(Store::Sqlite).await;
    let file: SqliteConnectOptions = database.url.parse().unwrap();
    let mut other = file.create_if_missing(true).connect().await.unwrap();
    // SQLite doesn't wait for a reader here, as it does elsewhere.
    other.execute("BEGIN; SELECT * FROM sqlite_schema").await.unwrap();
    let options = options(&database.url);
    let connecting = tokio::spawn(async move { Db::connect(&options).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    other.execute("COMMIT").await.unwrap();
    connecting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_release_starts_on_the_schema_of_a_newer_one() {
    for store in Store::all() {
        let (_database, db) = migrated(store).await;
        let tx = db.begin().await.unwrap();
        tx.execute_unprepared("INSERT INTO seaql_migrations (version, applied_at) VALUES ('m9999_later', 0)")
            .await
            .unwrap();
        tx.commit().await.unwrap();
        assert!(db.migrate().await.unwrap().is_empty(), "{store:?}");
    }
}

#[tokio::test]
async fn without_the_right_to_create_pg_trgm_everything_else_is_there() {
    if !has_postgres() {
        return;
    }
    let database = empty_database(Store::Postgres).await;
    // A role that may fill the schema, but not add extensions to the database.
    let owner = sea_orm::Database::connect(&database.url).await.unwrap();
    let role = format!("plain_{}", Uuid::new_v4().simple());
    owner.execute_unprepared(&format!("CREATE ROLE {role}; GRANT ALL ON SCHEMA public TO {role}")).await.unwrap();

    let db = Db::connect(&options(&format!("{}?options=-c%20role%3D{role}", database.url))).await.unwrap();
    assert_eq!(db.migrate().await.unwrap().len(), 13);
    let trigrams = texts(&owner, "SELECT indexname::text FROM pg_indexes WHERE indexdef LIKE '%gin_trgm_ops%'").await;
    assert!(trigrams.is_empty(), "{trigrams:?}");
    insert_user(&db, "ada@example.com").await;

    db.close().await;
    owner.execute_unprepared(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
    owner.close().await.unwrap();
}

/// One row in each table: of the user, or pointing at the user.
#[expect(clippy::too_many_lines, reason = "a row for each table")]
async fn insert_everything(tx: &Tx, user: &user::Model) {
    async fn add<M, E>(tx: &Tx, row: M)
    where
        E: EntityTrait<Model = M>,
        M: IntoActiveModel<E::ActiveModel> + FromQueryResult + PartialEq + Clone + std::fmt::Debug + Send + Sync,
        E::ActiveModel: Send,
    {
        let all = row.clone().into_active_model().reset_all();
        E::insert(all).exec_without_returning(tx).await.unwrap();
        assert_eq!(E::find().one(tx).await.unwrap(), Some(row), "reads back as it was written");
    }
    let (id, sid, at) = (user.id, Uuid::from_u128(7), noon());
    add::<_, profile::Entity>(
        tx,
        profile::Model {
            id: 7,
            user_id: id,
            avatar: Some("a.webp".into()),
            bio: "Analyst,\nmetaphysician.".into(),
            is_public: true,
            timezone: "Europe/London".into(),
            streak_visibility: true,
        },
    )
    .await;
    add::<_, group::Entity>(tx, group::Model { id: 1, name: "editors".into() }).await;
    add::<_, permission::Entity>(
        tx,
        permission::Model { id: 2, app_label: "blog".into(), codename: "add_post".into(), name: "Can add post".into() },
    )
    .await;
    add::<_, group_permission::Entity>(tx, group_permission::Model { group_id: 1, permission_id: 2 }).await;
    add::<_, user_group::Entity>(tx, user_group::Model { user_id: id, group_id: 1 }).await;
    add::<_, user_permission::Entity>(tx, user_permission::Model { user_id: id, permission_id: 2 }).await;
    add::<_, session::Entity>(
        tx,
        session::Model {
            id: sid,
            user_id: id,
            generation: 0,
            created_at: at,
            rotated_at: at,
            expires_at: at,
            ends_at: at,
            revoked_at: Some(at),
            ip: Some("192.0.2.1".into()),
            user_agent: None,
        },
    )
    .await;
    let network = "192.0.2.1".into();
    add::<_, known_client::Entity>(tx, known_client::Model { user_id: id, network, last_login_at: at }).await;
    add::<_, verification_code::Entity>(
        tx,
        verification_code::Model {
            id: 3,
            user_id: id,
            email_key: user.email_key.clone(),
            code_hash: vec![0, 255, 7],
            requested: true,
            misses: 0,
            created_at: at,
            expires_at: at,
            used_at: None,
            voided_at: Some(at),
        },
    )
    .await;
    add::<_, avatar::Entity>(
        tx,
        avatar::Model {
            name: "a.webp".into(),
            user_id: id,
            content_type: "image/webp".into(),
            bytes: vec![1; 100_000],
            created_at: at,
        },
    )
    .await;
    add::<_, revocation::Entity>(
        tx,
        revocation::Model {
            id: 4,
            kind: revocation::Kind::UserChanged,
            session_id: Some(sid),
            user_id: Some(id),
            version: Some(2),
            created_at: at,
            expires_at: at,
        },
    )
    .await;
    add::<_, outbox::Entity>(
        tx,
        outbox::Model {
            id: 5,
            kind: "mail".into(),
            dedup_id: sid,
            payload: "{}".into(),
            user_id: Some(id),
            attempts: 0,
            next_attempt_at: at,
            leased_until: None,
            state: outbox::State::Pending,
            last_error: None,
            created_at: at,
        },
    )
    .await;
    add::<_, audit_event::Entity>(
        tx,
        audit_event::Model {
            id: 6,
            kind: "user.deleted".into(),
            actor_id: Some(id),
            user_id: Some(id),
            ip: None,
            user_agent: None,
            request_id: Some("r-1".into()),
            detail: "{}".into(),
            created_at: at,
        },
    )
    .await;
}

#[tokio::test]
async fn deleting_a_user_takes_everything_that_hangs_on_it() {
    for store in Store::all() {
        let (_database, db) = migrated(store).await;
        let ada = insert_user(&db, "ada@example.com").await;
        let tx = db.begin().await.unwrap();
        insert_everything(&tx, &ada).await;
        tx.commit().await.unwrap();

        let tx = db.begin().await.unwrap();
        user::Entity::delete_by_id(ada.id).exec(&tx).await.unwrap();
        tx.commit().await.unwrap();

        for (table, left) in [
            ("users", "0"),
            ("profiles", "0"),
            ("user_groups", "0"),
            ("user_permissions", "0"),
            ("sessions", "0"),
            ("known_clients", "0"),
            ("verification_codes", "0"),
            ("avatars", "0"),
            ("groups", "1"),
            ("permissions", "1"),
            ("group_permissions", "1"),
            ("revocations", "1"),
            ("outbox", "1"),
            ("audit_events", "1"),
        ] {
            let count = texts(db.reader(), &format!("SELECT CAST(count(*) AS text) FROM {table}")).await;
            assert_eq!(count, [left], "{store:?}: {table}");
        }
    }
}

#[tokio::test]
async fn an_id_is_never_used_twice() {
    for store in Store::all() {
        let (_database, db) = migrated(store).await;
        let first = insert_user(&db, "ada@example.com").await;
        let tx = db.begin().await.unwrap();
        user::Entity::delete_by_id(first.id).exec(&tx).await.unwrap();
        tx.commit().await.unwrap();
        assert!(insert_user(&db, "grace@example.com").await.id > first.id, "{store:?}");
    }
}

#[tokio::test]
async fn an_address_belongs_to_one_account() {
    for store in Store::all() {
        let (_database, db) = migrated(store).await;
        insert_user(&db, "ada@example.com").await;
        let tx = db.begin().await.unwrap();
        let error = user("ADA@example.com").insert(&tx).await.unwrap_err();
        let Some(SqlErr::UniqueConstraintViolation(message)) = error.sql_err() else { panic!("{store:?}: {error:?}") };
        assert!(message.contains("email_key"), "{store:?}: {message}");
    }
}

#[tokio::test]
async fn a_row_that_points_nowhere_is_refused() {
    for store in Store::all() {
        let (_database, db) = migrated(store).await;
        let tx = db.begin().await.unwrap();
        let nobody = user_group::Model { user_id: 1, group_id: 1 }.into_active_model().reset_all();
        let error = user_group::Entity::insert(nobody).exec_without_returning(&tx).await.unwrap_err();
        assert!(matches!(error.sql_err(), Some(SqlErr::ForeignKeyConstraintViolation(_))), "{store:?}: {error:?}");
    }
}

#[tokio::test]
async fn the_search_index_follows_the_table() {
    // What SQLite's index finds; PostgreSQL keeps its own in step, and is asked the plain question.
    async fn found(db: &Db, part: &str) -> Vec<i64> {
        let sql = match db.backend_name() {
            "SQLite" => "SELECT rowid FROM users_search WHERE users_search MATCH $1 ORDER BY rowid",
            _ => "SELECT id FROM users WHERE search_text LIKE '%' || $1 || '%' ORDER BY id",
        };
        let term = if db.backend_name() == "SQLite" { format!("search_text : \"{part}\"") } else { part.to_owned() };
        let query = Statement::from_sql_and_values(db.reader().get_database_backend(), sql, [term.into()]);
        let rows = db.reader().query_all_raw(query).await.unwrap();
        rows.iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
    }
    for store in Store::all() {
        let (_database, db) = migrated(store).await;
        let ada = insert_user(&db, "ada@example.com").await;
        let grace = insert_user(&db, "grace@пример.рф").await;
        assert_eq!(found(&db, "love").await, [ada.id, grace.id], "{store:?}");
        assert_eq!(found(&db, "a@ex").await, [ada.id], "{store:?}");
        assert_eq!(found(&db, "приме").await, [grace.id], "{store:?}");

        let tx = db.begin().await.unwrap();
        let mut changed = ada.clone().into_active_model();
        changed.search_text = Set("ada@example.org\nada\nbyron".into());
        changed.update(&tx).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(found(&db, "love").await, [grace.id], "{store:?}");
        assert_eq!(found(&db, "byron").await, [ada.id], "{store:?}");

        let tx = db.begin().await.unwrap();
        user::Entity::delete_by_id(ada.id).exec(&tx).await.unwrap();
        tx.commit().await.unwrap();
        assert!(found(&db, "byron").await.is_empty(), "{store:?}");
        if store == Store::Sqlite {
            let tx = db.begin().await.unwrap();
            tx.execute_unprepared("INSERT INTO users_search (users_search, rank) VALUES ('integrity-check', 1)")
                .await
                .unwrap();
        }
    }
}

#[tokio::test]
async fn both_stores_sort_alike() {
    for store in Store::all() {
        let (_database, db) = migrated(store).await;
        let tx = db.begin().await.unwrap();
        let joined = ["12:00:00", "12:00:00.000001", "12:00:00.1", "12:00:00.100001", "12:00:01"];
        let names = ["Ada", "Zoe", "ada", "Élise", "Жанна"];
        for (i, (name, time)) in names.iter().zip(joined).enumerate().rev() {
            let mut user = user(&format!("{i}@example.com"));
            user.first_name = Set((*name).into());
            user.date_joined = Set(format!("2026-11-23T{time}Z").parse().unwrap());
            user.insert(&tx).await.unwrap();
        }
        tx.commit().await.unwrap();

        let by_name = user::Entity::find().order_by_asc(user::Column::FirstName).all(db.reader()).await.unwrap();
        assert_eq!(
            by_name.iter().map(|user| &user.first_name).collect::<Vec<_>>(),
            names.iter().collect::<Vec<_>>(),
            "{store:?}"
        );
        let by_time = user::Entity::find().order_by_asc(user::Column::DateJoined).all(db.reader()).await.unwrap();
        assert!(by_time.iter().map(|user| &user.email).is_sorted(), "{store:?}: {by_time:?}");
        let since: DateTime<Utc> = "2026-11-23T12:00:00.1Z".parse().unwrap();
        let later = user::Entity::find().filter(user::Column::DateJoined.gte(since)).count(db.reader()).await.unwrap();
        assert_eq!(later, 3, "{store:?}");
    }
}

#[tokio::test]
async fn role_filters_orders_and_the_outbox_are_served_by_indexes() {
    for store in Store::all() {
        let (_database, db) = migrated(store).await;
        let tx = db.begin().await.unwrap();
        let backend = tx.get_database_backend();
        let (explain, column) = match store {
            Store::Sqlite => ("EXPLAIN QUERY PLAN", "detail"),
            Store::Postgres => {
                // The table is empty: to read it all would be cheapest.
                tx.execute_unprepared("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off").await.unwrap();
                ("EXPLAIN", "QUERY PLAN")
            }
        };
        let page = user::Entity::find().limit(20);
        let role = |flag: user::Column| page.clone().filter(flag.eq(true)).order_by_asc(user::Column::Id);
        let admins = Condition::any().add(user::Column::IsStaff.eq(true)).add(user::Column::IsSuperuser.eq(true));
        let superusers = user::Entity::find().filter(user::Column::IsSuperuser.eq(true));
        let by = |order: user::Column| page.clone().order_by_asc(order).order_by_asc(user::Column::Id);
        let newest = page.clone().order_by_desc(user::Column::DateJoined).order_by_desc(user::Column::Id);
        let to_send = outbox::Entity::find()
            .filter(outbox::Column::State.eq(outbox::State::Pending))
            .filter(outbox::Column::NextAttemptAt.lte(noon()))
            .order_by_asc(outbox::Column::NextAttemptAt);
        let settled = |state: outbox::State| {
            outbox::Entity::find()
                .filter(outbox::Column::State.eq(state))
                .filter(outbox::Column::NextAttemptAt.lt(noon()))
                .order_by_asc(outbox::Column::NextAttemptAt)
        };
        let of_a_user = outbox::Entity::find()
            .filter(outbox::Column::State.eq(outbox::State::Pending))
            .filter(outbox::Column::UserId.eq(1))
            .filter(outbox::Column::Id.lt(9));
        let old_codes = verification_code::Entity::find().filter(verification_code::Column::CreatedAt.lt(noon()));
        for (query, index) in [
            (role(user::Column::IsFreelancer).build(backend), "users_freelancers"),
            (role(user::Column::IsSeller).build(backend), "users_sellers"),
            (role(user::Column::IsModerator).build(backend), "users_moderators"),
            (page.clone().filter(admins).order_by_asc(user::Column::Id).build(backend), "users_admins"),
            (superusers.filter(user::Column::IsActive.eq(true)).build(backend), "users_superusers"),
            (newest.build(backend), "users_by_date_joined"),
            (by(user::Column::FirstName).build(backend), "users_by_first_name"),
            (by(user::Column::LastName).build(backend), "users_by_last_name"),
            (by(user::Column::EmailKey).build(backend), "email_key"),
            (to_send.build(backend), "outbox_pending"),
            (settled(outbox::State::Sent).build(backend), "outbox_sent"),
            (settled(outbox::State::Abandoned).build(backend), "outbox_abandoned"),
            (of_a_user.build(backend), "by_user"),
            (old_codes.build(backend), "verification_codes_by_creation"),
        ] {
            let sql = query.sql.clone();
            let query = Statement { sql: format!("{explain} {sql}"), ..query };
            let rows = tx.query_all_raw(query).await.unwrap();
            let plan: Vec<String> = rows.iter().map(|row| row.try_get("", column).unwrap()).collect();
            assert!(plan.iter().any(|line| line.contains(index)), "{store:?}: {sql}: {plan:#?}");
        }
    }
}
