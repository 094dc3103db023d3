//! The log: for people on a terminal, as JSON otherwise.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

use crate::{
    config::{Log, LogFormat},
    error::Cause,
};

/// Starts the log, on standard error: standard output belongs to the commands.
///
/// # Errors
/// If a log was started before.
pub fn start(log: &Log) -> Result<(), Cause> {
    // The client of Redis says at each attempt what `redis.rs` says once; LOG_LEVEL may name it to hear it nevertheless.
    let filter = EnvFilter::try_new(format!("fred=off,{}", log.level))?;
    let on_terminal = std::io::stderr().is_terminal();
    let as_json = match log.format {
        LogFormat::Auto => !on_terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    // What can't be logged, where the disk is full, is lost: to say so on standard error would be a panic there.
    let subscriber =
        fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).log_internal_errors(false);
    if as_json {
        subscriber.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
    } else {
        subscriber.with_ansi(on_terminal).try_init()
    }
}
