//! A vault as a whole: what a backup begins with, and a restore.

use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{Connection, SqliteConnection, SqliteTransaction};
use tokio::sync::Mutex;

use super::{audit, bound, classify, control};
use crate::id::Head;
use crate::store::batches::{Batch, Batches, Parts};
use crate::store::part::Snapshot;
use crate::store::reads::{Ask, Value};
use crate::store::snapshot::is_used_in;
use crate::store::{StoreError, snapshot, sql};
use crate::vault::unseal::SealRow;

/// One transaction, which ends with this: also where nobody waits for the answer any more.
struct One(Mutex<SqliteTransaction<'static>>);

impl Ask for One {
    type Row = SqliteRow;
    const NOW: &str = <SqlitePool as Ask>::NOW;

    async fn ask(&self, sql: String, values: &[Value<'_>]) -> Result<Vec<SqliteRow>, StoreError> {
        bound(sql, values).fetch_all(&mut **self.0.lock().await).await.map_err(classify)
    }
}

pub(super) async fn snapshot(readers: &SqlitePool) -> Result<Option<Snapshot>, StoreError> {
    // The first question fixes the moment that the others see, too.
    let one = One(Mutex::new(readers.begin().await.map_err(classify)?));
    let read = snapshot::read(&one).await;
    one.0.into_inner().rollback().await.map_err(classify)?;
    read
}

pub(super) async fn restore(
    writer: &mut SqliteConnection,
    seal: &SealRow,
    head: Head,
    parts: Parts,
) -> Result<(), StoreError> {
    let mut transaction = writer.begin_with("begin immediate").await.map_err(classify)?;
    let used = sqlx::query(sql::IS_USED).fetch_all(&mut *transaction).await.map_err(classify)?;
    if is_used_in(&used)? {
        return Err(StoreError::AlreadyInitialised);
    }
    control::put_seal(&mut transaction, seal).await?;
    control::put_head(&mut transaction, head).await?;
    let mut batches = Batches::of(parts);
    while let Some(batch) = batches.next().await? {
        match batch {
            Batch::Records(records) => {
                for record in &records {
                    control::add_record(&mut transaction, record).await?;
                }
            }
            Batch::Keys(keys) => {
                for key in &keys {
                    control::put_key(&mut transaction, key).await?;
                }
            }
            Batch::Audit(batch) => audit::add(&mut transaction, &batch).await?,
        }
    }
    transaction.commit().await.map_err(classify)
}
