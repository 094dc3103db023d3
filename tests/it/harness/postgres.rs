//! PostgreSQL servers of the tests' own: on a free port of the loopback, without Docker, as root too. One is shared by all
//! tests (see `shared`); a test that takes one down has it for itself.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::{Ipv4Addr, TcpListener},
    os::unix::{
        fs::{OpenOptionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tokio::sync::OnceCell;
use url::Url;
use uuid::Uuid;

use super::{
    shared::{Watched, join_or_start, on_a_thread, take_lease, watch},
    stores::setting,
};

/// What a test needs of a server: speed, and many connections. Nothing in it has to outlive the machine.
const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 300
shared_buffers = 64MB
fsync = off
full_page_writes = off
wal_level = minimal
max_wal_senders = 0
autovacuum = off
";

/// What a server needs besides to have replicas.
const REPLICATED: &str = "
wal_level = replica
max_wal_senders = 4
";

const TLS: &str = "
ssl = on
ssl_cert_file = 'server.crt'
ssl_key_file = 'server.key'
";

/// What a replica says of itself: each statement goes into its log.
const REPLICA: &str = "
log_statement = 'all'
";

/// Whether tests can have a PostgreSQL: a given one, or the programs to start one.
pub fn is_available() -> bool {
    setting("TEST_DATABASE_URL").is_some() || can_be_started()
}

/// Whether a server can be started here.
pub fn can_be_started() -> bool {
    programs().is_some()
}

/// The server that all tests share, by the URL of its maintenance database and a role that may create others.
pub async fn shared_server() -> &'static Url {
    struct Server {
        url: Url,
        /// Held until the process ends.
        _lease: Option<File>,
    }
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    let server = SERVER.get_or_init(async || {
        if let Some(url) = setting("TEST_DATABASE_URL") {
            return Server { url: Url::parse(&url).expect("TEST_DATABASE_URL is a URL"), _lease: None };
        }
        let (url, lease) = on_a_thread(|| join_or_start("postgres", || Cluster::start_new("", &[])?.watched())).await;
        Server { url, _lease: Some(lease) }
    });
    &server.await.url
}

/// A server for one test, which may take it down. It ends, and its files go, when this is dropped.
#[derive(Debug)]
pub struct PrivatePostgres {
    /// Its maintenance database, empty and fit for use as `DATABASE_URL`. It stays the same through a restart.
    pub url: String,
    cluster: Cluster,
    watchdog: Child,
    _lease: File,
}

impl PrivatePostgres {
    pub async fn start() -> Self {
        Self::start_with("", Vec::new()).await
    }

    /// One that takes connections by TLS alone, with this certificate and its key.
    pub async fn start_with_tls((certificate, key): (String, String)) -> Self {
        let rules = "hostssl all all 127.0.0.1/32 md5\n".to_owned();
        Self::start_with(TLS, vec![("server.crt", certificate), ("server.key", key), ("pg_hba.conf", rules)]).await
    }

    /// One that `replica` can follow.
    pub async fn start_replicated() -> Self {
        Self::start_with(REPLICATED, Vec::new()).await
    }

    /// With these lines at the end of its configuration, and these files beside it.
    async fn start_with(settings: &'static str, files: Vec<(&'static str, String)>) -> Self {
        on_a_thread(move || Self::watch_over(Cluster::start_new(settings, &files)?)).await
    }

    /// A server that follows this one.
    pub async fn replica(&self) -> Self {
        let primary = self.cluster.clone();
        on_a_thread(move || Self::watch_over(primary.start_replica()?)).await
    }

    fn watch_over(cluster: Cluster) -> io::Result<Self> {
        let Watched { url, watchdog, lease, .. } = cluster.watched()?;
        Ok(Self { url: url.into(), cluster, watchdog, _lease: lease })
    }

    /// What it wrote into its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.cluster.directory.join("log")).expect("the server's log")
    }

    /// From now on it is a primary itself, with a story of its own.
    pub async fn promote(&self) {
        let cluster = self.cluster.clone();
        on_a_thread(move || cluster.run("pg_ctl", &["promote", "--wait", "--silent"])).await;
    }

    /// Ends it as a crash would: connections break off, what was committed stays.
    pub async fn kill_immediate(&self) {
        let cluster = self.cluster.clone();
        on_a_thread(move || cluster.kill()).await;
    }

    /// It takes connections, as the kernel does that for it, and answers nothing.
    pub async fn hang(&self) {
        let cluster = self.cluster.clone();
        on_a_thread(move || cluster.signal(Signal::STOP)).await;
    }

    /// It answers again.
    pub async fn wake(&self) {
        let cluster = self.cluster.clone();
        on_a_thread(move || cluster.signal(Signal::CONT)).await;
    }

    /// Starts it again after `kill_immediate`, on the same port; returns once it takes connections.
    pub async fn restart(&self) {
        let cluster = self.cluster.clone();
        on_a_thread(move || cluster.start()).await;
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        // One that a test left hanging couldn't end.
        let _ = self.cluster.signal(Signal::CONT);
        let ended = kill_process(Pid::from_child(&self.watchdog), Signal::TERM)
            .map_err(io::Error::from)
            .and_then(|()| self.watchdog.wait());
        if let Err(error) = ended {
            eprintln!("a PostgreSQL server of the tests goes on: {error}");
        }
    }
}

