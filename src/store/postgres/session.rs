//! One connection: how it starts, what it is pinned to, and what its errors mean.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions, Connection, Row};

use super::settings::Settings;
use crate::clock::{Stopwatch, UnixMillis};
use crate::store::{Hazard, StoreError};

/// How long a connection may take, in all.
pub(super) const CONNECT: Duration = Duration::from_secs(5);

/// The oldest server, as `server_version_num` has it.
const OLDEST_SERVER: i32 = 150_000;

/// How far clocks may be apart: tokens are backdated by 60 s, and everything shown to people is in seconds.
const CLOCKS_APART_MS: i64 = 2000;

/// Pins a session, in one round trip. `synchronous_commit` is at least `on`; a server set to `remote_apply` keeps that.
/// Timeouts are the server's own: a `statement_timeout` does not reach a commit that waits for a standby.
const PIN: &str = "select pg_backend_pid(), pg_is_in_recovery(), current_setting('server_version_num')::int4, \
     set_config('default_transaction_isolation', 'read committed', false), \
     set_config('synchronous_commit', case current_setting('synchronous_commit') \
     when 'remote_apply' then 'remote_apply' else 'on' end, false), \
     set_config('statement_timeout', '30s', false), set_config('idle_in_transaction_session_timeout', '10s', false), \
     set_config('tcp_keepalives_idle', '10', false), set_config('tcp_keepalives_interval', '5', false), \
     set_config('tcp_keepalives_count', '3', false), set_config('jit', 'off', false)";

const HAZARDS: &str = "select current_setting('fsync') = 'on', current_setting('full_page_writes') = 'on', \
     (select reset_val from pg_settings where name = 'synchronous_commit') in ('on', 'remote_apply', 'remote_write'), \
     current_setting('synchronous_standby_names') <> '', (select count(*) from pg_stat_replication), \
     (extract(epoch from clock_timestamp()) * 1000)::int8, \
     (select pg_has_role(relowner, 'usage') from pg_class where oid = 'sealed_keys'::regclass)";

/// After so long without use, in seconds, a connection is asked whether it is still there.
const IDLE_S: f64 = 1.0;

/// How long that answer may take.
const PING: Duration = Duration::from_secs(1);

/// A connection, and the process that serves it.
pub(super) struct Session {
    pub(super) connection: PgConnection,
    pub(super) pid: i32,
    used: Stopwatch,
}

impl Session {
    /// Whether it can be used: one that was lost while nobody used it is found before something is written on it, whose
    /// outcome would be unknown for nothing.
    pub(super) async fn is_there(&mut self) -> bool {
        let idle = self.used.seconds();
        self.used = Stopwatch::start();
        idle < IDLE_S || tokio::time::timeout(PING, self.connection.ping()).await.is_ok_and(|answer| answer.is_ok())
    }
}

pub(super) async fn connect(settings: &Settings) -> Result<Session, StoreError> {
    let options = settings.options()?;
    let connecting = async {
        let mut connection = options.connect().await?;
        let pid = pin(&mut connection).await?;
        Ok(Session { connection, pid, used: Stopwatch::start() })
    };
    match tokio::time::timeout(CONNECT, connecting).await {
        Ok(done) => done.map_err(classify),
        Err(_) => Err(StoreError::Unavailable(format!("no connection within {} s", CONNECT.as_secs()))),
    }
}

/// Pins a session, and refuses a server that is too old or a standby. Answers the process that serves it.
pub(super) async fn pin(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    let row = sqlx::query(PIN).fetch_one(connection).await?;
    let (pid, standby, version): (i32, bool, i32) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    // Authorising from a standby would be authorising from the past.
    if standby {
        return Err(unfit("this server is a standby (pg_is_in_recovery); name the primary in store.url"));
    }
    if version < OLDEST_SERVER {
        return Err(unfit("this server is older than PostgreSQL 15; upgrade it"));
    }
    Ok(pid)
}

/// What is wrong with a server, in the form in which sqlx hands errors through a pool.
fn unfit(why: &'static str) -> sqlx::Error {
    sqlx::Error::Configuration(why.into())
}

pub(super) async fn hazards(connection: &mut PgConnection, now: UnixMillis) -> Result<Vec<Hazard>, sqlx::Error> {
    let row = sqlx::query(HAZARDS).fetch_one(connection).await?;
    let (fsync, full_pages, commits): (bool, bool, Option<bool>) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let (synchronous, standbys, theirs): (bool, i64, i64) = (row.try_get(3)?, row.try_get(4)?, row.try_get(5)?);
    let owns: bool = row.try_get(6)?;
    let apart = now.0.saturating_sub(theirs).saturating_abs();
    let found = [
        (
            !fsync,
            "FSYNC_OFF",
            "fsync is off: a crash of the server can lose or break what it acknowledged; set fsync = on".to_owned(),
        ),
        (
            !full_pages,
            "FULL_PAGE_WRITES_OFF",
            "full_page_writes is off: a crash in the middle of a page breaks it; set \
            full_page_writes = on"
                .to_owned(),
        ),
        (
            commits == Some(false),
            "SYNCHRONOUS_COMMIT_OFF",
            "the server's synchronous_commit is below on: this broker's \
            sessions override it, but nothing else that writes here does; set synchronous_commit = on"
                .to_owned(),
        ),
        (
            standbys > 0 && !synchronous,
            "STANDBYS_ASYNCHRONOUS",
            format!(
                "{standbys} standbys stream without synchronous replication: a failover can lose acknowledged revokes; set \
            synchronous_standby_names"
            ),
        ),
        (
            !owns,
            "NOT_THE_OWNER",
            "the broker's role does not own its tables: revoking a key can't write them anew, so that destroyed bytes may \
             stay in their files; make it their owner"
                .to_owned(),
        ),
        (
            apart > CLOCKS_APART_MS,
            "CLOCKS_APART",
            format!(
                "this machine's clock and the database's are {:.1} s apart; check time synchronisation on both",
                f64::from(u32::try_from(apart).unwrap_or(u32::MAX)) / 1000.0
            ),
        ),
    ];
    Ok(found.into_iter().filter(|(is, ..)| *is).map(|(_, name, what)| Hazard { name, what }).collect())
}

/// What sqlx says, in the store's words. Classes are those of PostgreSQL's Appendix A.
pub(super) fn classify(error: sqlx::Error) -> StoreError {
    match &error {
        sqlx::Error::Configuration(why) => StoreError::Unfit(why.to_string()),
        sqlx::Error::Database(inner) => match inner.code().unwrap_or_default().as_ref() {
            // Raised by our own functions: the session is not pinned.
            "P0001" => StoreError::Unfit(inner.message().to_owned()),
            "42501" => StoreError::Unfit(format!("{}: grant it to the broker's role", inner.message())),
            code if code.starts_with("28") => StoreError::Unfit(format!("{}: check the credentials", inner.message())),
            // Integrity constraints, missing tables and columns, broken pages: rows and tables that can't be ours.
            code if ["22", "23", "42", "XX"].iter().any(|class| code.starts_with(class)) => {
                StoreError::Corrupt(error.to_string())
            }
            _ => StoreError::Unavailable(error.to_string()),
        },
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::ColumnNotFound(_) => {
            StoreError::Corrupt(error.to_string())
        }
        _ => StoreError::Unavailable(error.to_string()),
    }
}
