//! The stores of a run: a PostgreSQL and a Redis of its own, on free ports of the loopback, and files of SQLite. What is committed is
//! on disk: nothing is set that would make a commit cheaper than an operator has it.

use std::{
    fs::{self, File, Permissions},
    io::Write,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use sqlx::{
    AssertSqlSafe, Connection, PgConnection, PgPool, SqlitePool,
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::time::sleep;
use uuid::Uuid;

use crate::{Outcome, measure::Caller};

/// What differs from PostgreSQL's own defaults: where it listens, and memory for a machine of today.
const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
shared_buffers = 512MB
max_wal_size = 4GB
";
/// As many connections as the service opens.
const CONNECTIONS: u32 = 16;
const STARTS_WITHIN: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Store {
    Sqlite,
    Postgres,
}

impl Store {
    pub fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
        }
    }
}

/// The servers, and the folder of all files. They end and go with this.
pub struct Stores {
    pub folder: PathBuf,
    pub redis_url: String,
    postgres_url: String,
    _postgres: Process,
    _redis: Process,
}

impl Stores {
    pub async fn start(folder: &Path) -> Outcome<Self> {
        // The user that PostgreSQL runs as has to get through.
        fs::set_permissions(folder, Permissions::from_mode(0o755))?;
        let (postgres, postgres_url) = start_postgres(&folder.join("postgres")).await?;
        let (redis, redis_url) = start_redis().await?;
        Ok(Self { folder: folder.to_owned(), redis_url, postgres_url, _postgres: postgres, _redis: redis })
    }

    /// The URL of an empty database of this name.
    pub async fn database(&self, store: Store, name: &str) -> Outcome<String> {
        if store == Store::Sqlite {
            return Ok(format!("sqlite://{}?mode=rwc", self.folder.join(name).with_extension("db").display()));
        }
        let mut connection = PgConnection::connect(&self.postgres_url).await?;
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut connection).await?;
        Ok(format!("{}/{name}", self.postgres_url.trim_end_matches("/postgres")))
    }
}

/// What PostgreSQL does by itself within a minute or so after many rows came: it clears up and counts them.
pub async fn tidy(store: Store, url: &str) -> Outcome<()> {
    if store == Store::Postgres {
        let mut connection = PgConnection::connect(url).await?;
        sqlx::query("VACUUM ANALYZE").execute(&mut connection).await?;
    }
    Ok(())
}

/// A program that ends with this.
struct Process(Child);

impl Process {
    /// Once it takes connections on this port.
    async fn start(mut command: Command, port: u16) -> Outcome<Self> {
        let mut process = Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
        let began = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if began.elapsed() > STARTS_WITHIN || process.0.try_wait()?.is_some() {
                return Err(format!("{command:?} doesn't start").into());
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(process)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already can't be told to, which is as good.
        let _ = kill_process(Pid::from_child(&self.0), Signal::INT);
        let _ = self.0.wait();
    }
}

/// This program, which ends with us, however we end. `setpriv` is of util-linux.
fn bound_to_us(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "INT"]).arg(program);
    command
}

fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

async fn start_redis() -> Outcome<(Process, String)> {
    let port = free_port()?;
    let mut command = bound_to_us(Path::new("redis-server"));
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    Ok((Process::start(command, port).await?, format!("redis://127.0.0.1:{port}")))
}