/// A server and its files.
#[derive(Debug, Clone)]
struct Cluster {
    directory: PathBuf,
    port: u16,
    password: String,
}

impl Cluster {
    /// A new server, which takes connections already. Nobody stops it yet: see `watched`.
    fn start_new(settings: &str, files: &[(&str, String)]) -> io::Result<Self> {
        let cluster = Self::in_new_directory(Uuid::new_v4().simple().to_string())?;
        fs::write(cluster.directory.join("password"), &cluster.password)?;
        // md5, since with SCRAM each connection of an unoptimised client takes a long while.
        cluster.run(
            "initdb",
            &[
                "--username=postgres",
                "--pwfile=password",
                "--auth=md5",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ],
        )?;
        cluster.configure(SETTINGS)?;
        cluster.configure(settings)?;
        for (name, text) in files {
            cluster.write(name, text)?;
        }
        cluster.start_somewhere()
    }

    /// A copy of this server, which follows it.
    fn start_replica(&self) -> io::Result<Self> {
        let replica = Self::in_new_directory(self.password.clone())?;
        let primary = format!("--dbname={}", self.url());
        replica.run("pg_basebackup", &[&primary, "--write-recovery-conf", "--checkpoint=fast", "--no-sync"])?;
        replica.configure(REPLICA)?;
        replica.start_somewhere()
    }

