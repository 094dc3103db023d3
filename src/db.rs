//! The connection to SQL, SQLite or PostgreSQL: reads, write transactions, migrations.
//!
//! On PostgreSQL one bounded pool serves both. SQLite has many readers but one writer: the writes go through a pool
//! of a single connection, where they queue up in the order they came. The pool hands the connection on only after
//! the last transaction is through, also when it was dropped half-way; a mutex around several connections would be
//! free while the rollback is still queued.

mod pool;
mod replica;
mod script;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use log::LevelFilter;
pub use pool::{Pool, Tx};
use replica::Replica;
pub use script::{Inserts, Returned, Script};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, SqlxPostgresConnector, SqlxSqliteConnector, Statement};
use sqlx::{
    ConnectOptions, Connection, SqliteConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use tracing::Instrument;

use crate::{
    error::{Cause, Dependency, Error, Result},
    metrics::{self, Transactions},
    trace,
};

/// How to reach the database. No Debug: the URL may hold a password.
#[derive(Clone)]
pub struct DbOptions {
    /// `sqlite:///path/to/file` or `postgres://…`, there with libpq's parameters (`sslmode`, `sslrootcert`).
    pub url: String,
    /// A replica of PostgreSQL, for lists.
    pub read_url: Option<String>,
    /// The bound of the pool. SQLite takes at most [`SQLITE_READERS`] of it, and one more to write.
    pub max_connections: u32,
    /// How long a call may wait for a connection, or on SQLite for its turn to write.
    pub acquire_timeout: Duration,
    /// How long PostgreSQL may work at a statement.
    pub statement_timeout: Duration,
    /// How long a statement may wait for a lock of PostgreSQL.
    pub lock_timeout: Duration,
    /// How old a connection to PostgreSQL may grow.
    pub max_age: Duration,
}

impl Default for DbOptions {
    /// The waits are such that a call answers within two seconds when the database is away.
    fn default() -> Self {
        Self {
            url: String::new(),
            read_url: None,
            max_connections: 16,
            acquire_timeout: Duration::from_millis(1500),
            statement_timeout: Duration::from_secs(5),
            lock_timeout: Duration::from_millis(1500),
            max_age: Duration::from_mins(10),
        }
    }
}

/// A reader of SQLite is a thread and works at the speed of memory: more of them than cores gain nothing.
pub const SQLITE_READERS: u32 = 4;
/// How long SQLite waits for another process that writes or reorganises the file.
const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// What SQLite says of a file that others have locked (<https://sqlite.org/rescode.html#busy>).
const SQLITE_BUSY: &str = "5";
/// A transaction that does nothing for so long has lost its owner: PostgreSQL ends it, and frees what it locked.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection unused for so long is tried before it is handed out. Short, so that after an outage of PostgreSQL calls
/// don't run into the connections of before; and free of cost under load, where no connection rests that long.
const PING_AFTER_IDLE: Duration = Duration::from_secs(1);
/// How long that may take before a new connection is made instead.
const PING_TIMEOUT: Duration = Duration::from_millis(700);
const SLOW_STATEMENT: Duration = Duration::from_millis(250);
/// How long to wait for another replica that migrates.
const MIGRATION_WAIT: Duration = Duration::from_mins(2);
/// How long closing waits for calls that still hold a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// The key of PostgreSQL's advisory lock around the migrations; it is the database's own, so any number will do.
const MIGRATION_LOCK: i64 = i64::from_be_bytes(*b"identity");

/// The database. Clones share their connections.
#[derive(Clone)]
pub struct Db {
    reader: Pool,
    writer: Pool,
    replica: Option<Arc<Replica>>,
    /// How many reads can run at once.
    max_reads: u32,
    /// How the migrations connect to PostgreSQL; on SQLite they are a transaction like others.
    migrations: Option<Arc<PgConnectOptions>>,
    metrics: Transactions,
}

impl Db {
    /// Opens SQLite's file, made if missing, and its folder; or gets ready for PostgreSQL, where the first
    /// call connects, so that a service may start before its database.
    ///
    /// # Errors
    /// `Internal` if the URL or the file can't be used, `Unavailable` if SQLite can't open the file, or others keep it
    /// locked.
    pub async fn connect(options: &DbOptions) -> Result<Self> {
        // Not through sea_orm::Database: it shows the URL, with its password, to the log at TRACE and in its errors.
        let scheme = options.url.split(':').next().unwrap_or_default();
        match scheme {
            "sqlite" => Self::open_sqlite(options).await,
            "postgres" | "postgresql" => Self::prepare_postgres(options),
            _ => Err(Error::internal("the database's URL starts with neither sqlite: nor postgres:")),
        }
    }

    async fn open_sqlite(options: &DbOptions) -> Result<Self> {
        let file: SqliteConnectOptions = options.url.parse().map_err(Error::internal)?;
        make_private(file.get_filename())?;
        let file = file
            .busy_timeout(SQLITE_BUSY_TIMEOUT)
            .foreign_keys(true)
            .synchronous(SqliteSynchronous::Full)
            .log_statements(LevelFilter::Debug)
            .log_slow_statements(LevelFilter::Warn, SLOW_STATEMENT);
        let pool = || {
            SqlitePoolOptions::new()
                .acquire_timeout(options.acquire_timeout)
                .idle_timeout(None)
                .max_lifetime(None)
                .test_before_acquire(false) // there is no line to be cut
        };

        let write = file.clone().journal_mode(SqliteJournalMode::Wal).optimize_on_close(true, 400);
        let one = pool().max_connections(1).after_release(|connection, _| Box::pin(is_out_of_transactions(connection)));
        let writer = open_writer(&one, &write).await.map_err(away)?;
        // A write that slips in here would run into the writer's lock; so it fails at once, in the first test.
        let read = file.pragma("query_only", "ON");
        let max_reads = options.max_connections.clamp(1, SQLITE_READERS);
        let reader = pool().max_connections(max_reads).connect_lazy_with(read);
        Ok(Self {
            reader: Pool::of_sqlite(SqlxSqliteConnector::from_sqlx_sqlite_pool(reader)),
            writer: Pool::of_sqlite(SqlxSqliteConnector::from_sqlx_sqlite_pool(writer)),
            replica: None,
            max_reads,
            migrations: None,
            metrics: Transactions::default(),
        })
    }

    fn prepare_postgres(options: &DbOptions) -> Result<Self> {
        let server = postgres_at(&options.url, options)?;
        let both = postgres_pool(server.clone(), options);
        let replica = match &options.read_url {
            Some(url) => Some(Arc::new(Replica::new(postgres_pool(postgres_at(url, options)?, options)))),
            None => None,
        };
        let max_reads = options.max_connections.max(1);
        Ok(Self {
            reader: both.clone(),
            writer: both,
            replica,
            max_reads,
            migrations: Some(Arc::new(server)),
            metrics: Transactions::default(),
        })
    }

    /// The connection for reads. A write through it fails on SQLite.
    pub fn reader(&self) -> &Pool {
        &self.reader
    }

    /// A read-only transaction on the replica, if there is one and it has all that was committed before this call.
    pub async fn replica(&self) -> Option<Tx> {
        self.replica.as_ref()?.caught_up_with(&self.reader).await
    }

    /// The replica didn't do what it was asked for: it is not asked for a while.
    pub fn leave_replica_alone(&self, why: &Error) {
        if let Some(replica) = &self.replica {
            replica.leave_alone(why);
        }
    }

    /// How many reads can run at once; on PostgreSQL they share the connections with the writes.
    pub fn max_reads(&self) -> usize {
        usize::try_from(self.max_reads).unwrap_or(usize::MAX)
    }

    /// Begins a write transaction. On SQLite there is one at a time, and it has the write lock from the start, so that
    /// a read within it holds until the commit.
    ///
    /// # Errors
    /// `Unavailable` if its turn or a connection doesn't come in time, or the store is away.
    pub async fn begin(&self) -> Result<Tx> {
        let asked_at = Instant::now();
        let begun = Box::pin(self.writer.begin()).instrument(trace::of_part("begin")).await;
        self.metrics.waited.observe(asked_at.elapsed().as_secs_f64());
        begun
    }

    pub fn metrics(&self) -> &Transactions {
        &self.metrics
    }

    /// The pools of connections, as they are at this moment.
    pub fn pools(&self) -> Vec<metrics::Pool> {
        if self.reader.get_database_backend() == DbBackend::Sqlite {
            return vec![self.reader.figures("read"), self.writer.figures("write")];
        }
        let replica = self.replica.iter().map(|replica| replica.figures());
        [self.reader.figures("main")].into_iter().chain(replica).collect()
    }

    /// The names of the migrations that the database lacks, oldest first.
    ///
    /// # Errors
    /// `Unavailable` if the store is away.
    pub async fn pending_migrations(&self) -> Result<Vec<String>> {
        self.reader.lend(async |connections| identity_migrations::pending(connections).await).await
    }

    /// Applies the migrations that the database lacks and returns their names. Any number of processes may do so at
    /// once: one migrates, the others wait for it and find nothing left to do.
    ///
    /// # Errors
    /// `Unavailable` if the store is away, or another process migrates for longer than two minutes.
    pub async fn migrate(&self) -> Result<Vec<String>> {
        if self.pending_migrations().await?.is_empty() {
            return Ok(Vec::new());
        }
        match &self.migrations {
            None => {
                let tx = self.begin().await?;
                let applied = identity_migrations::apply(tx.unbounded()).await?;
                tx.commit().await?;
                Ok(applied)
            }
            Some(server) => migrate_postgres(server).await,
        }
    }

    /// Whether the database answers within `timeout`.
    ///
    /// # Errors
    /// `Unavailable` if it doesn't.
    pub async fn ping(&self, timeout: Duration) -> Result<()> {
        match tokio::time::timeout(timeout, self.reader.ping()).await {
            Ok(answer) => Ok(answer?),
            Err(late) => Err(away(late)),
        }
    }

    /// For people: `SQLite` or `PostgreSQL`.
    pub fn backend_name(&self) -> &'static str {
        match self.reader.get_database_backend() {
            DbBackend::Sqlite => "SQLite",
            _ => "PostgreSQL",
        }
    }

    /// Closes the connections, once the calls that hold one are done or had three seconds to be. SQLite's log is
    /// written back to its file.
    pub async fn close(&self) {
        let closed = async {
            if let Some(replica) = &self.replica {
                replica.close().await?;
            }
            // The writer last: the last connection of all writes the log back, and a reader may not write.
            self.reader.close().await?;
            self.writer.close().await
        };
        match tokio::time::timeout(CLOSE_TIMEOUT, closed).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the database was not closed properly"),
            Err(_) => tracing::warn!("the database was left with calls still running"),
        }
    }
}

