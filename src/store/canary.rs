//! Runs of the canary, as the fleet knows of them. Information only: nothing depends on it.

use super::StoreError;
use super::reads::{Ask, Columns, unsigned};
use crate::clock::UnixMillis;
use crate::id::Revision;

pub(super) const END: &str = "update canary set succeeded_ms = started_ms where id = 1";
/// Replicas that are forgotten need no row here.
pub(super) const FORGET: &str = "delete from canary_refusal where replica not in (select name from replica)";
pub(super) const REFUSE: &str = "insert into canary_refusal (replica, revision) values ($1, $2) \
     on conflict (replica) do update set revision = excluded.revision";

/// Begins a run where the last one began `$1` ago or longer; `now` is the time of this engine, in milliseconds.
pub(super) fn begin(now: &'static str) -> String {
    // One that is ahead was begun by a clock that was wrong.
    format!(
        "update canary set started_ms = {now} where id = 1 \
         and (started_ms <= {now} - $1 or started_ms > {now} + $1) returning started_ms"
    )
}

pub(super) async fn refusals(ask: &impl Ask) -> Result<Vec<(String, Revision)>, StoreError> {
    let rows = ask.ask("select replica, revision from canary_refusal order by replica".to_owned(), &[]).await?;
    rows.iter().map(|row| Ok((row.text(0)?, unsigned(row.integer(1)?).map(Revision)?))).collect()
}

pub(super) async fn succeeded(ask: &impl Ask) -> Result<Option<UnixMillis>, StoreError> {
    let rows = ask.ask("select succeeded_ms from canary where succeeded_ms > 0".to_owned(), &[]).await?;
    rows.first().map(|row| row.integer(0).map(UnixMillis)).transpose()
}
