//! Pools of connections on which every wait has a bound.
//!
//! A statement may take its time, as long as PostgreSQL is there. When one is slow, PostgreSQL is asked for a connection more. If
//! even that isn't answered, the statement is given up, so that its caller hears within two seconds; and with it all
//! connections of then: TCP may hold on to one whose other end is lost for a quarter of an hour.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sea_orm::{
    ConnAcquireErr, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult,
    QueryResult, RuntimeErr, SqliteTransactionMode, SqlxPostgresConnector, Statement, TransactionOptions,
    TransactionTrait, Values, entity::prelude::async_trait::async_trait,
};
use sea_query_sqlx::SqlxValues;
use sqlx::{
    AssertSqlSafe, Connection, PgConnection, SqliteConnection,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use super::Inserts;
use crate::{
    error::{Error, Result},
    metrics,
};

/// How long a statement goes without an answer before PostgreSQL is asked whether it is there.
const PATIENCE: Duration = Duration::from_millis(600);
/// How long PostgreSQL has to say so. With the patience, a caller hears within two seconds.
const ANSWERS_WITHIN: Duration = Duration::from_millis(900);

/// Connections to a database: `&pool` is one to SeaORM, for a statement at a time. Clones share them.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    backend: DbBackend,
    current: RwLock<Arc<Generation>>,
    /// `None` for SQLite, which is a file: a wait for it ends by itself.
    server: Option<Server>,
    begun: Instant,
    /// When there was an answer last, and when there was none: milliseconds from `begun`.
    answered_at_ms: AtomicU64,
    failed_at_ms: AtomicU64,
}

/// The connections until they are given up.
struct Generation {
    connections: DatabaseConnection,
    opened: Instant,
}

/// A connection to SQLite that runs a text with a transaction of its own, of which sqlx knows nothing. Where nobody knows how far it came,
/// because its caller went away, the connection is closed, and the transaction undone with it.
struct Lent {
    connection: PoolConnection<sqlx::Sqlite>,
    is_clean: bool,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.is_clean {
            self.connection.close_on_drop();
        }
    }
}

/// Whether no transaction is open after this.
async fn roll_back(connection: &mut SqliteConnection) -> bool {
    match sqlx::query("ROLLBACK").execute(connection).await {
        Ok(_) => true,
        Err(error) => error.to_string().contains("no transaction is active"),
    }
}

fn acquire_error(error: sqlx::Error) -> DbErr {
    match error {
        sqlx::Error::PoolTimedOut => DbErr::ConnectionAcquire(ConnAcquireErr::Timeout),
        sqlx::Error::PoolClosed => DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed),
        error => DbErr::Conn(RuntimeErr::SqlxError(error.into())),
    }
}

