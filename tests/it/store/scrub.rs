//! P6 on PostgreSQL: a destroyed key's sealed bytes are in no file of the database.

use std::path::{Path, PathBuf};

use p8broker::grpc::proto::TargetKind;
use sqlx::Connection;

use crate::harness::fleet::Cluster;
use crate::harness::{KEY_ID, OPERATOR, file_holds};

/// Whether any file of this database holds the bytes, once all of it is on the disk.
async fn files_hold(connection: &mut sqlx::PgConnection, wanted: &[u8]) -> bool {
    sqlx::raw_sql("checkpoint").execute(&mut *connection).await.unwrap();
    let folder: String = sqlx::query_scalar(
        "select current_setting('data_directory') || '/base/' || oid from pg_database where datname = current_database()",
    )
    .fetch_one(connection)
    .await
    .unwrap();
    let files: Vec<PathBuf> =
        std::fs::read_dir(Path::new(&folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() > 10, "the files of the database were not found");
    files.iter().any(|file| file_holds(file, wanted))
}

#[tokio::test]
async fn p6_on_postgres_a_destroyed_key_is_in_no_file_whatever_snapshots_are_open() {
    let mut cluster = Cluster::start(1).await;
    let url = cluster.replicas[0].config.store.url.clone().unwrap().0;
    let mut admin = sqlx::PgConnection::connect(&url).await.unwrap();
    let sealed: Vec<u8> = sqlx::query_scalar("select sealed from sealed_keys").fetch_one(&mut admin).await.unwrap();
    assert!(files_hold(&mut admin, &sealed).await, "what is looked for is there before");
    // Somebody's long report, older than the revoke: a vacuum would keep for it what was deleted.
    let mut report = sqlx::PgConnection::connect(&url).await.unwrap();
    let old = "begin isolation level repeatable read; select count(*) from audit";
    sqlx::raw_sql(old).execute(&mut report).await.unwrap();
    cluster.replicas[0].as_(OPERATOR).await.revoke(TargetKind::Key, KEY_ID).await.unwrap();
    assert!(!files_hold(&mut admin, &sealed).await, "the bytes of a destroyed key are still in a file");
    sqlx::raw_sql("commit").execute(&mut report).await.unwrap();
    cluster.stop().await;
}
