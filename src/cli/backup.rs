//! `operator backup`, `operator verify-backup` and `restore`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::Connection;
use super::error::CliError;
use super::output::{Printer, time};
use super::shares::read_share;
use crate::broker::restore::{Restorable, RestoreError, Unsealing};
use crate::config::Config;
use crate::grpc::proto;
use crate::grpc::proto::system_service_client::SystemServiceClient;
use crate::id::Revision;
use crate::metrics::Metrics;
use crate::secret::ShareText;
use crate::server::open_store;
use crate::store::anchor::Anchor;

/// Write a backup of the whole vault to a file, while the broker serves.
#[derive(Debug, Args)]
pub(super) struct Backup {
    /// The file to make (mode 0600); it must not be there yet.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Read a backup from end to end, and say whether it can be restored; nothing is changed.
#[derive(Debug, Args)]
pub(super) struct VerifyBackup {
    /// The backup.
    #[arg(long = "in", value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    with: With,
}

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
    /// The configuration of the database that the backup stands in for: what happened after the backup is read from it.
    #[arg(long, value_name = "FILE")]
    previous: Option<PathBuf>,
    /// Where to write the commands that bring forward what was revoked after the backup; with --previous.
    #[arg(long, value_name = "FILE", requires = "previous")]
    commands: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct With {
    /// The configuration: it names the database, the key file and the anchor.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// A file with one share of the unseal key that was in force when the backup was made; may be repeated.
    #[arg(long = "share-file", value_name = "FILE")]
    share_files: Vec<PathBuf>,
}

impl Backup {
    pub(super) async fn run(self, connection: &Connection, print: Printer) -> Result<(), CliError> {
        let part = part_of(&self.out);
        if self.out.exists() {
            return Err(CliError::usage(format!("{} exists; name a new file", self.out.display())));
        }
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part);
        let file = made.map_err(|error| CliError::usage(format!("{}: {error}", part.display())))?;
        match self.receive(connection, &part, file).await {
            Ok((done, bytes)) => print.answer(
                &json!({
                    "file": self.out.display().to_string(),
                    "bytes": bytes,
                    "revision": done.revision,
                    "created_at": time(done.created_at.as_ref()),
                    "records": done.records,
                    "keys": done.keys,
                    "writers": done.writers,
                    "rows": done.rows,
                }),
                || {
                    format!(
                        "{}: revision {}, {} keys, {} audit rows, {bytes} bytes\nprove it with `p8broker operator \
                         verify-backup --in {} --config FILE`, and keep it apart from the shares or key file that open it",
                        self.out.display(),
                        done.revision,
                        done.keys,
                        done.rows,
                        self.out.display()
                    )
                },
            ),
            Err(error) => {
                // What is there is no backup.
                let _ = std::fs::remove_file(&part);
                Err(error)
            }
        }
    }

    async fn receive(
        &self,
        connection: &Connection,
        part: &Path,
        mut file: File,
    ) -> Result<(proto::BackupDone, u64), CliError> {
        let mut client = SystemServiceClient::new(connection.open().await?);
        let mut pieces = client.backup(proto::BackupRequest {}).await?.into_inner();
        let mut bytes = 0_u64;
        let done = loop {
            let Some(answer) = pieces.message().await? else {
                return Err(CliError::because("BACKUP_CUT_OFF", "the broker ended before the backup did".to_owned()));
            };
            file.write_all(&answer.piece)?;
            bytes = bytes.saturating_add(answer.piece.len() as u64);
            if let Some(done) = answer.done {
                break done;
            }
        };
        // Durable under its own name before anybody is told that it is there.
        file.sync_all()?;
        std::fs::hard_link(part, &self.out)?;
        std::fs::remove_file(part)?;
        match self.out.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all()?,
            _ => File::open(".")?.sync_all()?,
        }
        Ok((done, bytes))
    }
}

fn part_of(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

impl With {
    fn shares(&self) -> Result<Vec<ShareText>, CliError> {
        let read = |file: &PathBuf| read_share(file).map(|share| ShareText::new(share.to_string()));
        self.share_files.iter().map(read).collect()
    }
}

impl VerifyBackup {
    pub(super) fn run(self, print: Printer) -> Result<(), CliError> {
        let config = Config::load(&self.with.config)?;
        let shares = self.with.shares()?;
        let unsealing = Unsealing { key_source: &config.key_source(), shares: &shares };
        let restorable = Restorable::read(&self.file, &unsealing, None)?;
        let object = described(&restorable);
        print.answer(&object, || format!("{}: it can be restored\n{}", self.file.display(), summary(&restorable)))
    }
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
            let store = open_store(&previous, &metrics()?).await?;
            let compared = restorable.compare(store.as_ref(), &unsealing).await;
            store.close().await;
            compared?;
        }
        restorable.refuse_older(self.accept_older.map(Revision))?;
        let store = open_store(&config, &metrics()?).await?;
        let written = restorable.write(store.as_ref(), anchor.as_ref()).await;
        store.close().await;
        written?;
        let object = described(&restorable);
        print.answer(&object, || format!("restored\n{}", summary(&restorable)))
    }
}

fn metrics() -> Result<Metrics, CliError> {
    Metrics::new().map_err(|error| CliError::failed(error.to_string()))
}

fn described(restorable: &Restorable) -> Value {
    let (checked, totals) = (restorable.checked(), restorable.checked().totals());
    let header = checked.header();
    json!({
        "vault": header.vault,
        "revision": header.head.revision.0,
        "created_at": header.created.to_string(),
        "release": header.release,
        "unseal_generation": header.generation,
        "root_key_version": header.root_version,
        "records": totals.records,
        "keys": totals.keys,
        "writers": totals.writers,
        "rows": totals.rows,
        "bytes": checked.bytes(),
    })
}

fn summary(restorable: &Restorable) -> String {
    let (checked, totals) = (restorable.checked(), restorable.checked().totals());
    let header = checked.header();
    format!(
        "vault {}\nrevision {}, of {}\nmade by release {}\nopens with the unseal key of generation {}\n{} records, {} keys, {} \
         audit rows of {} writers: every one opens, and every chain is whole",
        header.vault,
        header.head.revision,
        header.created,
        header.release,
        header.generation,
        totals.records,
        totals.keys,
        totals.rows,
        totals.writers
    )
}

impl From<RestoreError> for CliError {
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Path(why) => Self::usage(why),
            other => Self::because(other.reason(), other.to_string()),
        }
    }
}
