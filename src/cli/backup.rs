//! `operator backup` and `operator verify-backup`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use super::Connection;
use super::error::CliError;
use super::output::{Printer, time};
use super::shares::read_share;
use crate::broker;
use crate::broker::restore::{Restorable, RestoreError, Unsealing};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, StoreAt};
use crate::grpc::proto::system_service_client::SystemServiceClient;
use crate::grpc::{backup_done, proto};
use crate::metrics::Metrics;
use crate::secret::ShareText;
use crate::server::{ServerError, open_store};
use crate::store::Store;
use crate::store::postgres::{PostgresStore, Settings};
use crate::vault::unseal::SealRow;

/// Write a backup of the whole vault to a file, while the broker serves.
#[derive(Debug, Args)]
pub(super) struct Backup {
    /// The file to make (mode 0600); it must not be there yet.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Make it on the machine itself, without a broker: from the database that this configuration names (on SQLite, broker
    /// stopped), opened with its key file or with shares.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// With --config: a file with one share; may be repeated.
    #[arg(long = "share-file", value_name = "FILE", requires = "config")]
    share_files: Vec<PathBuf>,
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

#[derive(Debug, Args)]
pub(super) struct With {
    /// The configuration: it names the database, the key file and the anchor.
    #[arg(long, value_name = "FILE")]
    pub(super) config: PathBuf,
    /// A file with one share of the unseal key that was in force when the backup was made; may be repeated.
    #[arg(long = "share-file", value_name = "FILE")]
    share_files: Vec<PathBuf>,
}

impl Backup {
    pub(super) async fn run(self, connection: &Connection, print: Printer) -> Result<(), CliError> {
        let mut out = NewFile::make(&self.out)?;
        let done = match &self.config {
            None => receive(connection, &mut out).await?,
            Some(config) => {
                let with = With { config: config.clone(), share_files: self.share_files.clone() };
                make_here(&with, &mut out).await?
            }
        };
        let bytes = out.finish()?;
        let object = json!({
            "file": self.out.display().to_string(),
            "bytes": bytes,
            "revision": done.revision,
            "created_at": time(done.created_at.as_ref()),
            "records": done.records,
            "keys": done.keys,
            "writers": done.writers,
            "rows": done.rows,
        });
        print.answer(&object, || {
            format!(
                "{file}: revision {}, {} keys, {} audit rows, {bytes} bytes\nprove it with `p8broker operator verify-backup --in \
                 {file} --config FILE`, and keep it apart from the shares or key file that open it",
                done.revision,
                done.keys,
                done.rows,
                file = self.out.display()
            )
        })
    }
}

/// From a broker that serves.
async fn receive(connection: &Connection, out: &mut NewFile) -> Result<proto::BackupDone, CliError> {
    let mut client = SystemServiceClient::new(connection.open().await?);
    let mut pieces = client.backup(proto::BackupRequest {}).await?.into_inner();
    while let Some(answer) = pieces.message().await? {
        out.write(&answer.piece)?;
        if let Some(done) = answer.done {
            return Ok(done);
        }
    }
    Err(CliError::because("BACKUP_CUT_OFF", "the broker ended before the backup did".to_owned()))
}

/// From the database itself.
async fn make_here(with: &With, out: &mut NewFile) -> Result<proto::BackupDone, CliError> {
    let config = Config::load(&with.config)?;
    let shares = with.shares()?;
    let unsealing = Unsealing { key_source: &config.key_source(), shares: &shares };
    let store = open_there(&config).await?;
    let made = async {
        let name = format!("{} (operator backup)", config.replica());
        let open = |row: &SealRow| unsealing.open(row);
        let mut backup = broker::Backup::begin(Arc::clone(&store), open, SystemClock.now(), &name).await?;
        while let Some(bytes) = backup.next().await.map_err(RestoreError::from)? {
            out.write(&bytes)?;
        }
        Ok(backup_done(&backup))
    };
    let made = made.await;
    store.close().await;
    made
}

/// Opens a database that must be there already, and changes nothing in its schema where that can be helped.
pub(super) async fn open_there(config: &Config) -> Result<Arc<dyn Store>, CliError> {
    let metrics = Metrics::new().map_err(|error| CliError::failed(error.to_string()))?;
    match config.store.at().map_err(CliError::usage)? {
        StoreAt::Sqlite(file) if !file.is_file() => Err(CliError::usage(format!("{} does not exist", file.display()))),
        StoreAt::Sqlite(_) => Ok(open_store(config, &metrics).await?),
        StoreAt::Postgres(settings) => {
            let settings = Settings { migrate: false, ..settings };
            Ok(Arc::new(PostgresStore::open(settings, &metrics).await.map_err(ServerError::from)?))
        }
    }
}

/// A file that has its name only once it is whole and durable.
struct NewFile {
    name: PathBuf,
    part: PathBuf,
    file: File,
    bytes: u64,
}

impl NewFile {
    fn make(name: &Path) -> Result<Self, CliError> {
        let refused = |path: &Path, why: &dyn std::fmt::Display| CliError::usage(format!("{}: {why}", path.display()));
        if name.exists() {
            return Err(refused(name, &"it exists; name a new file"));
        }
        let mut part = name.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part);
        let file = made.map_err(|error| refused(&part, &error))?;
        Ok(Self { name: name.to_owned(), part, file, bytes: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        Ok(self.file.write_all(bytes)?)
    }

    fn finish(self) -> Result<u64, CliError> {
        self.file.sync_all()?;
        // Unlike a rename, this takes nobody else's file away.
        std::fs::hard_link(&self.part, &self.name)?;
        let folder = self.name.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(self.bytes)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // What is there is no backup, or has its name by now.
        let _ = std::fs::remove_file(&self.part);
    }
}

impl With {
    pub(super) fn shares(&self) -> Result<Vec<ShareText>, CliError> {
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

pub(super) fn described(restorable: &Restorable) -> Value {
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

pub(super) fn summary(restorable: &Restorable) -> String {
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
