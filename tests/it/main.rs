//! The whole service, through its public faces. One binary, so that it links once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test may fail loudly, and say what it skips"
)]

mod avatar;
mod config;
mod harness;
mod migrations;
mod operations;
mod password;
mod session;
mod verification;
