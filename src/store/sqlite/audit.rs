//! Audit rows: adding, listing, walking, removing; and exposure, which is a question to them.

use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqlitePool, SqliteRow};
use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use super::{chain, classify, signed, unsigned};
use crate::clock::UnixMillis;
use crate::domain::audit::{AuditEvent, AuditFilter, AuditRow, AuditedToken, LiveToken, Outcome};
use crate::domain::target::Target;
use crate::id::{Chain, Head, Revision, TokenId, WriterId};
use crate::store::{AuditBatch, AuditCursor, ExposureCursor, ExposureTotals, Fenced, StoreError, StoredEnd, sql};
use crate::vault::audit_chain::WriterEnd;

/// Most rows of one `insert`: as many prepared statements as there are sizes, and each is kept.
pub(super) const MOST_ROWS: usize = 64;

pub(super) async fn add(connection: &mut SqliteConnection, batch: &AuditBatch) -> Result<(), StoreError> {
    for chunk in batch.rows.chunks(MOST_ROWS) {
        let mut query = sqlx::query(AssertSqlSafe(format!("{} {}", insert_rows(), values(chunk.len()))));
        for row in chunk {
            query = bind_row(query, row);
        }
        query.execute(&mut *connection).await.map_err(classify)?;
    }
    bind_end(sqlx::query(sql::PUT_END), &batch.end).execute(connection).await.map(drop).map_err(classify)
}

fn bind_row<'q>(query: Query<'q, Sqlite, SqliteArguments>, row: &'q AuditRow) -> Query<'q, Sqlite, SqliteArguments> {
    let event = &row.event;
    query
        .bind(row.writer.as_str())
        .bind(signed(row.sequence))
        .bind(event.at.0)
        .bind(event.event.as_str())
        .bind(event.outcome.as_str())
        .bind(event.reason.as_str())
        .bind(event.decision_id.as_str())
        .bind(event.caller.as_str())
        .bind(event.identity.as_str())
        .bind(event.detail.as_str())
        .bind(event.policy.as_deref())
        .bind(event.key_id.as_deref())
        .bind(event.app_group.as_deref())
        .bind(event.role.as_deref())
        .bind(event.scope.as_deref())
        .bind(event.token.as_ref().map(|token| token.id.as_str()))
        .bind(event.token.as_ref().map(|token| token.issued_at))
        .bind(event.token.as_ref().map(|token| token.expires_at))
        .bind(signed(event.revision.0))
        .bind(i64::from(row.key_version))
        .bind(row.chain.0.as_slice())
}

/// One transaction in one message: the rows and the writer's end, if the head is this one.
pub(super) async fn commit_at(
    connection: &mut SqliteConnection,
    head: Head,
    batch: &AuditBatch,
) -> Result<Fenced, StoreError> {
    let mut query = sqlx::query(AssertSqlSafe(guarded(batch.rows.len())));
    for row in &batch.rows {
        query = bind_row(query, row);
    }
    query = query.bind(signed(head.revision.0)).bind(head.chain.0.as_slice());
    query = bind_end(query, &batch.end).bind(signed(head.revision.0)).bind(head.chain.0.as_slice());
    // INVARIANT (P4): answered only after the commit at the end of it.
    let written = query.fetch_all(&mut *connection).await.map_err(classify);
    if written.is_err()
        && let Err(error) = sqlx::query("rollback").execute(connection).await
    {
        // Nothing was begun, or the connection is gone: either way nothing is left of it.
        tracing::debug!(%error, "no rollback");
    }
    // INVARIANT (P5): the head is compared within the write lock, by each statement that writes.
    Ok(if written?.is_empty() { Fenced::HeadMoved } else { Fenced::Committed })
}

/// The text of that transaction for a number of rows.
fn guarded(rows: usize) -> String {
    const AT_HEAD: &str = "where exists (select 1 from control_head where revision = ? and chain = ?)";
    let (insert_rows, values) = (insert_rows(), values(rows));
    let (insert_end, replace_end) = (sql::INSERT_END, sql::REPLACE_END);
    format!(
        "begin immediate; {insert_rows} select * from ({values}) {AT_HEAD}; \
         {insert_end} select ?, ?, ?, ?, ?, ? {AT_HEAD} {replace_end} returning sequence; commit"
    )
}

fn insert_rows() -> String {
    format!("insert into audit ({})", sql::AUDIT_COLUMNS)
}

/// Parameters are anonymous: SQLite looks names up one by one, which for a thousand of them takes four times as long as the
/// insert.
fn values(rows: usize) -> String {
    let row = format!("({})", vec!["?"; sql::AUDIT_WIDTH].join(", "));
    format!("values {}", vec![row; rows].join(", "))
}

