//! PostgreSQL (15 and later): the engine for any number of replicas on one primary.
//!
//! Three kinds of connections, so that none waits for another kind: one writes, as all writing of a replica is one task; a
//! few read, each for one short query at a time; one listens. Every one of them is pinned at its start (`session`) to what
//! the fence relies on, and refuses a standby.
//!
//! Over 400 lines, as every operation of the store is one function here, next to the others that share its connection.
//!
//! # Invariants
//! - P4: an answer counts only after `ReadyForQuery` (PostgreSQL's protocol, "Extended Query"): a commit comes after the
//!   row that a function returns, and may fail. So results are always read to their end.
//! - `INV-PG-1`: no query is ever cancelled: cancelling a commit that waits for a standby makes it look acknowledged. What
//!   takes too long has its connection closed, and its outcome is unknown.

mod listener;
mod session;
mod settings;
mod whole;
mod write;

use std::time::Duration;

use async_trait::async_trait;
use sqlx::migrate::{Migrate, Migrator};
use sqlx::postgres::{PgArguments, PgPool, PgPoolOptions, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgConnection, Postgres};
use tokio::sync::Mutex;

use super::part::Snapshot;
use super::quota;
use super::reads::{self, Ask, Value, columns, signed};
use super::schema::check_release;
use super::{
    Append, AuditBatch, AuditCursor, ExposureCursor, ExposureGroup, ExposureTotals, Fenced, Hazard, LiveCount, Parts,
    Replica, SealedKey, ShadowCount, Store, StoreError, StoredEnd, Under, canary, shadow, snapshot, sql,
};
use crate::clock::UnixMillis;
use crate::domain::audit::{AuditFilter, AuditRow, LiveToken};
use crate::id::{Chain, Head, Revision, TokenId, WriterId};
use crate::metrics::Metrics;
use crate::vault::log::SealedRecord;
use crate::vault::unseal::SealRow;
use listener::Listener;
use session::{Session, connect};
pub use settings::{Settings, Source};

/// Exposures, listings and the news for watchers read side by side; with more, the database's cores are shared by queries
/// that each take longer, and three replicas stay below PostgreSQL's default of 100 connections by far.
const READERS: u32 = 8;

/// The hour it is now, by the database's clock.
const THIS_HOUR: &str = "floor(extract(epoch from now()) / 3600)::bigint";

/// One at a time follows the log; one more, so that a connection that hangs does not stop it.
const FOLLOWERS: u32 = 2;

/// How long a question may take before its connection is given up; listings of millions of rows come in pages.
const READ: Duration = Duration::from_secs(30);

/// How long a commit of audit rows may take before its outcome is unknown: clients wait for it.
const COMMIT: Duration = Duration::from_secs(10);

/// How often writing the tables of keys anew is tried while somebody reads them, and how long between two tries.
const SCRUB_TRIES: u32 = 10;
const SCRUB_PAUSE: Duration = Duration::from_millis(200);

/// How long a change may take: it may wait for others' commits, and ends those that hang (`write::append`).
const APPEND: Duration = Duration::from_secs(30);

/// A vault in a PostgreSQL database.
pub struct PostgresStore {
    settings: Settings,
    /// `None` before the first use, after a failure, and once closed.
    writer: Mutex<Option<Session>>,
    readers: Readers,
    /// For following the log alone: whoever asks much of the others does not hold it up.
    follower: Readers,
    listener: Listener,
    closed: std::sync::atomic::AtomicBool,
}

impl PostgresStore {
    /// Connects, brings the schema up to date where the settings ask for it, and listens.
    ///
    /// # Errors
    /// Where the database can't be reached, is a standby, or has a schema that this release must not use.
    pub async fn open(settings: Settings, metrics: &Metrics) -> Result<Self, StoreError> {
        let mut writer = connect(&settings).await?;
        prepare(&mut writer.connection, settings.migrate).await?;
        let (readers, follower) = (Readers::new(&settings, READERS)?, Readers::new(&settings, FOLLOWERS)?);
        let listener = Listener::start(settings.clone(), metrics.listener_up.clone());
        Ok(Self { settings, writer: Mutex::new(Some(writer)), readers, follower, listener, closed: false.into() })
    }

    /// Brings the schema up to date, and nothing else. Answers the newest migration.
    ///
    /// # Errors
    /// Where the database can't be reached, is a standby, or has a schema that this release must not use.
    pub async fn migrate(settings: &Settings) -> Result<i64, StoreError> {
        let mut session = connect(settings).await?;
        prepare(&mut session.connection, true).await?;
        Ok(migrations().iter().map(|migration| migration.version).max().unwrap_or_default())
    }

