//! The parts of a backup, gathered into what one statement writes.

use std::collections::VecDeque;

use tokio::sync::mpsc;

use super::part::Part;
use super::{AuditBatch, SealedKey, StoreError};
use crate::vault::audit_chain::WriterEnd;
use crate::vault::log::SealedRecord;

/// Most parts of one statement, and most bytes of records: a checkpoint alone can have 100 MB.
const MOST: usize = 1000;
const MOST_BYTES: usize = 8 * 1024 * 1024;

/// Parts on their way to an empty database; the last is the totals.
pub type Parts = mpsc::Receiver<Result<Part, StoreError>>;

/// What one statement writes.
pub(super) enum Batch {
    Records(Vec<SealedRecord>),
    Keys(Vec<SealedKey>),
    /// Rows of one writer, with its end.
    Audit(AuditBatch),
}

pub(super) struct Batches {
    parts: Parts,
    ready: VecDeque<Batch>,
    gathered: Option<Batch>,
    bytes: usize,
    writer: Option<WriterEnd>,
    ended: bool,
}

impl Batches {
    pub(super) fn of(parts: Parts) -> Self {
        Self { parts, ready: VecDeque::new(), gathered: None, bytes: 0, writer: None, ended: false }
    }

    /// The next one; `None` after the totals.
    ///
    /// # Errors
    /// What whoever sends the parts says, and where they end before the totals: then nothing may be committed.
    pub(super) async fn next(&mut self) -> Result<Option<Batch>, StoreError> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(Some(batch));
            }
            if self.ended {
                return Ok(None);
            }
            let given_up = || StoreError::Unavailable("the backup was given up half-way".to_owned());
            let part = self.parts.recv().await.ok_or_else(given_up)??;
            self.take(part)?;
        }
    }

    fn take(&mut self, part: Part) -> Result<(), StoreError> {
        match part {
            Part::Record(record) => {
                self.bytes = self.bytes.saturating_add(record.sealed.len());
                match &mut self.gathered {
                    Some(Batch::Records(records)) => records.push(record),
                    _ => self.begin(Batch::Records(vec![record])),
                }
            }
            Part::Key(key) => match &mut self.gathered {
                Some(Batch::Keys(keys)) => keys.push(key),
                _ => self.begin(Batch::Keys(vec![key])),
            },
            Part::Writer(end) => {
                self.begin(Batch::Audit(AuditBatch { rows: Vec::new(), end: end.clone(), quota: Vec::new() }));
                self.writer = Some(end);
            }
            Part::Row(row) => match (&mut self.gathered, &self.writer) {
                (Some(Batch::Audit(batch)), _) => batch.rows.push(*row),
                (_, Some(end)) => {
                    let end = end.clone();
                    self.begin(Batch::Audit(AuditBatch { rows: vec![*row], end, quota: Vec::new() }));
                }
                (_, None) => return Err(StoreError::Corrupt("an audit row has no writer before it".to_owned())),
            },
            Part::Totals(_) => {
                self.ready.extend(self.gathered.take());
                self.ended = true;
            }
        }
        let full = match &self.gathered {
            Some(Batch::Records(records)) => records.len() >= MOST || self.bytes >= MOST_BYTES,
            Some(Batch::Keys(keys)) => keys.len() >= MOST,
            Some(Batch::Audit(batch)) => batch.rows.len() >= MOST,
            None => false,
        };
        if full {
            self.ready.extend(self.gathered.take());
            self.bytes = 0;
        }
        Ok(())
    }

    fn begin(&mut self, batch: Batch) {
        self.ready.extend(self.gathered.replace(batch));
    }
}