fn bind_end<'q>(query: Query<'q, Sqlite, SqliteArguments>, end: &'q WriterEnd) -> Query<'q, Sqlite, SqliteArguments> {
    query
        .bind(end.writer.as_str())
        .bind(signed(end.sequence))
        .bind(end.chain.0.as_slice())
        .bind(signed(end.revision.0))
        .bind(i64::from(end.key_version))
        .bind(end.tag.0.as_slice())
}

pub(super) async fn writer_ends(readers: &SqlitePool) -> Result<Vec<StoredEnd>, StoreError> {
    let rows = sqlx::query(sql::WRITER_ENDS).fetch_all(readers).await.map_err(classify)?;
    rows.iter()
        .map(|row| {
            let row_chain: Option<Vec<u8>> = row.try_get(6).map_err(classify)?;
            Ok(StoredEnd {
                end: WriterEnd {
                    writer: writer(row, 0)?,
                    sequence: unsigned(row.try_get(1).map_err(classify)?)?,
                    chain: chain_at(row, 2)?,
                    revision: Revision(unsigned(row.try_get(3).map_err(classify)?)?),
                    key_version: key_version(row, 4)?,
                    tag: chain_at(row, 5)?,
                },
                row_chain: row_chain.as_deref().map(chain).transpose()?,
                has_more: row.try_get::<i64, _>(7).map_err(classify)? != 0,
            })
        })
        .collect()
}

pub(super) async fn rows_of_writer(
    readers: &SqlitePool,
    writer: &WriterId,
    after: u64,
    limit: u32,
) -> Result<Vec<AuditRow>, StoreError> {
    let query = sqlx::query(AssertSqlSafe(sql::rows_of_writer()));
    let rows = query.bind(writer.as_str()).bind(signed(after)).bind(i64::from(limit)).fetch_all(readers).await;
    rows.map_err(classify)?.iter().map(audit_row).collect()
}

pub(super) async fn rows_of_unknown_writers(readers: &SqlitePool) -> Result<u64, StoreError> {
    let count: i64 = sqlx::query_scalar(sql::UNKNOWN_WRITERS).fetch_one(readers).await.map_err(classify)?;
    unsigned(count)
}

pub(super) async fn list_rows(
    readers: &SqlitePool,
    filter: &AuditFilter,
    after: &AuditCursor,
    limit: u32,
) -> Result<Vec<AuditRow>, StoreError> {
    let rows = sqlx::query(AssertSqlSafe(sql::list_rows()))
        .bind(filter.from.map_or(i64::MIN, |at| at.0).max(after.at.0))
        .bind(filter.until.map_or(i64::MAX, |at| at.0))
        .bind(filter.caller.as_deref())
        .bind(filter.key_id.as_deref())
        .bind(filter.policy.as_deref())
        .bind(filter.outcome.map(Outcome::as_str))
        .bind(filter.decision_id.as_deref())
        .bind(after.at.0)
        .bind(after.writer.as_str())
        .bind(signed(after.sequence))
        .bind(i64::from(limit))
        .fetch_all(readers)
        .await;
    rows.map_err(classify)?.iter().map(audit_row).collect()
}

pub(super) async fn prunable(
    readers: &SqlitePool,
    writer: &WriterId,
    before: UnixMillis,
    now_s: i64,
) -> Result<Option<(u64, Chain)>, StoreError> {
    let kept: Option<i64> = sqlx::query_scalar(sql::FIRST_KEPT)
        .bind(writer.as_str())
        .bind(before.0)
        .bind(now_s)
        .fetch_one(readers)
        .await
        .map_err(classify)?;
    let last = match kept {
        Some(kept) => Some(kept.saturating_sub(1)),
        None => sqlx::query_scalar(sql::LAST_ROW).bind(writer.as_str()).fetch_one(readers).await.map_err(classify)?,
    };
    let Some(last) = last else { return Ok(None) };
    let query = sqlx::query_scalar(sql::CHAIN_AT).bind(writer.as_str()).bind(last);
    let bytes: Option<Vec<u8>> = query.fetch_optional(readers).await.map_err(classify)?;
    bytes.map(|bytes| Ok((unsigned(last)?, chain(&bytes)?))).transpose()
}

pub(super) async fn remove_rows(
    connection: &mut SqliteConnection,
    writer: &WriterId,
    upto: u64,
    limit: u32,
) -> Result<u64, StoreError> {
    let query = sqlx::query(sql::REMOVE_ROWS).bind(writer.as_str()).bind(signed(upto)).bind(i64::from(limit));
    query.execute(connection).await.map(|done| done.rows_affected()).map_err(classify)
}

