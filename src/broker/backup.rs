//! Makes a backup, while serving: one file that holds the vault as it was at one moment.
//!
//! Steps: (1) the caller's power, and a row in the audit; (2) one short transaction reads what changes in place: the seal row,
//! the head, the sealed keys, and how far each writer of audit rows has come; (3) the control log up to that head and each
//! writer's rows up to that end are read page by page, as the caller takes them, and are the same then, as both only grow at
//! their ends. On the way the chains are followed, so that a database that was changed is found at night and not at the
//! restore. Rows that a prune removes meanwhile are found missing: then the backup is given up.
//!
//! # Invariants
//! - `INV-BACKUP-2`: what was acknowledged before the backup was asked for is in it, and it is one moment: no row was decided
//!   at a revision that it does not have.
//! - Nothing is held in the database between two pages: a slow caller holds up nobody (P6: least of all the destruction of
//!   keys).

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::error::BrokerError;
use super::{Broker, Caller, require};
use crate::clock::UnixMillis;
use crate::domain::audit::AuditRow;
use crate::domain::operator::Power;
use crate::id::{Chain, Head};
use crate::store::Store;
use crate::store::part::{Part, Snapshot, Totals};
use crate::vault::audit_chain::{WriterEnd, follows};
use crate::vault::backup::{Beginning, Header, Sealer};
use crate::vault::keyring::Keyring;
use crate::vault::unseal::SealRow;

/// Records, and audit rows, read at a time.
const RECORDS: u32 = 100;
const ROWS: u32 = 1000;

/// A backup on its way.
pub struct Backup {
    store: Arc<dyn Store>,
    keyring: Keyring,
    beginning: Beginning,
    snapshot: Snapshot,
    /// `None` once the last chunk is made.
    sealer: Option<Sealer>,
    stage: Stage,
    totals: Totals,
}

enum Stage {
    Beginning,
    /// Records after this head.
    Records(Head),
    Keys,
    /// The writer to begin next.
    Writer(usize),
    /// Rows of one writer after this one, with its chain value where that is known.
    Rows(usize, u64, Option<Chain>),
    Ended,
}

impl Broker {
    /// Begins a backup; answers with it what is cancelled when the vault is sealed: then it must be dropped.
    ///
    /// # Errors
    /// Where the caller lacks the power, or the database is away.
    pub async fn back_up(&self, caller: &Caller) -> Result<(Backup, CancellationToken), BrokerError> {
        self.may_back_up(caller)?;
        let open = self.open()?;
        let keyring = open.vault.keyring();
        let newest = |row: &SealRow| {
            row.open_newer(&keyring).map_err(|_| {
                BrokerError::KeyFile(
                    "the unseal key was replaced on another replica, and this one has the one before it: make the backup there"
                        .to_owned(),
                )
            })
        };
        let (store, now) = (Arc::clone(&self.parts.store), self.parts.clock.now());
        let backup = Backup::begin(store, newest, now, &self.parts.replica).await?;
        self.record_read(caller, "Backup", &format!("revision {}", backup.header().head.revision), None);
        Ok((backup, open.follow.ended.clone()))
    }

    /// Whoever keeps the keys may take a sealed copy of them away, and whoever may do everything. Asked before every piece.
    ///
    /// # Errors
    /// Where the vault is not open, or the caller lacks the power.
    pub fn may_back_up(&self, caller: &Caller) -> Result<(), BrokerError> {
        let state = self.open()?.state();
        let custody = require(&state, &caller.principal, Power::Custody);
        custody.or_else(|_| require(&state, &caller.principal, Power::Administer)).map(drop)
    }
}

impl Backup {
    /// Begins a backup of a database. Whoever can open its keyring needs nobody's permission.
    ///
    /// # Errors
    /// Where there is no vault, its keyring does not open, or the database is away.
    pub async fn begin<E: From<BrokerError>>(
        store: Arc<dyn Store>,
        open: impl FnOnce(&SealRow) -> Result<Keyring, E>,
        now: UnixMillis,
        replica: &str,
    ) -> Result<Self, E> {
        let snapshot = store.snapshot().await.map_err(BrokerError::from)?.ok_or(BrokerError::NotInitialised)?;
        let keyring = open(&snapshot.seal)?;
        let header = Header::new(&snapshot.seal, keyring.current(), snapshot.head, now, replica);
        let beginning = header.and_then(Beginning::of).map_err(BrokerError::from)?;
        let sealer = Some(Sealer::new(&keyring, &beginning).map_err(internal)?);
        let (stage, totals) = (Stage::Beginning, Totals::default());
        Ok(Self { store, keyring, beginning, snapshot, sealer, stage, totals })
    }

    /// What the file says of itself.
    pub fn header(&self) -> &Header {
        &self.beginning.header
    }