/// The server that a URL names, and what holds for each session there.
fn postgres_at(url: &str, options: &DbOptions) -> Result<PgConnectOptions> {
    let server: PgConnectOptions = url.parse().map_err(Error::internal)?;
    let server = match server.get_application_name() {
        Some(_) => server,
        None => server.application_name("identity"),
    };
    let server = server.log_statements(LevelFilter::Debug).log_slow_statements(LevelFilter::Warn, SLOW_STATEMENT);
    Ok(server.options([
        ("lock_timeout", options.lock_timeout.as_millis()),
        ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_TIMEOUT.as_millis()),
    ]))
}

fn postgres_pool(server: PgConnectOptions, options: &DbOptions) -> Pool {
    let pool = PgPoolOptions::new()
        .max_connections(options.max_connections.max(1))
        .acquire_timeout(options.acquire_timeout)
        .max_lifetime(options.max_age)
        .test_before_acquire(false)
        .before_acquire(|connection, usage| {
            Box::pin(async move {
                if usage.idle_for >= PING_AFTER_IDLE {
                    let late = |late: tokio::time::error::Elapsed| sqlx::Error::Io(late.into());
                    tokio::time::timeout(PING_TIMEOUT, connection.ping()).await.map_err(late)??;
                }
                Ok(true)
            })
        });
    let address = server.options([("statement_timeout", options.statement_timeout.as_millis())]);
    let longest = options.acquire_timeout + options.statement_timeout + Duration::from_secs(1);
    Pool::of_postgres(address, pool, longest)
}

