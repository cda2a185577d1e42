//! Durable storage: one method is one transaction, and one fact with its audit row.
//!
//! The engines decide nothing and open nothing: rows arrive sealed and chained. What they answer for is atomicity,
//! durability and the fence, and the conformance suite in `tests/it/store/` holds each of them to it.
//!
//! # Invariants
//! - P4, P5 (the fence): [`Store::commit_rows`] and [`Store::append`] compare the head within the transaction that
//!   writes, and write only where it is the one that the caller names.
//! - P6: when [`Store::scrub`] returns, bytes of keys that were destroyed before are in no file of the live database.

pub mod anchor;
mod sql;
pub mod sqlite;

use async_trait::async_trait;

use crate::clock::UnixMillis;
use crate::domain::audit::{AuditFilter, AuditRow, LiveToken};
use crate::domain::target::Target;
use crate::id::{Chain, Head, KeyId, Revision, WriterId};
use crate::vault::audit_chain::WriterEnd;
use crate::vault::log::SealedRecord;
use crate::vault::unseal::SealRow;

/// Why the database did not do it, whatever the engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process serves this database.
    #[error("another process has `{0}` open; stop it first: one database on SQLite has one broker")]
    Locked(String),
    /// The vault exists already.
    #[error("this database already holds a vault")]
    AlreadyInitialised,
    /// The database is away, full or busy. What was being written may or may not be there.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// The database is damaged, or holds what this broker never wrote.
    #[error("the database is damaged: {0}")]
    Corrupt(String),
}

/// What the fence said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Fenced {
    /// The head was the expected one, and everything was committed.
    Committed,
    /// The head has moved, and nothing was written.
    HeadMoved,
}

/// Audit rows of one writer, with the end of its chain after them.
#[derive(Debug, Clone)]
pub struct AuditBatch {
    /// The rows, in order; may be empty for a writer that starts.
    pub rows: Vec<AuditRow>,
    /// The chain's end after them.
    pub end: WriterEnd,
}

/// A sealed Apple key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedKey {
    /// Apple's name for it.
    pub key_id: KeyId,
    /// The revision that imported it: part of its place.
    pub imported: Revision,
    /// The sealed bytes.
    pub sealed: Vec<u8>,
}

/// What a change does to the sealed keys.
#[derive(Debug, Clone)]
pub enum KeyBytes {
    /// Stores a new key's bytes, or replaces those of a known one.
    Put(SealedKey),
    /// Deletes them for good.
    Destroy(KeyId),
}

/// One change: a record after an expected head, its audit row, and what else must happen with it or not at all.
#[derive(Debug, Clone)]
pub struct Append {
    /// The head that the record was sealed for.
    pub expected: Head,
    /// The record.
    pub record: SealedRecord,
    /// Its audit row.
    pub audit: AuditBatch,
    /// What happens to sealed keys.
    pub keys: Vec<KeyBytes>,
    /// The new `seal` row, where the change makes one.
    pub seal: Option<SealRow>,
}

/// A writer's stored end, and what the audit table has there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEnd {
    /// The end.
    pub end: WriterEnd,
    /// The chain value of the row with the end's sequence, where there is one.
    pub row_chain: Option<Chain>,
    /// Whether there are rows after it.
    pub has_more: bool,
}

/// Where a listing goes on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditCursor {
    /// The last row's time.
    pub at: UnixMillis,
    /// The last row's writer, as text.
    pub writer: String,
    /// The last row's sequence.
    pub sequence: u64,
}

/// Sums over live tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExposureTotals {
    /// How many there are.
    pub count: u64,
    /// When the last one dies, in Unix seconds.
    pub last_expires_at: Option<i64>,
}

/// Where an exposure goes on: the last token's place.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExposureCursor {
    /// When it dies, in Unix seconds.
    pub expires_at: i64,
    /// Its name.
    pub token_id: String,
    /// Who got it.
    pub client: String,
    /// Under which policy.
    pub policy: String,
}

/// The durable side of the broker.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The `seal` row; `None` before init.
    async fn seal_row(&self) -> Result<Option<SealRow>, StoreError>;

    /// The head; zeros before init.
    async fn head(&self) -> Result<Head, StoreError>;

    /// Makes the vault: the `seal` row, the first record and its audit row, all at once.
    ///
    /// Fails with [`StoreError::AlreadyInitialised`] where there is one.
    async fn initialise(&self, first: Append) -> Result<(), StoreError>;

    /// The fence: commits the rows if the head is `decided_at`, and not otherwise. `None` is for rows that record what
    /// was refused, which no change can make wrong.
    async fn commit_rows(&self, decided_at: Option<Head>, batch: &AuditBatch) -> Result<Fenced, StoreError>;

    /// Appends a record if the head is still the expected one, and not otherwise.
    async fn append(&self, append: &Append) -> Result<Fenced, StoreError>;

    /// Makes sure that what was deleted before is in no file any more.
    async fn scrub(&self) -> Result<(), StoreError>;

    /// Ends: all is in the database file, and nothing can be asked any more.
    async fn close(&self);

    /// The newest checkpoint's revision; 0 for none.
    async fn newest_checkpoint(&self) -> Result<Revision, StoreError>;

    /// Records from a revision on, in order, at most `limit`.
    async fn records_from(&self, from: Revision, limit: u32) -> Result<Vec<SealedRecord>, StoreError>;

    /// All sealed keys.
    async fn sealed_keys(&self) -> Result<Vec<SealedKey>, StoreError>;

    /// All writers' ends.
    async fn writer_ends(&self) -> Result<Vec<StoredEnd>, StoreError>;

    /// One writer's rows after a sequence, in order, at most `limit`.
    async fn rows_of_writer(&self, writer: &WriterId, after: u64, limit: u32) -> Result<Vec<AuditRow>, StoreError>;

    /// Rows that no known writer wrote.
    async fn rows_of_unknown_writers(&self) -> Result<u64, StoreError>;

    /// Rows that match, oldest first, after a cursor, at most `limit`.
    async fn list_rows(
        &self,
        filter: &AuditFilter,
        after: &AuditCursor,
        limit: u32,
    ) -> Result<Vec<AuditRow>, StoreError>;

    /// How far one writer's rows can be removed: the last row such that it and all before it are older than `before` and
    /// none is of a token alive after `now_s`; with its chain value.
    async fn prunable(
        &self,
        writer: &WriterId,
        before: UnixMillis,
        now_s: i64,
    ) -> Result<Option<(u64, Chain)>, StoreError>;

    /// Removes at most `limit` rows of one writer up to a sequence; answers how many.
    async fn remove_rows(&self, writer: &WriterId, upto: u64, limit: u32) -> Result<u64, StoreError>;

    /// Sums over tokens under a target that were committed before `before` and live after `now_s`.
    async fn exposure_totals(
        &self,
        target: &Target,
        before: Revision,
        now_s: i64,
    ) -> Result<ExposureTotals, StoreError>;

    /// Those tokens, first to die first, after a place in that order, at most `limit`.
    async fn exposure(
        &self,
        target: &Target,
        before: Revision,
        now_s: i64,
        after: &ExposureCursor,
        limit: u32,
    ) -> Result<Vec<LiveToken>, StoreError>;
}