    /// Nothing but a place for a server.
    fn in_new_directory(password: String) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("identity-postgres-").tempdir()?;
        if let Some(user) = unprivileged_user()? {
            chown(directory.path(), Some(user.uid), Some(user.gid))?;
        }
        Ok(Self { directory: directory.keep(), port: 0, password })
    }

    fn configure(&self, lines: &str) -> io::Result<()> {
        File::options().append(true).open(self.data().join("postgresql.conf"))?.write_all(lines.as_bytes())
    }

    /// A file that the server alone may read.
    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let path = self.data().join(name);
        let _ = fs::remove_file(&path);
        File::options().create_new(true).write(true).mode(0o600).open(&path)?.write_all(text.as_bytes())?;
        match unprivileged_user()? {
            Some(user) => chown(path, Some(user.uid), Some(user.gid)),
            None => Ok(()),
        }
    }

    /// Starts it on a port that is free.
    fn start_somewhere(mut self) -> io::Result<Self> {
        // Another process may take the port between finding and using it.
        for tries_left in (0..4).rev() {
            self.port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            match self.start() {
                Err(_) if tries_left > 0 => {}
                result => {
                    result?;
                    break;
                }
            }
        }
        Ok(self)
    }

    fn start(&self) -> io::Result<()> {
        self.run("pg_ctl", &["start", "--wait", "--silent", "--log=log", &format!("--options=-p {}", self.port)])
    }

    /// Without a shutdown: the next start recovers from the log.
    fn kill(&self) -> io::Result<()> {
        self.run("pg_ctl", &["stop", "--wait", "--silent", "--mode=immediate"])
    }

    /// Sends it to each process of the server, the one that starts the others first.
    fn signal(&self, signal: Signal) -> io::Result<()> {
        let note = fs::read_to_string(self.data().join("postmaster.pid"))?;
        let first = note.lines().next().and_then(|line| line.parse().ok()).ok_or(io::ErrorKind::NotFound)?;
        kill_process(Pid::from_raw(first).ok_or(io::ErrorKind::NotFound)?, signal)?;
        let children = fs::read_to_string(format!("/proc/{first}/task/{first}/children"))?;
        for child in children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
            // One may have ended since.
            let _ = kill_process(child, signal);
        }
        Ok(())
    }

    fn url(&self) -> Url {
        let url = format!("postgres://postgres:{}@127.0.0.1:{}/postgres", self.password, self.port);
        Url::parse(&url).expect("a URL of known parts")
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn watched(&self) -> io::Result<Watched> {
        let lease = take_lease(&self.directory)?;
        let pg_ctl = programs().ok_or(io::ErrorKind::NotFound)?.join("pg_ctl").display().to_string();
        let data = format!("--pgdata={}", self.data().display());
        let stop = [&pg_ctl, "stop", "--wait", "--silent", "--mode=immediate", &data];
        let watchdog = watch(self.command(Path::new("/bin/sh"))?, &self.directory, &stop)?;
        Ok(Watched { directory: self.directory.clone(), url: self.url(), watchdog, lease })
    }

    fn run(&self, program: &str, arguments: &[&str]) -> io::Result<()> {
        let program = programs().ok_or(io::ErrorKind::NotFound)?.join(program);
        let output = self.command(&program)?.args(arguments).arg("--pgdata=data").output()?;
        if output.status.success() {
            return Ok(());
        }
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(io::Error::other(format!("{}: {}\n{said}{log}", program.display(), output.status)))
    }

    fn command(&self, program: &Path) -> io::Result<Command> {
        let mut command = Command::new(program);
        command.current_dir(&self.directory).stdin(Stdio::null());
        if let Some(user) = unprivileged_user()? {
            command.uid(user.uid).gid(user.gid);
        }
        Ok(command)
    }
}

/// The folder of PostgreSQL's programs: from PATH, else Debian's, the newest version first.
fn programs() -> Option<PathBuf> {
    let path = setting("PATH").unwrap_or_default();
    let debian =
        fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    let mut debian: Vec<PathBuf> = debian.collect();
    debian.sort_by_key(|folder| {
        let version = folder.parent().and_then(Path::file_name).and_then(|name| name.to_str()?.parse::<u32>().ok());
        std::cmp::Reverse(version)
    });
    let mut folders = std::env::split_paths(&path).chain(debian);
    let all = ["initdb", "pg_basebackup", "pg_ctl", "postgres"];
    folders.find(|folder| all.iter().all(|program| folder.join(program).is_file()))
}

struct User {
    uid: u32,
    gid: u32,
}

/// Whom to run a server as; `None` means as we are. PostgreSQL refuses to run as root.
fn unprivileged_user() -> io::Result<Option<User>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let find = |name| {
        let mut fields =
            users.lines().map(|line| line.split(':')).find(|fields| fields.clone().next() == Some(name))?.skip(2);
        Some(User { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    };
    let user = find("postgres").or_else(|| find("nobody"));
    user.map(Some).ok_or_else(|| io::Error::other("as root, there has to be a user `postgres` or `nobody`"))
}
