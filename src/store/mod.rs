//! Durable storage: one method is one transaction, and one fact with its audit row.
//!
//! The engines decide nothing and open nothing: rows arrive sealed and chained. What they answer for is atomicity,
//! durability and the fence, and the conformance suite in `tests/it/store/` holds each of them to it.
//!
//! Over 400 lines, as the trait is what an engine is, and is read as one.
//!
//! # Invariants
//! - P4, P5 (the fence): [`Store::commit_rows`] and [`Store::append`] compare the head within the transaction that
//!   writes, and write only where it is the one that the caller names.
//! - `INV-QUOTA-1`: the same transaction counts what it hands out, and writes nothing where that would be over a quota.
//! - P6: when [`Store::scrub`] returns, bytes of keys that were destroyed before are in no file of the live database.

pub mod anchor;
mod batches;
mod canary;
pub mod part;
pub mod postgres;
mod quota;
mod reads;
mod schema;
mod shadow;
mod snapshot;
mod sql;
pub mod sqlite;

use async_trait::async_trait;

use crate::clock::UnixMillis;
use crate::domain::audit::{AuditFilter, AuditRow, LiveToken};
use crate::id::{AppGroupName, Chain, ClientId, Head, IssuerName, KeyId, PolicyName, Revision, TokenId, WriterId};
use crate::vault::audit_chain::WriterEnd;
use crate::vault::log::SealedRecord;
use crate::vault::unseal::SealRow;
pub use batches::Parts;
use part::Snapshot;
pub use quota::{QuotaAsk, QuotaLeft};
pub use shadow::{ShadowCount, ShadowKey};

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
    /// The database can't be used as it is: too old, too new, a standby; with what to do.
    #[error("{0}")]
    Unfit(String),
}

/// What the fence said.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Fenced {
    /// The head was the expected one, and everything was committed.
    Committed,
    /// The head has moved, and nothing was written.
    HeadMoved,
    /// The head was the expected one, but these quotas would have been exceeded, and nothing was written.
    OverQuota(Vec<QuotaLeft>),
}

/// Audit rows of one writer, with the end of its chain after them.
#[derive(Debug, Clone)]
pub struct AuditBatch {
    /// The rows, in order; may be empty for a writer that starts.
    pub rows: Vec<AuditRow>,
    /// The chain's end after them.
    pub end: WriterEnd,
    /// What they count against quotas: one for each policy and client, sorted by them.
    pub quota: Vec<QuotaAsk>,
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

/// Changes: records after an expected head, their audit rows, and what else must happen with them or not at all.
#[derive(Debug, Clone)]
pub struct Append {
    /// The head that the first record was sealed for.
    pub expected: Head,
    /// The records, each after the one before it; at least one.
    pub records: Vec<SealedRecord>,
    /// Their audit rows.
    pub audit: AuditBatch,
    /// What happens to sealed keys.
    pub keys: Vec<KeyBytes>,
    /// The new `seal` row, where a change makes one.
    pub seal: Option<SealRow>,
}

impl Append {
    /// The head after it.
    pub fn head(&self) -> Head {
        self.records.last().map_or(self.expected, SealedRecord::head)
    }
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

/// Which live tokens are asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Under {
    /// All of them.
    Everything,
    /// One token.
    Token(TokenId),
    /// One token, as far as one client got it: found among that client's.
    TokenOf(TokenId, ClientId),
    /// Those that one client got.
    HeldBy(ClientId),
    /// The same, and those that callers with its certificate got by a bearer token: what its revocation ends.
    Client(ClientId),
    /// Those of every client that an issuer vouches for.
    Issuer(IssuerName),
    /// Those issued under one policy.
    Policy(PolicyName),
    /// Those for one app group.
    AppGroup(AppGroupName),
    /// Those signed with one of these keys.
    Keys(Vec<KeyId>),
}

/// Live tokens of one client, under one policy, with one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExposureGroup {
    /// Who got them.
    pub client: String,
    /// Under which policy.
    pub policy: String,
    /// With which key.
    pub key_id: String,
    /// How many there are.
    pub count: u64,
    /// When the last one dies, in Unix seconds.
    pub last_expires_at: i64,
}

/// One replica, as it last described itself. Information only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it could do, as the `Phase` of the API is spelt.
    pub phase: String,
    /// The revision it had reached; 0 unless open.
    pub revision: Revision,
    /// When it started.
    pub started: UnixMillis,
    /// When it said so.
    pub seen: UnixMillis,
}

/// One way in which an acknowledged commit could be lost, or time be misread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hazard {
    /// A stable constant: metrics label and field of `doctor`.
    pub name: &'static str,
    /// What is wrong, and what to do.
    pub what: String,
}

/// Live tokens of one app group under one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveCount {
    /// The app group.
    pub app_group: String,
    /// The key.
    pub key_id: String,
    /// How many there are.
    pub count: u64,
    /// When the last one dies, in Unix seconds.
    pub last_expires_at: i64,
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
    /// By which certificate beside a bearer token; empty for none.
    pub certificate: String,
}

impl ExposureCursor {
    /// After this token.
    pub fn at(token: &LiveToken) -> Self {
        Self {
            expires_at: token.expires_at,
            token_id: token.id.to_string(),
            client: token.client.clone(),
            policy: token.policy.clone(),
            certificate: token.certificate.clone(),
        }
    }
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

