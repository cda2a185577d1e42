//! Questions to the tables, written once for both engines: an engine says how a statement is sent, and how a column is read.
//!
//! Over 400 lines, as each question is one small function, and its row another.

use super::{
    AuditCursor, ExposureCursor, ExposureGroup, ExposureTotals, LiveCount, Replica, SealedKey, StoreError, StoredEnd,
    Under, sql,
};
use crate::clock::UnixMillis;
use crate::domain::audit::{AuditEvent, AuditFilter, AuditRow, AuditedToken, LiveToken, Outcome};
use crate::id::{Chain, Head, KeyId, Revision, TokenId, VaultId, WriterId};
use crate::vault::audit_chain::WriterEnd;
use crate::vault::log::SealedRecord;
use crate::vault::unseal::SealRow;

/// One value of a statement.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Text(&'a str),
    Maybe(Option<&'a str>),
    Integer(i64),
}

/// How an engine reads a column, by its place. What can't be read was not written by this broker.
pub(super) trait Columns {
    fn text(&self, at: usize) -> Result<String, StoreError>;
    fn maybe_text(&self, at: usize) -> Result<Option<String>, StoreError>;
    fn integer(&self, at: usize) -> Result<i64, StoreError>;
    fn maybe_integer(&self, at: usize) -> Result<Option<i64>, StoreError>;
    fn bytes(&self, at: usize) -> Result<Vec<u8>, StoreError>;
    fn maybe_bytes(&self, at: usize) -> Result<Option<Vec<u8>>, StoreError>;
}

/// How an engine is asked.
pub(super) trait Ask: Sync {
    type Row: Columns + Send + Sync;
    /// The moment at which a token must be alive, where the asker's own is `$1`.
    const NOW: &str;

