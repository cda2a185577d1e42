//! The transactions that everything rests on: a vault that begins, rows that are committed, records that are appended.

use sqlx::{Connection, Row, SqliteConnection};

use super::{audit, classify, quota};
use crate::id::Head;
use crate::store::reads::{head_in, signed};
use crate::store::{Append, AuditBatch, Fenced, KeyBytes, SealedKey, StoreError, sql};
use crate::vault::log::SealedRecord;
use crate::vault::unseal::SealRow;

const PUT_SEAL_ROW: &str = "insert into seal (id, vault, generation, method, keyring) values (1, $1, $2, $3, $4) \
     on conflict (id) do update set vault = excluded.vault, generation = excluded.generation, method = excluded.method, \
     keyring = excluded.keyring";
const PUT_HEAD: &str = "insert into control_head (id, revision, chain) values (1, $1, $2) \
     on conflict (id) do update set revision = excluded.revision, chain = excluded.chain";
const ADD_RECORD: &str = "insert into control_log (revision, checkpoint, previous, sealed) values ($1, $2, $3, $4)";
const PUT_KEY: &str = "insert into sealed_keys (key_id, imported, sealed) values ($1, $2, $3) \
     on conflict (key_id) do update set imported = excluded.imported, sealed = excluded.sealed";
const DESTROY_KEY: &str = "delete from sealed_keys where key_id = $1";

async fn head(connection: &mut SqliteConnection) -> Result<Head, StoreError> {
    head_in(&sqlx::query(sql::HEAD).fetch_all(connection).await.map_err(classify)?)
}

pub(super) async fn initialise(writer: &mut SqliteConnection, first: &Append) -> Result<(), StoreError> {
    let mut transaction = writer.begin_with("begin immediate").await.map_err(classify)?;
    let rows: i64 =
        sqlx::query_scalar("select count(*) from seal").fetch_one(&mut *transaction).await.map_err(classify)?;
    if rows > 0 || head(&mut transaction).await? != Head::default() {
        return Err(StoreError::AlreadyInitialised);
    }
    write(&mut transaction, first).await?;
    transaction.commit().await.map_err(classify)
}

/// The hot path is one message to SQLite's thread; what does not fit it (refusals, very large batches, quotas) takes one a
/// statement.
pub(super) async fn commit_rows(
    writer: &mut SqliteConnection,
    decided_at: Option<Head>,
    batch: &AuditBatch,
) -> Result<Fenced, StoreError> {
    if let Some(head) = decided_at
        && (1..=audit::MOST_ROWS).contains(&batch.rows.len())
        && batch.quota.is_empty()
    {
        return audit::commit_at(writer, head, batch).await;
    }
    let mut transaction = writer.begin_with("begin immediate").await.map_err(classify)?;
    // INVARIANT (P5): the head is read under the write lock, so no change can come between this and the commit.
    if let Some(decided_at) = decided_at
        && head(&mut transaction).await? != decided_at
    {
        return Ok(Fenced::HeadMoved);
    }
    // INVARIANT (INV-QUOTA-1): counted under the write lock; what is over a bound is rolled back with everything else.
    let left = quota::count(&mut transaction, &batch.quota).await?;
    if !left.is_empty() {
        return Ok(Fenced::OverQuota(left));
    }
    audit::add(&mut transaction, batch).await?;
    // INVARIANT (P4): the caller learns of the rows only after they are durable.
    transaction.commit().await.map_err(classify)?;
    Ok(Fenced::Committed)
}

pub(super) async fn append(writer: &mut SqliteConnection, append: &Append) -> Result<Fenced, StoreError> {
    let mut transaction = writer.begin_with("begin immediate").await.map_err(classify)?;
    // INVARIANT (P5): compare-and-append, in one transaction.
    if head(&mut transaction).await? != append.expected {
        return Ok(Fenced::HeadMoved);
    }
    write(&mut transaction, append).await?;
    transaction.commit().await.map_err(classify)?;
    Ok(Fenced::Committed)
}

async fn write(connection: &mut SqliteConnection, append: &Append) -> Result<(), StoreError> {
    for record in &append.records {
        add_record(connection, record).await?;
    }
    put_head(connection, append.head()).await?;
    for key in &append.keys {
        match key {
            KeyBytes::Put(key) => put_key(connection, key).await?,
            KeyBytes::Destroy(key_id) => {
                let destroy = sqlx::query(DESTROY_KEY).bind(key_id.as_str());
                destroy.execute(&mut *connection).await.map_err(classify)?;
            }
        }
    }
    if let Some(seal) = &append.seal {
        put_seal(connection, seal).await?;
    }
    audit::add(connection, &append.audit).await
}

pub(super) async fn add_record(connection: &mut SqliteConnection, record: &SealedRecord) -> Result<(), StoreError> {
    let add = sqlx::query(ADD_RECORD)
        .bind(signed(record.revision.0))
        .bind(i64::from(record.checkpoint))
        .bind(record.previous.0.as_slice())
        .bind(record.sealed.as_slice());
    add.execute(connection).await.map(drop).map_err(classify)
}

pub(super) async fn put_head(connection: &mut SqliteConnection, head: Head) -> Result<(), StoreError> {
    let put = sqlx::query(PUT_HEAD).bind(signed(head.revision.0)).bind(head.chain.0.as_slice());
    put.execute(connection).await.map(drop).map_err(classify)
}

pub(super) async fn put_key(connection: &mut SqliteConnection, key: &SealedKey) -> Result<(), StoreError> {
    let put = sqlx::query(PUT_KEY).bind(key.key_id.as_str()).bind(signed(key.imported.0)).bind(key.sealed.as_slice());
    put.execute(connection).await.map(drop).map_err(classify)
}

pub(super) async fn put_seal(connection: &mut SqliteConnection, seal: &SealRow) -> Result<(), StoreError> {
    let method = serde_json::to_string(&seal.method).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    let put = sqlx::query(PUT_SEAL_ROW)
        .bind(seal.vault.as_str())
        .bind(i64::from(seal.generation))
        .bind(method)
        .bind(seal.keyring.as_slice());
    put.execute(connection).await.map(drop).map_err(classify)
}

/// INVARIANT (P6): the write-ahead log still holds each page as it was before a key was deleted; it is emptied. Answers
/// whether that was possible: a reader with an older snapshot is in the way.
pub(super) async fn truncate_log(writer: &mut SqliteConnection) -> Result<bool, StoreError> {
    let row = sqlx::query("pragma wal_checkpoint(truncate)").fetch_one(writer).await.map_err(classify)?;
    row.try_get::<i64, _>(0).map(|busy| busy == 0).map_err(classify)
}