    /// Writes on the one connection that writes. Where that fails or takes too long, the connection is closed: the next
    /// write has a new one.
    async fn write<T>(
        &self,
        limit: Duration,
        work: impl AsyncFnOnce(&mut Session) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut slot = self.writer.lock().await;
        if self.closed.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(StoreError::Unavailable("the database is closed".to_owned()));
        }
        let mut kept = slot.take();
        if let Some(session) = &mut kept
            && !session.is_there().await
        {
            kept = None;
        }
        let mut session = match kept {
            Some(session) => session,
            None => connect(&self.settings).await?,
        };
        // INVARIANT (INV-PG-1): dropping a session closes its socket and cancels nothing.
        match tokio::time::timeout(limit, work(&mut session)).await {
            Ok(Ok(done)) => {
                *slot = Some(session);
                Ok(done)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(StoreError::Unavailable(format!("no answer within {} s", limit.as_secs()))),
        }
    }
}

fn migrations() -> Migrator {
    let mut migrations = sqlx::migrate!("migrations/postgres");
    // Migrations that this release does not know were made by a newer one; `schema_release` says whether this one may go on.
    migrations.set_ignore_missing(true);
    migrations
}

async fn prepare(connection: &mut PgConnection, migrate: bool) -> Result<(), StoreError> {
    if table_exists(connection, "schema_release").await? {
        let oldest: Vec<String> =
            sqlx::query_scalar(sql::OLDEST_RELEASE).fetch_all(&mut *connection).await.map_err(session::classify)?;
        let oldest = oldest.first().ok_or_else(|| StoreError::Corrupt("schema_release is empty".to_owned()))?;
        check_release(oldest)?;
    }
    let migrations = migrations();
    if migrate {
        // Under an advisory lock of sqlx's: of replicas that start together one migrates, and the others find it done.
        let done = migrations.run_direct(None, connection, false).await;
        return done.map_err(|error| match error {
            sqlx::migrate::MigrateError::Execute(error) => session::classify(error),
            other => StoreError::Unfit(format!("the schema can't be brought up to date: {other}")),
        });
    }
    let applied = if table_exists(connection, "_sqlx_migrations").await? {
        let applied = connection.list_applied_migrations("_sqlx_migrations").await;
        applied.map_err(|error| StoreError::Unavailable(error.to_string()))?
    } else {
        Vec::new()
    };
    match migrations.iter().find(|ours| !applied.iter().any(|done| done.version == ours.version)) {
        None => Ok(()),
        Some(missing) => Err(StoreError::Unfit(format!(
            "the schema lacks migration {}; run `p8broker migrate`, or set store.migrate",
            missing.version
        ))),
    }
}

async fn table_exists(connection: &mut PgConnection, name: &str) -> Result<bool, StoreError> {
    let query = sqlx::query_scalar("select to_regclass($1) is not null").bind(name);
    let found: Vec<bool> = query.fetch_all(connection).await.map_err(session::classify)?;
    Ok(found.first() == Some(&true))
}

columns!(PgRow);

/// Connections that read.
struct Readers {
    pool: PgPool,
    settings: Settings,
}

impl Readers {
    fn new(settings: &Settings, most: u32) -> Result<Self, StoreError> {
        let pool = PgPoolOptions::new()
            .max_connections(most)
            .acquire_timeout(session::CONNECT)
            .after_connect(|connection, _| Box::pin(async move { session::pin(connection).await.map(drop) }))
            .connect_lazy_with(settings.options()?);
        Ok(Self { pool, settings: settings.clone() })
    }
}

impl Ask for Readers {
    type Row = PgRow;
    // A replica whose clock is ahead must not take a living token for dead: the database's clock has a say.
    const NOW: &str = "least($1, floor(extract(epoch from now()))::bigint)";

    async fn ask(&self, sql: String, values: &[Value<'_>]) -> Result<Vec<PgRow>, StoreError> {
        let query = bound(sql, values);
        on_reader(self, async |connection| query.fetch_all(connection).await).await
    }
}

fn bound<'q>(sql: String, values: &[Value<'q>]) -> Query<'q, Postgres, PgArguments> {
    values.iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, value| match value {
        Value::Text(text) => query.bind(*text),
        Value::Maybe(text) => query.bind(*text),
        Value::Integer(number) => query.bind(*number),
    })
}