    fn ask(&self, sql: String, values: &[Value<'_>])
    -> impl Future<Output = Result<Vec<Self::Row>, StoreError>> + Send;
}

/// Reads columns of one engine's rows.
macro_rules! columns {
    ($row:ty) => {
        impl crate::store::reads::Columns for $row {
            fn text(&self, at: usize) -> Result<String, crate::store::StoreError> {
                sqlx::Row::try_get(self, at).map_err(crate::store::reads::unreadable)
            }
            fn maybe_text(&self, at: usize) -> Result<Option<String>, crate::store::StoreError> {
                sqlx::Row::try_get(self, at).map_err(crate::store::reads::unreadable)
            }
            fn integer(&self, at: usize) -> Result<i64, crate::store::StoreError> {
                sqlx::Row::try_get(self, at).map_err(crate::store::reads::unreadable)
            }
            fn maybe_integer(&self, at: usize) -> Result<Option<i64>, crate::store::StoreError> {
                sqlx::Row::try_get(self, at).map_err(crate::store::reads::unreadable)
            }
            fn bytes(&self, at: usize) -> Result<Vec<u8>, crate::store::StoreError> {
                sqlx::Row::try_get(self, at).map_err(crate::store::reads::unreadable)
            }
            fn maybe_bytes(&self, at: usize) -> Result<Option<Vec<u8>>, crate::store::StoreError> {
                sqlx::Row::try_get(self, at).map_err(crate::store::reads::unreadable)
            }
        }
    };
}
pub(super) use columns;

#[expect(clippy::needless_pass_by_value, reason = "as `map_err` wants it")]
pub(super) fn unreadable(error: sqlx::Error) -> StoreError {
    StoreError::Corrupt(error.to_string())
}

/// Connections of a pool: used and idle.
pub(super) fn connections(all: u32, idle: usize) -> (u32, u32) {
    let idle = u32::try_from(idle).unwrap_or(u32::MAX).min(all);
    (all.saturating_sub(idle), idle)
}

/// Neither engine has unsigned integers; positions stay far below 2^63.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(value: i64) -> Result<u64, StoreError> {
    u64::try_from(value).map_err(|_| StoreError::Corrupt(format!("a position is negative: {value}")))
}

pub(super) async fn seal_row(ask: &impl Ask) -> Result<Option<SealRow>, StoreError> {
    let rows = ask.ask(sql::SEAL_ROW.to_owned(), &[]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let corrupt = |what: &str| StoreError::Corrupt(format!("the seal row has a bad {what}"));
    Ok(Some(SealRow {
        vault: VaultId::parse(&row.text(0)?).map_err(|_| corrupt("vault"))?,
        generation: u32::try_from(row.integer(1)?).map_err(|_| corrupt("generation"))?,
        method: serde_json::from_str(&row.text(2)?).map_err(|_| corrupt("method"))?,
        keyring: row.bytes(3)?,
    }))
}

pub(super) async fn head(ask: &impl Ask) -> Result<Head, StoreError> {
    head_in(&ask.ask(sql::HEAD.to_owned(), &[]).await?)
}

pub(super) fn head_in(rows: &[impl Columns]) -> Result<Head, StoreError> {
    let Some(row) = rows.first() else { return Ok(Head::default()) };
    Ok(Head { revision: revision(row, 0)?, chain: chain(row, 1)? })
}

pub(super) async fn newest_checkpoint(ask: &impl Ask) -> Result<Revision, StoreError> {
    checkpoint_before(ask, Revision(u64::MAX)).await
}

pub(super) async fn checkpoint_before(ask: &impl Ask, at: Revision) -> Result<Revision, StoreError> {
    let rows = ask.ask(sql::CHECKPOINT_BEFORE.to_owned(), &[Value::Integer(signed(at.0))]).await?;
    rows.first().map_or(Ok(Revision::default()), |row| revision(row, 0))
}

pub(super) async fn records_from(ask: &impl Ask, from: Revision, limit: u32) -> Result<Vec<SealedRecord>, StoreError> {
    let values = [Value::Integer(signed(from.0)), Value::Integer(limit.into())];
    let rows = ask.ask(sql::RECORDS_FROM.to_owned(), &values).await?;
    rows.iter().map(record).collect()
}

fn record(row: &impl Columns) -> Result<SealedRecord, StoreError> {
    Ok(SealedRecord {
        revision: revision(row, 0)?,
        checkpoint: row.integer(1)? != 0,
        previous: chain(row, 2)?,
        sealed: row.bytes(3)?,
    })
}

pub(super) async fn sealed_keys(ask: &impl Ask) -> Result<Vec<SealedKey>, StoreError> {
    let rows = ask.ask(sql::SEALED_KEYS.to_owned(), &[]).await?;
    rows.iter().map(sealed_key).collect()
}

fn sealed_key(row: &impl Columns) -> Result<SealedKey, StoreError> {
    Ok(SealedKey {
        key_id: KeyId::parse(&row.text(0)?).map_err(|error| StoreError::Corrupt(error.to_string()))?,
        imported: revision(row, 1)?,
        sealed: row.bytes(2)?,
    })
}

pub(super) async fn writer_ends(ask: &impl Ask) -> Result<Vec<StoredEnd>, StoreError> {
    let rows = ask.ask(sql::WRITER_ENDS.to_owned(), &[]).await?;
    rows.iter().map(stored_end).collect()
}

fn stored_end(row: &impl Columns) -> Result<StoredEnd, StoreError> {
    Ok(StoredEnd {
        end: WriterEnd {
            writer: writer(row, 0)?,
            sequence: unsigned(row.integer(1)?)?,
            chain: chain(row, 2)?,
            revision: revision(row, 3)?,
            key_version: key_version(row, 4)?,
            tag: chain(row, 5)?,
        },
        row_chain: row.maybe_bytes(6)?.map(chain_of).transpose()?,
        has_more: row.integer(7)? != 0,
    })
}

pub(super) async fn rows_of_writer(
    ask: &impl Ask,
    writer: &WriterId,
    after: u64,
    limit: u32,
) -> Result<Vec<AuditRow>, StoreError> {
    let values = [Value::Text(writer.as_str()), Value::Integer(signed(after)), Value::Integer(limit.into())];
    audit_rows(&ask.ask(sql::rows_of_writer(), &values).await?)
}

pub(super) async fn rows_of_unknown_writers(ask: &impl Ask) -> Result<u64, StoreError> {
    let rows = ask.ask(sql::UNKNOWN_WRITERS.to_owned(), &[]).await?;
    rows.first().map_or(Ok(0), |row| unsigned(row.integer(0)?))
}

pub(super) async fn list_rows(
    ask: &impl Ask,
    filter: &AuditFilter,
    after: &AuditCursor,
    limit: u32,
) -> Result<Vec<AuditRow>, StoreError> {
    let values = [
        Value::Integer(filter.from.map_or(i64::MIN, |at| at.0).max(after.at.0)),
        Value::Integer(filter.until.map_or(i64::MAX, |at| at.0)),
        Value::Maybe(filter.caller.as_deref()),
        Value::Maybe(filter.key_id.as_deref()),
        Value::Maybe(filter.policy.as_deref()),
        Value::Maybe(filter.outcome.map(Outcome::as_str)),
        Value::Maybe(filter.decision_id.as_deref()),
        Value::Integer(after.at.0),
        Value::Text(&after.writer),
        Value::Integer(signed(after.sequence)),
        Value::Integer(limit.into()),
    ];
    audit_rows(&ask.ask(sql::list_rows(), &values).await?)
}

pub(super) async fn handouts(
    ask: &impl Ask,
    token: &TokenId,
    from: UnixMillis,
    until: UnixMillis,
    limit: u32,
) -> Result<Vec<AuditRow>, StoreError> {
    let values =
        [Value::Integer(from.0), Value::Integer(until.0), Value::Text(token.as_str()), Value::Integer(limit.into())];
    audit_rows(&ask.ask(sql::handouts(), &values).await?)
}

pub(super) async fn prunable(
    ask: &impl Ask,
    writer: &WriterId,
    before: UnixMillis,
    now_s: i64,
) -> Result<Option<(u64, Chain)>, StoreError> {
    let writer = Value::Text(writer.as_str());
    let values = [writer, Value::Integer(before.0), Value::Integer(now_s)];
    let last = match number(&ask.ask(sql::FIRST_KEPT.to_owned(), &values).await?)? {
        Some(kept) => Some(kept.saturating_sub(1)),
        None => number(&ask.ask(sql::LAST_ROW.to_owned(), &[writer]).await?)?,
    };
    let Some(last) = last else { return Ok(None) };
    let rows = ask.ask(sql::CHAIN_AT.to_owned(), &[writer, Value::Integer(last)]).await?;
    rows.first().map(|row| Ok((unsigned(last)?, chain(row, 0)?))).transpose()
}

fn number(rows: &[impl Columns]) -> Result<Option<i64>, StoreError> {
    rows.first().map_or(Ok(None), |row| row.maybe_integer(0))
}

pub(super) async fn exposure_totals(
    ask: &impl Ask,
    under: &Under,
    before: Revision,
    now_s: i64,
) -> Result<ExposureTotals, StoreError> {
    let (condition, name) = condition(under);
    let values = [Value::Integer(now_s), Value::Integer(signed(before.0)), Value::Text(&name)];
    let rows = ask.ask(sql::exposure_totals(now_of(ask), condition), &values).await?;
    rows.first().map_or(Ok(ExposureTotals::default()), |row| {
        Ok(ExposureTotals { count: unsigned(row.integer(0)?)?, last_expires_at: row.maybe_integer(1)? })
    })
}

pub(super) async fn exposure_groups(
    ask: &impl Ask,
    under: &Under,
    before: Revision,
    now_s: i64,
) -> Result<Vec<ExposureGroup>, StoreError> {
    let (condition, name) = condition(under);
    let values = [Value::Integer(now_s), Value::Integer(signed(before.0)), Value::Text(&name)];
    ask.ask(sql::exposure_groups(now_of(ask), condition), &values).await?.iter().map(exposure_group).collect()
}

fn exposure_group(row: &impl Columns) -> Result<ExposureGroup, StoreError> {
    Ok(ExposureGroup {
        client: row.text(0)?,
        policy: row.text(1)?,
        key_id: row.text(2)?,
        count: unsigned(row.integer(3)?)?,
        last_expires_at: row.integer(4)?,
    })
}

pub(super) async fn exposure(
    ask: &impl Ask,
    under: &Under,
    before: Revision,
    now_s: i64,
    after: &ExposureCursor,
    limit: u32,
) -> Result<Vec<LiveToken>, StoreError> {
    let (condition, name) = condition(under);
    let values = [
        // What dies before the place to go on from was told already: an index need not walk it again.
        Value::Integer(now_s.max(after.expires_at.saturating_sub(1))),
        Value::Integer(signed(before.0)),
        Value::Text(&name),
        Value::Integer(after.expires_at),
        Value::Text(&after.token_id),
        Value::Text(&after.client),
        Value::Text(&after.policy),
        Value::Text(&after.certificate),
        Value::Integer(limit.into()),
    ];
    ask.ask(sql::exposure(now_of(ask), condition), &values).await?.iter().map(live_token).collect()
}

fn live_token(row: &impl Columns) -> Result<LiveToken, StoreError> {
    Ok(LiveToken {
        id: token_id(&row.text(0)?)?,
        client: row.text(1)?,
        policy: row.text(2)?,
        key_id: row.text(3)?,
        app_group: row.text(4)?,
        issued_at: row.integer(5)?,
        expires_at: row.integer(6)?,
        certificate: row.text(7)?,
        revision: revision(row, 8)?,
    })
}

pub(super) async fn replicas(ask: &impl Ask) -> Result<Vec<Replica>, StoreError> {
    ask.ask(sql::REPLICAS.to_owned(), &[]).await?.iter().map(replica).collect()
}

fn replica(row: &impl Columns) -> Result<Replica, StoreError> {
    Ok(Replica {
        name: row.text(0)?,
        version: row.text(1)?,
        phase: row.text(2)?,
        revision: revision(row, 3)?,
        started: UnixMillis(row.integer(4)?),
        seen: UnixMillis(row.integer(5)?),
    })
}

pub(super) async fn live_counts(ask: &impl Ask, now_s: i64) -> Result<Vec<LiveCount>, StoreError> {
    let values = [Value::Integer(now_s), Value::Integer(i64::MAX), Value::Text("")];
    ask.ask(sql::live_counts(now_of(ask)), &values).await?.iter().map(live_count).collect()
}

fn live_count(row: &impl Columns) -> Result<LiveCount, StoreError> {
    Ok(LiveCount {
        app_group: row.text(0)?,
        key_id: row.text(1)?,
        count: unsigned(row.integer(2)?)?,
        last_expires_at: row.integer(3)?,
    })
}

pub(super) async fn quotas_used(ask: &impl Ask, hour: &'static str) -> Result<Vec<(String, u32)>, StoreError> {
    let rows = ask.ask(sql::quotas_used(hour), &[]).await?;
    rows.iter().map(|row| Ok((row.text(0)?, u32::try_from(row.integer(1)?).unwrap_or(u32::MAX)))).collect()
}

fn now_of<A: Ask>(_: &A) -> &'static str {
    A::NOW
}

/// What a live token must fulfil, as SQL that names `$3`, and the text that stands for it. A Key ID has ten characters, so
/// that in a list of them only whole ones are found.
fn condition(under: &Under) -> (&'static str, String) {
    match under {
        Under::Everything => ("caller >= $3", String::new()),
        Under::Token(id) => ("token_id = $3", id.to_string()),
        // The id has 64 characters; what comes after it and a space is the client.
        Under::TokenOf(id, client) => {
            ("caller = substr($3, 66) and token_id = substr($3, 1, 64)", format!("{id} {client}"))
        }
        Under::HeldBy(id) => ("caller = $3", id.to_string()),
        Under::Client(id) => ("(caller = $3 or certificate = $3)", id.to_string()),
        Under::Issuer(name) => ("substr(caller, 1, length($3)) = $3", name.client_prefix()),
        Under::Policy(name) => ("policy = $3", name.to_string()),
        Under::AppGroup(name) => ("app_group = $3", name.to_string()),
        Under::Keys(ids) => ("$3 like '%' || key_id || '%'", ids.iter().map(|id| format!("{id},")).collect()),
    }
}

fn audit_rows(rows: &[impl Columns]) -> Result<Vec<AuditRow>, StoreError> {
    rows.iter().map(audit_row).collect()
}

fn audit_row(row: &impl Columns) -> Result<AuditRow, StoreError> {
    let corrupt = |what: &str| StoreError::Corrupt(format!("an audit row has a bad {what}"));
    let token = match (row.maybe_text(15)?, row.maybe_integer(16)?, row.maybe_integer(17)?) {
        (Some(id), Some(issued_at), Some(expires_at)) => {
            Some(AuditedToken { id: token_id(&id)?, issued_at, expires_at })
        }
        (None, None, None) => None,
        _ => return Err(corrupt("token")),
    };
    Ok(AuditRow {
        writer: writer(row, 0)?,
        sequence: unsigned(row.integer(1)?)?,
        event: AuditEvent {
            at: UnixMillis(row.integer(2)?),
            event: row.text(3)?,
            outcome: Outcome::parse(&row.text(4)?).ok_or_else(|| corrupt("outcome"))?,
            reason: row.text(5)?,
            decision_id: row.text(6)?,
            caller: row.text(7)?,
            identity: row.text(8)?,
            detail: row.text(9)?,
            policy: row.maybe_text(10)?,
            key_id: row.maybe_text(11)?,
            app_group: row.maybe_text(12)?,
            role: row.maybe_text(13)?,
            scope: row.maybe_text(14)?,
            token,
            revision: revision(row, 18)?,
        },
        key_version: key_version(row, 19)?,
        chain: chain(row, 20)?,
    })
}

fn writer(row: &impl Columns, at: usize) -> Result<WriterId, StoreError> {
    WriterId::parse(&row.text(at)?).map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn token_id(text: &str) -> Result<TokenId, StoreError> {
    TokenId::parse(text).map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn key_version(row: &impl Columns, at: usize) -> Result<u32, StoreError> {
    let version = row.integer(at)?;
    u32::try_from(version).map_err(|_| StoreError::Corrupt(format!("root key version {version} can't be")))
}

fn revision(row: &impl Columns, at: usize) -> Result<Revision, StoreError> {
    unsigned(row.integer(at)?).map(Revision)
}

fn chain(row: &impl Columns, at: usize) -> Result<Chain, StoreError> {
    chain_of(row.bytes(at)?)
}

fn chain_of(bytes: Vec<u8>) -> Result<Chain, StoreError> {
    bytes.try_into().map(Chain).map_err(|_| StoreError::Corrupt("a chain value does not have 32 bytes".to_owned()))
}
