//! Adding audit rows, and the one-message transaction of the hot path.

use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments};
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::classify;
use crate::domain::audit::AuditRow;
use crate::id::Head;
use crate::store::reads::signed;
use crate::store::{AuditBatch, Fenced, StoreError, sql};
use crate::vault::audit_chain::WriterEnd;

/// The two parts of the upsert of a writer's end, around where its values come from.
const INSERT_END: &str = "insert into audit_writer (writer, sequence, chain, revision, key_version, tag)";
const REPLACE_END: &str = "on conflict (writer) do update set sequence = excluded.sequence, chain = excluded.chain, \
     revision = excluded.revision, key_version = excluded.key_version, tag = excluded.tag";

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
    let put_end = AssertSqlSafe(format!("{INSERT_END} values (?, ?, ?, ?, ?, ?) {REPLACE_END}"));
    bind_end(sqlx::query(put_end), &batch.end).execute(connection).await.map(drop).map_err(classify)
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
    format!(
        "begin immediate; {insert_rows} select * from ({values}) {AT_HEAD}; \
         {INSERT_END} select ?, ?, ?, ?, ?, ? {AT_HEAD} {REPLACE_END} returning sequence; commit"
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
