//! The service once more, with an allocator that counts: for each line on standard input it prints how often memory was asked for so
//! far. `scripts/bench` runs it beside the release build, which stays as it is.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it talks to whoever started it")]

use std::{alloc::System, io::stdin, process::ExitCode, thread};

use clap::Parser;
use identity::cli::{Cli, Failure};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[tokio::main]
async fn main() -> ExitCode {
    thread::spawn(|| {
        for _ in stdin().lines() {
            let so_far = ALLOCATOR.stats();
            println!("allocations {}", so_far.allocations + so_far.reallocations);
        }
    });
    match Cli::parse().run().await {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Config(mistakes)) => eprintln!("{mistakes}"),
        Err(Failure::Other(error)) => eprintln!("{error}"),
    }
    ExitCode::FAILURE
}
