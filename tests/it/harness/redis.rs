//! Redis servers of the tests' own: each on a free port of the loopback, with nothing on disk. One ends with the test that
//! started it, however that ends.

use std::{
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;

use super::skip;

/// How long a server may take to start.
const STARTS_WITHIN: Duration = Duration::from_secs(10);

/// A server for one test.
#[derive(Debug)]
pub struct PrivateRedis {
    port: u16,
    pid: Option<Pid>,
}

impl PrivateRedis {
    /// `None` where there is no Redis to start; the test is to be skipped then.
    pub async fn start() -> Option<Self> {
        let Some(program) = ["redis-server", "valkey-server"].into_iter().find(|name| is_there(name)) else {
            skip("there is no `redis-server`; `scripts/test` installs it");
            return None;
        };
        // Another process may take the port between finding and using it.
        for _ in 0..4 {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
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
        let program = if is_there("redis-server") { "redis-server" } else { "valkey-server" };
        self.pid = Some(run(program, self.port).await.expect("the port is free again"));
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

/// Starts a server, and returns once it takes connections; `None` if it ended instead.
async fn run(program: &str, port: u16) -> Option<Pid> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program, "--port", &port.to_string(), "--bind", "127.0.0.1"]);
    command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // The signal comes when the thread ends that started the server: this one ends after it.
    let (tell, told) = mpsc::channel();
    thread::spawn(move || -> io::Result<()> {
        let mut child = command.spawn()?;
        let _ = tell.send(Pid::from_child(&child));
        child.wait()?;
        Ok(())
    });
    let pid = told.recv().expect("setpriv, of util-linux, is there");
    let since = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if since.elapsed() > STARTS_WITHIN {
            return None;
        }
        sleep(Duration::from_millis(5)).await;
    }
    Some(pid)
}

fn is_there(program: &str) -> bool {
    let known = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    known.is_ok_and(|status| status.success())
}
