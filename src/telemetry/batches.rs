//! The lines of the log on their way out, many in one write: a write for each would be a good part of what a call costs. And no
//! call waits for whoever reads them.

use std::{
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// How long lines are gathered. What is lost of the log when the process is killed is no older.
const GATHER: Duration = Duration::from_millis(10);
/// So many bytes are enough for a write.
const ENOUGH_BYTES: usize = 64 * 1024;
/// How much may wait for somebody who doesn't read, in bytes. What comes then is lost, and counted.
const MAX_BYTES: usize = 4 << 20;
/// How long the end waits for what is left.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Where lines are put. Clones share it.
#[derive(Clone, Default)]
pub struct Batches(Arc<Shared>);

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    lost: u64,
    /// Somebody should hear of it at once.
    is_urgent: bool,
    is_ending: bool,
    has_ended: bool,
}

impl Shared {
    /// Nothing that panics runs under this lock.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while it is so, or until `bound`.
    fn wait<'a>(
        &self,
        waiting: MutexGuard<'a, Waiting>,
        bound: Duration,
        is_so: impl Fn(&Waiting) -> bool,
    ) -> MutexGuard<'a, Waiting> {
        let waited = self.changed.wait_timeout_while(waiting, bound, |waiting| is_so(waiting));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn write_to(&self, mut out: impl Write) {
        let (mut batch, mut is_torn, mut lost) = (Vec::new(), false, 0);
        loop {
            let mut waiting = self.lock();
            while waiting.lines.is_empty() && !waiting.is_ending {
                waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            let is_gathering =
                |waiting: &Waiting| !waiting.is_urgent && !waiting.is_ending && waiting.lines.len() < ENOUGH_BYTES;
            waiting = self.wait(waiting, GATHER, is_gathering);
            std::mem::swap(&mut waiting.lines, &mut batch);
            waiting.is_urgent = false;
            lost += std::mem::take(&mut waiting.lost);
            let is_last = batch.is_empty() && waiting.is_ending;
            drop(waiting);
            if is_torn && !batch.is_empty() {
                batch.insert(0, b'\n');
            }
            let (written, unwritten) = batch.split_at(write(&mut out, &batch));
            is_torn = written.last().map_or(is_torn, |last| *last != b'\n');
            let is_written = unwritten.is_empty();
            lost += unwritten.split(|byte| *byte == b'\n').skip(1).count() as u64;
            batch.clear();
            batch.shrink_to(ENOUGH_BYTES);
            if is_last {
                break;
            }
            // Said once lines get through again: it is a line as well.
            if lost > 0 && is_written {
                let lost = std::mem::take(&mut lost);
                tracing::error!(lost, "lines of the log were lost: nobody read them, or they could not be written");
            }
        }
        self.lock().has_ended = true;
        self.changed.notify_all();
    }
}

/// Writes what can be written, and says how many bytes that was. Whoever made the other end one that doesn't wait is waited for.
fn write(out: &mut impl Write, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match out.write(&bytes[written..]) {
            Ok(0) => break,
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::park_timeout(GATHER),
            Err(_) => break,
        }
    }
    written
}

impl Batches {
    /// Begins to write to `out`, in a thread.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<(Self, Flush)> {
        let batches = Self::default();
        let shared = Arc::clone(&batches.0);
        thread::Builder::new().name("log".to_owned()).spawn(move || shared.write_to(out))?;
        let flush = Flush(batches.clone());
        Ok((batches, flush))
    }

    fn put(&self, line: &[u8], is_urgent: bool) {
        let mut waiting = self.0.lock();
        if waiting.lines.len() + line.len() > MAX_BYTES {
            waiting.lost += 1;
            return;
        }
        let had = waiting.lines.len();
        waiting.lines.extend_from_slice(line);
        // The thread sleeps while there is nothing, and gathers while there is little.
        let wakes = had == 0
            || (is_urgent && !waiting.is_urgent)
            || (had < ENOUGH_BYTES && waiting.lines.len() >= ENOUGH_BYTES);
        waiting.is_urgent |= is_urgent;
        drop(waiting);
        if wakes {
            self.0.changed.notify_one();
        }
    }
}

/// Writes what is left when it is dropped, for two seconds at most. Lines that come later are lost.
pub struct Flush(Batches);

impl Drop for Flush {
    fn drop(&mut self) {
        let shared = &self.0.0;
        let mut waiting = shared.lock();
        waiting.is_ending = true;
        shared.changed.notify_all();
        drop(shared.wait(waiting, FLUSH_TIMEOUT, |waiting| !waiting.has_ended));
    }
}

/// One line.
pub struct Line<'a> {
    batches: &'a Batches,
    is_urgent: bool,
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.batches.put(line, self.is_urgent);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Batches {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { batches: self, is_urgent: true }
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> Line<'a> {
        Line { batches: self, is_urgent: *about.level() <= Level::WARN }
    }
}
