//! What is counted and measured, for Prometheus.
//!
//! Every metric has its name and its meaning here, once, in [`Metrics::new`]; `docs/metrics.md` is written from it. Whatever
//! counts owns its counters, and hands them to the registry: so nothing here is global, and two services in one process don't
//! mix. Values that are there anyway, such as the length of a queue, are read when somebody asks (`api/metrics.rs`); what takes
//! a query is asked for every few seconds (`domain/figures.rs`).
//!
//! For something new: a field here, a line in [`Metrics::new`], `docs/metrics.md` by `UPDATE_EXPECT=1`.

pub mod connections;
mod process;

use std::{
    fmt::{self, Write},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Metric, Registry},
};

pub use connections::Connections;
pub use process::Process;

/// Bounds of what takes from a millisecond to the longest deadline, in seconds.
const CALL_SECONDS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0];

/// A gauge of something that is no whole number.
pub type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;
type Timings<L> = Family<L, Histogram, fn() -> Histogram>;

/// All of them, and their registry.
pub struct Metrics {
    registry: Registry,
    described: Vec<Described>,
    pub calls: Calls,
    pub connections: Connections,
    pub figures: Figures,
    /// Read when somebody asks.
    pub readings: Readings,
}

/// A metric as the documentation names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    pub labels: &'static str,
    pub meaning: &'static str,
}

/// What the stores count.
pub struct Sources {
    pub transactions: Transactions,
    pub limits: Limits,
    pub hashing: Hashing,
    pub redis: Redis,
    pub cache: Cache,
}

/// Calls, by rpc and face.
#[derive(Clone)]
pub struct Calls {
    ended: Family<EndedLabels, Counter>,
    took: Timings<CallLabels>,
    in_flight: Family<CallLabels, Gauge>,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CallLabels {
    rpc: &'static str,
    face: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct EndedLabels {
    rpc: &'static str,
    face: &'static str,
    code: Code,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, Hash, PartialEq, Eq)]
pub enum Code {
    /// An HTTP status.
    Http(u16),
    /// The name of a gRPC status.
    Grpc(&'static str),
    /// The client went away.
    Cancelled,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(status) => write!(f, "{status}"),
            Self::Grpc(name) => f.write_str(name),
            Self::Cancelled => f.write_str("CANCELLED"),
        }
    }
}

impl EncodeLabelValue for Code {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        write!(encoder, "{self}")
    }
}

impl Calls {
    /// A call has come in.
    pub fn begin(&self, rpc: &'static str, face: &'static str) -> CallUnderWay {
        let in_flight = self.in_flight.get_or_create_owned(&CallLabels { rpc, face });
        in_flight.inc();
        CallUnderWay { calls: self.clone(), rpc, face, in_flight }
    }
}

/// A call that counts as under way until this is dropped.
pub struct CallUnderWay {
    calls: Calls,
    rpc: &'static str,
    face: &'static str,
    in_flight: Gauge,
}

impl CallUnderWay {
    /// It ended so, after this time.
    pub fn end(&self, code: Code, took: Duration) {
        let Self { calls, rpc, face, .. } = self;
        calls.ended.get_or_create(&EndedLabels { rpc, face, code }).inc();
        calls.took.get_or_create(&CallLabels { rpc, face }).observe(took.as_secs_f64());
    }
}

impl Drop for CallUnderWay {
    fn drop(&mut self) {
        self.in_flight.dec();
    }
}

/// Write transactions.
#[derive(Clone)]
pub struct Transactions {
    /// How long each waited to begin.
    pub waited: Histogram,
}

impl Default for Transactions {
    fn default() -> Self {
        Self { waited: call_histogram() }
    }
}

