//! Reads, checks and prunes the audit.
//!
//! Steps of a verification: for every writer that the control log knows, walk its rows from where pruning left off,
//! recompute the chain, compare each value, then the end; then look for rows that no known writer wrote.
//! Steps of a prune: find for each writer how far it can go; record that in the control log; remove rows in chunks, each
//! in its own transaction. Killed in between, the rest is removed by the next prune.

use std::collections::BTreeMap;

use super::error::BrokerError;
use super::ledger::Proposal;
use super::{Broker, Caller};
use crate::clock::UnixMillis;
use crate::domain::audit::{AuditFilter, AuditRow};
use crate::domain::change::{Change, PrunedRows};
use crate::domain::operator::Power;
use crate::domain::state::{State, Writer};
use crate::id::{Chain, WriterId};
use crate::store::AuditCursor;
use crate::vault::audit_chain::follows;
use crate::vault::keyring::Keyring;

/// Rows checked or removed at a time.
const CHUNK: u32 = 2000;

/// One page of rows.
#[derive(Debug, Clone)]
pub struct AuditPage {
    /// The rows, oldest first.
    pub rows: Vec<AuditRow>,
    /// Where the next page starts; `None` after the last.
    pub next: Option<AuditCursor>,
}

/// How many rows each writer has written.
pub type AuditEnds = BTreeMap<WriterId, u64>;

/// What a verification found wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The writer whose rows they are.
    pub writer: String,
    /// The row; 0 where it is about the writer as a whole.
    pub sequence: u64,
    /// What is wrong.
    pub what: String,
}

/// What a verification did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    /// Rows checked.
    pub rows: u64,
    /// Writers checked.
    pub writers: u64,
    /// Everything that is wrong; nothing where the audit is whole.
    pub findings: Vec<Finding>,
}

/// What a prune did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pruned {
    /// Rows removed.
    pub rows: u64,
    /// The revision that recorded it.
    pub revision: crate::id::Revision,
}

impl Broker {
    /// Lists rows, oldest first.
    ///
    /// # Errors
    /// Where the caller lacks the power, or the database is away.
    pub async fn list_audit(
        &self,
        caller: &Caller,
        filter: &AuditFilter,
        after: &AuditCursor,
        limit: u32,
    ) -> Result<AuditPage, BrokerError> {
        self.state_for(caller, Power::Audit)?;
        // One more than asked for tells whether there is another page.
        let mut rows = self.parts.store.list_rows(filter, after, limit.saturating_add(1)).await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next = rows.last().filter(|_| more).map(cursor);
        Ok(AuditPage { rows, next })
    }

    /// How many rows each writer has written: where following starts.
    ///
    /// # Errors
    /// Where the caller lacks the power, or the database is away.
    pub async fn audit_ends(&self, caller: &Caller) -> Result<AuditEnds, BrokerError> {
        self.state_for(caller, Power::Audit)?;
        let ends = self.parts.store.writer_ends().await?;
        Ok(ends.into_iter().map(|stored| (stored.end.writer, stored.end.sequence)).collect())
    }

    /// Some of the rows that were written since, each writer's in order; moves the ends on to them.
    ///
    /// # Errors
    /// Where the caller lacks the power, or the database is away.
    pub async fn audit_since(&self, caller: &Caller, ends: &mut AuditEnds) -> Result<Vec<AuditRow>, BrokerError> {
        let now = self.audit_ends(caller).await?;
        let mut rows = Vec::new();
        for (writer, last) in now {
            let seen = ends.entry(writer.clone()).or_default();
            if *seen < last {
                let new = self.parts.store.rows_of_writer(&writer, *seen, CHUNK).await?;
                *seen = new.last().map_or(last, |row| row.sequence);
                rows.extend(new);
            }
        }
        rows.sort_by(|a, b| (a.event.at, &a.writer, a.sequence).cmp(&(b.event.at, &b.writer, b.sequence)));
        Ok(rows)
    }

    /// Checks every row of every writer.
    ///
    /// # Errors
    /// Where the caller lacks the power, or the database is away. What is wrong with rows is no error but a finding.
    pub async fn verify_audit(&self, caller: &Caller) -> Result<Verification, BrokerError> {
        self.state_for(caller, Power::Audit)?;
        let open = self.open()?;
        // Ends first, then the state: a writer that starts between the two, on any replica, is known but not checked.
        let ends = self.parts.store.writer_ends().await?;
        let state = open.follow.catch_up().await?;
        let mut done = Verification { rows: 0, writers: 0, findings: Vec::new() };
        for stored in &ends {
            let Some(writer) = state.writers().get(&stored.end.writer) else {
                done.find(stored.end.writer.as_str(), 0, "was never started by this broker");
                continue;
            };
            if !stored.end.is_genuine(&open.vault.keyring(), open.id())? {
                done.find(writer.id.as_str(), stored.end.sequence, "the writer's end was changed");
            }
            self.verify_writer(&mut done, writer, stored.end.sequence, &stored.end.chain, &open.vault.keyring())
                .await?;
            if stored.has_more {
                done.find(writer.id.as_str(), stored.end.sequence, "rows after the writer's end were added");
            }
            if writer.pruned_sequence > 0 && self.has_cleared_rows(writer).await? {
                done.find(writer.id.as_str(), 0, "rows that were cleared for removal are still there; prune once more");
            }
        }
        for writer in state.writers().values() {
            let stored = ends.iter().find(|stored| stored.end.writer == writer.id);
            if stored.is_none_or(|stored| stored.end.sequence < writer.known_sequence) {
                done.find(writer.id.as_str(), 0, "rows that the control log knows of are missing");
            }
        }
        let strangers = self.parts.store.rows_of_unknown_writers().await?;
        if strangers > 0 {
            done.find("", 0, &format!("{strangers} rows of writers that were never started"));
        }
        Ok(done)
    }

