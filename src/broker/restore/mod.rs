//! Restores a vault from a backup into an empty database, on the machine itself.
//!
//! Steps: (1) the file is read from end to end and everything in it is checked (`check`); (2) what is known of a newer state
//! is asked: the anchor's newest revision, and the control log of the database that the backup stands in for, where that can
//! still be read (`since`); (3) an older state over a newer one is refused, unless it is told by name; (4) one transaction
//! writes everything, from a second reading of the same file; (5) what was written is loaded as at a start; (6) an anchor that
//! is empty or not there is begun with the restored head. Until (4) nothing is touched.
//!
//! # Invariants
//! - `INV-RESTORE-1`: a database is written only from a file that was whole, and only where nothing was.
//! - `INV-RESTORE-2`: an anchor that has seen more is never set back: the broker refuses to serve the older state until an
//!   administrator accepts it by name, in the audit.

mod check;
mod error;
mod since;

use std::fs::File;
use std::path::Path;

use tokio::sync::mpsc;

pub use check::Checked;
pub use error::RestoreError;
pub use since::{Lost, Since, Stopped, Undone};

use super::load::{self, is_accepted};
use super::seal::KeySource;
use crate::clock::UnixMillis;
use crate::id::{Head, Revision};
use crate::secret::ShareText;
use crate::store::anchor::{Anchor, Anchored};
use crate::store::part::{Part, Totals};
use crate::store::{Store, StoreError};
use crate::vault::keyring::Keyring;
use crate::vault::unseal::{Method, Progress, SealRow, ShareError};

/// Parts on their way from the file to the database.
const QUEUE: usize = 1024;

/// With what a backup is opened.
#[derive(Debug)]
pub struct Unsealing<'a> {
    /// Where a key file is.
    pub key_source: &'a KeySource,
    /// Shares of the unseal key that was in force when the backup was made.
    pub shares: &'a [ShareText],
}

/// A backup that was read from end to end, and is whole.
#[derive(Debug)]
pub struct Restorable {
    file: File,
    checked: Checked,
    anchored: Option<Anchored>,
    since: Option<Since>,
}

impl Restorable {
    /// Reads a backup from end to end and checks everything in it; nothing is written anywhere.
    ///
    /// # Errors
    /// With the first thing that is not as it was written.
    pub fn read(path: &Path, unsealing: &Unsealing<'_>, anchor: Option<&Anchor>) -> Result<Self, RestoreError> {
        let mut file = File::open(path).map_err(|error| RestoreError::Path(format!("{}: {error}", path.display())))?;
        let anchored = match anchor {
            Some(anchor) => anchor
                .read()
                .map_err(|error| RestoreError::Path(format!("the anchor {}: {error}", anchor.path().display())))?,
            None => None,
        };
        let seen = anchored.as_ref().map(|anchored| anchored.head.revision);
        let checked = check::read(&mut file, |row| unsealing.open(row), seen)?;
        if let Some(anchored) = anchored.as_ref().filter(|anchored| anchored.vault != checked.header().vault) {
            return Err(RestoreError::OtherVault {
                ours: checked.header().vault.clone(),
                theirs: anchored.vault.clone(),
                whose: "the anchor",
            });
        }
        Ok(Self { file, checked, anchored, since: None })
    }

    /// What the file holds.
    pub fn checked(&self) -> &Checked {
        &self.checked
    }

    /// What happened after the backup, where the database that it stands in for can be read.
    pub fn since(&self) -> Option<&Since> {
        self.since.as_ref()
    }

    /// Reads what happened after the backup from the database that it stands in for.
    ///
    /// # Errors
    /// Where that is another vault's, or can't be opened.
    pub async fn compare(
        &mut self,
        previous: &dyn Store,
        unsealing: &Unsealing<'_>,
        now: UnixMillis,
    ) -> Result<(), RestoreError> {
        self.since = Some(since::read(previous, &self.checked, unsealing, now).await?);
        Ok(())
    }

    /// The newest revision that is known to have been, where that is not in this backup's history.
    pub fn newer(&self) -> Option<Revision> {
        let since = self.since.as_ref().filter(|since| since.is_newer()).map(|since| since.head.revision);
        self.to_accept().max(since)
    }

    /// The newest revision that the anchor has seen, where it has seen more than there will be: then the broker refuses to
    /// serve until somebody accepts that.
    pub fn to_accept(&self) -> Option<Revision> {
        let lost = |anchored: &&Anchored| {
            !self.checked.has(anchored.head) && !is_accepted(self.checked.state(), anchored.head, &anchored.accepted)
        };
        self.anchored.as_ref().filter(lost).map(|anchored| anchored.head.revision)
    }

    /// Refuses an older state over a newer one, unless the newer one's revision is named.
    ///
    /// # Errors
    /// With the revision to name.
    pub fn refuse_older(&self, accepted: Option<Revision>) -> Result<(), RestoreError> {
        match self.newer() {
            Some(seen) if accepted != Some(seen) => {
                Err(RestoreError::Older { backup: self.checked.header().head.revision, seen })
            }
            _ => Ok(()),
        }
    }