/// Uses one of the readers. One that takes too long is closed, not given back.
async fn on_reader<T>(
    readers: &Readers,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, StoreError> {
    let acquired = readers.pool.acquire().await;
    if acquired.is_err()
        && let Ok(options) = readers.settings.options()
    {
        // A password or certificate that was replaced: the next connection is made with what is there now.
        readers.pool.set_connect_options(options);
    }
    let mut reader = acquired.map_err(session::classify)?;
    if let Ok(done) = tokio::time::timeout(READ, work(&mut reader)).await {
        return done.map_err(session::classify);
    }
    drop(reader.detach());
    Err(StoreError::Unavailable(format!("no answer within {} s", READ.as_secs())))
}

#[async_trait]
impl Store for PostgresStore {
    async fn seal_row(&self) -> Result<Option<SealRow>, StoreError> {
        reads::seal_row(&self.follower).await
    }

    async fn head(&self) -> Result<Head, StoreError> {
        reads::head(&self.follower).await
    }

    async fn initialise(&self, first: Append) -> Result<(), StoreError> {
        match self.write(APPEND, async |session| write::append(session, &self.settings, &first, true).await).await? {
            write::Appended::Committed => Ok(()),
            write::Appended::HeadMoved | write::Appended::Initialised => Err(StoreError::AlreadyInitialised),
        }
    }

    async fn snapshot(&self) -> Result<Option<Snapshot>, StoreError> {
        whole::snapshot(&self.settings).await
    }

    async fn is_used(&self) -> Result<bool, StoreError> {
        snapshot::is_used(&self.readers).await
    }

    async fn restore(&self, seal: &SealRow, head: Head, parts: Parts) -> Result<(), StoreError> {
        whole::restore(&self.settings, seal, head, parts).await
    }

    async fn commit_rows(&self, decided_at: Option<Head>, batch: &AuditBatch) -> Result<Fenced, StoreError> {
        self.write(COMMIT, async |session| write::commit_rows(session, &self.settings, decided_at, batch).await).await
    }

    async fn append(&self, append: &Append) -> Result<Fenced, StoreError> {
        match self.write(APPEND, async |session| write::append(session, &self.settings, append, false).await).await? {
            write::Appended::Committed => Ok(Fenced::Committed),
            write::Appended::HeadMoved | write::Appended::Initialised => Ok(Fenced::HeadMoved),
        }
    }

    async fn confirm(&self) -> Result<(), StoreError> {
        // A commit comes after all before it in the log that standbys confirm.
        let write = async |session: &mut Session| {
            let touch = sqlx::query("update schema_release set oldest = oldest").execute(&mut session.connection);
            touch.await.map(drop).map_err(session::classify)
        };
        self.write(COMMIT, write).await
    }

    async fn hint(&self) {
        self.listener.hint().await;
    }

    async fn hazards(&self, now: UnixMillis) -> Result<Vec<Hazard>, StoreError> {
        on_reader(&self.readers, async |connection| session::hazards(connection, now).await).await
    }

    async fn report(&self, replica: &Replica, forget: UnixMillis) -> Result<(), StoreError> {
        on_reader(&self.readers, async |connection| {
            let put = sqlx::query(sql::PUT_REPLICA)
                .bind(&replica.name)
                .bind(&replica.version)
                .bind(&replica.phase)
                .bind(signed(replica.revision.0))
                .bind(replica.started.0)
                .bind(replica.seen.0);
            put.execute(&mut *connection).await?;
            sqlx::query(sql::FORGET_REPLICAS).bind(forget.0).execute(connection).await.map(drop)
        })
        .await
    }

    fn connections(&self) -> (u32, u32) {
        reads::connections(self.readers.pool.size(), self.readers.pool.num_idle())
    }

    async fn live_counts(&self, now_s: i64) -> Result<Vec<LiveCount>, StoreError> {
        reads::live_counts(&self.readers, now_s).await
    }

    async fn quotas_used(&self) -> Result<Vec<(String, u32)>, StoreError> {
        reads::quotas_used(&self.readers, THIS_HOUR).await
    }

    async fn begin_canary(&self, every_ms: i64) -> Result<bool, StoreError> {
        let begin = AssertSqlSafe(canary::begin("floor(extract(epoch from now()) * 1000)::bigint"));
        on_reader(&self.readers, async |connection| {
            sqlx::query(begin).bind(every_ms).fetch_all(connection).await.map(|rows| !rows.is_empty())
        })
        .await
    }

    async fn end_canary(&self) -> Result<(), StoreError> {
        on_reader(&self.readers, async |connection| {
            sqlx::query(canary::END).execute(&mut *connection).await?;
            sqlx::query(canary::FORGET).execute(connection).await.map(drop)
        })
        .await
    }

    async fn canary_succeeded(&self) -> Result<Option<UnixMillis>, StoreError> {
        canary::succeeded(&self.readers).await
    }

    async fn report_refusal(&self, replica: &str, revision: Revision) -> Result<(), StoreError> {
        on_reader(&self.readers, async |connection| {
            let refuse = sqlx::query(canary::REFUSE).bind(replica).bind(signed(revision.0));
            refuse.execute(connection).await.map(drop)
        })
        .await
    }

    async fn canary_refusals(&self) -> Result<Vec<(String, Revision)>, StoreError> {
        canary::refusals(&self.readers).await
    }

    async fn forget_quotas(&self) -> Result<(), StoreError> {
        // What a commit holds is passed over: to wait for it, in an order of one's own, could be a deadlock.
        let forget = AssertSqlSafe(sql::forget_quotas(THIS_HOUR, "for update skip locked"));
        on_reader(&self.readers, async |connection| {
            let query = sqlx::query(forget).bind(quota::FORGET_HOURS).bind(quota::MOST_FORGOTTEN);
            query.execute(connection).await.map(drop)
        })
        .await
    }

    async fn add_shadows(&self, counts: &[ShadowCount], forget: UnixMillis) -> Result<(), StoreError> {
        on_reader(&self.readers, async |connection| {
            let add = AssertSqlSafe(shadow::add("jsonb_array_elements($1::jsonb) as each (value)"));
            sqlx::query(add).bind(shadow::json(counts)).execute(&mut *connection).await?;
            sqlx::query(shadow::FORGET_OLD).bind(forget.0).execute(connection).await.map(drop)
        })
        .await
    }

    async fn shadows(&self, of: &[String], limit: u32) -> Result<Vec<ShadowCount>, StoreError> {
        shadow::read(&self.readers, of, limit).await
    }

    async fn forget_shadows(&self, of: &[String]) -> Result<(), StoreError> {
        on_reader(&self.readers, async |connection| {
            let forget = sqlx::query(shadow::FORGET).bind(shadow::between_commas(of));
            forget.execute(connection).await.map(drop)
        })
        .await
    }

    async fn replicas(&self) -> Result<Vec<Replica>, StoreError> {
        reads::replicas(&self.readers).await
    }

    async fn scrub(&self) -> Result<(), StoreError> {
        // INVARIANT (P6): the tables are written anew. A vacuum frees the space of old row versions, but leaves their bytes
        // in it, or keeps them for older snapshots. Both are small: this takes milliseconds, and no commit of rows waits.
        for _ in 0..SCRUB_TRIES {
            let scrubbed = on_reader(&self.readers, async |connection| {
                // Who reads the table for long is not waited for in front of others, who would then wait for this.
                sqlx::query("set lock_timeout = '500ms'").execute(&mut *connection).await?;
                let done = sqlx::query("select p8broker_scrub_v1()").execute(&mut *connection).await;
                sqlx::query("set lock_timeout = 0").execute(connection).await?;
                done.map(drop)
            });
            match scrubbed.await {
                Err(StoreError::Unavailable(why)) => {
                    tracing::debug!(why, "the tables of keys can't be written anew yet")
                }
                done => return done,
            }
            tokio::time::sleep(SCRUB_PAUSE).await;
        }
        Err(StoreError::Unavailable("a reader kept the tables of keys from being written anew; try again".to_owned()))
    }

    async fn close(&self) {
        self.closed.store(true, std::sync::atomic::Ordering::SeqCst);
        self.listener.stop().await;
        // A peer that does not answer must not hold up the end of the process.
        let goodbye = async {
            self.readers.pool.close().await;
            self.follower.pool.close().await;
            if let Some(session) = self.writer.lock().await.take()
                && let Err(error) = sqlx::Connection::close(session.connection).await
            {
                tracing::debug!(%error, "the database did not say goodbye");
            }
        };
        let _ = tokio::time::timeout(session::CONNECT, goodbye).await;
    }

    async fn newest_checkpoint(&self) -> Result<Revision, StoreError> {
        reads::newest_checkpoint(&self.readers).await
    }

    async fn checkpoint_before(&self, revision: Revision) -> Result<Revision, StoreError> {
        reads::checkpoint_before(&self.readers, revision).await
    }

    async fn records_from(&self, from: Revision, limit: u32) -> Result<Vec<SealedRecord>, StoreError> {
        reads::records_from(&self.follower, from, limit).await
    }

    async fn sealed_keys(&self) -> Result<Vec<SealedKey>, StoreError> {
        reads::sealed_keys(&self.follower).await
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
        on_reader(&self.readers, async |connection| {
            let query = sqlx::query(sql::REMOVE_ROWS).bind(writer.as_str()).bind(signed(upto)).bind(i64::from(limit));
            query.execute(connection).await.map(|done| done.rows_affected())
        })
        .await
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
