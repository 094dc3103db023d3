//! What a run found, as it is written to `docs/performance.json`.

use std::{collections::BTreeMap, fs};

use serde::{Deserialize, Serialize};

use crate::{Outcome, measure::Round};

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub is_quick: bool,
    pub machine: Machine,
    pub calls: Vec<Compared>,
    pub lists: Vec<Listed>,
    pub imports: Vec<Import>,
    pub overload: Vec<Overload>,
    pub footprint: Vec<Footprint>,
    pub binary_mb: f64,
    pub targets: Vec<Target>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_gib: f64,
    pub kernel: String,
    pub date: String,
    pub commit: String,
}

/// One kind of call, beside the least that it could cost.
#[derive(Debug, Serialize, Deserialize)]
pub struct Compared {
    pub call: String,
    pub store: String,
    /// What it was measured beside.
    pub beside: String,
    /// How many call at once.
    pub at: usize,
    pub service: Figures,
    pub ceiling: Figures,
    /// Medians over the rounds, in which both had their turn.
    pub ratio_calls: f64,
    pub ratio_cpu: Option<f64>,
    pub allocations: Option<f64>,
    /// What the service has in memory afterwards.
    pub resident_mib: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figures {
    pub calls_per_sec: f64,
    pub cpu_us_per_call: Option<f64>,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
}

impl Figures {
    pub fn of(rounds: &[Round]) -> Self {
        let mut all: Vec<u32> = rounds.iter().flat_map(|round| round.latencies.iter().copied()).collect();
        all.sort_unstable();
        let cpu = median(rounds.iter().map(Round::cpu_us_per_call));
        Self {
            calls_per_sec: median(rounds.iter().map(Round::calls_per_sec)),
            cpu_us_per_call: (cpu > 0.0).then_some(cpu),
            p50_ms: percentile_ms(&all, 0.5),
            p99_ms: percentile_ms(&all, 0.99),
            p999_ms: percentile_ms(&all, 0.999),
        }
    }
}

/// A list of users, asked for by one caller after another.
#[derive(Debug, Serialize, Deserialize)]
pub struct Listed {
    pub what: String,
    pub path: String,
    /// `admin` or `user`: who asks.
    pub view: String,
    pub store: String,
    pub users: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Import {
    pub store: String,
    pub users: u64,
    pub secs: f64,
}

/// Ten times the logins that can be hashed, with reads beside them.
#[derive(Debug, Serialize, Deserialize)]
pub struct Overload {
    pub store: String,
    pub capacity_per_sec: f64,
    pub offered_per_sec: f64,
    pub done_per_sec: f64,
    pub shed_per_sec: f64,
    pub shed_p50_ms: f64,
    pub shed_p99_ms: f64,
    pub shed_max_ms: f64,
    pub reads_per_sec: f64,
    pub reads_p99_idle_ms: f64,
    pub reads_p99_ms: f64,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Footprint {
    pub store: String,
    pub cold_start_ms: f64,
    pub resident_mib: f64,
    /// After so many thousand warm reads each.
    pub resident_mib_after: BTreeMap<u64, f64>,
}

/// What was to be reached, and what was.
#[derive(Debug, Serialize, Deserialize)]
pub struct Target {
    pub what: String,
    pub wanted: String,
    pub found: String,
    pub is_met: bool,
}

impl Report {
    pub fn write(&self, path: &str) -> Outcome<()> {
        Ok(fs::write(path, serde_json::to_string_pretty(self)? + "\n")?)
    }

    pub fn read(path: &str) -> Outcome<Self> {
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }
}

/// The latency, in milliseconds, that this part of the calls (0 to 1) stays below.
pub fn percentile_ms(sorted: &[u32], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let index = (part * last as f64).round() as usize;
    sorted.get(index).map_or(0.0, |nanos| f64::from(*nanos) / 1e6)
}

pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}
