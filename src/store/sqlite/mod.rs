//! SQLite (3.42 and later, bundled): the embedded default, for one broker on one machine.
//!
//! One connection writes, in `BEGIN IMMEDIATE` transactions with `synchronous=FULL` on a write-ahead log; a few more
//! read. A lock file keeps a second process out, so the head is moved by this process alone; the comparison is made in
//! the transaction all the same.

mod audit;
mod control;
mod quota;
mod whole;

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::migrate::Migrator;
use sqlx::query::Query;
use sqlx::sqlite::{
    Sqlite, SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqliteConnection};
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};

use super::part::Snapshot;
use super::reads::{self, Ask, Value, columns, signed};
use super::schema::check_release;
use super::{
    Append, AuditBatch, AuditCursor, ExposureCursor, ExposureGroup, ExposureTotals, Fenced, Hazard, LiveCount, Parts,
    Replica, SealedKey, ShadowCount, Store, StoreError, StoredEnd, Under, canary, shadow, snapshot, sql,
};
use crate::clock::UnixMillis;
use crate::domain::audit::{AuditFilter, AuditRow, LiveToken};
use crate::id::{Chain, Head, Revision, TokenId, WriterId};
use crate::vault::log::SealedRecord;
use crate::vault::unseal::SealRow;

/// Readers serve listings and exposures; each holds a snapshot for one short query.
const READERS: u32 = 4;

/// How often emptying the write-ahead log is tried while a reader is in the way, and how long between two tries.
const SCRUB_TRIES: u32 = 250;
const SCRUB_PAUSE: Duration = Duration::from_millis(20);

/// A vault in one SQLite file.
pub struct SqliteStore {
    /// `None` once closed.
    writer: Mutex<Option<SqliteConnection>>,
    readers: SqlitePool,
    /// Held for as long as the store lives.
    _lock: File,
}

impl SqliteStore {
    /// Opens the file, makes it where it is missing, and brings its schema up to date.
    ///
    /// # Errors
    /// Where another process has it, or it is no database of ours.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let lock = lock(path)?;
        // Made here, so that it is never readable by others, not even for a moment.
        let create = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        create.map_err(|error| StoreError::Unavailable(format!("{}: {error}", path.display())))?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            // Nobody else writes, and emptying the log must not hold the writer while a reader is in the way.
            .busy_timeout(Duration::ZERO)
            // INVARIANT (P6): deleted content is overwritten, not only unlinked.
            .pragma("secure_delete", "on")
            // One for each size of insert, and the others.
            .statement_cache_capacity(audit::MOST_ROWS + 64)
            .disable_statement_logging();
        let mut writer = options.connect().await.map_err(classify)?;
        let known: i64 = sqlx::query_scalar("select count(*) from sqlite_master where name = 'schema_release'")
            .fetch_one(&mut writer)
            .await
            .map_err(classify)?;
        if known > 0 {
            // Before anything is changed: a newer release may have made of these tables what this one must not touch.
            let oldest: String =
                sqlx::query_scalar(sql::OLDEST_RELEASE).fetch_one(&mut writer).await.map_err(classify)?;
            check_release(&oldest)?;
        }
        let migrated = migrations().run_direct(None, &mut writer, false).await;
        migrated.map_err(|error| StoreError::Corrupt(error.to_string()))?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(options.read_only(true).busy_timeout(Duration::from_secs(5)))
            .await
            .map_err(classify)?;
        let store = Self { writer: Mutex::new(Some(writer)), readers, _lock: lock };
        // INVARIANT (P6): a process killed between deleting a key and emptying the log has left that to this one.
        store.scrub().await?;
        Ok(store)
    }

    /// The newest migration that this release knows.
    pub fn newest_migration() -> i64 {
        migrations().iter().map(|migration| migration.version).max().unwrap_or_default()
    }

    async fn writer(&self) -> Result<MappedMutexGuard<'_, SqliteConnection>, StoreError> {
        let closed = |_| StoreError::Unavailable("the database is closed".to_owned());
        MutexGuard::try_map(self.writer.lock().await, Option::as_mut).map_err(closed)
    }
}

fn migrations() -> Migrator {
    let mut migrations = sqlx::migrate!("migrations/sqlite");
    // Migrations that this release does not know were made by a newer one; `schema_release` says whether this one may go on.
    migrations.set_ignore_missing(true);
    migrations
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let unavailable = |error: std::io::Error| StoreError::Unavailable(format!("{}: {error}", name.display()));
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&name).map_err(unavailable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(path.display().to_string())),
        Err(TryLockError::Error(error)) => Err(unavailable(error)),
    }
}

/// What sqlx says, in the store's words.
fn classify(error: sqlx::Error) -> StoreError {
    match &error {
        sqlx::Error::Database(inner) => match inner.code().as_deref() {
            // SQLITE_CORRUPT, SQLITE_NOTADB, SQLITE_CONSTRAINT and its extended codes: rows that can't be ours.
            // SQLITE_ERROR among them: a statement of ours that is wrong means a table that is not ours.
            Some("1" | "11" | "26" | "19" | "1555" | "2067" | "275" | "1299" | "3091") => {
                StoreError::Corrupt(error.to_string())
            }
            _ => StoreError::Unavailable(error.to_string()),
        },
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::ColumnNotFound(_) => {
            StoreError::Corrupt(error.to_string())
        }
        _ => StoreError::Unavailable(error.to_string()),
    }
}

