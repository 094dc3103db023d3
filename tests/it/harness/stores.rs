//! The stores that tests run on: SQLite files with nothing beside, and databases on a PostgreSQL server (see `postgres`)
//! with a Redis (see `redis`).
//!
//! A test gets a database of its own, copied from a template that was migrated once. The environment has a say:
//! - `TEST_STORES`: which stores to test on, `sqlite,postgres` if unset;
//! - `TEST_DATABASE_URL`: a PostgreSQL server to use instead of a private one. Its role must be allowed to create
//!   databases. Templates of old schemas, `identity_template_*`, stay on it;
//! - `TEST_REDIS_URL`: a Redis to use instead of a private one, each service under a prefix of its own. What runs out stays
//!   on it until then;
//! - `TEST_STORES_DIR`: where test processes find what they share; Cargo's directory for tests if unset.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
    thread,
};

use identity::db::{Db, DbOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use url::Url;
use uuid::Uuid;

use super::postgres;

/// A kind of store that the service runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Sqlite,
    Postgres,
}

impl Store {
    /// The stores to test on, as `TEST_STORES` says. Panics, telling what to do, if PostgreSQL is among them and there
    /// is none: a test that left it out silently would prove nothing.
    pub fn all() -> Vec<Self> {
        let names = setting("TEST_STORES").unwrap_or_else(|| "sqlite,postgres".into());
        let stores = names.split(',').map(|name| match name.trim() {
            "sqlite" => Self::Sqlite,
            "postgres" => Self::Postgres,
            other => panic!("TEST_STORES names {other:?}; it takes `sqlite` and `postgres`, with a comma between"),
        });
        let stores: Vec<_> = stores.collect();
        assert!(
            !stores.contains(&Self::Postgres) || postgres::is_available(),
            "no PostgreSQL for the tests: `initdb` is neither on PATH nor under /usr/lib/postgresql. Run `scripts/test`, \
             which installs it, or set TEST_DATABASE_URL to a server, or do without by TEST_STORES=sqlite"
        );
        stores
    }
}

/// A database for one test. It goes when this is dropped.
#[derive(Debug)]
pub struct Database {
    /// What the service takes as `DATABASE_URL`.
    pub url: String,
    _place: Place,
}

impl Database {
    /// The database at this URL, whoever made it.
    pub fn at(url: &str) -> Self {
        Self { url: url.to_owned(), _place: Place::Elsewhere }
    }
}

/// A database with nothing in it, not even the schema.
pub async fn empty_database(store: Store) -> Database {
    match store {
        Store::Sqlite => sqlite_database(None),
        Store::Postgres => postgres_database("template0").await,
    }
}

/// A database with the newest schema, as `Db::migrate` leaves it.
pub async fn migrated_database(store: Store) -> Database {
    match store {
        Store::Sqlite => sqlite_database(Some(&sqlite_template().await)),
        Store::Postgres => postgres_database(postgres_template().await).await,
    }
}

/// Where a database lies; dropping it removes the database.
#[derive(Debug)]
enum Place {
    /// It is somebody else's to remove.
    Elsewhere,
    Directory {
        _files: TempDir,
    },
    Server {
        admin_url: Url,
        name: String,
    },
}

impl Drop for Place {
    fn drop(&mut self) {
        let Self::Server { admin_url, name } = self else { return };
        let (admin_url, sql) = (admin_url.clone(), format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
        // A drop can't await, and may run on a thread that runs a runtime already.
        let dropped = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut admin = PgConnection::connect(admin_url.as_str()).await?;
                admin.execute(AssertSqlSafe(sql)).await?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
            })
        });
        // Not a failure of the test: the server may be gone on purpose, and takes the database with it.
        match dropped.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => eprintln!("test database {name} stays: {error}"),
            Err(_) => eprintln!("test database {name} stays"),
        }
    }
}

fn sqlite_database(template: Option<&Path>) -> Database {
    let files = tempfile::Builder::new().prefix("identity-test-").tempdir().expect("a directory for the database");
    let file = files.path().join("identity.db");
    if let Some(template) = template {
        fs::copy(template, &file).expect("a copy of the migrated database");
    }
    Database { url: sqlite_url(&file), _place: Place::Directory { _files: files } }
}