pub(super) async fn exposure_totals(
    readers: &SqlitePool,
    target: &Target,
    before: Revision,
    now_s: i64,
) -> Result<ExposureTotals, StoreError> {
    let row = sqlx::query(AssertSqlSafe(sql::exposure_totals(column(target))))
        .bind(now_s)
        .bind(signed(before.0))
        .bind(target.name())
        .fetch_one(readers)
        .await
        .map_err(classify)?;
    Ok(ExposureTotals {
        count: unsigned(row.try_get(0).map_err(classify)?)?,
        last_expires_at: row.try_get(1).map_err(classify)?,
    })
}

pub(super) async fn exposure(
    readers: &SqlitePool,
    target: &Target,
    before: Revision,
    now_s: i64,
    after: &ExposureCursor,
    limit: u32,
) -> Result<Vec<LiveToken>, StoreError> {
    let rows = sqlx::query(AssertSqlSafe(sql::exposure(column(target))))
        .bind(now_s)
        .bind(signed(before.0))
        .bind(target.name())
        .bind(after.expires_at)
        .bind(after.token_id.as_str())
        .bind(after.client.as_str())
        .bind(after.policy.as_str())
        .bind(i64::from(limit))
        .fetch_all(readers)
        .await
        .map_err(classify)?;
    rows.iter()
        .map(|row| {
            Ok(LiveToken {
                id: token_id(&row.try_get::<String, _>(0).map_err(classify)?)?,
                client: row.try_get(1).map_err(classify)?,
                policy: row.try_get(2).map_err(classify)?,
                key_id: row.try_get(3).map_err(classify)?,
                app_group: row.try_get(4).map_err(classify)?,
                issued_at: row.try_get(5).map_err(classify)?,
                expires_at: row.try_get(6).map_err(classify)?,
            })
        })
        .collect()
}

/// The column that names what the target names.
fn column(target: &Target) -> &'static str {
    match target {
        Target::Key(_) => "key_id",
        Target::Client(_) => "caller",
        Target::Policy(_) => "policy",
        Target::AppGroup(_) => "app_group",
    }
}

fn audit_row(row: &SqliteRow) -> Result<AuditRow, StoreError> {
    let text = |at: usize| row.try_get::<String, _>(at).map_err(classify);
    let optional = |at: usize| row.try_get::<Option<String>, _>(at).map_err(classify);
    let outcome = text(4)?;
    let corrupt = |what: &str| StoreError::Corrupt(format!("an audit row has a bad {what}"));
    let token = match (optional(15)?, row.try_get(16).map_err(classify)?, row.try_get(17).map_err(classify)?) {
        (Some(id), Some(issued_at), Some(expires_at)) => {
            Some(AuditedToken { id: token_id(&id)?, issued_at, expires_at })
        }
        (None, None, None) => None,
        _ => return Err(corrupt("token")),
    };
    Ok(AuditRow {
        writer: writer(row, 0)?,
        sequence: unsigned(row.try_get(1).map_err(classify)?)?,
        event: AuditEvent {
            at: UnixMillis(row.try_get(2).map_err(classify)?),
            event: text(3)?,
            outcome: Outcome::parse(&outcome).ok_or_else(|| corrupt("outcome"))?,
            reason: text(5)?,
            decision_id: text(6)?,
            caller: text(7)?,
            identity: text(8)?,
            detail: text(9)?,
            policy: optional(10)?,
            key_id: optional(11)?,
            app_group: optional(12)?,
            role: optional(13)?,
            scope: optional(14)?,
            token,
            revision: Revision(unsigned(row.try_get(18).map_err(classify)?)?),
        },
        key_version: key_version(row, 19)?,
        chain: chain_at(row, 20)?,
    })
}

fn writer(row: &SqliteRow, at: usize) -> Result<WriterId, StoreError> {
    let text: String = row.try_get(at).map_err(classify)?;
    WriterId::parse(&text).map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn token_id(text: &str) -> Result<TokenId, StoreError> {
    TokenId::parse(text).map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn key_version(row: &SqliteRow, at: usize) -> Result<u32, StoreError> {
    let version: i64 = row.try_get(at).map_err(classify)?;
    u32::try_from(version).map_err(|_| StoreError::Corrupt(format!("root key version {version} can't be")))
}

fn chain_at(row: &SqliteRow, at: usize) -> Result<Chain, StoreError> {
    let bytes: Vec<u8> = row.try_get(at).map_err(classify)?;
    chain(&bytes)
}