    /// Writes it into an empty database.
    ///
    /// # Errors
    /// Where there is anything in the database, it is away, or the file is not what was read before.
    pub async fn write(&mut self, store: &dyn Store, anchor: Option<&Anchor>) -> Result<Totals, RestoreError> {
        if store.is_used().await? {
            return Err(not_empty(store, &self.checked).await);
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (seal, head) = (self.checked.seal().clone(), self.checked.header().head);
        let mut again = self.checked.again(self.file.try_clone().map_err(crate::vault::backup::FileError::Io)?)?;
        let reading = tokio::task::spawn_blocking(move || {
            while let Some(part) = again.next()? {
                let last = matches!(part, Part::Totals(_));
                // INVARIANT (INV-RESTORE-1): without the totals, which are the last, nothing is committed.
                if sender.blocking_send(Ok::<_, StoreError>(part)).is_err() || last {
                    break;
                }
            }
            Ok::<_, RestoreError>(again.totals())
        });
        let written = store.restore(&seal, head, receiver).await;
        let totals = reading.await.map_err(|error| RestoreError::Wrong(error.to_string()))?;
        // What the reading found is the cause of what the database then says.
        let totals = totals?;
        written?;
        self.prove(store).await?;
        self.begin_anchor(anchor)?;
        Ok(totals)
    }

    /// Loads what was written, as at a start.
    async fn prove(&self, store: &dyn Store) -> Result<(), RestoreError> {
        let keyring = self.checked.keyring();
        let loaded = load::load(store, |row| Ok(row.open_newer(keyring)?), None).await;
        let loaded = loaded.map_err(|error| match error {
            super::BrokerError::Refusing(refusal) => RestoreError::Wrong(refusal.why),
            other => RestoreError::Wrong(other.to_string()),
        })?;
        if loaded.state().head() == self.checked.header().head {
            return Ok(());
        }
        Err(RestoreError::Wrong("the database moved on while it was written".to_owned()))
    }

    fn begin_anchor(&self, anchor: Option<&Anchor>) -> Result<(), RestoreError> {
        let (Some(anchor), None) = (anchor, &self.anchored) else { return Ok(()) };
        let accepted = self.checked.state().accepted_histories().iter().map(|accepted| accepted.id.clone()).collect();
        let (vault, head) = (self.checked.header().vault.clone(), self.checked.header().head);
        let failed = |error| {
            RestoreError::Path(format!("the vault is restored, but the anchor {}: {error}", anchor.path().display()))
        };
        anchor.write(&Anchored { vault, head, accepted }).map_err(failed)
    }
}

async fn not_empty(store: &dyn Store, checked: &Checked) -> RestoreError {
    let (row, head): (Option<SealRow>, Head) = match (store.seal_row().await, store.head().await) {
        (Ok(row), Ok(head)) => (row, head),
        (Err(error), _) | (_, Err(error)) => return error.into(),
    };
    let what = match row {
        Some(row) if row.vault == checked.header().vault => format!("the same vault, at revision {}", head.revision),
        Some(row) => format!("vault {}", row.vault),
        None => "rows, but no vault".to_owned(),
    };
    RestoreError::NotEmpty(what)
}

impl Unsealing<'_> {
    /// Opens a keyring with what there is.
    ///
    /// # Errors
    /// With what is missing or wrong.
    pub fn open(&self, row: &SealRow) -> Result<Keyring, RestoreError> {
        match &row.method {
            Method::KeyFile => {
                if *self.key_source == KeySource::Shares {
                    return Err(RestoreError::Unseal(
                        "a key file opens this backup; name it in the configuration as unseal.key_file".to_owned(),
                    ));
                }
                let (current, previous) =
                    self.key_source.read().map_err(|error| RestoreError::Unseal(error.to_string()))?;
                let opened = row.open(&current).ok();
                let opened = opened.or_else(|| previous.and_then(|previous| row.open(&previous).ok()));
                opened.ok_or_else(|| {
                    RestoreError::Unseal(format!(
                        "neither the key file nor the one before it opens this backup: it takes the one that was in force \
                         when it was made (generation {})",
                        row.generation
                    ))
                })
            }
            Method::Shares { threshold, .. } => self.combine(row, *threshold),
        }
    }

    fn combine(&self, row: &SealRow, threshold: u32) -> Result<Keyring, RestoreError> {
        let mut progress = Progress::default();
        // Where two databases are opened, those of each may be among the shares.
        let mut other = None;
        for share in self.shares {
            match progress.add(share, row) {
                Ok(Some(key)) => return Ok(row.open(&key).map_err(crate::vault::backup::FileError::Vault)?),
                Ok(None) => {}
                Err(ShareError::Unconfirmed { theirs, ours } | ShareError::Outdated { theirs, ours }) => {
                    other.get_or_insert_with(|| {
                        format!(
                            "a share is of generation {theirs}; this state was made when the shares of generation {ours} were \
                             in force, and opens with those"
                        )
                    });
                }
                Err(error) => return Err(RestoreError::Unseal(error.to_string())),
            }
        }
        if let Some(why) = other.filter(|_| progress.is_empty()) {
            return Err(RestoreError::Unseal(why));
        }
        Err(RestoreError::Unseal(format!(
            "{threshold} shares of generation {} open this backup; {} were given: name each with --share-file",
            row.generation,
            progress.len()
        )))
    }
}
