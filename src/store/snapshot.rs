//! The beginning of a backup, read at one moment, for both engines; the rest of it is read page by page, as that only grows.
//!
//! A long transaction would be simpler to believe in and is worse: on SQLite it keeps the write-ahead log from being emptied,
//! on PostgreSQL it keeps the tables of keys from being written anew (P6), and both for as long as a slow reader likes. And
//! `truncate` empties a table also for older snapshots of PostgreSQL, so that such a transaction could read no keys at all.

use std::collections::BTreeMap;

use super::part::Snapshot;
use super::reads::{self, Ask, Columns, unsigned};
use super::{StoreError, sql};

/// Reads the beginning; `ask` is within one transaction that sees one moment. `None` before init.
pub(super) async fn read(ask: &impl Ask) -> Result<Option<Snapshot>, StoreError> {
    let Some(seal) = reads::seal_row(ask).await? else { return Ok(None) };
    let (head, keys) = (reads::head(ask).await?, reads::sealed_keys(ask).await?);
    let mut firsts = BTreeMap::new();
    for row in ask.ask(sql::FIRST_ROWS.to_owned(), &[]).await? {
        firsts.insert(row.text(0)?, row.maybe_integer(1)?.map(unsigned).transpose()?);
    }
    let mut writers = Vec::with_capacity(firsts.len());
    for stored in reads::writer_ends(ask).await? {
        let first = firsts.get(stored.end.writer.as_str()).copied().flatten();
        writers.push((stored.end, first));
    }
    Ok(Some(Snapshot { seal, head, keys, writers }))
}

/// Whether there is anything of a vault.
pub(super) async fn is_used(ask: &impl Ask) -> Result<bool, StoreError> {
    is_used_in(&ask.ask(sql::IS_USED.to_owned(), &[]).await?)
}

/// The same, of an answer.
pub(super) fn is_used_in(rows: &[impl Columns]) -> Result<bool, StoreError> {
    rows.first().map_or(Ok(false), |row| Ok(row.integer(0)? != 0))
}