columns!(SqliteRow);

impl Ask for SqlitePool {
    type Row = SqliteRow;
    const NOW: &str = "$1";

    async fn ask(&self, sql: String, values: &[Value<'_>]) -> Result<Vec<SqliteRow>, StoreError> {
        bound(sql, values).fetch_all(self).await.map_err(classify)
    }
}

fn bound<'q>(sql: String, values: &[Value<'q>]) -> Query<'q, Sqlite, SqliteArguments> {
    values.iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, value| match value {
        Value::Text(text) => query.bind(*text),
        Value::Maybe(text) => query.bind(*text),
        Value::Integer(number) => query.bind(*number),
    })
}

#[async_trait]
impl Store for SqliteStore {
    async fn seal_row(&self) -> Result<Option<SealRow>, StoreError> {
        reads::seal_row(&self.readers).await
    }

    async fn head(&self) -> Result<Head, StoreError> {
        reads::head(&self.readers).await
    }

    async fn initialise(&self, first: Append) -> Result<(), StoreError> {
        control::initialise(&mut *self.writer().await?, &first).await
    }

    async fn snapshot(&self) -> Result<Option<Snapshot>, StoreError> {
        whole::snapshot(&self.readers).await
    }

    async fn is_used(&self) -> Result<bool, StoreError> {
        snapshot::is_used(&self.readers).await
    }

    async fn restore(&self, seal: &SealRow, head: Head, parts: Parts) -> Result<(), StoreError> {
        whole::restore(&mut *self.writer().await?, seal, head, parts).await
    }

    async fn commit_rows(&self, decided_at: Option<Head>, batch: &AuditBatch) -> Result<Fenced, StoreError> {
        control::commit_rows(&mut *self.writer().await?, decided_at, batch).await
    }

    async fn append(&self, append: &Append) -> Result<Fenced, StoreError> {
        control::append(&mut *self.writer().await?, append).await
    }

    async fn confirm(&self) -> Result<(), StoreError> {
        // What can be read here was durable before.
        Ok(())
    }

    /// Nobody else writes here.
    async fn hint(&self) {
        std::future::pending().await
    }

    async fn hazards(&self, _: UnixMillis) -> Result<Vec<Hazard>, StoreError> {
        // `synchronous=FULL` is set on the connection that writes, and the clock is the machine's own.
        Ok(Vec::new())
    }

    async fn report(&self, replica: &Replica, forget: UnixMillis) -> Result<(), StoreError> {
        let mut writer = self.writer().await?;
        let put = sqlx::query(sql::PUT_REPLICA)
            .bind(&replica.name)
            .bind(&replica.version)
            .bind(&replica.phase)
            .bind(signed(replica.revision.0))
            .bind(replica.started.0)
            .bind(replica.seen.0);
        put.execute(&mut *writer).await.map_err(classify)?;
        let forget = sqlx::query(sql::FORGET_REPLICAS).bind(forget.0).execute(&mut *writer).await;
        forget.map(drop).map_err(classify)
    }

    fn connections(&self) -> (u32, u32) {
        reads::connections(self.readers.size(), self.readers.num_idle())
    }

    async fn live_counts(&self, now_s: i64) -> Result<Vec<LiveCount>, StoreError> {
        reads::live_counts(&self.readers, now_s).await
    }

    async fn quotas_used(&self) -> Result<Vec<(String, u32)>, StoreError> {
        reads::quotas_used(&self.readers, "unixepoch() / 3600").await
    }

    async fn begin_canary(&self, every_ms: i64) -> Result<bool, StoreError> {
        let begin = AssertSqlSafe(canary::begin("cast(unixepoch('subsec') * 1000 as integer)"));
        let begun = sqlx::query(begin).bind(every_ms).fetch_optional(&mut *self.writer().await?).await;
        begun.map(|row| row.is_some()).map_err(classify)
    }

    async fn end_canary(&self) -> Result<(), StoreError> {
        let mut writer = self.writer().await?;
        sqlx::query(canary::END).execute(&mut *writer).await.map_err(classify)?;
        sqlx::query(canary::FORGET).execute(&mut *writer).await.map(drop).map_err(classify)
    }

    async fn canary_succeeded(&self) -> Result<Option<UnixMillis>, StoreError> {
        canary::succeeded(&self.readers).await
    }

    async fn report_refusal(&self, replica: &str, revision: Revision) -> Result<(), StoreError> {
        let refuse = sqlx::query(canary::REFUSE).bind(replica).bind(signed(revision.0));
        refuse.execute(&mut *self.writer().await?).await.map(drop).map_err(classify)
    }

    async fn canary_refusals(&self) -> Result<Vec<(String, Revision)>, StoreError> {
        canary::refusals(&self.readers).await
    }