fn query_error(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

/// How to reach PostgreSQL.
struct Server {
    address: PgConnectOptions,
    pool: PgPoolOptions,
    /// No answer takes longer while PostgreSQL is there, and the connection to it is.
    longest: Duration,
    /// When it last answered whoever asked whether it is there.
    answered_at: Mutex<Option<Instant>>,
}

impl Pool {
    pub(super) fn of_sqlite(connections: DatabaseConnection) -> Self {
        Self::new(DbBackend::Sqlite, Generation::new(connections), None)
    }

    /// `longest`: after how long a statement has been answered, or ended by PostgreSQL itself.
    pub(super) fn of_postgres(address: PgConnectOptions, pool: PgPoolOptions, longest: Duration) -> Self {
        let server = Server { address, pool, longest, answered_at: Mutex::default() };
        Self::new(DbBackend::Postgres, server.open(), Some(server))
    }

    fn new(backend: DbBackend, first: Arc<Generation>, server: Option<Server>) -> Self {
        Self(Arc::new(Shared {
            backend,
            current: RwLock::new(first),
            server,
            begun: Instant::now(),
            answered_at_ms: AtomicU64::new(0),
            failed_at_ms: AtomicU64::new(0),
        }))
    }

    /// Since then it has been asked, and has not answered: who waited for a turn needs not ask again.
    pub fn has_failed_since(&self, then: Instant) -> bool {
        let shared = &self.0;
        let failed_at = shared.failed_at_ms.load(Ordering::Relaxed);
        failed_at > shared.millis_at(then) && failed_at > shared.answered_at_ms.load(Ordering::Relaxed)
    }

    /// Begins a transaction; on SQLite with the lock to write.
    pub(super) async fn begin(&self) -> Result<Tx> {
        let pool = self.clone();
        let begin = async move {
            let generation = pool.current();
            let options = TransactionOptions {
                sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
                ..Default::default()
            };
            let begun = pool.bounded(&generation, generation.connections.begin_with_options(options)).await?;
            Ok(Tx { begun, generation, pool })
        };
        // In a task of its own, which runs on when the caller is dropped: sqlx forgets a BEGIN that nobody waited for,
        // and the connection would go back to PostgreSQL's pool with a transaction open.
        tokio::spawn(begin).await.map_err(Error::internal)?
    }

    /// The rows of what is a whole transaction by itself: one statement on PostgreSQL, on SQLite a text that begins and ends one. `begun` is
    /// called once there is a connection.
    pub(super) async fn run_whole(
        &self,
        sql: String,
        values: Values,
        begun: impl FnOnce(),
    ) -> Result<Vec<QueryResult>, DbErr> {
        let (generation, values) = (self.current(), SqlxValues(values));
        if self.0.backend == DbBackend::Sqlite {
            let acquired = generation.connections.get_sqlite_connection_pool().acquire().await;
            let mut lent = Lent { connection: acquired.map_err(acquire_error)?, is_clean: false };
            begun();
            let rows = sqlx::query_with(AssertSqlSafe(sql), values).fetch_all(&mut *lent.connection).await;
            lent.is_clean = rows.is_ok() || roll_back(&mut lent.connection).await;
            return Ok(rows.map_err(query_error)?.into_iter().map(QueryResult::from).collect());
        }
        let answer = async {
            let acquired = generation.connections.get_postgres_connection_pool().acquire().await;
            let mut connection = acquired.map_err(acquire_error)?;
            begun();
            let rows = sqlx::query_with(AssertSqlSafe(sql), values).fetch_all(&mut *connection).await;
            Ok(rows.map_err(query_error)?.into_iter().map(QueryResult::from).collect())
        };
        self.bounded(&generation, answer).await
    }

    pub(super) async fn ping(&self) -> Result<(), DbErr> {
        let generation = self.current();
        self.bounded(&generation, Box::pin(generation.connections.ping())).await
    }

    /// What `work` makes of connections that SeaORM's own functions take.
    pub(super) async fn lend<T>(&self, work: impl AsyncFnOnce(&DatabaseConnection) -> Result<T, DbErr>) -> Result<T> {
        let generation = self.current();
        Ok(self.bounded(&generation, work(&generation.connections)).await?)
    }

    pub(super) async fn close(&self) -> Result<(), DbErr> {
        self.current().connections.close_by_ref().await
    }

    /// How many connections there are at this moment, and how many of them are free.
    pub(super) fn figures(&self, name: &'static str) -> metrics::Pool {
        let connections = &self.current().connections;
        match self.0.backend {
            DbBackend::Sqlite => figures(name, connections.get_sqlite_connection_pool()),
            _ => figures(name, connections.get_postgres_connection_pool()),
        }
    }

    fn current(&self) -> Arc<Generation> {
        Arc::clone(&self.0.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The answer to a statement, or an error once PostgreSQL is silent.
    async fn bounded<T>(
        &self,
        generation: &Arc<Generation>,
        statement: impl Future<Output = Result<T, DbErr>>,
    ) -> Result<T, DbErr> {
        let Some(server) = &self.0.server else { return statement.await };
        let begun = Instant::now();
        let mut statement = pin!(statement);
        loop {
            let answers = async {
                tokio::time::sleep(PATIENCE).await;
                server.answers().await
            };
            tokio::select! {
                biased;
                answer = &mut statement => {
                    if matches!(answer, Err(DbErr::ConnectionAcquire(_) | DbErr::Conn(_))) {
                        // Where all connections are taken, and none has answered for longer than any can without being lost.
                        if self.0.silent_for().min(generation.opened.elapsed()) > server.longest {
                            self.give_up(server, generation);
                        }
                        self.0.note(&self.0.failed_at_ms);
                    } else {
                        self.0.note(&self.0.answered_at_ms);
                    }
                    return answer;
                }
                answers = answers => {
                    let why = match answers {
                        Ok(()) if begun.elapsed() <= server.longest => continue,
                        Ok(()) => "the connection to the database is lost".to_owned(),
                        Err(why) => why,
                    };
                    self.give_up(server, generation);
                    self.0.note(&self.0.failed_at_ms);
                    return Err(DbErr::Conn(RuntimeErr::Internal(why)));
                }
            }
        }
    }

    /// Connects anew from now on. What still waits on the connections of before has them to its end.
    fn give_up(&self, server: &Server, generation: &Arc<Generation>) {
        let mut current = self.0.current.write().unwrap_or_else(PoisonError::into_inner);
        let given_up = generation.connections.get_postgres_connection_pool();
        if Arc::ptr_eq(&current, generation) && !given_up.is_closed() {
            tracing::warn!("PostgreSQL is silent: its connections are given up");
            *current = server.open();
            // It counts as closed from the call on, so that none goes back to it; the wait for those still taken is no use.
            drop(given_up.close());
        }
    }
}

fn figures<D: sqlx::Database>(name: &'static str, pool: &sqlx::Pool<D>) -> metrics::Pool {
    let whole = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    let max = whole(pool.options().get_max_connections());
    metrics::Pool { name, open: whole(pool.size()), idle: pool.num_idle(), max }
}

impl Shared {
    fn millis_at(&self, then: Instant) -> u64 {
        u64::try_from(then.duration_since(self.begun).as_millis()).unwrap_or(u64::MAX)
    }

    fn note(&self, at_ms: &AtomicU64) {
        at_ms.store(self.millis_at(Instant::now()), Ordering::Relaxed);
    }

    /// How long it has been since the last answer.
    fn silent_for(&self) -> Duration {
        let now = self.millis_at(Instant::now());
        Duration::from_millis(now.saturating_sub(self.answered_at_ms.load(Ordering::Relaxed)))
    }
}

impl Generation {
    fn new(connections: DatabaseConnection) -> Arc<Self> {
        Arc::new(Self { connections, opened: Instant::now() })
    }
}

impl Server {
    fn open(&self) -> Arc<Generation> {
        let pool = self.pool.clone().connect_lazy_with(self.address.clone());
        Generation::new(SqlxPostgresConnector::from_sqlx_postgres_pool(pool))
    }

    /// Nothing if it answers who connects now, else why it doesn't. One asks for all who wait.
    async fn answers(&self) -> Result<(), String> {
        let asked_at = Instant::now();
        let ask = async {
            let mut answered_at = self.answered_at.lock().await;
            if answered_at.is_some_and(|at| at >= asked_at) {
                return Ok(());
            }
            // Boxed: it is large, and seldom begun.
            match Box::pin(PgConnection::connect_with(&self.address)).await {
                Ok(connection) => {
                    let _ = connection.close().await;
                }
                // It says no, for it has too many connections or is about to stop: that is an answer.
                Err(sqlx::Error::Database(_)) => {}
                Err(error) => return Err(format!("the database can't be reached: {error}")),
            }
            *answered_at = Some(Instant::now());
            Ok(())
        };
        timeout(ANSWERS_WITHIN, ask).await.unwrap_or_else(|_| Err("the database is silent".to_owned()))
    }
}

#[async_trait]
impl ConnectionTrait for Pool {
    fn get_database_backend(&self) -> DbBackend {
        self.0.backend
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let generation = self.current();
        self.bounded(&generation, generation.connections.execute_raw(statement)).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let generation = self.current();
        self.bounded(&generation, generation.connections.execute_unprepared(sql)).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let generation = self.current();
        self.bounded(&generation, generation.connections.query_one_raw(statement)).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let generation = self.current();
        self.bounded(&generation, generation.connections.query_all_raw(statement)).await
    }
}

/// A transaction: `&tx` is a connection to SeaORM, `tx.commit()` keeps the changes, and dropping it undoes them.
pub struct Tx {
    begun: DatabaseTransaction,
    generation: Arc<Generation>,
    pool: Pool,
}

impl Tx {
    /// Keeps the changes.
    ///
    /// # Errors
    /// If the database is away or silent. Then nobody knows whether they are kept.
    pub async fn commit(self) -> Result<(), DbErr> {
        self.pool.bounded(&self.generation, Box::pin(self.begun.commit())).await
    }

    /// Puts in all of these rows, in one round trip as a rule.
    ///
    /// # Errors
    /// If the database is away, or doesn't take one of them.
    pub async fn insert(&self, rows: Inserts) -> Result<(), DbErr> {
        for statement in rows.statements(self.get_database_backend()) {
            self.execute_raw(statement).await?;
        }
        Ok(())
    }

    /// As SeaORM's own functions take it, without our bound.
    pub(super) fn unbounded(&self) -> &DatabaseTransaction {
        &self.begun
    }
}

#[async_trait]
impl ConnectionTrait for Tx {
    fn get_database_backend(&self) -> DbBackend {
        self.pool.0.backend
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.pool.bounded(&self.generation, self.begun.execute_raw(statement)).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.pool.bounded(&self.generation, self.begun.execute_unprepared(sql)).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.pool.bounded(&self.generation, self.begun.query_one_raw(statement)).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.pool.bounded(&self.generation, self.begun.query_all_raw(statement)).await
    }
}
