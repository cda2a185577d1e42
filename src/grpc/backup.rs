//! A backup as a stream. It is read only as fast as the caller takes it, and the caller is authenticated anew before every
//! piece.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::convert::millis_out;
use super::proto::{BackupDone, BackupResponse};
use super::standing::Standing;
use crate::broker::{Backup, Broker, BrokerError};

/// Most bytes of one answer; clients take 4 MiB unless told otherwise.
const MOST_BYTES: usize = 512 * 1024;

/// Answers on their way to one caller.
const QUEUE: usize = 4;

pub(super) fn stream(
    broker: &Arc<Broker>,
    standing: Standing,
    backup: Backup,
    ended: CancellationToken,
) -> Pin<Box<dyn Stream<Item = Result<BackupResponse, Status>> + Send>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let serving = Arc::clone(broker);
    broker.spawn(async move {
        // One who does not read must not keep a broker from stopping, nor (INVARIANT P7) the root keys of a sealed vault.
        let sending = ended.run_until_cancelled(send(&serving, &standing, backup, &sender));
        let end = serving.stopping().run_until_cancelled(sending).await;
        let stopping = || Err(Status::unavailable("this replica is stopping; ask another one"));
        let sealed = || Err(serving.open().err().unwrap_or_else(just_sealed).into());
        let end = end.map_or_else(stopping, |end| end.unwrap_or_else(sealed));
        if let Err(status) = end {
            // The stream's last word; without it and without `done` the file is not whole either.
            let _ = sender.try_send(Err(status));
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}

fn just_sealed() -> BrokerError {
    BrokerError::Sealed { why: "the backup ended with the vault".to_owned() }
}

async fn send(
    broker: &Broker,
    standing: &Standing,
    mut backup: Backup,
    sender: &mpsc::Sender<Result<BackupResponse, Status>>,
) -> Result<(), Status> {
    while let Some(bytes) = backup.next().await? {
        for piece in bytes.chunks(MOST_BYTES) {
            // INVARIANT (P7): a vault that is sealed gives out nothing more, and an operator whose power is gone gets nothing.
            broker.may_back_up(standing.caller()?)?;
            if sender.send(Ok(BackupResponse { piece: piece.to_vec(), done: None })).await.is_err() {
                return Ok(());
            }
        }
    }
    let done = backup_done(&backup);
    tracing::info!(revision = done.revision, rows = done.rows, "a backup was made");
    // Whoever has gone by now has no file, and knows it.
    let _ = sender.send(Ok(BackupResponse { piece: Vec::new(), done: Some(done) })).await;
    Ok(())
}

/// What a backup holds that was made to its end.
pub(crate) fn backup_done(backup: &Backup) -> BackupDone {
    let (header, totals) = (backup.header(), backup.totals());
    BackupDone {
        revision: header.head.revision.0,
        created_at: Some(millis_out(header.created)),
        records: totals.records,
        keys: totals.keys,
        writers: totals.writers,
        rows: totals.rows,
    }
}
