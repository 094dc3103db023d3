//! Redis servers of the tests' own, on free ports of the loopback, with nothing on disk. One is shared by all services over
//! PostgreSQL (see `shared`), each under its own prefix. A test that takes one down has it for itself, and that one ends with
//! the test, however it ends. `TEST_REDIS_URL` names a server to share instead.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, TryRecvError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{sync::OnceCell, time::sleep};
use url::Url;
use uuid::Uuid;

use super::{
    shared::{Watched, join_or_start, on_a_thread, take_lease, watch},
    skip,
    stores::setting,
};

/// How long a server may take to start.
const STARTS_WITHIN: Duration = Duration::from_secs(10);

/// The URL of the server that all tests share; `None`, which is said once, where there is no Redis to start.
async fn shared_server() -> Option<&'static Url> {
    struct Server {
        url: Url,
        /// Held until the process ends.
        _lease: Option<File>,
    }
    static SERVER: OnceCell<Option<Server>> = OnceCell::const_new();
    let server = SERVER.get_or_init(async || {
        if let Some(url) = setting("TEST_REDIS_URL") {
            return Some(Server { url: Url::parse(&url).expect("TEST_REDIS_URL is a URL"), _lease: None });
        }
        let program = program_or_skip()?;
        let (url, lease) = on_a_thread(move || join_or_start("redis", || start_shared(program))).await;
        Some(Server { url, _lease: Some(lease) })
    });
    server.await.as_ref().map(|server| &server.url)
}

/// The settings for a place of its own on the server that all tests share; none where there is no Redis.
pub async fn place() -> Vec<(String, String)> {
    let Some(url) = shared_server().await else { return Vec::new() };
    let prefix = format!("test-{}", Uuid::new_v4().simple());
    // On a busy machine an answer may be late; what becomes of a late one is tested elsewhere.
    let patience = ("REDIS_TIMEOUT_MS".into(), "1000".into());
    vec![("REDIS_URL".into(), url.to_string()), ("REDIS_PREFIX".into(), prefix), patience]
}

fn start_shared(program: &str) -> io::Result<Watched> {
    let directory = tempfile::Builder::new().prefix("identity-redis-").tempdir()?;
    let lease = take_lease(directory.path())?;
    // Another process may take the port between finding and using it.
    for _ in 0..4 {
        let port = free_port();
        let mut command = Command::new(program);
        // It outlives this process, and a Ctrl-C for it.
        let mut server = arguments(&mut command, port).current_dir(&directory).process_group(0).spawn()?;
        if answers(port, &mut server) {
            let directory = directory.keep();
            let stop = ["kill", "-KILL", &server.id().to_string()];
            let watchdog = watch(Command::new("/bin/sh"), &directory, &stop)?;
            let url = Url::parse(&format!("redis://127.0.0.1:{port}")).expect("a URL of known parts");
            return Ok(Watched { directory, url, watchdog, lease });
        }
        let _ = server.kill();
        server.wait()?;
    }
    Err(io::Error::other(format!("{program} doesn't start")))
}

/// A server for one test.
#[derive(Debug)]
pub struct PrivateRedis {
    port: u16,
    pid: Option<Pid>,
}

impl PrivateRedis {
    /// `None` where there is no Redis to start; the test is to be skipped then.
    pub async fn start() -> Option<Self> {
        let program = program_or_skip()?;
        // Another process may take the port between finding and using it.
        for _ in 0..4 {
            let port = free_port();
            if let Some(pid) = run(program, port).await {
                return Some(Self { port, pid: Some(pid) });
            }
        }
        panic!("{program} doesn't start");
    }

    /// What the service takes as `REDIS_URL`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Ends it at once, with all that it held.
    pub async fn kill(&mut self) {
        kill_process(self.pid.take().unwrap(), Signal::KILL).unwrap();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Starts it again after `kill`, empty, on the same port.
    pub async fn restart(&mut self) {
        self.pid = Some(run(program().unwrap(), self.port).await.expect("the port is free again"));
    }

    /// It stays connected and answers nothing.
    pub fn hang(&self) {
        kill_process(self.pid.unwrap(), Signal::STOP).unwrap();
    }

    /// It answers again.
    pub fn wake(&self) {
        kill_process(self.pid.unwrap(), Signal::CONT).unwrap();
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        if let Some(pid) = self.pid.take() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Starts a server that ends with this process, and returns once it takes connections; `None` if it ended instead.
async fn run(program: &'static str, port: u16) -> Option<Pid> {
    // The signal comes when the thread ends that started the server: this one ends after it.
    let (tell, told) = mpsc::channel();
    thread::spawn(move || -> io::Result<()> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", program]);
        let mut server = arguments(&mut command, port).spawn()?;
        let runs = answers(port, &mut server);
        let _ = tell.send(runs.then(|| Pid::from_child(&server)));
        server.wait()?;
        Ok(())
    });
    loop {
        match told.try_recv() {
            Ok(pid) => return pid,
            Err(TryRecvError::Empty) => sleep(Duration::from_millis(5)).await,
            Err(TryRecvError::Disconnected) => panic!("setpriv, of util-linux, is there"),
        }
    }
}

fn arguments(command: &mut Command, port: u16) -> &mut Command {
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
    command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

/// Waits until the server takes connections; not so if it ends instead.
#[expect(clippy::disallowed_methods, reason = "its callers have a thread for it")]
fn answers(port: u16, server: &mut Child) -> bool {
    let since = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if since.elapsed() > STARTS_WITHIN || !matches!(server.try_wait(), Ok(None)) {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// What starts a server; `None`, which is said, where there is none: the test is to be skipped then.
#[track_caller]
pub fn program_or_skip() -> Option<&'static str> {
    if program().is_none() {
        skip("there is no `redis-server`; `scripts/test` installs it");
    }
    program()
}

/// What starts a server, if it is there.
fn program() -> Option<&'static str> {
    ["redis-server", "valkey-server"].into_iter().find(|program| {
        let known = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        known.is_ok_and(|status| status.success())
    })
}
