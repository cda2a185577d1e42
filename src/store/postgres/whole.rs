//! A vault as a whole: what a backup begins with, and a restore. Each on a connection of its own.

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, PgTransaction};
use tokio::sync::Mutex;

use super::session::{classify, connect};
use super::settings::Settings;
use super::write::bind_rows;
use super::{READ, bound};
use crate::id::Head;
use crate::store::batches::{Batch, Batches, Parts};
use crate::store::part::Snapshot;
use crate::store::reads::{Ask, Value, signed};
use crate::store::snapshot::is_used_in;
use crate::store::{AuditBatch, SealedKey, StoreError, snapshot, sql};
use crate::vault::log::SealedRecord;
use crate::vault::unseal::SealRow;

/// Every question that is asked in it sees the same moment.
const BEGIN: &str = "begin transaction isolation level repeatable read read only";

/// Before the first question, which fixes that moment: writing the tables of keys anew empties them for older moments, too.
const LOCK: &str = "lock table seal, sealed_keys in access share mode";

/// The lock of the fence: whoever makes a vault here at the same time waits, and then finds this one.
const FENCE: &str = "select pg_advisory_xact_lock('control_head'::regclass::bigint)";

/// Between two statements of a restore a part of the file is read.
const PATIENCE: &str = "set local idle_in_transaction_session_timeout = '60s'";

const ADD_RECORDS: &str = "insert into control_log (revision, checkpoint, previous, sealed) \
     select * from unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bytea[])";
const ADD_KEYS: &str = "insert into sealed_keys (key_id, imported, sealed) \
     select * from unnest($1::text[], $2::bigint[], $3::bytea[])";
const ADD_ROWS: &str = "select p8broker_add_rows_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, \
     $17, $18, $19, $20, $21, $22, $23, $24, $25, $26)::text";
const PUT_SEAL: &str = "insert into seal (id, vault, generation, method, keyring) values (1, $1, $2, $3, $4)";
const PUT_HEAD: &str = "insert into control_head (id, revision, chain) values (1, $1, $2) \
     on conflict (id) do update set revision = excluded.revision, chain = excluded.chain";

/// One connection, so that what is asked of it is within its transaction.
struct One(Mutex<PgConnection>);

impl Ask for One {
    type Row = PgRow;
    const NOW: &str = <super::Readers as Ask>::NOW;

    async fn ask(&self, sql: String, values: &[Value<'_>]) -> Result<Vec<PgRow>, StoreError> {
        bound(sql, values).fetch_all(&mut *self.0.lock().await).await.map_err(classify)
    }
}

pub(super) async fn snapshot(settings: &Settings) -> Result<Option<Snapshot>, StoreError> {
    let one = One(Mutex::new(connect(settings).await?.connection));
    let reading = async {
        one.ask(BEGIN.to_owned(), &[]).await?;
        one.ask(LOCK.to_owned(), &[]).await?;
        let read = snapshot::read(&one).await;
        one.ask("rollback".to_owned(), &[]).await?;
        read
    };
    let late = |_| StoreError::Unavailable(format!("no answer within {} s", READ.as_secs()));
    tokio::time::timeout(READ, reading).await.map_err(late)?
}

pub(super) async fn restore(settings: &Settings, seal: &SealRow, head: Head, parts: Parts) -> Result<(), StoreError> {
    let mut session = connect(settings).await?;
    let mut transaction = session.connection.begin().await.map_err(classify)?;
    for statement in [PATIENCE, FENCE] {
        sqlx::query(statement).fetch_all(&mut *transaction).await.map_err(classify)?;
    }
    let used = sqlx::query(sql::IS_USED).fetch_all(&mut *transaction).await.map_err(classify)?;
    if is_used_in(&used)? {
        return Err(StoreError::AlreadyInitialised);
    }
    let mut batches = Batches::of(parts);
    while let Some(batch) = batches.next().await? {
        match batch {
            Batch::Records(records) => add_records(&mut transaction, &records).await?,
            Batch::Keys(keys) => add_keys(&mut transaction, &keys).await?,
            Batch::Audit(batch) => add_rows(&mut transaction, &batch).await?,
        }
    }
    put_seal_and_head(&mut transaction, seal, head).await?;
    // Replicas that wait for a vault look at once.
    sqlx::query("select pg_notify('p8broker', current_schema())")
        .fetch_all(&mut *transaction)
        .await
        .map_err(classify)?;
    transaction.commit().await.map_err(classify)
}

async fn add_records(transaction: &mut PgTransaction<'_>, records: &[SealedRecord]) -> Result<(), StoreError> {
    let add = sqlx::query(ADD_RECORDS)
        .bind(records.iter().map(|record| signed(record.revision.0)).collect::<Vec<_>>())
        .bind(records.iter().map(|record| i64::from(record.checkpoint)).collect::<Vec<_>>())
        .bind(records.iter().map(|record| record.previous.0.as_slice()).collect::<Vec<_>>())
        .bind(records.iter().map(|record| record.sealed.as_slice()).collect::<Vec<_>>());
    add.execute(&mut **transaction).await.map(drop).map_err(classify)
}

async fn add_keys(transaction: &mut PgTransaction<'_>, keys: &[SealedKey]) -> Result<(), StoreError> {
    let add = sqlx::query(ADD_KEYS)
        .bind(keys.iter().map(|key| key.key_id.as_str()).collect::<Vec<_>>())
        .bind(keys.iter().map(|key| signed(key.imported.0)).collect::<Vec<_>>())
        .bind(keys.iter().map(|key| key.sealed.as_slice()).collect::<Vec<_>>());
    add.execute(&mut **transaction).await.map(drop).map_err(classify)
}

async fn add_rows(transaction: &mut PgTransaction<'_>, batch: &AuditBatch) -> Result<(), StoreError> {
    let query = sqlx::query_scalar::<_, Option<String>>(ADD_ROWS);
    bind_rows(query, batch).fetch_all(&mut **transaction).await.map(drop).map_err(classify)
}

async fn put_seal_and_head(transaction: &mut PgTransaction<'_>, seal: &SealRow, head: Head) -> Result<(), StoreError> {
    let method = serde_json::to_string(&seal.method).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    let put = sqlx::query(PUT_SEAL)
        .bind(seal.vault.as_str())
        .bind(i64::from(seal.generation))
        .bind(method)
        .bind(seal.keyring.as_slice());
    put.execute(&mut **transaction).await.map_err(classify)?;
    let put = sqlx::query(PUT_HEAD).bind(signed(head.revision.0)).bind(head.chain.0.as_slice());
    put.execute(&mut **transaction).await.map(drop).map_err(classify)
}
