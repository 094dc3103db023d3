//! Loads the service, and beside it what nothing can be faster than on this machine. `scripts/bench` runs it.
//!
//! Each kind of call is measured beside its ceiling: a read beside a bare axum or tonic handler with the same answer, a change beside
//! a bare UPDATE on the same store, a login beside raw argon2. Both have their turn in short rounds, and what counts is the ratio.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures for people"
)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it talks to whoever started it")]

mod calls;
mod ceiling;
mod data;
mod footprint;
mod grpc;
mod lists;
mod machine;
mod measure;
mod overload;
mod page;
mod people;
mod plot;
mod report;
mod rest;
mod run;
mod service;
mod stores;
mod targets;

use std::{error::Error, fs, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use report::{Import, Report};
use run::{Plan, Run};
use service::Installation;
use stores::{Store, Stores};
use tokio::signal::{
    ctrl_c,
    unix::{SignalKind, signal},
};

/// That of the service: its ceilings are to have what it has.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A result, or why there is none, in words for whoever runs this.
pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const PAGE: &str = "docs/performance.md";
const JSON: &str = "docs/performance.json";
const PLOTS: &str = "docs/performance";

/// Loads the service, and beside it what nothing can be faster than.
#[derive(Parser)]
#[command(name = "scripts/bench")]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
struct Options {
    /// A thousand users and short rounds: some minutes.
    #[arg(long)]
    quick: bool,
    /// Ends with exit code 1 if a target is missed.
    #[arg(long)]
    check: bool,
    /// Leaves docs/performance* as they are.
    #[arg(long)]
    dry: bool,
    /// Measures nothing: writes the page and the plots anew from docs/performance.json.
    #[arg(long)]
    page: bool,
    /// Only these parts, as with --dry: reads, changes, hashes, overload, lists, footprint.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only on this store, as with --dry.
    #[arg(long)]
    store: Option<Store>,
    /// Another build of the service than the one that belongs to this.
    #[arg(long)]
    program: Option<PathBuf>,
    /// The build that counts its allocations.
    #[arg(long)]
    counted: Option<PathBuf>,
    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
    /// Serves prepared answers: the other process of this program.
    #[arg(long, hide = true)]
    ceiling: Option<PathBuf>,
}

impl Options {
    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == part)
    }

    fn stores(&self) -> Vec<Store> {
        self.store.map_or_else(|| vec![Store::Postgres, Store::Sqlite], |store| vec![store])
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let done = match &options.ceiling {
        Some(prepared) => ceiling::serve(prepared).await.map(|()| true),
        None => bench_unless_stopped(&options).await,
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Stopped by SIGINT or SIGTERM, it takes its servers and files with it.
async fn bench_unless_stopped(options: &Options) -> Outcome<bool> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = Box::pin(bench(options)) => return done,
        interrupted = ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    Err("stopped; nothing was written".into())
}

/// Whether all is as `--check` wants it.
async fn bench(options: &Options) -> Outcome<bool> {
    let mut report = if options.page { Report::read(JSON)? } else { measure(options).await? };
    report.targets = targets::judge(&report);
    println!();
    for target in &report.targets {
        let met = if target.is_met { "met   " } else { "MISSED" };
        println!("{met} {}: {}, found {}", target.what, target.wanted, target.found);
    }
    let is_whole = options.only.is_empty() && options.store.is_none();
    if is_whole && !options.dry {
        report.write(JSON)?;
        fs::create_dir_all(PLOTS)?;
        fs::write(format!("{PLOTS}/calls.svg"), plot::calls(&report)?)?;
        fs::write(format!("{PLOTS}/lists.svg"), plot::lists(&report)?)?;
        page::write(PAGE, &report)?;
    }
    Ok(!options.check || report.targets.iter().all(|target| target.is_met))
}

async fn measure(options: &Options) -> Outcome<Report> {
    let folder = tempfile::Builder::new().prefix("identity-bench-").tempdir()?;
    let stores = Stores::start(folder.path()).await?;
    // In full, as they run in folders of their own.
    let program =
        options.program.clone().unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_identity"))).canonicalize()?;
    let counted_program = options.counted.as_ref().map(|program| program.canonicalize()).transpose()?;
    let mut report = Report {
        is_quick: options.quick,
        machine: machine::this()?,
        binary_mb: fs::metadata(&program)?.len() as f64 / 1e6,
        ..Report::default()
    };
    let sizes: &[u64] = if options.quick { &[1000] } else { &[1000, 10_000, 100_000, 1_000_000] };
    for (&users, is_first) in sizes.iter().zip([true, false, false, false]) {
        if !is_first && !options.wants("lists") {
            break;
        }
        let lines = folder.path().join(format!("{users}.jsonl"));
        data::write(&lines, users)?;
        for store in options.stores() {
            let name = format!("users_{users}");
            let url = stores.database(store, &name).await?;
            let redis = (store == Store::Postgres).then_some(stores.redis_url.as_str());
            let home = folder.path().join(format!("{}_{name}", store.name()));
            let installation = Installation::new(&program, home, &url, redis, &name)?;
            let secs = installation.import(&lines)?.as_secs_f64();
            println!("{:<10} {users} users imported in {secs:.1} s", store.name());
            report.imports.push(Import { store: store.name().into(), users, secs });
            stores::tidy(store, &url).await?;
            if is_first && options.wants("footprint") {
                let reads = if options.quick { 100 } else { 1000 };
                footprint::measure(&mut report, store, &installation, reads).await?;
            }
            let service = installation.start().await?;
            let mut counted = match &counted_program {
                Some(program) if is_first => Some(installation.by(program.clone()).start().await?),
                _ => None,
            };
            let length = Duration::from_millis(if options.quick { 350 } else { 500 });
            let (plan, folder) = (Plan::new(options.quick, length), folder.path());
            let counted = counted.as_mut();
            let mut run = Run { plan: &plan, folder, store, service: &service, counted, report: &mut report };
            if is_first {
                calls(options, &mut run, &stores, users).await?;
            }
            if options.wants("lists") {
                lists::measure(&mut run, users).await?;
            }
        }
        fs::remove_file(lines)?;
    }
    Ok(report)
}

/// What doesn't depend on how many users there are.
async fn calls(options: &Options, run: &mut Run<'_>, stores: &Stores, users: u64) -> Outcome<()> {
    if options.wants("reads") {
        // Warm reads ask no store: on the second of them one look is enough.
        let once = Plan { at: vec![16], ..*run.plan };
        let plan = if run.store == Store::Postgres { run.plan } else { &once };
        let Run { folder, store, service, .. } = *run;
        let counted = run.counted.as_deref_mut();
        calls::reads(&mut Run { plan, folder, store, service, counted, report: run.report }).await?;
    }
    if options.wants("changes") {
        calls::changes(run, stores).await?;
    }
    // Longer rounds: a hash takes as long as a thousand reads.
    let plan = Plan::new(options.quick, Duration::from_secs(1));
    let Run { folder, store, service, .. } = *run;
    let mut run = Run { plan: &plan, folder, store, service, counted: None, report: run.report };
    let (wants_hashes, wants_overload) = (options.wants("hashes"), options.wants("overload"));
    if wants_hashes || wants_overload {
        calls::hashes(&mut run, users).await?;
    }
    if wants_overload {
        let of_hashes = run.report.calls.iter().filter(|c| c.beside == calls::HASH && c.store == run.store.name());
        let capacity = of_hashes.map(|c| c.service.calls_per_sec).reduce(f64::max).ok_or("nothing was hashed")?;
        let length = Duration::from_secs(if options.quick { 5 } else { 15 });
        overload::measure(&mut run, capacity, users, length).await?;
    }
    Ok(())
}