/// What the limiter said.
#[derive(Clone, Default)]
pub struct Limits {
    asked: Family<LimitLabels, Counter>,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LimitLabels {
    limit: &'static str,
    outcome: &'static str,
    counted: &'static str,
}

/// Where a count is kept.
#[derive(Debug, Clone, Copy)]
pub enum Counted {
    /// In this process.
    Here,
    /// In Redis, for all replicas.
    Shared,
}

impl Limits {
    /// This limit was asked, and let the attempt through or not.
    pub fn asked(&self, limit: &'static str, counted: Counted, is_allowed: bool) {
        let labels = LimitLabels {
            limit,
            outcome: if is_allowed { "allowed" } else { "refused" },
            counted: match counted {
                Counted::Here => "here",
                Counted::Shared => "shared",
            },
        };
        self.asked.get_or_create(&labels).inc();
    }
}

/// The threads that hash.
#[derive(Clone)]
pub struct Hashing {
    pub busy: Gauge,
    /// Jobs that found the queue full.
    pub refused: Counter,
    /// How long each job computed.
    pub took: Histogram,
}

impl Default for Hashing {
    fn default() -> Self {
        Self {
            busy: Gauge::default(),
            refused: Counter::default(),
            took: Histogram::new([0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]),
        }
    }
}

/// What was asked of Redis.
#[derive(Clone, Default)]
pub struct Redis {
    commands: Family<OutcomeLabel, Counter>,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// What became of a command to Redis.
#[derive(Debug, Clone, Copy)]
pub enum Asked {
    Answered,
    /// No answer in time, or an error.
    Failed,
    /// It wasn't sent: there is no connection, or the last command failed a moment ago.
    Spared,
}

impl Redis {
    pub fn asked(&self, outcome: Asked) {
        let outcome = match outcome {
            Asked::Answered => "answered",
            Asked::Failed => "failed",
            Asked::Spared => "spared",
        };
        self.commands.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}

/// Where what is shown of users was found.
#[derive(Clone)]
pub struct Cache {
    found: Family<FoundLabel, Counter>,
    pub in_memory: Counter,
    pub in_redis: Counter,
    pub in_database: Counter,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FoundLabel {
    found_in: &'static str,
}

impl Default for Cache {
    fn default() -> Self {
        let found = Family::<FoundLabel, Counter>::default();
        let level = |found_in| found.get_or_create_owned(&FoundLabel { found_in });
        Self {
            in_memory: level("memory"),
            in_redis: level("redis"),
            in_database: level("database"),
            found: found.clone(),
        }
    }
}

/// What the database is asked for every few seconds.
#[derive(Clone, Default)]
pub struct Figures {
    messages: Family<MessageLabels, Gauge>,
    oldest: Family<KindLabel, Seconds>,
    sessions: Family<[(&'static str, &'static str); 0], Gauge>,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MessageLabels {
    kind: &'static str,
    state: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

impl Figures {
    /// So many messages of this kind wait, the oldest for so long, and so many were given up.
    pub fn set_messages(&self, kind: &'static str, waiting: i64, oldest: Duration, given_up: i64) {
        self.messages.get_or_create(&MessageLabels { kind, state: "waiting" }).set(waiting);
        self.messages.get_or_create(&MessageLabels { kind, state: "given_up" }).set(given_up);
        self.oldest.get_or_create(&KindLabel { kind }).set(oldest.as_secs_f64());
    }

    /// Nobody knows how many messages there are: no figure is better than an old one.
    pub fn forget_messages(&self) {
        self.messages.clear();
        self.oldest.clear();
    }

    /// So many sessions stand, or nobody knows.
    pub fn set_sessions(&self, count: Option<i64>) {
        match count {
            Some(count) => {
                self.sessions.get_or_create(&[]).set(count);
            }
            None => self.sessions.clear(),
        }
    }
}

/// What is read when somebody asks.
#[derive(Clone, Default)]
pub struct Readings {
    connections: Family<ConnectionLabels, Gauge>,
    connections_max: Family<PoolLabel, Gauge>,
    pub hash_queue: Gauge,
    pub hash_queue_max: Gauge,
    pub hash_threads: Gauge,
    feed_entries: Family<KindLabel, Gauge>,
    pub feed_age: Seconds,
    redis_up: Family<[(&'static str, &'static str); 0], Gauge>,
    process: Process,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ConnectionLabels {
    pool: &'static str,
    state: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PoolLabel {
    pool: &'static str,
}

/// The connections of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    pub name: &'static str,
    /// Open ones, those that rest included.
    pub open: usize,
    pub idle: usize,
    pub max: usize,
}

impl Readings {
    pub fn set_pool(&self, pool: &Pool) {
        let connections = |state| self.connections.get_or_create_owned(&ConnectionLabels { pool: pool.name, state });
        connections("in_use").set(whole(pool.open.saturating_sub(pool.idle)));
        connections("idle").set(whole(pool.idle));
        self.connections_max.get_or_create(&PoolLabel { pool: pool.name }).set(whole(pool.max));
    }

    /// How many sessions that ended and users who changed are held.
    pub fn set_feed(&self, sessions: usize, users: usize) {
        self.feed_entries.get_or_create(&KindLabel { kind: "session" }).set(whole(sessions));
        self.feed_entries.get_or_create(&KindLabel { kind: "user" }).set(whole(users));
    }

    /// Whether Redis answers, where there should be one.
    pub fn set_redis(&self, answers: bool) {
        self.redis_up.get_or_create(&[]).set(answers.into());
    }
}

/// A count as a gauge takes it.
pub fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Metrics {
    /// Metrics of a process that runs since then (seconds of Unix time), with what its stores count.
    pub fn new(started_at: i64, sources: &Sources) -> Self {
        let Sources { transactions, limits, hashing, redis, cache } = sources;
        let calls = Calls {
            ended: Family::default(),
            took: Family::new_with_constructor(call_histogram),
            in_flight: Family::default(),
        };
        let figures = Figures::default();
        let readings = Readings::default();

        let mut all = Registrar { registry: Registry::default(), described: Vec::new() };
        all.add(
            &calls.ended,
            "identity_calls_total",
            "rpc, face, code",
            "Calls that ended, by how they ended: an HTTP status, the name of a gRPC status, or CANCELLED where the \
             client went away",
        );
        all.add(&calls.took, "identity_call_duration_seconds", "rpc, face", "How long calls took");
        all.add(&calls.in_flight, "identity_calls_in_flight", "rpc, face", "Calls under way");
        let connections = Connections::default();
        connections.register(&mut all);
        all.add(
            &readings.connections,
            "identity_database_connections",
            "pool, state",
            "Open connections to the database, in use or idle. SQLite has a pool that reads (read) and one that writes \
             (write); PostgreSQL has one for both (main), and with DATABASE_READ_URL another for the replica (replica)",
        );
        all.add(
            &readings.connections_max,
            "identity_database_connections_max",
            "pool",
            "How many connections the pool may open",
        );
        all.add(
            &transactions.waited,
            "identity_transaction_wait_seconds",
            "",
            "How long changes waited for their transaction: for a connection, and on SQLite for their turn to write",
        );
        all.add(
            &limits.asked,
            "identity_limit_checks_total",
            "limit, outcome, counted",
            "Attempts that a limit looked at, allowed or refused; counted here, or in Redis for all replicas at once \
             (shared). Calls are counted here, and settled with the other replicas later",
        );
        all.add(
            &cache.found,
            "identity_cache_reads_total",
            "found_in",
            "Accounts that were shown, by where they were found: memory, redis or database. What is not there is in none",
        );
        all.add(&readings.hash_threads, "identity_hash_threads", "", "Threads that hash passwords");
        all.add(&hashing.busy, "identity_hash_threads_busy", "", "Those that hash right now");
        all.add(&readings.hash_queue, "identity_hash_queue_length", "", "Passwords that wait for a thread");
        all.add(&readings.hash_queue_max, "identity_hash_queue_max", "", "How many passwords may wait");
        all.add(
            &hashing.refused,
            "identity_hash_refused_total",
            "",
            "Passwords that found the queue full: callers were told 503",
        );
        all.add(&hashing.took, "identity_hash_duration_seconds", "", "How long hashes took, without the wait");
        all.add(
            &figures.messages,
            "identity_outbox_messages",
            "kind, state",
            "Messages that wait or were given up, in the whole installation",
        );
        all.add(&figures.oldest, "identity_outbox_oldest_seconds", "kind", "Age of the oldest message that waits");
        all.add(&figures.sessions, "identity_sessions", "", "Sessions that stand, in the whole installation");
        all.add(
            &readings.feed_entries,
            "identity_feed_entries",
            "kind",
            "Sessions that ended, and users who changed, as long as tokens or kept values of before are left",
        );
        all.add(
            &readings.feed_age,
            "identity_feed_age_seconds",
            "",
            "Time since the feed of changes was read; beyond 5 s no token is let in",
        );
        all.add(&readings.redis_up, "identity_redis_up", "", "1 if Redis answers, 0 if not; absent where none is set");
        all.add(
            &redis.commands,
            "identity_redis_commands_total",
            "outcome",
            "Commands to Redis: answered, failed (mostly no answer within REDIS_TIMEOUT_MS), or spared while it was away",
        );
        readings.process.register(started_at, &mut all);
        let build = Family::<[(&'static str, &'static str); 1], Gauge>::default();
        build.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
        all.add(&build, "identity_build_info", "version", "The release that runs; always 1");
        let Registrar { registry, described } = all;
        Self { registry, described, calls, connections, figures, readings }
    }

    /// Every metric, in the order in which they are explained.
    pub fn described(&self) -> &[Described] {
        &self.described
    }

    /// The text that Prometheus reads (`OpenMetrics` 1.0).
    ///
    /// # Errors
    /// None that anybody knows of: it writes into memory.
    pub fn render(&self) -> Result<String, fmt::Error> {
        self.readings.process.read();
        let mut text = String::with_capacity(16 * 1024);
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Puts metrics into the registry, and remembers what they are.
struct Registrar {
    registry: Registry,
    described: Vec<Described>,
}

impl Registrar {
    fn add(&mut self, metric: &(impl Metric + Clone), name: &'static str, labels: &'static str, meaning: &'static str) {
        // The format puts it at the end of each counter's name by itself.
        let registered = name.strip_suffix("_total").unwrap_or(name);
        self.registry.register(registered, meaning, metric.clone());
        let kind = metric.metric_type().as_str().to_owned();
        self.described.push(Described { name, kind, labels, meaning });
    }
}

fn call_histogram() -> Histogram {
    Histogram::new(CALL_SECONDS)
}
