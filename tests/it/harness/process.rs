//! The program as an operator runs it: a process of its own, with a working directory, an environment and an exit code.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::Duration,
};

use identity::config::VARIABLES;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};

use super::{Actor, stores::setting};

/// How long anything may take that takes no time to speak of, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(30);

/// A folder to run the program in, and the settings that it gets there. The folder goes with this.
pub struct Installation {
    folder: TempDir,
    settings: Vec<(String, String)>,
    /// A command that becomes the service.
    starter: Vec<String>,
    /// Where the log goes, if not into the folder.
    log: Option<File>,
}

/// What a command left behind.
#[derive(Debug)]
pub struct Ended {
    /// `None` if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }
}

impl Installation {
    /// An empty folder and no settings, but for a free port of the loopback.
    pub fn new() -> Self {
        Self::with(&[])
    }

    pub fn with(settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::Builder::new().prefix("identity-test-").tempdir().expect("a folder to run in");
        let mut installation = Self { folder, settings: Vec::new(), starter: Vec::new(), log: None };
        installation.set("LISTEN_ADDR", "127.0.0.1:0");
        for (name, value) in settings {
            installation.set(name, value);
        }
        installation
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(other, _)| other != name);
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    /// Starts the service by this command, which gets the program as its last argument and becomes it.
    pub fn start_by(&mut self, starter: &[&str]) {
        self.starter = starter.iter().map(|&word| word.to_owned()).collect();
    }

    /// Has the service say to this file what it says on standard error.
    pub fn log_to(&mut self, file: File) {
        self.log = Some(file);
    }

    /// The working directory.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the service says on standard error, restart after restart.
    fn log(&self) -> PathBuf {
        self.folder().join("log")
    }

    /// `program`, in this folder and with these settings: none of ours come from whoever runs the tests.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for variable in VARIABLES {
            command.env_remove(variable.name);
        }
        command.envs(self.settings.iter().cloned()).current_dir(self.folder());
        command
    }

    /// Runs `identity` with these arguments to its end.
    pub async fn run(&self, arguments: &[&str]) -> Ended {
        self.run_with_input(arguments, "").await
    }

    /// The same, with a text on standard input.
    pub async fn run_with_input(&self, arguments: &[&str], input: &str) -> Ended {
        let mut command = self.command(&program());
        command.args(arguments);
        run(command, input).await
    }

    /// Starts the service, and waits for it to say where it listens.
    pub async fn serve(&self) -> Serving<'_> {
        let stderr = File::options().create(true).append(true).open(self.log()).expect("a file for the log");
        let stderr = self.log.as_ref().map_or(stderr, |log| log.try_clone().expect("a file is open"));
        let program = program();
        let words: Vec<_> = self.starter.iter().chain([&program]).collect();
        let mut child = self
            .command(words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("the program starts");
        let stdout = child.stdout.take().expect("it is piped");
        // Made now, so that the process ends even if it has nothing to say.
        let mut serving =
            Serving { installation: self, child, address: ([127, 0, 0, 1], 0).into(), greeting: String::new() };
        let (sender, greeting) = oneshot::channel();
        thread::spawn(move || read(stdout, sender));
        let greeting = timeout(PATIENCE, greeting)
            .await
            .unwrap_or_else(|_| panic!("the service says nothing: {}", serving.log()))
            .unwrap();
        let address = greeting.lines().next().and_then(|line| line.rsplit(' ').next()?.parse().ok());
        serving.address = address.unwrap_or_else(|| panic!("no address in {greeting:?}; {}", serving.log()));
        serving.greeting = greeting;
        serving
    }
}

/// The program: the one that was built with the tests, or, in `TEST_PROGRAM`, another build of the same.
fn program() -> String {
    setting("TEST_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_identity").to_owned())
}

/// Hands on what it says, up to the last line of the greeting or up to its end; then goes on reading, so that it never
/// has to wait for a reader.
fn read(stdout: ChildStdout, greeting: oneshot::Sender<String>) {
    let (mut stdout, mut text) = (BufReader::new(stdout), String::new());
    while stdout.read_line(&mut text).expect("lines of text") > 0 {
        if text.lines().last().is_some_and(|line| line.trim_start().starts_with("docs")) {
            break;
        }
    }
    if greeting.send(text).is_ok() {
        let _ = io::copy(&mut stdout, &mut io::sink());
    }
}

/// Runs a command to its end.
pub async fn run(command: Command, input: &str) -> Ended {
    run_within(PATIENCE, command, input).await
}

/// Runs a command to its end, which must come within `bound`.
pub async fn run_within(bound: Duration, mut command: Command, input: &str) -> Ended {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let pid = Pid::from_child(&child);
    // A program that doesn't read its input may have closed it.
    let _ = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
    let Ok(output) = timeout(bound, spawn_blocking(|| child.wait_with_output())).await else {
        let _ = kill_process(pid, Signal::KILL);
        panic!("{command:?} doesn't end");
    };
    let output = output.unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).expect("text in UTF-8");
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A service that runs in its installation's folder. It is killed when this is dropped.
pub struct Serving<'a> {
    installation: &'a Installation,
    child: Child,
    pub address: SocketAddr,
    /// What it said on standard output.
    pub greeting: String,
}

impl Serving<'_> {
    pub fn anonymous(&self) -> Actor {
        Actor::new(self.address)
    }

    /// What it and those before it in this folder said on standard error.
    #[expect(clippy::disallowed_methods, reason = "it waits for another process, in a test")]
    pub fn log(&self) -> String {
        // Lines are gathered for 10 ms; the machine may be busy.
        std::thread::sleep(Duration::from_millis(100));
        fs::read_to_string(self.installation.log()).expect("the log")
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it runs");
    }

    /// Its exit code, if it ends by itself within `bound`.
    pub async fn exit_code(&mut self, bound: Duration) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status.code();
            }
            assert!(begun.elapsed() < bound, "it still runs after {bound:?}: {}", self.log());
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Asks it to stop, and waits until it has.
    pub async fn stop(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.exit_code(PATIENCE).await, Some(0), "{}", self.log());
    }

    /// Ends it without a word.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("a child of ours");
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        // One that has ended already can't be killed, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program beside the service that tells what it sees, line by line. It is killed when this is dropped.
pub struct Peer {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Peer {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the program starts");
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, lines) = mpsc::channel(100);
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.blocking_send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines }
    }

    /// The next line; panics if none comes within `bound`.
    pub async fn line(&mut self, bound: Duration) -> String {
        let line = timeout(bound, self.lines.recv()).await.unwrap_or_else(|_| panic!("it says nothing for {bound:?}"));
        line.expect("it still runs")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // One that has ended already can't be killed, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
