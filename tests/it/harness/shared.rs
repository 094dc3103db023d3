//! Servers that all test processes of this checkout share (nextest makes one a test): the first that wants one starts it.
//!
//! Whoever uses a server holds a shared lock on the `lease` file in its directory, which the kernel lets go of when the
//! process ends, however it ends. A watchdog stops the server and removes its files once nobody has held the lease for half
//! a minute, or at once on SIGTERM; `scripts/test` sends that.

use std::{
    fs::File,
    io::{self, Seek, Write},
    net::{Ipv4Addr, TcpStream},
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tokio::task::spawn_blocking;
use url::Url;

use super::stores::shared_directory;

const WATCHDOG: &str = include_str!("watchdog.sh");

/// A server that runs, and its watchdog.
pub struct Watched {
    pub directory: PathBuf,
    pub url: Url,
    pub watchdog: Child,
    pub lease: File,
}

/// The URL of the server of this name, and a lease on it; `start` makes the server if there is none.
///
/// The file `name` tells where it is: the process id of its watchdog, its directory and its URL, a line each. The lock on
/// that file lets one process start it while the others wait.
pub fn join_or_start(name: &str, start: impl FnOnce() -> io::Result<Watched>) -> io::Result<(Url, File)> {
    let path = shared_directory().join(name);
    let mut note = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    note.lock()?;
    if let Some(server) = join(&io::read_to_string(&note)?) {
        return Ok(server);
    }
    let Watched { directory, url, watchdog, lease } = start()?;
    note.set_len(0)?;
    note.rewind()?;
    write!(note, "{}\n{}\n{url}\n", watchdog.id(), directory.display())?;
    Ok((url, lease))
}

/// `None` if the noted server is gone.
fn join(note: &str) -> Option<(Url, File)> {
    let mut lines = note.lines().skip(1);
    let (directory, url) = (Path::new(lines.next()?), Url::parse(lines.next()?).ok()?);
    // Waits while the watchdog is stopping the server. After that, there is neither server nor directory, or both stay.
    let lease = take_lease(directory).ok()?;
    let runs = directory.exists() && TcpStream::connect((Ipv4Addr::LOCALHOST, url.port()?)).is_ok();
    runs.then_some((url, lease))
}

/// Says that the server in this directory is used, for as long as the file is open.
pub fn take_lease(directory: &Path) -> io::Result<File> {
    let mut lease = File::options().create(true).append(true).open(directory.join("lease"))?;
    lease.lock_shared()?;
    // The watchdog goes by the time of the last write.
    lease.write_all(b".")?;
    Ok(lease)
}

/// Starts the process that ends the server by `stop`, a program and its arguments. `sh` runs it as the server's user. It has
/// a group of its own, so that a Ctrl-C for the tests doesn't reach it.
pub fn watch(mut sh: Command, directory: &Path, stop: &[&str]) -> io::Result<Child> {
    sh.args(["-c", WATCHDOG, "watchdog"]).arg(directory).args(stop);
    sh.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// Runs what blocks; a failure of it is the test's.
pub async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(Ok(value)) => value,
        Ok(Err(error)) => panic!("a server for the tests: {error}"),
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
