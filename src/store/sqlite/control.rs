//! The seal, the control log and its head, sealed keys; and the two transactions that everything rests on.

use sqlx::sqlite::SqlitePool;
use sqlx::{Connection, Row, SqliteConnection};

use super::{audit, chain, classify, signed, unsigned};
use crate::id::{Head, KeyId, Revision, VaultId};
use crate::store::{Append, AuditBatch, Fenced, KeyBytes, SealedKey, StoreError, sql};
use crate::vault::log::SealedRecord;
use crate::vault::unseal::SealRow;

pub(super) async fn seal_row(readers: &SqlitePool) -> Result<Option<SealRow>, StoreError> {
    let row = sqlx::query(sql::SEAL_ROW).fetch_optional(readers).await.map_err(classify)?;
    row.map(|row| {
        let vault: String = row.try_get(0).map_err(classify)?;
        let generation: i64 = row.try_get(1).map_err(classify)?;
        let method: String = row.try_get(2).map_err(classify)?;
        let corrupt = |what: &str| StoreError::Corrupt(format!("the seal row has a bad {what}"));
        Ok(SealRow {
            vault: VaultId::parse(&vault).map_err(|_| corrupt("vault"))?,
            generation: u32::try_from(generation).map_err(|_| corrupt("generation"))?,
            method: serde_json::from_str(&method).map_err(|_| corrupt("method"))?,
            keyring: row.try_get(3).map_err(classify)?,
        })
    })
    .transpose()
}

pub(super) async fn head(connection: &mut SqliteConnection) -> Result<Head, StoreError> {
    let row = sqlx::query(sql::HEAD).fetch_optional(connection).await.map_err(classify)?;
    let Some(row) = row else { return Ok(Head::default()) };
    let revision: i64 = row.try_get(0).map_err(classify)?;
    let bytes: Vec<u8> = row.try_get(1).map_err(classify)?;
    Ok(Head { revision: Revision(unsigned(revision)?), chain: chain(&bytes)? })
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

/// The hot path is one message to SQLite's thread; what does not fit it (refusals, very large batches) takes one a statement.
pub(super) async fn commit_rows(
    writer: &mut SqliteConnection,
    decided_at: Option<Head>,
    batch: &AuditBatch,
) -> Result<Fenced, StoreError> {
    if let Some(head) = decided_at
        && (1..=audit::MOST_ROWS).contains(&batch.rows.len())
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
    let record = &append.record;
    let head = record.head();
    sqlx::query(sql::ADD_RECORD)
        .bind(signed(record.revision.0))
        .bind(i64::from(record.checkpoint))
        .bind(record.previous.0.as_slice())
        .bind(record.sealed.as_slice())
        .execute(&mut *connection)
        .await
        .map_err(classify)?;
    sqlx::query(sql::PUT_HEAD)
        .bind(signed(head.revision.0))
        .bind(head.chain.0.as_slice())
        .execute(&mut *connection)
        .await
        .map_err(classify)?;
    for key in &append.keys {
        let query = match key {
            KeyBytes::Put(key) => sqlx::query(sql::PUT_KEY)
                .bind(key.key_id.as_str())
                .bind(signed(key.imported.0))
                .bind(key.sealed.as_slice()),
            KeyBytes::Destroy(key_id) => sqlx::query(sql::DESTROY_KEY).bind(key_id.as_str()),
        };
        query.execute(&mut *connection).await.map_err(classify)?;
    }
    if let Some(seal) = &append.seal {
        let method = serde_json::to_string(&seal.method).map_err(|error| StoreError::Corrupt(error.to_string()))?;
        sqlx::query(sql::PUT_SEAL_ROW)
            .bind(seal.vault.as_str())
            .bind(i64::from(seal.generation))
            .bind(method)
            .bind(seal.keyring.as_slice())
            .execute(&mut *connection)
            .await
            .map_err(classify)?;
    }
    audit::add(connection, &append.audit).await
}

/// INVARIANT (P6): the write-ahead log still holds each page as it was before a key was deleted; it is emptied. Answers
/// whether that was possible: a reader with an older snapshot is in the way.
pub(super) async fn truncate_log(writer: &mut SqliteConnection) -> Result<bool, StoreError> {
    let row = sqlx::query("pragma wal_checkpoint(truncate)").fetch_one(writer).await.map_err(classify)?;
    row.try_get::<i64, _>(0).map(|busy| busy == 0).map_err(classify)
}

pub(super) async fn newest_checkpoint(readers: &SqlitePool) -> Result<Revision, StoreError> {
    let revision: i64 = sqlx::query_scalar(sql::NEWEST_CHECKPOINT).fetch_one(readers).await.map_err(classify)?;
    unsigned(revision).map(Revision)
}

pub(super) async fn records_from(
    readers: &SqlitePool,
    from: Revision,
    limit: u32,
) -> Result<Vec<SealedRecord>, StoreError> {
    let rows = sqlx::query(sql::RECORDS_FROM)
        .bind(signed(from.0))
        .bind(i64::from(limit))
        .fetch_all(readers)
        .await
        .map_err(classify)?;
    rows.iter()
        .map(|row| {
            let previous: Vec<u8> = row.try_get(2).map_err(classify)?;
            Ok(SealedRecord {
                revision: Revision(unsigned(row.try_get(0).map_err(classify)?)?),
                checkpoint: row.try_get::<i64, _>(1).map_err(classify)? != 0,
                previous: chain(&previous)?,
                sealed: row.try_get(3).map_err(classify)?,
            })
        })
        .collect()
}

pub(super) async fn sealed_keys(readers: &SqlitePool) -> Result<Vec<SealedKey>, StoreError> {
    let rows = sqlx::query(sql::SEALED_KEYS).fetch_all(readers).await.map_err(classify)?;
    rows.iter()
        .map(|row| {
            let key_id: String = row.try_get(0).map_err(classify)?;
            Ok(SealedKey {
                key_id: KeyId::parse(&key_id).map_err(|error| StoreError::Corrupt(error.to_string()))?,
                imported: Revision(unsigned(row.try_get(1).map_err(classify)?)?),
                sealed: row.try_get(2).map_err(classify)?,
            })
        })
        .collect()
}
