//! The two statements that everything rests on. Each is one function of the schema, one transaction and one round trip; a
//! batch of rows travels as one array a column.

use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::PgArguments;
use sqlx::query::QueryScalar;
use sqlx::{Encode, Postgres, Type};

use super::session::{Session, classify, connect};
use super::settings::Settings;
use crate::domain::audit::{AuditEvent, AuditRow};
use crate::domain::quota::Quota;
use crate::id::Head;
use crate::store::quota::Counted;
use crate::store::reads::signed;
use crate::store::{Append, AuditBatch, Fenced, KeyBytes, QuotaAsk, SealedKey, StoreError};

/// How long a statement waits for others before it ends those that hang, and how often it looks again.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Ends the backends that block one and wait for their client: stopped or cut off in the middle of a statement. Their
/// transaction is then either committed, and listed, or gone. One that works or waits for others is left alone.
const END_HANGING: &str = "select count(pg_terminate_backend(blocker.pid)) from unnest(pg_blocking_pids($1)) as by (pid) \
     join pg_stat_activity blocker on blocker.pid = by.pid where blocker.wait_event_type = 'Client'";

const COMMIT_ROWS: &str = "select p8broker_commit_v2($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, \
     $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34)";
const APPEND: &str = "select p8broker_append_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, \
     $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39, $40, \
     $41, $42)";

/// What became of an append.
pub(super) enum Appended {
    Committed,
    HeadMoved,
    Initialised,
}

pub(super) async fn commit_rows(
    session: &mut Session,
    settings: &Settings,
    decided_at: Option<Head>,
    batch: &AuditBatch,
) -> Result<Fenced, StoreError> {
    let pid = session.pid;
    let query = sqlx::query_scalar(COMMIT_ROWS)
        .bind(decided_at.map(|head| signed(head.revision.0)))
        .bind(decided_at.map(|head| head.chain.0.to_vec()));
    let query = bind_quota(query, &batch.quota);
    let committing = async {
        // INVARIANT (P4, P5): compared, counted and written in one transaction, and answered only after its commit.
        let outcome: Vec<String> =
            bind_rows(query, batch).fetch_all(&mut session.connection).await.map_err(classify)?;
        match outcome.first().map(String::as_str) {
            Some("committed") => Ok(Fenced::Committed),
            Some("moved") => Ok(Fenced::HeadMoved),
            Some(exceeded) => over_quota(exceeded, &batch.quota),
            None => Err(StoreError::Corrupt("the fence answered nothing".to_owned())),
        }
    };
    patiently(settings, pid, committing).await
}

fn bind_quota<'q, T>(query: Query<'q, T>, asks: &'q [QuotaAsk]) -> Query<'q, T> {
    let bounds =
        |of: fn(&Quota) -> Option<u32>| asks.iter().map(|ask| of(&ask.quota).map(i64::from)).collect::<Vec<_>>();
    query
        .bind(asks.iter().map(|ask| ask.policy.as_str()).collect::<Vec<_>>())
        .bind(asks.iter().map(|ask| ask.client.as_str()).collect::<Vec<_>>())
        .bind(asks.iter().map(|ask| i64::from(ask.tokens)).collect::<Vec<_>>())
        .bind(asks.iter().map(|ask| i64::from(ask.fresh)).collect::<Vec<_>>())
        .bind(bounds(|quota| quota.tokens_per_hour))
        .bind(bounds(|quota| quota.fresh_per_minute))
}

/// What `p8broker_count_v1` says: the rows of the keys that would be over, as they would be.
fn over_quota(exceeded: &str, asks: &[QuotaAsk]) -> Result<Fenced, StoreError> {
    let corrupt = || StoreError::Corrupt(format!("the fence answered {exceeded:?}"));
    let rows: Vec<(String, String, i64, i64, i64, i64, i64)> = serde_json::from_str(exceeded).map_err(|_| corrupt())?;
    let mut left = Vec::with_capacity(rows.len());
    for (policy, client, hour, hour_count, minute, minute_count, now_ms) in rows {
        let ask = asks.iter().find(|ask| ask.policy == policy && ask.client == client).ok_or_else(corrupt)?;
        left.extend(ask.exceeds(&Counted { hour, hour_count, minute, minute_count, now_ms }));
    }
    if left.is_empty() { Err(corrupt()) } else { Ok(Fenced::OverQuota(left)) }
}

pub(super) async fn append(
    session: &mut Session,
    settings: &Settings,
    append: &Append,
    is_first: bool,
) -> Result<Appended, StoreError> {
    let pid = session.pid;
    patiently(settings, pid, write(&mut session.connection, append, is_first)).await
}

