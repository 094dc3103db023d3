//! The service, as an operator runs it: the release build, a process of its own, with everything on that is on in production. Its
//! log is read through a pipe, as a container's is.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use identity::config::VARIABLES;

use crate::{Outcome, rest};

/// Limits that count every call and refuse none of the load.
const OUT_OF_REACH: &str = "1000000/1s";
/// How long the service may take to start, and to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where it lives, and its settings.
pub struct Installation {
    program: PathBuf,
    folder: PathBuf,
    settings: Vec<(String, String)>,
}

impl Installation {
    /// Over the database at this URL, and this Redis, if any, where `name` keeps it apart from others.
    pub fn new(
        program: &Path,
        folder: PathBuf,
        database_url: &str,
        redis_url: Option<&str>,
        name: &str,
    ) -> Outcome<Self> {
        fs::create_dir_all(&folder)?;
        let mut settings = vec![
            ("LISTEN_ADDR", "127.0.0.1:0"),
            ("DATABASE_URL", database_url),
            ("JWT_SECRET_KEY", "a key for measurements, 32 bytes or more of it"),
            // A run outlasts an hour at no time, but a token of the beginning is still used at the end.
            ("JWT_EXPIRATION_DELTA", "36000"),
            ("LOG_LEVEL", "info"),
            ("REDIS_PREFIX", name),
            ("RATE_LIMIT_API", OUT_OF_REACH),
            ("RATE_LIMIT_LOGIN", OUT_OF_REACH),
            ("RATE_LIMIT_REGISTER", OUT_OF_REACH),
        ];
        settings.extend(redis_url.map(|url| ("REDIS_URL", url)));
        let settings = settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok(Self { program: program.to_owned(), folder, settings })
    }

    /// The same, by another build of the program.
    pub fn by(self, program: PathBuf) -> Self {
        Self { program, ..self }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        // It ends with us, however we end. `setpriv`, of util-linux, becomes the program.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(&self.program);
        for variable in VARIABLES {
            command.env_remove(variable.name);
        }
        command.args(arguments).envs(self.settings.iter().cloned()).current_dir(&self.folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Has the program import these users, and returns how long that took.
    pub fn import(&self, lines: &Path) -> Outcome<Duration> {
        let began = Instant::now();
        let output = self.command(&["import"]).arg(lines).output()?;
        if output.status.success() {
            return Ok(began.elapsed());
        }
        Err(format!("the import: {}", String::from_utf8_lossy(&output.stderr)).into())
    }

    /// Starts the service. It answers once this returns.
    pub async fn start(&self) -> Outcome<Service> {
        let began = Instant::now();
        let mut child = self.command(&[]).spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().ok_or("no output")?);
        let stderr = child.stderr.take().ok_or("no log")?;
        let (sender, counts) = channel();
        let nowhere = ([127, 0, 0, 1], 0).into();
        let mut service = Service { address: nowhere, started_in: Duration::ZERO, child, counts };
        let log = thread::spawn(move || swallow(stderr));
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let Some(address) = line.trim().rsplit(' ').next().and_then(|address| address.parse().ok()) else {
            let said = log.join().unwrap_or_default();
            return Err(format!("the service doesn't start: {said}").into());
        };
        service.address = address;
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(count) = line.strip_prefix("allocations ").and_then(|count| count.parse().ok()) {
                    // Nobody may have asked for it.
                    let _ = sender.send(count);
                }
            }
        });
        let health = rest::Request { token: None, ..rest::Request::get("/api/health/", "") };
        let mut first = rest::RestCaller::same(address, health.bytes()).await?;
        while first.exchange().await? != 200 {
            if began.elapsed() > PATIENCE {
                return Err("the service isn't well".into());
            }
        }
        service.started_in = began.elapsed();
        Ok(service)
    }
}

/// Reads to the end, and returns the beginning of what came.
fn swallow(mut from: impl Read) -> String {
    let (mut buffer, mut beginning) = (vec![0; 65_536], Vec::new());
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if beginning.len() < 4096 {
            beginning.extend_from_slice(&buffer[..count]);
        }
    }
    String::from_utf8_lossy(&beginning).into_owned()
}

/// It runs until this is dropped.
pub struct Service {
    pub address: SocketAddr,
    /// From the start of the process to its first answer, which was that it is well.
    pub started_in: Duration,
    child: Child,
    /// What a build that counts says of its allocations.
    counts: Receiver<u64>,
}

impl Service {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How often it asked for memory so far, if it is the build that counts.
    pub fn allocations(&mut self) -> Outcome<u64> {
        self.child.stdin.as_mut().ok_or("no input")?.write_all(b"\n")?;
        Ok(self.counts.recv_timeout(PATIENCE)?)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // One that has ended already can't be killed, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