    async fn forget_quotas(&self) -> Result<(), StoreError> {
        quota::forget(&mut *self.writer().await?).await
    }

    async fn add_shadows(&self, counts: &[ShadowCount], forget: UnixMillis) -> Result<(), StoreError> {
        let mut writer = self.writer().await?;
        let mut transaction = writer.begin_with("begin immediate").await.map_err(classify)?;
        let add = sqlx::query(AssertSqlSafe(shadow::add("json_each($1)"))).bind(shadow::json(counts));
        add.execute(&mut *transaction).await.map_err(classify)?;
        let forget = sqlx::query(shadow::FORGET_OLD).bind(forget.0).execute(&mut *transaction).await;
        forget.map_err(classify)?;
        transaction.commit().await.map_err(classify)
    }

    async fn shadows(&self, of: &[String], limit: u32) -> Result<Vec<ShadowCount>, StoreError> {
        shadow::read(&self.readers, of, limit).await
    }

    async fn forget_shadows(&self, of: &[String]) -> Result<(), StoreError> {
        let forget = sqlx::query(shadow::FORGET).bind(shadow::between_commas(of));
        forget.execute(&mut *self.writer().await?).await.map(drop).map_err(classify)
    }

    async fn replicas(&self) -> Result<Vec<Replica>, StoreError> {
        reads::replicas(&self.readers).await
    }

    async fn scrub(&self) -> Result<(), StoreError> {
        for _ in 0..SCRUB_TRIES {
            if control::truncate_log(&mut *self.writer().await?).await? {
                return Ok(());
            }
            tokio::time::sleep(SCRUB_PAUSE).await;
        }
        Err(StoreError::Unavailable("a reader kept the write-ahead log from being emptied; try again".to_owned()))
    }

    async fn close(&self) {
        self.readers.close().await;
        // The last connection to close folds the write-ahead log into the file.
        if let Some(writer) = self.writer.lock().await.take()
            && let Err(error) = writer.close().await
        {
            tracing::warn!(%error, "the database did not close cleanly");
        }
    }

    async fn newest_checkpoint(&self) -> Result<Revision, StoreError> {
        reads::newest_checkpoint(&self.readers).await
    }

    async fn checkpoint_before(&self, revision: Revision) -> Result<Revision, StoreError> {
        reads::checkpoint_before(&self.readers, revision).await
    }

    async fn records_from(&self, from: Revision, limit: u32) -> Result<Vec<SealedRecord>, StoreError> {
        reads::records_from(&self.readers, from, limit).await
    }

    async fn sealed_keys(&self) -> Result<Vec<SealedKey>, StoreError> {
        reads::sealed_keys(&self.readers).await
    }

    async fn writer_ends(&self) -> Result<Vec<StoredEnd>, StoreError> {
        reads::writer_ends(&self.readers).await
    }

    async fn rows_of_writer(&self, writer: &WriterId, after: u64, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        reads::rows_of_writer(&self.readers, writer, after, limit).await
    }

    async fn rows_of_unknown_writers(&self) -> Result<u64, StoreError> {
        reads::rows_of_unknown_writers(&self.readers).await
    }

    async fn list_rows(
        &self,
        filter: &AuditFilter,
        after: &AuditCursor,
        limit: u32,
    ) -> Result<Vec<AuditRow>, StoreError> {
        reads::list_rows(&self.readers, filter, after, limit).await
    }

    async fn prunable(
        &self,
        writer: &WriterId,
        before: UnixMillis,
        now_s: i64,
    ) -> Result<Option<(u64, Chain)>, StoreError> {
        reads::prunable(&self.readers, writer, before, now_s).await
    }

    async fn remove_rows(&self, writer: &WriterId, upto: u64, limit: u32) -> Result<u64, StoreError> {
        let query = sqlx::query(sql::REMOVE_ROWS).bind(writer.as_str()).bind(signed(upto)).bind(i64::from(limit));
        query.execute(&mut *self.writer().await?).await.map(|done| done.rows_affected()).map_err(classify)
    }

    async fn handouts(
        &self,
        token: &TokenId,
        from: UnixMillis,
        until: UnixMillis,
        limit: u32,
    ) -> Result<Vec<AuditRow>, StoreError> {
        reads::handouts(&self.readers, token, from, until, limit).await
    }

    async fn exposure_totals(&self, under: &Under, before: Revision, now_s: i64) -> Result<ExposureTotals, StoreError> {
        reads::exposure_totals(&self.readers, under, before, now_s).await
    }

    async fn exposure_groups(
        &self,
        under: &Under,
        before: Revision,
        now_s: i64,
    ) -> Result<Vec<ExposureGroup>, StoreError> {
        reads::exposure_groups(&self.readers, under, before, now_s).await
    }

    async fn exposure(
        &self,
        under: &Under,
        before: Revision,
        now_s: i64,
        after: &ExposureCursor,
        limit: u32,
    ) -> Result<Vec<LiveToken>, StoreError> {
        reads::exposure(&self.readers, under, before, now_s, after, limit).await
    }
}
