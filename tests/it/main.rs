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
mod cli;
mod config;
mod examples;
mod harness;
mod limits;
mod migrations;
mod operations;
mod password;
mod profile;
mod registration;
mod revocations;
mod session;
mod shutdown;
mod token;
mod user;
mod verification;
