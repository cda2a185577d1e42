//! Counting against quotas, within the transaction of the rows.

use std::collections::HashMap;

use serde_json::json;
use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use super::classify;
use crate::store::quota::{Counted, FORGET_HOURS, MOST_FORGOTTEN};
use crate::store::{QuotaAsk, QuotaLeft, StoreError, sql};

/// The machine's clock, as SQLite reads it.
const NOW: &str = "select cast(unixepoch('subsec') * 1000 as integer)";

/// One statement for any number of keys: they come as one JSON text.
const COUNT: &str = "insert into quota (policy, client, hour, hour_count, minute, minute_count) \
     select value ->> 0, value ->> 1, $2 / 3600000, value ->> 2, $2 / 60000, value ->> 3 from json_each($1) where true \
     on conflict (policy, client) do update set \
     hour = max(hour, excluded.hour), \
     hour_count = excluded.hour_count + iif(hour >= excluded.hour, hour_count, 0), \
     minute = max(minute, excluded.minute), \
     minute_count = excluded.minute_count + iif(minute >= excluded.minute, minute_count, 0) \
     returning policy, client, hour, hour_count, minute, minute_count";

/// Counts what is asked for; answers what would have been too much, and then the transaction must not be committed.
pub(super) async fn count(connection: &mut SqliteConnection, asks: &[QuotaAsk]) -> Result<Vec<QuotaLeft>, StoreError> {
    if asks.is_empty() {
        return Ok(Vec::new());
    }
    let now_ms: i64 = sqlx::query_scalar(NOW).fetch_one(&mut *connection).await.map_err(classify)?;
    let keys: Vec<_> = asks.iter().map(|ask| json!([ask.policy, ask.client, ask.tokens, ask.fresh])).collect();
    let query = sqlx::query(COUNT).bind(json!(keys).to_string()).bind(now_ms);
    let rows = query.fetch_all(connection).await.map_err(classify)?;
    let asked: HashMap<_, _> = asks.iter().map(|ask| ((ask.policy.as_str(), ask.client.as_str()), ask)).collect();
    let mut left = Vec::new();
    for row in &rows {
        let (policy, client): (&str, &str) = (row.try_get(0).map_err(classify)?, row.try_get(1).map_err(classify)?);
        let number = |at: usize| row.try_get::<i64, _>(at).map_err(classify);
        let counted =
            Counted { hour: number(2)?, hour_count: number(3)?, minute: number(4)?, minute_count: number(5)?, now_ms };
        if let Some(ask) = asked.get(&(policy, client)) {
            left.extend(ask.exceeds(&counted));
        }
    }
    Ok(left)
}

pub(super) async fn forget(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let forget = AssertSqlSafe(sql::forget_quotas("unixepoch() / 3600", ""));
    let query = sqlx::query(forget).bind(FORGET_HOURS).bind(MOST_FORGOTTEN);
    query.execute(connection).await.map(drop).map_err(classify)
}
