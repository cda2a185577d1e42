//! How fast a vault is backed up, proved and restored, on either engine: a million audit rows, or BACKUP_ROWS.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]

#[path = "rows/mod.rs"]
mod rows;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use p8broker::broker::restore::{Restorable, Unsealing};
use p8broker::broker::{Backup, BrokerError, KeySource};
use p8broker::clock::{Stopwatch, UnixMillis};
use p8broker::config::{StoreAt, StoreConfig};
use p8broker::id::ClientId;
use p8broker::metrics::Metrics;
use p8broker::store::Store;
use p8broker::store::postgres::PostgresStore;
use p8broker::store::sqlite::SqliteStore;
use p8broker::vault::unseal::parse_key_file;

struct Bench {
    dir: tempfile::TempDir,
    rows: u32,
}

impl Bench {
    fn told(&self, what: &str, watch: Stopwatch, bytes: u64) {
        let seconds = watch.seconds();
        let (rows, megabytes) = (f64::from(self.rows), f64::from(u32::try_from(bytes / 1024).unwrap()) / 1024.0);
        println!("  {what:<26} {seconds:>6.2} s  {:>9.0} rows/s  {:>6.1} MiB/s", rows / seconds, megabytes / seconds);
    }

    fn key_source(&self) -> KeySource {
        KeySource::Files { current: self.dir.path().join("unseal.key"), previous: None }
    }

    async fn back_up(&self, engine: &str, store: &Arc<dyn Store>) -> PathBuf {
        let path = self.dir.path().join(format!("{engine}.backup"));
        let key = parse_key_file(&std::fs::read(self.dir.path().join("unseal.key")).unwrap()).unwrap();
        let watch = Stopwatch::start();
        let mut file = File::create(&path).unwrap();
        let open = |row: &p8broker::vault::unseal::SealRow| Ok::<_, BrokerError>(row.open(&key).unwrap());
        let mut backup = Backup::begin(Arc::clone(store), open, UnixMillis(0), "bench").await.unwrap();
        while let Some(bytes) = backup.next().await.unwrap() {
            file.write_all(&bytes).unwrap();
        }
        file.sync_all().unwrap();
        self.told(&format!("back up {engine}"), watch, size(&path));
        path
    }

    fn read(&self, file: &Path) -> Restorable {
        Restorable::read(file, &Unsealing { key_source: &self.key_source(), shares: &[] }, None).unwrap()
    }

    async fn restore(&self, engine: &str, file: &Path, store: &dyn Store) {
        let watch = Stopwatch::start();
        self.read(file).write(store, None).await.unwrap();
        self.told(&format!("check and restore {engine}"), watch, size(file));
    }
}

fn size(file: &Path) -> u64 {
    std::fs::metadata(file).unwrap().len()
}

async fn run() {
    let rows = std::env::var("BACKUP_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(1_000_000);
    let bench = Bench { dir: tempfile::TempDir::new().unwrap(), rows };
    std::fs::write(bench.dir.path().join("unseal.key"), "5a".repeat(32)).unwrap();
    let (_, broker) = rows::open(bench.dir.path()).await;
    broker.init(None, None, &[ClientId::parse("spiffe://acme.internal/ops").unwrap()]).await.unwrap();
    broker.stop().await;
    drop(broker);
    rows::add_rows(bench.dir.path(), rows).await;
    let sqlite: Arc<dyn Store> = Arc::new(SqliteStore::open(&bench.dir.path().join("vault.db")).await.unwrap());
    println!("{rows} audit rows:");
    let file = bench.back_up("sqlite", &sqlite).await;
    println!("  the file has {} MiB", size(&file) / 1024 / 1024);
    let watch = Stopwatch::start();
    drop(bench.read(&file));
    bench.told("verify-backup", watch, size(&file));
    let restored = SqliteStore::open(&bench.dir.path().join("restored.db")).await.unwrap();
    bench.restore("sqlite", &file, &restored).await;
    restored.close().await;
    match std::env::var("P8BROKER_TEST_POSTGRES") {
        Err(_) => println!("  PostgreSQL is not here: bash tests/postgres.sh with cargo bench --bench backup"),
        Ok(url) => {
            let Ok(StoreAt::Postgres(settings)) = StoreConfig::url(&url).at() else { return };
            let postgres = PostgresStore::open(settings, &Metrics::new().unwrap()).await.unwrap();
            let postgres: Arc<dyn Store> = Arc::new(postgres);
            bench.restore("postgresql", &file, postgres.as_ref()).await;
            bench.back_up("postgresql", &postgres).await;
            postgres.close().await;
        }
    }
}

fn main() {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(run());
}
