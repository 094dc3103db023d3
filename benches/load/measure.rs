//! What a round of calls cost: how many there were, how long each took, what the server's process computed meanwhile.

use std::{
    fs,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use crate::Outcome;

/// Whoever makes one call after the other, and waits for each answer: a closed loop.
pub trait Caller: Send + 'static {
    /// One call and its answer. Whatever is not the answer that was hoped for is an error.
    fn call(&mut self) -> impl Future<Output = Outcome<()>> + Send;

    /// One call after the other until then, and what each took, in nanoseconds.
    fn call_until(mut self, end: Instant) -> impl Future<Output = Outcome<(Self, Vec<u32>)>> + Send
    where
        Self: Sized,
    {
        async move {
            let mut latencies = Vec::with_capacity(1 << 12);
            let mut now = Instant::now();
            while now < end {
                self.call().await?;
                let after = Instant::now();
                latencies.push(nanos(after - now));
                now = after;
            }
            Ok((self, latencies))
        }
    }
}

/// What became of some seconds of calls.
#[derive(Debug, Default, Clone)]
pub struct Round {
    pub secs: f64,
    /// What each call took, in nanoseconds.
    pub latencies: Vec<u32>,
    /// What the server's process computed, where one is looked at.
    pub cpu_secs: f64,
}

impl Round {
    pub fn calls_per_sec(&self) -> f64 {
        self.latencies.len() as f64 / self.secs
    }

    pub fn cpu_us_per_call(&self) -> f64 {
        self.cpu_secs * 1e6 / self.latencies.len() as f64
    }
}

/// Has all callers call for `length`; `pid` is the process that answers.
pub async fn round<C: Caller>(callers: &mut Vec<C>, pid: Option<u32>, length: Duration) -> Outcome<Round> {
    let cpu_before = cpu(pid)?;
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for caller in callers.drain(..) {
        tasks.spawn(caller.call_until(began + length));
    }
    let mut round = Round::default();
    while let Some(done) = tasks.join_next().await {
        let (caller, latencies) = done??;
        callers.push(caller);
        round.latencies.extend(latencies);
    }
    round.secs = began.elapsed().as_secs_f64();
    round.cpu_secs = cpu(pid)? - cpu_before;
    Ok(round)
}

/// Has each caller make as many calls, and returns what they took.
pub async fn times<C: Caller>(callers: &mut Vec<C>, count: usize) -> Outcome<Round> {
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for mut caller in callers.drain(..) {
        tasks.spawn(async move {
            let mut latencies = Vec::with_capacity(count);
            for _ in 0..count {
                let now = Instant::now();
                caller.call().await?;
                latencies.push(nanos(now.elapsed()));
            }
            Outcome::Ok((caller, latencies))
        });
    }
    let mut round = Round::default();
    while let Some(done) = tasks.join_next().await {
        let (caller, latencies) = done??;
        callers.push(caller);
        round.latencies.extend(latencies);
    }
    round.secs = began.elapsed().as_secs_f64();
    Ok(round)
}

/// In nanoseconds, as far as they go: four seconds.
pub fn nanos(time: Duration) -> u32 {
    u32::try_from(time.as_nanos()).unwrap_or(u32::MAX)
}

/// Seconds that the process has computed so far, in all of its threads: exact, where /proc/PID/stat counts hundredths.
fn cpu(pid: Option<u32>) -> Outcome<f64> {
    let Some(pid) = pid else { return Ok(0.0) };
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may have ended since; those of the runtimes do so seldom.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanos += text.split(' ').next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(nanos as f64 / 1e9)
}

/// The memory that a process has in use, in MiB (`VmRSS`).
pub fn resident_mib(pid: u32) -> Outcome<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