/// Waits for a statement; where it takes long, ends what holds it up and hangs.
async fn patiently<T>(
    settings: &Settings,
    pid: i32,
    statement: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::pin!(statement);
    if let Ok(done) = tokio::time::timeout(PATIENCE, &mut statement).await {
        return done;
    }
    loop {
        // On a connection of its own, made for this: those of the pool may be what hangs.
        let ending = async {
            match end_hanging(settings, pid).await {
                Ok(0) => {}
                Ok(ended) => tracing::warn!(ended, "ended connections that held up the fence and did not go on"),
                Err(error) => tracing::warn!(%error, "what holds up the fence can't be looked at"),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        tokio::select! {
            done = &mut statement => return done,
            () = ending => {}
        }
    }
}

async fn end_hanging(settings: &Settings, pid: i32) -> Result<i64, StoreError> {
    let mut session = connect(settings).await?;
    let ended: Vec<i64> =
        sqlx::query_scalar(END_HANGING).bind(pid).fetch_all(&mut session.connection).await.map_err(classify)?;
    Ok(ended.first().copied().unwrap_or_default())
}

async fn write(connection: &mut PgConnection, append: &Append, is_first: bool) -> Result<Appended, StoreError> {
    let put = || append.keys.iter().filter_map(|key| if let KeyBytes::Put(key) = key { Some(key) } else { None });
    let destroyed = |key: &KeyBytes| if let KeyBytes::Destroy(id) = key { Some(id.to_string()) } else { None };
    let seal = append.seal.as_ref();
    let method = seal.map(|seal| serde_json::to_string(&seal.method)).transpose();
    let query = sqlx::query_scalar(APPEND)
        .bind(is_first)
        .bind(signed(append.expected.revision.0))
        .bind(append.expected.chain.0.to_vec())
        .bind(append.head().chain.0.to_vec())
        .bind(append.records.iter().map(|record| signed(record.revision.0)).collect::<Vec<_>>())
        .bind(append.records.iter().map(|record| i64::from(record.checkpoint)).collect::<Vec<_>>())
        .bind(append.records.iter().map(|record| record.previous.0.to_vec()).collect::<Vec<_>>())
        .bind(append.records.iter().map(|record| record.sealed.clone()).collect::<Vec<_>>())
        .bind(put().map(|key| key.key_id.to_string()).collect::<Vec<_>>())
        .bind(put().map(|key| signed(key.imported.0)).collect::<Vec<_>>())
        .bind(put().map(|key: &SealedKey| key.sealed.clone()).collect::<Vec<_>>())
        .bind(append.keys.iter().filter_map(destroyed).collect::<Vec<_>>())
        .bind(seal.map(|seal| seal.vault.to_string()))
        .bind(seal.map(|seal| i64::from(seal.generation)))
        .bind(method.map_err(|error| StoreError::Corrupt(error.to_string()))?)
        .bind(seal.map(|seal| seal.keyring.clone()));
    let outcome: Vec<String> = bind_rows(query, &append.audit).fetch_all(connection).await.map_err(classify)?;
    match outcome.first().map(String::as_str) {
        Some("committed") => Ok(Appended::Committed),
        Some("moved") => Ok(Appended::HeadMoved),
        Some("initialised") => Ok(Appended::Initialised),
        other => Err(StoreError::Corrupt(format!("the fence answered {other:?}"))),
    }
}

pub(super) type Query<'q, T> = QueryScalar<'q, Postgres, T, PgArguments>;

/// The writer, the end of its chain, and its rows, in the order of `p8broker_add_rows_v1`.
pub(super) fn bind_rows<'q, T>(query: Query<'q, T>, batch: &'q AuditBatch) -> Query<'q, T> {
    let end = &batch.end;
    let query = query
        .bind(end.writer.as_str())
        .bind(signed(end.sequence))
        .bind(end.chain.0.as_slice())
        .bind(signed(end.revision.0))
        .bind(i64::from(end.key_version))
        .bind(end.tag.0.as_slice());
    let query = column(query, batch, |row| signed(row.sequence));
    let query = column(query, batch, |row| row.event.at.0);
    let query = column(query, batch, |row| row.event.event.as_str());
    let query = column(query, batch, |row| row.event.outcome.as_str());
    let query = column(query, batch, |row| row.event.reason.as_str());
    let query = column(query, batch, |row| row.event.decision_id.as_str());
    let query = column(query, batch, |row| row.event.caller.as_str());
    let query = column(query, batch, |row| row.event.identity.as_str());
    let query = column(query, batch, |row| row.event.detail.as_str());
    let optional: [fn(&AuditEvent) -> Option<&str>; 5] = [
        |event| event.policy.as_deref(),
        |event| event.key_id.as_deref(),
        |event| event.app_group.as_deref(),
        |event| event.role.as_deref(),
        |event| event.scope.as_deref(),
    ];
    let query = optional.into_iter().fold(query, |query, part| column(query, batch, |row| part(&row.event)));
    let query = column(query, batch, |row| row.event.token.as_ref().map(|token| token.id.as_str()));
    let query = column(query, batch, |row| row.event.token.as_ref().map(|token| token.issued_at));
    let query = column(query, batch, |row| row.event.token.as_ref().map(|token| token.expires_at));
    let query = column(query, batch, |row| signed(row.event.revision.0));
    let query = column(query, batch, |row| i64::from(row.key_version));
    column(query, batch, |row| row.chain.0.as_slice())
}

fn column<'q, T, C>(query: Query<'q, T>, batch: &'q AuditBatch, part: impl Fn(&'q AuditRow) -> C) -> Query<'q, T>
where
    C: 'q,
    Vec<C>: Encode<'q, Postgres> + Type<Postgres>,
{
    query.bind(batch.rows.iter().map(part).collect::<Vec<_>>())
}
