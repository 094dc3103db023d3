//! The threads that hash passwords: a hash takes milliseconds of pure computing, too long for the threads that serve.
//!
//! They run at lower priority, so that other calls stay quick, and behind a bounded queue, so that a flood of logins is
//! refused instead of piling up.

use std::{
    collections::VecDeque,
    io,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::Instant,
};

use argon2::Block;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::Instrument;

use crate::{
    error::{Dependency, Error, Result},
    metrics::Hashing,
    trace,
};

/// What is added to the niceness of a hashing thread.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// A handle to the hashing threads. Clones are handles to the same threads, which end with the last of them.
#[derive(Clone)]
pub struct HashPool {
    handle: Arc<Handle>,
}

/// The right to have something hashed. Whoever means to do more for a hash takes one before all else: so those for whom there is none
/// learn it at once, and take nothing from those for whom there is.
pub struct Place {
    handle: Arc<Handle>,
    /// A job holds it as well while it runs.
    taken: Arc<OwnedSemaphorePermit>,
}

/// The memory of one hashing thread, kept from job to job: none before the first that needs some.
#[derive(Default)]
pub struct Scratch {
    blocks: Vec<Block>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// As many as can be waited for and worked on.
    places: Arc<Semaphore>,
    capacity: usize,
    threads: usize,
    metrics: Hashing,
}

struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

struct Job {
    /// Dead once nobody waits for the result.
    place: Weak<OwnedSemaphorePermit>,
    work: Work,
}

type Work = Box<dyn FnOnce(&mut Scratch) + Send>;

/// What the clones of a pool share, and its threads don't: its end is theirs.
struct Handle {
    shared: Arc<Shared>,
}

impl HashPool {
    /// Starts `threads` threads, for which at most `capacity` jobs may wait (both at least one).
    ///
    /// # Errors
    /// The system's, if it refuses a thread.
    pub fn start(threads: usize, capacity: usize) -> io::Result<Self> {
        let queue = Mutex::new(Queue { jobs: VecDeque::new(), closed: false });
        let (threads, capacity) = (threads.max(1), capacity.max(1));
        let places = Arc::new(Semaphore::new(threads + capacity));
        let (changed, metrics) = (Condvar::new(), Hashing::default());
        let shared = Arc::new(Shared { queue, changed, places, capacity, threads, metrics });
        // Made first: should a thread be refused, those before it end.
        let pool = Self { handle: Arc::new(Handle { shared: shared.clone() }) };
        for number in 0..threads {
            let shared = shared.clone();
            thread::Builder::new().name(format!("hash-{number}")).spawn(move || shared.work())?;
        }
        Ok(pool)
    }

    /// A place, for as long as it is kept.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if all are taken.
    pub fn place(&self) -> Result<Place> {
        let Ok(permit) = Arc::clone(&self.handle.shared.places).try_acquire_owned() else {
            self.handle.shared.metrics.refused.inc();
            return Err(Error::Unavailable { what: Dependency::PasswordHashing, cause: None });
        };
        Ok(Place { handle: Arc::clone(&self.handle), taken: Arc::new(permit) })
    }

    /// The number of jobs that wait for a thread.
    pub fn queued(&self) -> usize {
        self.handle.shared.queue().jobs.len()
    }

    /// The number of jobs that may wait.
    pub fn capacity(&self) -> usize {
        self.handle.shared.capacity
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.handle.shared.threads
    }

    pub fn metrics(&self) -> &Hashing {
        &self.handle.shared.metrics
    }
}

impl Place {
    /// What `job` returns, once a thread has run it; then others have the place. If the returned future is dropped before a thread took
    /// the job, it never runs.
    ///
    /// # Errors
    /// [`Error::Internal`] if the job panicked.
    pub async fn run<T: Send + 'static>(self, job: impl FnOnce(&mut Scratch) -> T + Send + 'static) -> Result<T> {
        let (sender, result) = oneshot::channel();
        let work = Box::new(move |scratch: &mut Scratch| {
            // A caller who left meanwhile doesn't want it.
            let _ = sender.send(job(scratch));
        });
        self.handle.shared.submit(Job { place: Arc::downgrade(&self.taken), work });
        // The sender is lost only in a panic. Its message is not repeated: it might quote a password.
        let result = result.instrument(trace::of_part("hash")).await;
        result.map_err(|_| Error::internal("a job on a hashing thread panicked"))
    }
}

impl Scratch {
    /// `count` blocks (of 1 KiB) with any content. They are kept until the thread ends.
    pub fn blocks(&mut self, count: usize) -> &mut [Block] {
        if let Some(more) = count.checked_sub(self.blocks.len()) {
            self.blocks.reserve_exact(more);
            self.blocks.resize(count, Block::new());
        }
        &mut self.blocks[..count]
    }

    /// The memory held, in bytes.
    pub fn kept_bytes(&self) -> usize {
        self.blocks.capacity() * Block::SIZE
    }
}

impl Shared {
    fn submit(&self, job: Job) {
        let mut queue = self.queue();
        if queue.jobs.len() >= self.capacity {
            // Those who left, whose places others have by now.
            queue.jobs.retain(Job::is_wanted);
        }
        queue.jobs.push_back(job);
        self.changed.notify_one();
    }

    /// The life of one thread.
    fn work(&self) {
        lower_priority();
        let mut scratch = Scratch::default();
        while let Some((work, place)) = self.next() {
            self.metrics.busy.inc();
            let began = Instant::now();
            if panic::catch_unwind(AssertUnwindSafe(|| work(&mut scratch))).is_err() {
                scratch = Scratch::default();
            }
            drop(place); // Not before: its thread is busy until now, whether anybody waits or not.
            self.metrics.took.observe(began.elapsed().as_secs_f64());
            self.metrics.busy.dec();
        }
    }

    /// The next job that somebody waits for, and its place; `None` once the pool is closed.
    fn next(&self) -> Option<(Work, Arc<OwnedSemaphorePermit>)> {
        let mut queue = self.queue();
        loop {
            match queue.jobs.pop_front() {
                Some(Job { place, work }) => {
                    if let Some(place) = place.upgrade() {
                        return Some((work, place));
                    }
                }
                None if queue.closed => return None,
                None => queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Nothing that panics runs under this lock, so that a poisoned one is as good as any.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job {
    fn is_wanted(&self) -> bool {
        self.place.strong_count() > 0
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.changed.notify_all();
    }
}

/// Makes the calling thread yield to those that serve. Only Linux gives each thread a priority of its own; a system that
/// refuses leaves it as it is.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    {
        let this = Some(rustix::thread::gettid());
        let lowered = rustix::process::getpriority_process(this)
            .and_then(|priority| rustix::process::setpriority_process(this, priority + NICENESS));
        if let Err(error) = lowered {
            tracing::debug!(%error, "hashing threads keep the priority of the others");
        }
    }
}
