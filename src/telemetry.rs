//! Logs: structured, to standard error, as JSON or for a person. Nothing secret is ever an argument of a log line.
//! Traces, where they are configured, go to a collector.

mod export;

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;

use crate::config::{Log, LogFormat, LogLevel};
pub use export::{Export, TracesError, traces};

/// Starts logging, once for the process.
pub fn start(log: &Log) {
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_target(false);
    // A second start (tests run several servers in a process) keeps the first.
    let _ = match log.format {
        LogFormat::Json => tracing::subscriber::set_global_default(builder.json().flatten_event(true).finish()),
        LogFormat::Human => tracing::subscriber::set_global_default(builder.finish()),
    };
}
