//! Shares on their way to and from people: shown once, or in files that only their owner can read.

use std::fs::OpenOptions;
use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::error::CliError;
use super::output::{Printer, say};
use crate::grpc::proto;

#[derive(Debug, Args)]
pub(super) struct NewShares {
    /// How many shares to make (default 5); not with a key file.
    #[arg(long)]
    pub(super) shares: Option<u32>,
    /// How many of them it takes (default 3).
    #[arg(long)]
    pub(super) threshold: Option<u32>,
    /// Write each share to a file of its own in this folder (mode 0600) instead of printing it.
    #[arg(long, value_name = "DIR")]
    pub(super) shares_dir: Option<PathBuf>,
}

impl NewShares {
    /// Whether the shares can be written, before there are any.
    pub(super) fn prepare(&self) -> Result<(), CliError> {
        let Some(folder) = &self.shares_dir else { return Ok(()) };
        std::fs::create_dir_all(folder).map_err(|error| CliError::usage(format!("{}: {error}", folder.display())))?;
        let taken = (1..=32).map(|index| self.file(folder, index)).find(|file| file.exists());
        let probe = folder.join("share-probe.txt");
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&probe)
            .and_then(|_| std::fs::remove_file(&probe))
            .map_err(|error| CliError::usage(format!("{}: {error}", probe.display())))?;
        match taken {
            Some(file) => Err(CliError::usage(format!("{} exists; name an empty folder", file.display()))),
            None => Ok(()),
        }
    }

    fn file(&self, folder: &Path, index: usize) -> PathBuf {
        folder.join(format!("share-{index}.txt"))
    }

    pub(super) fn hand_out(
        &self,
        print: Printer,
        shares: &[String],
        threshold: u32,
        mut object: Value,
        done: &str,
    ) -> Result<(), CliError> {
        // Shares that can't be written are shown: there is no other copy of them.
        let files = self.write(shares).unwrap_or_else(|error| {
            say(&format!("the shares can't be written ({}), so they are shown", error.message));
            None
        });
        if let Some(fields) = object.as_object_mut() {
            fields.insert("threshold".to_owned(), json!(threshold));
            match &files {
                Some(files) => fields.insert("share_files".to_owned(), json!(files)),
                None => fields.insert("shares".to_owned(), json!(shares)),
            };
        }
        print.answer(&object, || match (&files, shares) {
            (_, []) => done.to_owned(),
            (Some(files), _) => {
                format!("{done}\nshares, any {threshold} of which unseal; give each to another person:\n{}", files.join("\n"))
            }
            (None, _) => format!(
                "{done}\nshares, any {threshold} of which unseal; they are shown this once, give each to another person:\n{}",
                shares.join("\n")
            ),
        })
    }

    pub(super) fn write(&self, shares: &[String]) -> Result<Option<Vec<String>>, CliError> {
        let Some(folder) = self.shares_dir.as_ref().filter(|_| !shares.is_empty()) else { return Ok(None) };
        let mut names = Vec::new();
        for (at, share) in shares.iter().enumerate() {
            let file = self.file(folder, at.saturating_add(1));
            let mut open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file)?;
            writeln!(open, "{share}")?;
            open.sync_all()?;
            names.push(file.display().to_string());
        }
        Ok(Some(names))
    }
}

pub(super) fn read_share(file: &Path) -> Result<Zeroizing<String>, CliError> {
    let text =
        if file.as_os_str() == "-" { line_of_stdin() } else { std::fs::read_to_string(file).map(Zeroizing::new) };
    let text = text.map_err(|error| CliError::usage(format!("{}: {error}", file.display())))?;
    let share = Zeroizing::new(text.trim().to_owned());
    if share.is_empty() { Err(CliError::usage(format!("{} holds no share", file.display()))) } else { Ok(share) }
}

/// Reads a share without showing it.
pub(super) fn ask_for_share(progress: &proto::UnsealResponse) -> Result<Zeroizing<String>, CliError> {
    say(&format!("{} of {} shares are given; one more, please (it is not shown):", progress.given, progress.threshold));
    let stdin = std::io::stdin();
    let shown = if stdin.is_terminal() { tcgetattr(&stdin).ok() } else { None };
    if let Some(mut hidden) = shown.clone() {
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Flush, &hidden).map_err(std::io::Error::from)?;
    }
    let line = line_of_stdin();
    if let Some(shown) = shown {
        tcsetattr(&stdin, OptionalActions::Flush, &shown).map_err(std::io::Error::from)?;
    }
    let line = Zeroizing::new(line?.trim().to_owned());
    if line.is_empty() { Err(CliError::usage("no share was given".to_owned())) } else { Ok(line) }
}

fn line_of_stdin() -> std::io::Result<Zeroizing<String>> {
    let mut line = Zeroizing::new(String::with_capacity(256));
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line)
}