/// The pool of the one connection that writes. To turn a new file to its log in WAL mode SQLite wants it for itself, and where
/// another process does the same at that moment it gives up at once: it is told again, for as long as it waits elsewhere.
async fn open_writer(pool: &SqlitePoolOptions, file: &SqliteConnectOptions) -> Result<sqlx::SqlitePool, sqlx::Error> {
    let deadline = tokio::time::Instant::now() + SQLITE_BUSY_TIMEOUT;
    loop {
        match pool.clone().connect_with(file.clone()).await {
            Err(sqlx::Error::Database(error))
                if error.code().as_deref() == Some(SQLITE_BUSY) && tokio::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            opened => return opened,
        }
    }
}

/// Whether the connection may be used again. Where a write finds the disk full, SQLite itself undoes the transaction; sqlx's
/// ROLLBACK then finds none and fails, and sqlx goes on counting it as open. The next transaction would be a savepoint within
/// it: a later error would leave that open, and from then on nothing would be committed, whatever callers were told.
async fn is_out_of_transactions(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    if connection.is_in_transaction() {
        // The rollback of a transaction that was dropped may still be in the queue before this.
        connection.ping().await?;
    }
    Ok(!connection.is_in_transaction())
}

fn away(cause: impl Into<Cause>) -> Error {
    Error::Unavailable { what: Dependency::Database, cause: Some(cause.into()) }
}

