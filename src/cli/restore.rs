//! `restore`: a backup into an empty database, on the machine itself; and what going back in time means.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::backup::{With, described, open_there, summary};
use super::error::{CliError, Exit};
use super::output::Printer;
use crate::broker::restore::{Restorable, RestoreError, Since, Stopped, Undone, Unsealing};
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::id::Revision;
use crate::metrics::Metrics;
use crate::server::open_store;
use crate::store::StoreError;
use crate::store::anchor::Anchor;

/// Restore a backup into an empty database, with no broker running on it.
#[derive(Debug, Args)]
pub(super) struct Restore {
    /// The backup.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    #[command(flatten)]
    with: With,
    /// Go back in time all the same: the newest revision that was seen, as the refusal names it.
    #[arg(long, value_name = "REVISION")]
    accept_older: Option<u64>,
    /// The configuration of the database that the backup stands in for, where that can still be read: what happened after the
    /// backup is read from it.
    #[arg(long, value_name = "FILE")]
    previous: Option<PathBuf>,
    /// Where to write the commands that bring forward what was revoked after the backup: a shell script to look at and run.
    #[arg(long, value_name = "FILE", requires = "previous")]
    commands: Option<PathBuf>,
}

impl Restore {
    pub(super) async fn run(self, print: Printer) -> Result<(), CliError> {
        let config = Config::load(&self.with.config)?;
        let shares = self.with.shares()?;
        let unsealing = Unsealing { key_source: &config.key_source(), shares: &shares };
        let anchor = config.anchor.file.as_deref().map(Anchor::at);
        let mut restorable = Restorable::read(&self.from, &unsealing, anchor.as_ref())?;
        if let Some(previous) = &self.previous {
            let previous = Config::load(previous)?;
            let store = open_there(&previous).await?;
            let compared = restorable.compare(store.as_ref(), &unsealing, SystemClock.now()).await;
            store.close().await;
            compared?;
        }
        if let (Some(file), Some(since)) = (&self.commands, restorable.since()) {
            write_commands(file, &restorable, since)?;
        }
        restorable.refuse_older(self.accept_older.map(Revision)).map_err(|error| {
            let violations = restorable.since().map(told).unwrap_or_default();
            CliError { violations, ..CliError::from(error) }
        })?;
        let metrics = Metrics::new().map_err(|error| CliError::failed(error.to_string()))?;
        let store = open_store(&config, &metrics).await?;
        let written = restorable.write(store.as_ref(), anchor.as_ref()).await;
        store.close().await;
        let totals = written?;
        let mut object = described(&restorable);
        if let Some(fields) = object.as_object_mut() {
            fields.insert("rows".to_owned(), json!(totals.rows));
            fields.insert("since".to_owned(), restorable.since().map_or(Value::Null, since_json));
            fields
                .insert("accept_history".to_owned(), restorable.to_accept().map_or(Value::Null, |seen| json!(seen.0)));
        }
        print.answer(&object, || format!("restored\n{}\n\n{}", summary(&restorable), next(&restorable, &self.commands)))
    }
}

/// What to do after a restore, and what nobody knows.
fn next(restorable: &Restorable, commands: &Option<PathBuf>) -> String {
    let header = restorable.checked().header();
    let mut out = Vec::new();
    match restorable.since() {
        Some(since) => {
            out.push(format!("after revision {}, of {}:", since.backup, header.created));
            out.extend(told(since).into_iter().map(|(at, what)| format!("  {at}: {what}")));
            if since.undone.is_empty() && since.lost.is_empty() && since.unreadable.is_none() {
                out.push("  nothing was revoked, stopped or changed".to_owned());
            }
            if let (Some(file), false) = (commands, since.undone.is_empty()) {
                out.push(format!("bring it forward before any client is let in: sh {}", file.display()));
            }
        }
        None => out.push(format!(
            "nobody knows here what happened after {}: whatever was revoked, suspended, removed or narrowed since is alive \
             again, and what was imported or granted since is gone. Look into what left this vault (exports of the audit, \
             logs of replicas with `changed`, App Store Connect), and repeat the revocations first. Where the old database can \
             still be read, --previous lists them",
            header.created
        )),
    }
    if let Some(seen) = restorable.to_accept() {
        out.push(format!(
            "the anchor has seen revision {seen}: the broker refuses to serve until an administrator runs\n  p8broker operator \
             accept-history --database-revision {} --seen-revision {seen} --reason '…'",
            header.head.revision
        ));
    }
    out.push("tokens that were issued after the backup are in no audit row here; each dies at its expiry".to_owned());
    out.join("\n")
}

