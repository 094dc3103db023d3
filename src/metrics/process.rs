//! The process itself, under the names that Prometheus has for it. Linux tells in `/proc` (proc(5)); elsewhere there are none.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use super::Registrar;

/// What the system says of this process.
#[derive(Clone, Default)]
pub struct Process {
    resident_memory: Gauge,
    cpu: Counter<f64, AtomicU64>,
    open_fds: Gauge,
    max_fds: Gauge,
    threads: Gauge,
    start_time: Gauge,
}

impl Process {
    /// The process runs since then, in seconds of Unix time.
    pub(super) fn register(&self, started_at: i64, all: &mut Registrar) {
        self.start_time.set(started_at);
        all.add(&self.resident_memory, "process_resident_memory_bytes", "", "Memory in use");
        all.add(&self.cpu, "process_cpu_seconds_total", "", "Time on the cores, of all threads");
        all.add(&self.open_fds, "process_open_fds", "", "Open files and sockets");
        all.add(&self.max_fds, "process_max_fds", "", "How many may be open");
        all.add(&self.threads, "process_threads", "", "Threads");
        let meaning = "When the process started, in seconds of Unix time";
        all.add(&self.start_time, "process_start_time_seconds", "", meaning);
    }

    /// Asks the system; what it doesn't tell stays as it was.
    pub(super) fn read(&self) {
        if let Some(Stat { cpu_seconds, threads, resident_bytes }) = stat() {
            self.cpu.inner().store(cpu_seconds.to_bits(), Ordering::Relaxed);
            self.threads.set(threads);
            self.resident_memory.set(resident_bytes);
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // Less the one that reads.
            self.open_fds.set(super::whole(open.count().saturating_sub(1)));
        }
        if let Some(max) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
            self.max_fds.set(i64::try_from(max).unwrap_or(i64::MAX));
        }
    }
}

struct Stat {
    cpu_seconds: f64,
    threads: i64,
    resident_bytes: i64,
}

fn stat() -> Option<Stat> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name in brackets may hold anything; the third field follows it.
    let fields: Vec<_> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<i64>().ok();
    let ticks = u64::try_from(number(14)? + number(15)?).ok()?;
    let cpu = Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second());
    Some(Stat {
        cpu_seconds: cpu.as_secs_f64(),
        threads: number(20)?,
        resident_bytes: number(24)? * i64::try_from(rustix::param::page_size()).ok()?,
    })
}