/// Makes the file if it is missing, and its folder, for our eyes only: it will hold e-mail addresses and hashes of
/// passwords. One that is there stays untouched: to close it here would drop the locks that SQLite holds on it in this
/// process.
fn make_private(file: &Path) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .and_then(|()| std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file));
    match made {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Error::internal(format!("{}: {error}", file.display())))
        }
        _ => Ok(()),
    }
}

/// Migrates over a connection of its own, which holds the lock as well: if it breaks, lock and work end together. A
/// statement may take its time here, but waits no longer than others for a lock on a table.
async fn migrate_postgres(server: &PgConnectOptions) -> Result<Vec<String>> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false) // a broken connection must fail, not be replaced by one without the lock
        .connect_lazy_with(server.clone());
    let session = SqlxPostgresConnector::from_sqlx_postgres_pool(pool);
    let migrated = async {
        lock_migrations(&session).await?;
        Ok(identity_migrations::apply(&session).await?)
    }
    .await;
    // Ends the session, and with it the lock.
    session.close_by_ref().await?;
    migrated
}

/// Tries for the lock until it is ours. A statement that waits for it would hold a snapshot, for which the other side
/// may itself be waiting (`CREATE INDEX CONCURRENTLY`).
async fn lock_migrations(session: &DatabaseConnection) -> Result<()> {
    let deadline = tokio::time::Instant::now() + MIGRATION_WAIT;
    loop {
        let attempt = Statement::from_sql_and_values(
            DbBackend::Postgres,
            "SELECT pg_try_advisory_lock($1) AS locked",
            [MIGRATION_LOCK.into()],
        );
        let locked = session.query_one_raw(attempt).await?.is_some_and(|row| row.try_get("", "locked") == Ok(true));
        if locked {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(away("another process has been migrating for too long"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