    /// How many parts there are in it so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The next bytes of the file; `None` after the last.
    ///
    /// # Errors
    /// Where the database is away or changed, or rows were pruned meanwhile.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, BrokerError> {
        let mut out = Vec::new();
        let mut parts = Vec::new();
        match self.stage {
            Stage::Beginning => {
                out.extend_from_slice(self.beginning.bytes());
                self.stage = Stage::Records(Head::default());
            }
            Stage::Records(at) => parts = self.records(at).await?,
            Stage::Keys => {
                parts.extend(self.snapshot.keys.iter().cloned().map(Part::Key));
                self.stage = Stage::Writer(0);
            }
            Stage::Writer(nth) => parts = self.writers(nth)?,
            Stage::Rows(nth, at, chain) => parts = self.rows(nth, at, chain).await?,
            Stage::Ended => return Ok(None),
        }
        let mut plain = zeroize::Zeroizing::new(Vec::new());
        for part in parts {
            self.totals.count(&part);
            part.write(&mut plain);
        }
        let sealer = self.sealer.as_mut().ok_or_else(|| internal("the backup has ended"))?;
        sealer.push(&plain, &mut out)?;
        if matches!(self.stage, Stage::Ended)
            && let Some(sealer) = self.sealer.take()
        {
            sealer.finish(&mut out)?;
        }
        Ok(Some(out))
    }

    async fn records(&mut self, mut at: Head) -> Result<Vec<Part>, BrokerError> {
        let head = self.snapshot.head;
        let mut parts = Vec::new();
        for record in self.store.records_from(at.revision.next(), RECORDS).await? {
            if record.revision > head.revision {
                break;
            }
            // Before the first one there may have been others, which were archived.
            let is_next = record.revision == at.revision.next() && record.previous == at.chain;
            if at != Head::default() && !is_next {
                return Err(given_up(format!("revision {} does not follow {}", record.revision, at.revision)));
            }
            at = record.head();
            parts.push(Part::Record(record));
        }
        if at.revision == head.revision {
            if at != head {
                return Err(given_up("the control log does not end with its head".to_owned()));
            }
            self.stage = Stage::Keys;
        } else if parts.is_empty() {
            return Err(given_up(format!("the records after revision {} are not there", at.revision)));
        } else {
            self.stage = Stage::Records(at);
        }
        Ok(parts)
    }

    /// Ends of writers, up to the first that has rows.
    fn writers(&mut self, nth: usize) -> Result<Vec<Part>, BrokerError> {
        let mut parts = Vec::new();
        for (at, (end, first)) in self.snapshot.writers.iter().enumerate().skip(nth) {
            if !end.is_genuine(&self.keyring, &self.snapshot.seal.vault)? {
                return Err(given_up(format!("the end of audit writer {} was changed", end.writer)));
            }
            parts.push(Part::Writer(end.clone()));
            if let Some(first) = first {
                let before = first.saturating_sub(1);
                self.stage = Stage::Rows(at, before, (before == 0).then(Chain::default));
                return Ok(parts);
            }
        }
        let mut totals = self.totals;
        parts.iter().for_each(|part| totals.count(part));
        parts.push(Part::Totals(totals));
        self.stage = Stage::Ended;
        Ok(parts)
    }

    async fn rows(&mut self, nth: usize, mut at: u64, mut chain: Option<Chain>) -> Result<Vec<Part>, BrokerError> {
        let (end, _) = self.snapshot.writers.get(nth).ok_or_else(|| internal("there is no such writer"))?;
        let page = self.store.rows_of_writer(&end.writer, at, ROWS).await?;
        let mut parts = Vec::with_capacity(page.len());
        for row in page {
            if row.sequence > end.sequence {
                break;
            }
            self.check(&row, at, chain)?;
            (at, chain) = (row.sequence, Some(row.chain));
            parts.push(Part::Row(Box::new(row)));
        }
        if at == end.sequence {
            if chain != Some(end.chain) {
                return Err(changed(end, at));
            }
            self.stage = Stage::Writer(nth.saturating_add(1));
        } else if parts.is_empty() {
            return Err(missing(end, at));
        } else {
            self.stage = Stage::Rows(nth, at, chain);
        }
        Ok(parts)
    }

    fn check(&self, row: &AuditRow, at: u64, chain: Option<Chain>) -> Result<(), BrokerError> {
        let end = || self.snapshot.writers.iter().map(|(end, _)| end).find(|end| end.writer == row.writer);
        if row.sequence != at.saturating_add(1) {
            return Err(end().map_or_else(|| internal("there is no such writer"), |end| missing(end, at)));
        }
        // Before the first row that is there, others were removed: their chain value is in the control log.
        let Some(chain) = chain else { return Ok(()) };
        if follows(&self.keyring, &chain, row)? {
            return Ok(());
        }
        Err(end().map_or_else(|| internal("there is no such writer"), |end| changed(end, row.sequence)))
    }
}

fn missing(end: &WriterEnd, at: u64) -> BrokerError {
    given_up(format!(
        "audit row {} of writer {} is not there any more: rows were pruned meanwhile, or removed",
        at.saturating_add(1),
        end.writer
    ))
}

fn changed(end: &WriterEnd, at: u64) -> BrokerError {
    given_up(format!("audit row {at} of writer {} was changed", end.writer))
}

fn given_up(why: String) -> BrokerError {
    BrokerError::BackupGivenUp(why)
}

fn internal(error: impl ToString) -> BrokerError {
    BrokerError::Internal(error.to_string())
}
