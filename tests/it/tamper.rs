//! P2: hundreds of mutations of the database, each found at load or by `audit verify`, but for those that SECURITY.md
//! lists: all tables taken back together, which only the anchor finds.

use std::path::Path;

use p8broker::grpc::proto;
use p8broker::grpc::proto::Phase;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};

use crate::harness::*;

async fn open(database: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(database).foreign_keys(false).connect().await.unwrap()
}

/// Changes the database of a broker that is stopped.
pub async fn change(broker: &Broker, sql: &'static str) {
    let mut connection = open(&broker.database()).await;
    sqlx::query(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

/// Whether the broker, started on this database, finds that something is wrong.
async fn is_found(broker: &mut Broker) -> Result<bool, String> {
    broker.run(None).await;
    let mut operator = broker.as_(OPERATOR).await;
    let status = operator.system.status(proto::StatusRequest {}).await.unwrap().into_inner();
    let found = match status.phase() {
        Phase::Refusing => {
            // It says what was found, and serves nothing.
            assert!(!status.why.is_empty());
            assert!(broker.as_(CLIENT).await.issue(ask()).await.is_err());
            Ok(true)
        }
        // The seal row itself no longer opens with the key file.
        Phase::Sealed if status.why.contains("key file") => Ok(true),
        Phase::Sealed | Phase::NotInitialised => Err(format!("{:?}: {}", status.phase(), status.why)),
        Phase::Open => match operator.audit.verify(proto::VerifyRequest {}).await {
            Ok(answer) => Ok(!answer.into_inner().findings.is_empty()),
            Err(status) => Err(status.to_string()),
        },
        Phase::Unspecified | Phase::Stopped => Err("no phase".to_owned()),
    };
    broker.stop().await;
    found
}

/// A vault with several keys, policies, writers and tokens, stopped; and a copy of it at an earlier moment.
async fn vault(anchor: bool) -> (Broker, Vec<u8>) {
    let mut broker = Broker::with(Options { anchor, ..Options::default() }).await;
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    broker.restart().await;
    let mut operator = broker.as_(OPERATOR).await;
    operator.import(&import("SECONDKEY1", &new_p8())).await.unwrap();
    operator.import(&import("THIRDKEY12", &new_p8())).await.unwrap();
    operator.revoke(proto::TargetKind::Key, "SECONDKEY1").await.unwrap();
    operator.revoke(proto::TargetKind::Client, STRANGER).await.unwrap();
    for nth in 0..20 {
        broker.as_(CLIENT).await.issue(proto::IssueTokenRequest { ttl: duration(60 + nth), ..ask() }).await.unwrap();
    }
    broker.stop().await;
    let earlier = std::fs::read(broker.database()).unwrap();
    broker.run(None).await;
    let mut operator = broker.as_(OPERATOR).await;
    operator.system.rotate(proto::RotateRequest {}).await.unwrap();
    operator.system.rekey(proto::RekeyRequest::default()).await.unwrap();
    operator.revoke(proto::TargetKind::Policy, "later").await.unwrap();
    for nth in 0..5 {
        broker.as_(CLIENT).await.issue(proto::IssueTokenRequest { ttl: duration(160 + nth), ..ask() }).await.unwrap();
    }
    broker.stop().await;
    (broker, earlier)
}

const TABLES: &[(&str, &str)] = &[
    ("seal", "id"),
    ("control_head", "id"),
    ("control_log", "revision"),
    ("sealed_keys", "key_id"),
    ("audit_writer", "writer"),
    ("audit", "writer || ' ' || sequence"),
];

/// Every mutation as SQL: of each table, each row is deleted, and each column of each row is changed, swapped with
/// another row's, or replaced by what stood there earlier.
async fn mutations(database: &Path) -> Vec<String> {
    let mut connection = open(database).await;
    let mut out = Vec::new();
    for (table, id) in TABLES {
        let columns = sqlx::query(AssertSqlSafe(format!("select name, type from pragma_table_info('{table}')")));
        let columns: Vec<(String, String)> =
            columns.fetch_all(&mut connection).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
        let ids = sqlx::query(AssertSqlSafe(format!("select '' || ({id}) from {table} order by 1")));
        let ids: Vec<String> = ids.fetch_all(&mut connection).await.unwrap().iter().map(|row| row.get(0)).collect();
        assert!(!ids.is_empty(), "{table} is empty");
        // All rows of the small tables; of the audit every third, so that the test stays quick.
        let step = if *table == "audit" { 3 } else { 1 };
        for (nth, row) in ids.iter().enumerate().step_by(step) {
            let here = format!("where '' || ({id}) = '{row}'");
            out.push(format!("delete from {table} {here}"));
            for (column, kind) in columns.iter().filter(|(column, _)| column != "id") {
                out.push(match kind.as_str() {
                    "BLOB" => format!(
                        "update {table} set {column} = cast(substr({column}, 1, length({column}) - 1) || \
                         char((unicode(substr(hex({column}), -1)) + 1) % 128) as blob) {here}"
                    ),
                    "INTEGER" => format!("update {table} set {column} = coalesce({column}, 0) + 1 {here}"),
                    _ => format!("update {table} set {column} = coalesce({column}, '') || 'x' {here}"),
                });
            }
            let other = &ids[(nth + 1) % ids.len()];
            if other != row {
                let (from, to) = (format!("where '' || ({id}) = '{other}'"), &here);
                for (column, _) in columns
                    .iter()
                    .filter(|(column, _)| matches!(column.as_str(), "sealed" | "chain" | "tag" | "previous"))
                {
                    out.push(format!("update {table} set {column} = (select {column} from {table} {from}) {to}"));
                }
            }
        }
    }
    // Cuts at the end, and rows that nobody wrote.
    out.push("delete from control_log where revision > 5; update control_head set revision = 5".to_owned());
    out.push("delete from audit where sequence > 3".to_owned());
    out.push("delete from audit; delete from audit_writer".to_owned());
    out.push("delete from sealed_keys".to_owned());
    out.push(format!("insert into audit_writer values ('{0}', 1, zeroblob(32), 1, 1, zeroblob(32))", "ab".repeat(16)));
    out.push(format!(
        "insert into audit select '{0}', sequence, at_ms, event, outcome, reason, decision_id, caller, identity, detail, policy, \
         key_id, app_group, role, scope, token_id, issued_at, expires_at, revision, key_version, chain from audit where sequence = 1 limit 1",
        "cd".repeat(16)
    ));
    connection.close().await.unwrap();
    out
}

#[tokio::test]
async fn p2_every_mutation_of_the_database_is_found() {
    mutate(false).await;
}

#[tokio::test]
async fn p2_every_mutation_of_the_database_is_found_with_an_anchor_too() {
    mutate(true).await;
}

async fn mutate(anchor: bool) {
    let (mut broker, _) = vault(anchor).await;
    let kept = broker.dir.path().join("anchor.json");
    let anchored = std::fs::read(&kept).ok();
    let whole = std::fs::read(broker.database()).unwrap();
    let all = mutations(&broker.database()).await;
    assert!(all.len() > 300, "hundreds of mutations: {}", all.len());
    let mut missed = Vec::new();
    let mut changed = 0;
    for sql in &all {
        std::fs::write(broker.database(), &whole).unwrap();
        if let Some(anchored) = &anchored {
            std::fs::write(&kept, anchored).unwrap();
        }
        let mut connection = open(&broker.database()).await;
        let done = sqlx::raw_sql(AssertSqlSafe(sql.clone())).execute(&mut connection).await;
        connection.close().await.unwrap();
        // A constraint refuses some mutations (a second row of one key): those are no attack.
        if done.is_err() {
            continue;
        }
        changed += 1;
        match is_found(&mut broker).await {
            Ok(true) => {}
            Ok(false) => missed.push(sql.clone()),
            Err(error) => missed.push(format!("{sql}: {error}")),
        }
    }
    println!("{changed} mutations");
    assert!(changed > 300, "{changed}");
    assert!(missed.is_empty(), "{} not found:\n{}", missed.len(), missed.join("\n"));
    std::fs::write(broker.database(), &whole).unwrap();
    if let Some(anchored) = &anchored {
        std::fs::write(&kept, anchored).unwrap();
    }
    assert_eq!(is_found(&mut broker).await, Ok(false), "the vault as it was is whole");
}

#[tokio::test]
async fn verify_names_the_writer_and_the_row() {
    let (mut broker, _) = vault(false).await;
    for (sql, says) in [
        (
            "update audit set caller = 'dns:somebody.else' where sequence = 5 and writer = \
             (select writer from audit group by writer order by count(*) desc limit 1)",
            "was changed",
        ),
        (
            "delete from audit where sequence = 4 and writer = \
             (select writer from audit group by writer order by count(*) desc limit 1)",
            "rows 4 to 4 are missing",
        ),
    ] {
        change(&broker, sql).await;
        broker.run(None).await;
        let found = broker.as_(OPERATOR).await.verify().await.findings;
        assert!(!found.is_empty() && found.iter().all(|it| it.writer.len() == 32 && it.sequence == 5), "{found:?}");
        assert!(found.iter().any(|it| it.what.contains(says)), "{found:?}");
        broker.stop().await;
    }
}

/// An attacker who kept an old copy of one writer's end can't cut that writer's rows: the next writer wrote down how far
/// it had come.
#[tokio::test]
async fn p2_the_tail_of_a_finished_writer_is_not_cut_unseen() {
    let mut broker = Broker::start().await;
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    let copied = broker.dir.path().join("copy.db");
    broker.stop().await;
    std::fs::copy(broker.database(), &copied).unwrap();
    broker.run(None).await;
    // A second writer; it hands tokens out, and ends.
    broker.as_(CLIENT).await.issue(ask_fresh()).await.unwrap();
    let mut connection = open(&broker.database()).await;
    let end =
        "select writer, sequence, chain, revision, key_version, tag from audit_writer order by revision desc limit 1";
    let early: (String, i64, Vec<u8>, i64, i64, Vec<u8>) =
        sqlx::query_as(end).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    broker.as_(CLIENT).await.issue(ask_fresh()).await.unwrap();
    broker.restart().await;
    broker.stop().await;
    let mut connection = open(&broker.database()).await;
    sqlx::query(
        "update audit_writer set sequence = ?, chain = ?, revision = ?, key_version = ?, tag = ? where writer = ?",
    )
    .bind(early.1)
    .bind(early.2)
    .bind(early.3)
    .bind(early.4)
    .bind(early.5)
    .bind(&early.0)
    .execute(&mut connection)
    .await
    .unwrap();
    let cut = sqlx::query("delete from audit where writer = ? and sequence > ?").bind(&early.0).bind(early.1);
    assert!(cut.execute(&mut connection).await.unwrap().rows_affected() > 0);
    connection.close().await.unwrap();
    assert_eq!(is_found(&mut broker).await, Ok(true));
}

#[tokio::test]
async fn p2_a_missing_anchor_is_noticed_and_an_empty_one_starts_anew() {
    let (mut broker, _) = vault(true).await;
    let anchor = broker.dir.path().join("anchor.json");
    std::fs::remove_file(&anchor).unwrap();
    assert_eq!(is_found(&mut broker).await, Ok(true));
    std::fs::write(&anchor, "").unwrap();
    assert_eq!(is_found(&mut broker).await, Ok(false));
    assert!(std::fs::metadata(&anchor).unwrap().len() > 0, "it is written again");
}

/// Each table alone, and each pair of tables, taken back to an earlier moment.
#[tokio::test]
async fn p2_tables_taken_back_are_found() {
    let (mut broker, earlier) = vault(false).await;
    let whole = std::fs::read(broker.database()).unwrap();
    let old = broker.dir.path().join("earlier.db");
    std::fs::write(&old, &earlier).unwrap();
    let names: Vec<&str> = TABLES.iter().map(|(table, _)| *table).collect();
    for set in 1_u32..(1 << names.len()) - 1 {
        let chosen: Vec<&str> = (0..names.len()).filter(|bit| set & (1 << bit) != 0).map(|bit| names[bit]).collect();
        std::fs::write(broker.database(), &whole).unwrap();
        let mut connection = open(&broker.database()).await;
        let mut sql = format!("attach '{}' as old;", old.display());
        for table in &chosen {
            // Without generated columns, which nobody can write.
            let columns = format!("select group_concat(name) from pragma_table_info('{table}')");
            let columns: String = sqlx::query_scalar(AssertSqlSafe(columns)).fetch_one(&mut connection).await.unwrap();
            sql.push_str(&format!(
                "delete from main.{table}; insert into main.{table} ({columns}) select {columns} from old.{table};"
            ));
        }
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        assert_eq!(is_found(&mut broker).await, Ok(true), "taken back: {chosen:?}");
    }
}

#[tokio::test]
async fn p2_all_tables_taken_back_together_are_found_by_the_anchor_alone() {
    for anchor in [false, true] {
        let (mut broker, earlier) = vault(anchor).await;
        std::fs::write(broker.database(), &earlier).unwrap();
        assert_eq!(is_found(&mut broker).await, Ok(anchor), "anchor: {anchor}");
    }
}
