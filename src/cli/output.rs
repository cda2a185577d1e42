//! Printing: tables for a person, JSON for a program; errors on standard error in either form.

use std::fs::OpenOptions;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use prost_types::Timestamp;
use serde_json::{Value, json};

use super::Format;
use super::error::CliError;
use crate::clock::UnixMillis;
use crate::grpc::proto;

/// Prints answers in the form that was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Printer(Format);

impl Printer {
    pub(super) fn new(format: Format) -> Self {
        Self(format)
    }

    pub(super) fn is_json(self) -> bool {
        self.0 == Format::Json
    }

    /// One answer: the object, or the text for a person.
    pub(super) fn answer(self, object: &Value, human: impl FnOnce() -> String) -> Result<(), CliError> {
        match self.0 {
            Format::Json => self.text(&serde_json::to_string_pretty(object).map_err(std::io::Error::from)?),
            Format::Human => self.text(human().trim_end()),
        }
    }

    /// One of many answers: an object a line.
    pub(super) fn line(self, object: &Value, human: impl FnOnce() -> String) -> Result<(), CliError> {
        match self.0 {
            Format::Json => self.text(&object.to_string()),
            Format::Human => self.text(&human()),
        }
    }

    pub(super) fn text(self, text: &str) -> Result<(), CliError> {
        match writeln!(std::io::stdout().lock(), "{text}") {
            // Whoever reads has seen enough (`| head`): there is nothing left to do, and nothing went wrong.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
            done => done.map_err(CliError::from),
        }
    }

    /// Something beside the answer, for a person alone.
    pub(super) fn note(self, text: &str) {
        if self.0 == Format::Human {
            say(text);
        }
    }
}

/// Asks a person; anything but `yes` or `y` is no.
pub(super) fn confirm(question: &str) -> Result<bool, CliError> {
    say(&format!("{question} Type `yes` to go on:"));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "yes"))
}

/// Writes a file that only its owner can read, all at once.
pub(super) fn write_private(path: &Path, content: &[u8]) -> Result<(), CliError> {
    let failed = |error: std::io::Error| CliError::failed(format!("{}: {error}", path.display()));
    let new = path.with_added_extension("new");
    // What a killed process left may be readable by others.
    if let Err(error) = std::fs::remove_file(&new)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(failed(error));
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    std::fs::rename(&new, path).map_err(failed)
}

/// A line on standard error; where that is closed, nobody listens.
pub(super) fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints an error and answers the exit code.
pub(super) fn report(error: &CliError, format: Format) -> ExitCode {
    match format {
        Format::Json => {
            let violations: Vec<Value> =
                error.violations.iter().map(|(field, what)| json!({ "field": field, "message": what })).collect();
            say(&json!({ "error": {
                "reason": error.reason,
                "message": error.message,
                "violations": violations,
                "decision_id": error.decision_id,
                "retry_after_s": error.retry_after_s,
            }})
            .to_string());
        }
        Format::Human => {
            let (red, plain) = if std::io::stderr().is_terminal() { ("\x1b[31m", "\x1b[0m") } else { ("", "") };
            say(&format!("{red}error{plain}: {} [{}]", error.message, error.reason));
            for (field, what) in error.violations.iter().filter(|(_, what)| !error.message.contains(what)) {
                say(&if field.is_empty() { format!("  {what}") } else { format!("  {field}: {what}") });
            }
            if let Some(id) = &error.decision_id {
                say(&format!("  an operator can look it up: p8broker explain {id}"));
            }
        }
    }
    ExitCode::from(error.exit as u8)
}

/// A table with a head, as wide as its content.
pub(super) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = head.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut out = vec![line(&head.map(ToOwned::to_owned))];
    out.extend(rows.iter().map(|row| line(row)));
    out.join("\n")
}

/// RFC 3339, or null.
pub(super) fn time(at: Option<&Timestamp>) -> Value {
    at.map_or(Value::Null, |at| Value::String(time_text(at)))
}

/// RFC 3339 in UTC, to the second.
pub(super) fn time_text(at: &Timestamp) -> String {
    UnixMillis::from_seconds(at.seconds).to_string()
}

/// An enum's name without its prefix.
pub(super) fn bare<'a>(name: &'a str, prefix: &str) -> &'a str {
    name.strip_prefix(prefix).unwrap_or(name)
}

/// Who holds the bearer to one limit.
pub(super) fn enforcement_json(entry: &proto::Enforcement) -> Value {
    json!({
        "limit": entry.limit,
        "enforced_by": bare(entry.enforced_by().as_str_name(), "ENFORCED_BY_"),
        "explanation": entry.explanation,
    })
}