async fn start_postgres(folder: &Path) -> Outcome<(Process, String)> {
    let programs = postgres_programs().ok_or("no PostgreSQL: `scripts/bench` installs it")?;
    let user = if geteuid().is_root() { Some(unprivileged_user()?) } else { None };
    let as_user = |mut command: Command| {
        command.current_dir(folder);
        if let Some((uid, gid)) = user {
            command.uid(uid).gid(gid);
        }
        command
    };
    fs::create_dir(folder)?;
    if let Some((uid, gid)) = user {
        chown(folder, Some(uid), Some(gid))?;
    }
    let password = Uuid::new_v4().simple().to_string();
    fs::write(folder.join("password"), &password)?;
    let mut initdb = as_user(Command::new(programs.join("initdb")));
    initdb.args(["--pgdata=data", "--username=postgres", "--pwfile=password", "--auth=scram-sha-256"]);
    let made = initdb.args(["--encoding=UTF8", "--locale=C.UTF-8"]).output()?;
    if !made.status.success() {
        return Err(format!("initdb: {}", String::from_utf8_lossy(&made.stderr)).into());
    }
    File::options().append(true).open(folder.join("data/postgresql.conf"))?.write_all(SETTINGS.as_bytes())?;
    let port = free_port()?;
    let mut postgres = as_user(bound_to_us(&programs.join("postgres")));
    postgres.args(["-D", "data", "-p", &port.to_string()]).stderr(File::create(folder.join("log"))?);
    let process = Process::start(postgres, port).await?;
    let url = format!("postgres://postgres:{password}@127.0.0.1:{port}/postgres");
    let began = Instant::now();
    while let Err(error) = PgConnection::connect(&url).await {
        if began.elapsed() > STARTS_WITHIN {
            return Err(error.into());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok((process, url))
}

/// The folder of PostgreSQL's programs: from PATH, else Debian's, the newest version first.
#[expect(clippy::disallowed_methods, reason = "PATH is no setting of the service")]
fn postgres_programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut debian: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((path.file_name()?.to_str()?.parse().ok()?, path.join("bin")))
        })
        .collect();
    debian.sort();
    let debian = debian.into_iter().rev().map(|(_, path)| path);
    std::env::split_paths(&path).chain(debian).find(|folder| folder.join("initdb").is_file())
}

/// Whom to run PostgreSQL as, which refuses to run as root.
fn unprivileged_user() -> Outcome<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd")?;
    for name in ["postgres", "nobody"] {
        let line = users.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == name);
        if let Some([_, _, uid, gid, ..]) = line.as_deref() {
            return Ok((uid.parse()?, gid.parse()?));
        }
    }
    Err("as root, there has to be a user `postgres` or `nobody`".into())
}

/// Changes one row, commits, and that again: the least that a change can be. Callers have a row each.
#[derive(Clone)]
pub enum Updater {
    Postgres(PgPool, i64),
    Sqlite(SqlitePool, i64),
}

impl Updater {
    /// One for each of `count` callers, on a database of its own beside the service's.
    pub async fn all(stores: &Stores, store: Store, count: usize) -> Outcome<Vec<Self>> {
        const TABLE: &str = "CREATE TABLE rows (id BIGINT PRIMARY KEY, n BIGINT NOT NULL)";
        const ROW: &str = "INSERT INTO rows VALUES ($1, 0)";
        const FILLER: &str = "CREATE TABLE filler AS WITH RECURSIVE n (i) AS \
            (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1500) SELECT randomblob(4000) AS blob FROM n";
        let url = stores.database(store, "bare").await?;
        let count = i64::try_from(count)?;
        match store {
            Store::Postgres => {
                let pool = PgPoolOptions::new().max_connections(CONNECTIONS).test_before_acquire(false);
                let pool = pool.connect(&url).await?;
                sqlx::query(TABLE).execute(&pool).await?;
                for id in 0..count {
                    sqlx::query(ROW).bind(id).execute(&pool).await?;
                }
                Ok((0..count).map(|id| Self::Postgres(pool.clone(), id)).collect())
            }
            Store::Sqlite => {
                // As the service has it, which has one connection to write as well.
                let file: SqliteConnectOptions = url.parse()?;
                let file = file.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
                let pool = SqlitePoolOptions::new().max_connections(1).test_before_acquire(false);
                let pool = pool.connect_with(file).await?;
                // Its log gets the length that it has in use: a file that grows takes longer to write.
                sqlx::query(FILLER).execute(&pool).await?;
                sqlx::query(TABLE).execute(&pool).await?;
                for id in 0..count {
                    sqlx::query(ROW).bind(id).execute(&pool).await?;
                }
                Ok((0..count).map(|id| Self::Sqlite(pool.clone(), id)).collect())
            }
        }
    }
}

impl Caller for Updater {
    async fn call(&mut self) -> Outcome<()> {
        const UPDATE: &str = "UPDATE rows SET n = n + 1 WHERE id = $1";
        let changed = match self {
            Self::Postgres(pool, id) => sqlx::query(UPDATE).bind(*id).execute(&*pool).await?.rows_affected(),
            Self::Sqlite(pool, id) => sqlx::query(UPDATE).bind(*id).execute(&*pool).await?.rows_affected(),
        };
        if changed == 1 { Ok(()) } else { Err("the row is gone".into()) }
    }
}