/// Everything that happened since: where, and what.
fn told(since: &Since) -> Vec<(String, String)> {
    let undone =
        since.undone.iter().map(|it| (it.revision, format!("{}, by {}: {}", alive(&it.what), it.who, it.reason)));
    let lost = since.lost.iter().map(|it| (it.revision, format!("{} (by {})", it.what, it.who)));
    let mut all: Vec<_> = undone.chain(lost).collect();
    all.sort_by_key(|(revision, _)| *revision);
    let mut all: Vec<_> = all.into_iter().map(|(revision, what)| (format!("revision {revision}"), what)).collect();
    if let Some(why) = &since.unreadable {
        let what = format!("what came after can't be read, so nobody knows it: {why}");
        all.push((format!("revision {}", since.head.revision), what));
    }
    all
}

fn alive(what: &Stopped) -> String {
    match what {
        Stopped::Revoked(target) => format!("{target} was revoked, and is alive again"),
        Stopped::Suspended(key) => format!("key {key} was suspended, and signs again"),
        Stopped::ConfirmedAtApple(key) => format!("key {key} was confirmed as revoked at Apple, and counts again"),
        Stopped::BreakGlass(policy) => format!("break-glass policy {policy} was closed, and is open again"),
        Stopped::Vault => "the vault was sealed, and serves again".to_owned(),
    }
}

fn since_json(since: &Since) -> Value {
    let undone = |it: &Undone| json!({ "revision": it.revision.0, "what": alive(&it.what), "by": it.who, "reason": it.reason, "command": words(it) });
    json!({
        "revision": since.head.revision.0,
        "alive_again": since.undone.iter().map(undone).collect::<Vec<_>>(),
        "lost": since.lost.iter().map(|it| json!({ "revision": it.revision.0, "what": it.what, "by": it.who })).collect::<Vec<_>>(),
        "unreadable": since.unreadable,
    })
}

/// The words of the command that does it again.
fn words(undone: &Undone) -> Vec<String> {
    let reason = format!("{} (brought forward after a restore; first at revision {})", undone.reason, undone.revision);
    // Reasons have at most 500 characters.
    let reason: String = reason.trim_start().chars().take(500).collect();
    let words: Vec<&str> = match &undone.what {
        Stopped::Revoked(target) => vec!["revoke", target.kind(), target.name(), "--yes", "--reason", &reason],
        Stopped::Suspended(key) => vec!["key", "suspend", key.as_str(), "--reason", &reason],
        Stopped::ConfirmedAtApple(key) => vec!["key", "confirm-revoked-at-apple", key.as_str()],
        Stopped::BreakGlass(policy) => vec!["break-glass", "close", policy.as_str(), "--reason", &reason],
        Stopped::Vault => vec!["operator", "seal", "--reason", &reason],
    };
    std::iter::once("p8broker").chain(words).map(ToOwned::to_owned).collect()
}

/// A shell script: each command runs whatever became of the others, and the vault is sealed last.
fn write_commands(file: &Path, restorable: &Restorable, since: &Since) -> Result<(), CliError> {
    let header = restorable.checked().header();
    let mut text = format!(
        "#!/bin/sh\n# Brings forward what was stopped after revision {} ({}) of vault {}.\n# Look at each line before it is \
         run, as an operator with the powers that they take.\nfailed=0\n",
        header.head.revision, header.created, header.vault
    );
    let (last, first): (Vec<_>, Vec<_>) = since.undone.iter().partition(|undone| undone.what == Stopped::Vault);
    for undone in first.into_iter().chain(last) {
        let words: Vec<String> = words(undone).iter().map(|word| quoted(word)).collect();
        text.push_str(&format!("{} || failed=1\n", words.join(" ")));
    }
    for lost in &since.lost {
        text.push_str(&format!("# revision {}: {}\n", lost.revision, one_line(&lost.what)));
    }
    if let Some(why) = &since.unreadable {
        text.push_str(&format!(
            "# what came after revision {} can't be read: {}\n",
            since.head.revision,
            one_line(why)
        ));
    }
    text.push_str("exit \"$failed\"\n");
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let written = made.and_then(|mut made| made.write_all(text.as_bytes()));
    written.map_err(|error| CliError::usage(format!("{}: {error}", file.display())))
}

/// One word of a shell command, whatever stands in it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A comment ends with its line, whatever stands in it.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl From<RestoreError> for CliError {
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Path(why) => Self::usage(why),
            RestoreError::Store(StoreError::Unavailable(_)) => {
                Self { exit: Exit::Unavailable, ..Self::because(error.reason(), error.to_string()) }
            }
            other => Self::because(other.reason(), other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_stands_in_a_reason_stays_one_word_of_a_shell_command() {
        for (word, wanted) in [
            ("spiffe://acme/x-1", "spiffe://acme/x-1"),
            ("", "''"),
            ("it's $(rm -rf /) `x`\n#", "'it'\\''s $(rm -rf /) `x`\n#'"),
        ] {
            assert_eq!(quoted(word), wanted);
        }
        assert_eq!(one_line("a\nrm -rf /\u{85}b"), "a rm -rf / b");
    }
}
