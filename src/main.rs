//! The program: its command line, and its exit code.
#![allow(clippy::print_stderr, reason = "the last word of a program that failed")]

use std::process::ExitCode;

use clap::Parser;
use identity::{
    cli::{Cli, Failure},
    error::Chain,
};

/// A call makes some forty small allocations. Chosen by measurement: `docs/performance.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Config(mistakes)) => {
            eprintln!("{mistakes}");
            ExitCode::from(2)
        }
        Err(Failure::Other(error)) => {
            eprintln!("identity: {}", Chain(&*error));
            ExitCode::FAILURE
        }
    }
}
