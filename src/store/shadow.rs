//! Counts of shadow mode: what would have refused, why, and whom. Information only: nothing depends on it.

use super::StoreError;
use super::reads::{Ask, Columns, Value, unsigned};
use crate::clock::UnixMillis;

/// What was counted in shadow mode: what would have refused, why, and whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShadowKey {
    /// `policy` or `ceiling`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Why it would have refused.
    pub reason: String,
    /// Whom.
    pub client: String,
    /// For which app group.
    pub app_group: String,
}

/// How often something would have refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShadowCount {
    /// What.
    pub key: ShadowKey,
    /// How often.
    pub count: u64,
    /// When last.
    pub last: UnixMillis,
}

pub(super) const FORGET_OLD: &str = "delete from shadow where last_ms < $1";
/// `$1` is a list of kinds and names, each between commas.
pub(super) const FORGET: &str = "delete from shadow where $1 like '%,' || kind || ' ' || name || ',%'";
const READ: &str = "select kind, name, reason, client, app_group, count, last_ms from shadow \
     where $1 like '%,' || kind || ' ' || name || ',%' \
     order by count desc, kind, name, reason, client, app_group limit $2";

/// Adds to any number of counts: they come as one JSON text, whose elements this engine has from `each`.
pub(super) fn add(each: &'static str) -> String {
    format!(
        "insert into shadow (kind, name, reason, client, app_group, count, last_ms) \
         select value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, \
         cast(value ->> 5 as bigint), cast(value ->> 6 as bigint) from {each} where true \
         on conflict (kind, name, reason, client, app_group) do update set count = shadow.count + excluded.count, \
         last_ms = case when excluded.last_ms > shadow.last_ms then excluded.last_ms else shadow.last_ms end"
    )
}

pub(super) async fn read(ask: &impl Ask, of: &[String], limit: u32) -> Result<Vec<ShadowCount>, StoreError> {
    let of = between_commas(of);
    let values = [Value::Text(&of), Value::Integer(i64::from(limit))];
    ask.ask(READ.to_owned(), &values).await?.iter().map(shadow).collect()
}

/// A list as the statements about counts of shadow mode take it.
pub(super) fn between_commas(of: &[String]) -> String {
    format!(",{},", of.join(","))
}

/// Counts of shadow mode as one JSON text.
pub(super) fn json(counts: &[ShadowCount]) -> String {
    let one = |ShadowCount { key, count, last }: &ShadowCount| {
        serde_json::json!([key.kind, key.name, key.reason, key.client, key.app_group, count, last.0])
    };
    serde_json::Value::from_iter(counts.iter().map(one)).to_string()
}

fn shadow(row: &impl Columns) -> Result<ShadowCount, StoreError> {
    Ok(ShadowCount {
        key: ShadowKey {
            kind: row.text(0)?,
            name: row.text(1)?,
            reason: row.text(2)?,
            client: row.text(3)?,
            app_group: row.text(4)?,
        },
        count: unsigned(row.integer(5)?)?,
        last: UnixMillis(row.integer(6)?),
    })
}