fn sqlite_url(file: &Path) -> String {
    format!("sqlite://{}?mode=rwc", file.display())
}

/// The file to copy. It appears whole, by a rename, so processes that make it at the same time do no harm.
async fn sqlite_template() -> PathBuf {
    let template = shared_directory().join(format!("template-{:016x}.db", schema_hash()));
    if !template.exists() {
        let draft = TempDir::new_in(shared_directory()).expect("a directory for the template");
        let file = draft.path().join("identity.db");
        migrate(&sqlite_url(&file)).await;
        assert!(!draft.path().join("identity.db-wal").exists(), "Db::close left rows in the write-ahead log");
        fs::rename(file, &template).expect("the template in its place");
    }
    template
}

async fn postgres_database(template: &str) -> Database {
    let admin_url = postgres::shared_server().await;
    let name = format!("identity_test_{}", Uuid::new_v4().simple());
    let mut admin = PgConnection::connect(admin_url.as_str()).await.expect("the PostgreSQL server for tests answers");
    run(&mut admin, format!("CREATE DATABASE {name} TEMPLATE {template}")).await;
    admin.close().await.expect("the connection closes");
    Database { url: database_url(admin_url, &name), _place: Place::Server { admin_url: admin_url.clone(), name } }
}

/// The name of the database to copy, migrated by the first process that asks.
async fn postgres_template() -> &'static str {
    static NAME: OnceCell<String> = OnceCell::const_new();
    NAME.get_or_init(async || {
        let admin_url = postgres::shared_server().await;
        let mut admin = PgConnection::connect(admin_url.as_str()).await.expect("the PostgreSQL server answers");
        let name = format!("identity_template_{:016x}", schema_hash());
        // One process makes it while the others wait; the lock goes with the connection.
        run(&mut admin, "SELECT pg_advisory_lock(7305842193)".into()).await;
        let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(&name)
            .fetch_one(&mut admin)
            .await
            .expect("the list of databases");
        if !exists {
            let draft = format!("{name}_draft");
            run(&mut admin, format!("DROP DATABASE IF EXISTS {draft} WITH (FORCE)")).await;
            run(&mut admin, format!("CREATE DATABASE {draft} TEMPLATE template0")).await;
            migrate(&database_url(admin_url, &draft)).await;
            run(&mut admin, format!("ALTER DATABASE {draft} RENAME TO {name}")).await;
        }
        admin.close().await.expect("the connection closes");
        name
    })
    .await
}

fn database_url(admin_url: &Url, name: &str) -> String {
    let mut url = admin_url.clone();
    url.set_path(name);
    url.into()
}

async fn run(connection: &mut PgConnection, sql: String) {
    if let Err(error) = connection.execute(AssertSqlSafe(sql.as_str().to_owned())).await {
        panic!("{sql}: {error}");
    }
}

async fn migrate(url: &str) {
    let db = Db::connect(&DbOptions { url: url.into(), ..DbOptions::default() })
        .await
        .expect("a connection to the template");
    db.migrate().await.expect("the migrations run");
    db.close().await;
}

/// Changes whenever a file of the migrations does, so that no test sees an old schema.
fn schema_hash() -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/src")];
    while let Some(folder) = folders.pop() {
        let entries: io::Result<Vec<_>> =
            fs::read_dir(folder).and_then(|entries| entries.map(|e| Ok(e?.path())).collect());
        let mut paths = entries.expect("the sources of the migrations");
        paths.sort();
        for path in paths {
            if path.is_dir() {
                folders.push(path);
            } else {
                path.hash(&mut hasher);
                fs::read(&path).expect("a source of the migrations").hash(&mut hasher);
            }
        }
    }
    hasher.finish()
}

/// Where the test processes of this checkout find what they share. It exists.
pub fn shared_directory() -> PathBuf {
    let directory = setting("TEST_STORES_DIR").unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
    fs::create_dir_all(&directory).expect("a directory for what the tests share");
    directory.into()
}

/// A variable of the environment; an empty one counts as unset.
#[expect(clippy::disallowed_methods, reason = "these settings are the tests' own, not the service's")]
pub fn setting(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