    /// Whether a prune was killed before it had removed what it had cleared; or somebody put rows there.
    async fn has_cleared_rows(&self, writer: &Writer) -> Result<bool, BrokerError> {
        match self.parts.store.rows_of_writer(&writer.id, 0, 1).await {
            Ok(rows) => Ok(rows.first().is_some_and(|row| row.sequence <= writer.pruned_sequence)),
            // Rows that can't be read are found by walking them.
            Err(crate::store::StoreError::Corrupt(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn verify_writer(
        &self,
        done: &mut Verification,
        writer: &Writer,
        last: u64,
        end: &Chain,
        keyring: &Keyring,
    ) -> Result<(), BrokerError> {
        done.writers = done.writers.saturating_add(1);
        let (mut at, mut chain) = (writer.pruned_sequence, writer.pruned_chain);
        let whole_before = done.findings.len();
        while at < last {
            let page = match self.parts.store.rows_of_writer(&writer.id, at, CHUNK).await {
                Ok(page) => page,
                Err(crate::store::StoreError::Corrupt(why)) => {
                    done.find(
                        writer.id.as_str(),
                        at.saturating_add(1),
                        &format!("a row from here on can't be read: {why}"),
                    );
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            };
            if page.is_empty() {
                break;
            }
            for row in page.iter().filter(|row| row.sequence <= last) {
                if row.sequence != at.saturating_add(1) {
                    let missing =
                        format!("rows {} to {} are missing", at.saturating_add(1), row.sequence.saturating_sub(1));
                    done.find(writer.id.as_str(), row.sequence, &missing);
                } else if !follows(keyring, &chain, row).unwrap_or(false) {
                    done.find(
                        writer.id.as_str(),
                        row.sequence,
                        "the row was changed, moved or does not follow the one before it",
                    );
                }
                // Each row is checked against the stored value before it, so that one change is one finding.
                chain = row.chain;
                at = row.sequence;
                done.rows = done.rows.saturating_add(1);
            }
            if page.last().is_some_and(|row| row.sequence > last) {
                break;
            }
        }
        if at < last {
            done.find(writer.id.as_str(), last, &format!("rows {} to {last} are missing", at.saturating_add(1)));
        } else if chain != *end && done.findings.len() == whole_before {
            done.find(writer.id.as_str(), last, "the last row is not the one that the writer's end names");
        }
        Ok(())
    }

    /// Removes rows older than `before`, but none of a token that is still alive.
    ///
    /// # Errors
    /// Where the caller lacks the power, or the database is away.
    pub async fn prune_audit(&self, caller: &Caller, before: UnixMillis) -> Result<Pruned, BrokerError> {
        let open = self.open()?;
        self.state_for(caller, Power::Audit)?;
        let state = open.follow.catch_up().await?;
        let now_s = self.parts.clock.now().seconds();
        let mut upto = Vec::new();
        for writer in state.writers().values() {
            let last = self.parts.store.prunable(&writer.id, before, now_s).await?;
            if let Some((sequence, chain)) = last.filter(|(sequence, _)| *sequence > writer.pruned_sequence) {
                // What is removed was whole: a prune must not hide that something was changed.
                let mut done = Verification { rows: 0, writers: 0, findings: Vec::new() };
                self.verify_writer(&mut done, writer, sequence, &chain, &open.vault.keyring()).await?;
                if !done.findings.is_empty() {
                    return Err(BrokerError::AuditNotWhole(done.findings.len()));
                }
                upto.push(PrunedRows { writer: writer.id.clone(), sequence, chain });
            }
        }
        let propose = move |state: &State, _: &Keyring| {
            let still = |rows: &&PrunedRows| {
                state.writers().get(&rows.writer).is_some_and(|writer| writer.pruned_sequence < rows.sequence)
            };
            let upto: Vec<PrunedRows> = upto.iter().filter(still).cloned().collect();
            let change = (!upto.is_empty()).then_some(Change::AuditPruned { upto });
            Ok(Proposal { change, ..Proposal::default() })
        };
        let changed = self.change(caller, Power::Audit, Box::new(propose)).await?;
        let mut rows = 0_u64;
        for writer in changed.state.writers().values().filter(|writer| writer.pruned_sequence > 0) {
            loop {
                let removed = self.parts.store.remove_rows(&writer.id, writer.pruned_sequence, CHUNK).await?;
                rows = rows.saturating_add(removed);
                if removed == 0 {
                    break;
                }
            }
        }
        Ok(Pruned { rows, revision: changed.state.head().revision })
    }
}

impl Verification {
    fn find(&mut self, writer: &str, sequence: u64, what: &str) {
        self.findings.push(Finding { writer: writer.to_owned(), sequence, what: what.to_owned() });
    }
}

/// The place of a row in a listing.
pub(super) fn cursor(row: &AuditRow) -> AuditCursor {
    AuditCursor { at: row.event.at, writer: row.writer.to_string(), sequence: row.sequence }
}
