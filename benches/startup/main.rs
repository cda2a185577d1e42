//! What must not grow: a decision with the number of policies, a start with the number of audit rows.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a benchmark")]

mod deciding;
#[path = "../rows/mod.rs"]
mod rows;

use p8broker::broker::Phase;
use p8broker::clock::Stopwatch;
use p8broker::id::ClientId;

use rows::{add_rows, open};

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn starting() {
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::write(dir.path().join("unseal.key"), "5a".repeat(32)).unwrap();
    let (_, broker) = open(dir.path()).await;
    let operator = ClientId::parse("spiffe://acme.internal/ops").unwrap();
    broker.init(None, None, &[operator]).await.unwrap();
    broker.stop().await;
    drop(broker);
    println!("from opening the database to an open vault, median of 9 starts:");
    let mut medians = Vec::new();
    for rows in [0, 1_000_000] {
        if rows > 0 {
            add_rows(dir.path(), rows).await;
        }
        let mut times = Vec::new();
        for _ in 0..9 {
            let watch = Stopwatch::start();
            let (_, broker) = open(dir.path()).await;
            times.push(watch.seconds());
            assert!(matches!(&*broker.phase(), Phase::Open(_)));
            broker.stop().await;
        }
        medians.push(median(times));
        println!("  {rows:>9} audit rows: {:.1} ms", medians[medians.len() - 1] * 1e3);
    }
    println!("  ratio: {:.2}", medians[1] / medians[0]);
}

fn main() {
    deciding::run();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(starting());
}
