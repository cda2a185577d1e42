//! The tables of a vault, behind its broker's back.

use std::path::PathBuf;

use p8broker::clock::{Clock, SystemClock};
use p8broker::config::StoreAt;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, SqliteConnection};

use super::Broker;

/// Where they are.
pub enum Tables {
    Sqlite(PathBuf),
    Postgres(String),
}

/// One row of `quota`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub hour: i64,
    pub hour_count: i64,
    pub minute: i64,
    pub minute_count: i64,
}

impl Tables {
    pub fn of(broker: &Broker) -> Self {
        match broker.config.store.at().unwrap() {
            StoreAt::Sqlite(file) => Self::Sqlite(file),
            StoreAt::Postgres(settings) => Self::Postgres(settings.url.to_string()),
        }
    }

    pub async fn run(&self, sql: &str) {
        let query = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        match self {
            Self::Sqlite(file) => {
                let mut connection = SqliteConnection::connect(&format!("sqlite://{}", file.display())).await.unwrap();
                query.execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
            Self::Postgres(url) => {
                let mut connection = PgConnection::connect(url).await.unwrap();
                query.execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
        }
    }

    /// What is counted for a client under a policy.
    pub async fn counts(&self, policy: &str, client: &str) -> Option<Counts> {
        const COUNTS: &str =
            "select hour, hour_count, minute, minute_count from quota where policy = $1 and client = $2";
        let of = |numbers: [i64; 4]| Counts {
            hour: numbers[0],
            hour_count: numbers[1],
            minute: numbers[2],
            minute_count: numbers[3],
        };
        match self {
            Self::Sqlite(file) => {
                let mut connection = SqliteConnection::connect(&format!("sqlite://{}", file.display())).await.unwrap();
                let row = sqlx::query(COUNTS).bind(policy).bind(client).fetch_optional(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                row.map(|row| of([row.get(0), row.get(1), row.get(2), row.get(3)]))
            }
            Self::Postgres(url) => {
                let mut connection = PgConnection::connect(url).await.unwrap();
                let row = sqlx::query(COUNTS).bind(policy).bind(client).fetch_optional(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                row.map(|row| of([row.get(0), row.get(1), row.get(2), row.get(3)]))
            }
        }
    }

    pub async fn put(&self, policy: &str, client: &str, counts: Counts) {
        let Counts { hour, hour_count, minute, minute_count } = counts;
        self.run(&format!(
            "insert into quota (policy, client, hour, hour_count, minute, minute_count) \
             values ('{policy}', '{client}', {hour}, {hour_count}, {minute}, {minute_count}) \
             on conflict (policy, client) do update set hour = excluded.hour, hour_count = excluded.hour_count, \
             minute = excluded.minute, minute_count = excluded.minute_count"
        ))
        .await;
    }

    /// Puts the windows of a key a little ahead, and nothing into them: windows never go back, so none ends during a test.
    pub async fn pin(&self, policy: &str, client: &str) {
        let now = SystemClock.now().seconds();
        let (hour, minute) = (now / 3600 + 1, now / 60 + 3);
        self.put(policy, client, Counts { hour, hour_count: 0, minute, minute_count: 0 }).await;
    }

    /// Moves all windows back, so that they are over.
    pub async fn roll(&self) {
        self.run("update quota set hour = hour - 2, minute = minute - 120").await;
    }
}
