//! The connection: pools, transactions, and what SQLite promises.

use std::time::Duration;

use identity::{
    db::{Db, DbOptions},
    entity::user,
    error::{Dependency, Error},
};
use sea_orm::{ActiveModelTrait, EntityTrait, IntoActiveModel, QuerySelect, Set};

use crate::{
    harness::stores::{Store, empty_database},
    migrations::{connect, emails, insert_user, migrated, options, texts, user},
};

#[tokio::test]
async fn a_dropped_transaction_leaves_nothing_behind() {
    for store in Store::all() {
        let (_database, db) = migrated(store).await;
        for round in 0..20 {
            let tx = db.begin().await.unwrap();
            user("lost@example.com").insert(&tx).await.unwrap();
            drop(tx);
            insert_user(&db, &format!("kept{round}@example.com")).await;
        }
        let emails = emails(&db).await;
        assert!(emails.len() == 20 && !emails.contains(&"lost@example.com".into()), "{store:?}: {emails:?}");
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_while_a_transaction_begins_leaves_none_open() {
    for store in Store::all() {
        let database = empty_database(store).await;
        let db = Db::connect(&DbOptions { max_connections: 1, ..options(&database.url) }).await.unwrap();
        db.migrate().await.unwrap();
        let watcher = connect(&database).await;
        for polls in 0..40 {
            // Poll a little, then drop: the client that gives up.
            let mut begin = Box::pin(db.begin());
            for _ in 0..polls % 6 {
                if futures_util::poll!(&mut begin).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(begin);
            match store {
                // An open transaction would keep the only writer from the next.
                Store::Sqlite => db.begin().await.unwrap().commit().await.unwrap(),
                Store::Postgres => {
                    let open = "SELECT query FROM pg_stat_activity \
                                WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
                    // The rollback takes its time on a busy machine; one that never comes would take five seconds.
                    let mut tries = 0;
                    while !texts(watcher.reader(), open).await.is_empty() {
                        tries += 1;
                        assert!(tries < 100, "after {polls} polls");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_writers_at_once_all_get_their_turn() {
    for store in Store::all() {
        let (_database, db) = migrated(store).await;
        let counter = insert_user(&db, "ada@example.com").await.id;
        let writers: Vec<_> = (0..64)
            .map(|_| {
                let db = db.clone();
                tokio::spawn(async move {
                    let tx = db.begin().await.unwrap();
                    let seen = user::Entity::find_by_id(counter).lock_exclusive().one(&tx).await.unwrap().unwrap();
                    let mut next = seen.clone().into_active_model();
                    next.version = Set(seen.version + 1);
                    next.update(&tx).await.unwrap();
                    tx.commit().await.unwrap();
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
        let after = user::Entity::find_by_id(counter).one(db.reader()).await.unwrap().unwrap();
        assert_eq!(after.version, 65, "{store:?}");
    }
}

#[tokio::test]
async fn a_turn_that_does_not_come_is_unavailable() {
    for store in Store::all() {
        let database = empty_database(store).await;
        let short =
            DbOptions { max_connections: 1, acquire_timeout: Duration::from_millis(200), ..options(&database.url) };
        let db = Db::connect(&short).await.unwrap();
        db.migrate().await.unwrap();
        let holder = db.begin().await.unwrap();
        let error = db.begin().await.err().unwrap();
        assert!(matches!(error, Error::Unavailable { what: Dependency::Database, .. }), "{store:?}: {error:?}");
        drop(holder);
        db.begin().await.unwrap().commit().await.unwrap();
    }
}

#[tokio::test]
async fn a_write_through_sqlites_readers_is_refused() {
    let (_database, db) = migrated(Store::Sqlite).await;
    let error = user("ada@example.com").insert(db.reader()).await.unwrap_err();
    assert!(error.to_string().contains("readonly"), "{error}");
    assert!(user::Entity::find().all(db.reader()).await.unwrap().is_empty(), "a read is fine");
}

#[tokio::test]
async fn sqlite_keeps_its_promises_in_its_settings() {
    use std::os::unix::fs::PermissionsExt;
    let (database, db) = migrated(Store::Sqlite).await;
    let tx = db.begin().await.unwrap();
    let setting =
        async |name: &str| texts(&tx, &format!("SELECT CAST({name} AS text) FROM pragma_{name}")).await.remove(0);
    assert_eq!(setting("journal_mode").await, "wal");
    assert_eq!(setting("synchronous").await, "2", "FULL");
    assert_eq!(setting("foreign_keys").await, "1");
    let file = database.url.strip_prefix("sqlite://").unwrap().split('?').next().unwrap();
    for file in [file.to_owned(), format!("{file}-wal")] {
        let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{file} holds hashes of passwords");
    }
}

#[tokio::test]
async fn a_ping_tells_whether_the_store_answers() {
    for store in Store::all() {
        let (_database, db) = migrated(store).await;
        db.ping(Duration::from_secs(1)).await.unwrap();
        db.close().await;
        let error = db.ping(Duration::from_secs(1)).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { what: Dependency::Database, .. }), "{store:?}: {error:?}");
    }
}

#[tokio::test]
async fn an_unknown_scheme_is_refused_without_showing_the_password() {
    let refused = Db::connect(&options("mysql://root:hunter2@localhost/identity")).await.err().unwrap();
    assert!(!format!("{refused:?} {refused}").contains("hunter2"));
}

#[test]
fn a_password_hash_does_not_show_in_debug() {
    let model = user("ada@example.com");
    assert!(!format!("{model:?}").contains("argon2id"), "{model:?}");
}