    /// What a backup begins with, all of one moment; `None` before init.
    async fn snapshot(&self) -> Result<Option<Snapshot>, StoreError>;

    /// Whether there is anything of a vault.
    async fn is_used(&self) -> Result<bool, StoreError>;

    /// Writes a whole vault into an empty database, all of it at once or nothing.
    ///
    /// Fails with [`StoreError::AlreadyInitialised`] where there is anything.
    async fn restore(&self, seal: &SealRow, head: Head, parts: Parts) -> Result<(), StoreError>;

    /// The fence: commits the rows if the head is `decided_at` and they fit into their quotas, and not otherwise. `None` is
    /// for rows that record what was refused, which no change can make wrong.
    async fn commit_rows(&self, decided_at: Option<Head>, batch: &AuditBatch) -> Result<Fenced, StoreError>;

    /// Appends records if the head is still the expected one, and not otherwise.
    async fn append(&self, append: &Append) -> Result<Fenced, StoreError>;

    /// Makes sure that what was read is as durable as what is written: with synchronous standbys, a commit can be seen that
    /// they have not confirmed, after a restart of the server.
    async fn confirm(&self) -> Result<(), StoreError>;

    /// Waits until another replica may have changed something: a hint that makes this one fast, and may be missed.
    async fn hint(&self);

    /// Ways in which acknowledged commits could be lost, as the database is set up now.
    async fn hazards(&self, now: UnixMillis) -> Result<Vec<Hazard>, StoreError>;

    /// Describes a replica, and forgets those not seen since `forget`.
    async fn report(&self, replica: &Replica, forget: UnixMillis) -> Result<(), StoreError>;

    /// Replicas, by name.
    async fn replicas(&self) -> Result<Vec<Replica>, StoreError>;

    /// Connections for reading: used and idle.
    fn connections(&self) -> (u32, u32);

    /// Live tokens, counted by app group and key.
    async fn live_counts(&self, now_s: i64) -> Result<Vec<LiveCount>, StoreError>;

    /// Of each policy with a quota, the tokens that its busiest client got in this hour by the database's clock.
    async fn quotas_used(&self) -> Result<Vec<(String, u32)>, StoreError>;

    /// Begins a run of the canary where the last one began so long ago, by the database's clock; answers whether it did.
    async fn begin_canary(&self, every_ms: i64) -> Result<bool, StoreError>;

    /// The run that was begun last has succeeded.
    async fn end_canary(&self) -> Result<(), StoreError>;

    /// When the last run began that succeeded; `None` for never.
    async fn canary_succeeded(&self) -> Result<Option<UnixMillis>, StoreError>;

    /// Notes at which revision a replica was refused a token of the canary's key.
    async fn report_refusal(&self, replica: &str, revision: Revision) -> Result<(), StoreError>;

    /// Those revisions, by replica.
    async fn canary_refusals(&self) -> Result<Vec<(String, Revision)>, StoreError>;

    /// Forgets counts of windows that are over for long.
    async fn forget_quotas(&self) -> Result<(), StoreError>;

    /// Adds to the counts of shadow mode, and forgets those not raised since `forget`.
    async fn add_shadows(&self, counts: &[ShadowCount], forget: UnixMillis) -> Result<(), StoreError>;

    /// Counts of shadow mode of these policies and ceilings, each by kind and name (`policy NAME`), most often first, at
    /// most `limit`.
    async fn shadows(&self, of: &[String], limit: u32) -> Result<Vec<ShadowCount>, StoreError>;

    /// Forgets the counts of these policies and ceilings.
    async fn forget_shadows(&self, of: &[String]) -> Result<(), StoreError>;

    /// Makes sure that what was deleted before is in no file any more.
    async fn scrub(&self) -> Result<(), StoreError>;

    /// Ends: all is in the database file, and nothing can be asked any more.
    async fn close(&self);

    /// The newest checkpoint's revision; 0 for none.
    async fn newest_checkpoint(&self) -> Result<Revision, StoreError>;

    /// The newest checkpoint at a revision or before it; 0 for none.
    async fn checkpoint_before(&self, revision: Revision) -> Result<Revision, StoreError>;

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

    /// Rows that hand out one token, oldest first, at most `limit`; `from` and `until` bound the search.
    async fn handouts(
        &self,
        token: &TokenId,
        from: UnixMillis,
        until: UnixMillis,
        limit: u32,
    ) -> Result<Vec<AuditRow>, StoreError>;

    /// Sums over tokens that were committed before `before` and live after `now_s`.
    async fn exposure_totals(&self, under: &Under, before: Revision, now_s: i64) -> Result<ExposureTotals, StoreError>;

    /// Those tokens, counted by client, policy and key.
    async fn exposure_groups(
        &self,
        under: &Under,
        before: Revision,
        now_s: i64,
    ) -> Result<Vec<ExposureGroup>, StoreError>;

    /// Those tokens, first to die first, after a place in that order, at most `limit`.
    async fn exposure(
        &self,
        under: &Under,
        before: Revision,
        now_s: i64,
        after: &ExposureCursor,
        limit: u32,
    ) -> Result<Vec<LiveToken>, StoreError>;
}
