//! Tokens a second, with one and with three replicas.

use p8broker::client::Target;

use crate::bare::{Served, beside, connect};
use crate::harness::fleet::Cluster;
use crate::harness::*;

const IN_FLIGHT: &[usize] = &[1, 8, 64];

pub async fn run() {
    let seconds = crate::seconds();
    println!("issuing over mTLS (TLS 1.3) with durable audit on PostgreSQL, 3 rounds of {seconds} s, medians");
    println!("{:>8} {:>9}  {:>22}  {:>28}  {:>28}", "", "", "bare, signs only", "fresh", "reused");
    println!(
        "{:>8} {:>9}  {:>8} {:>6} {:>6}  {:>8} {:>6} {:>6} {:>5}  {:>8} {:>6} {:>6} {:>5}",
        "replicas",
        "in flight",
        "/s",
        "p50 ms",
        "p99 ms",
        "/s",
        "p50 ms",
        "p99 ms",
        "ratio",
        "/s",
        "p50 ms",
        "p99 ms",
        "ratio"
    );
    let only: Option<usize> = std::env::var("P8BROKER_BENCH_FLIGHT").ok().and_then(|text| text.parse().ok());
    for count in [1, 3] {
        let mut cluster = Cluster::start(count).await;
        let bare = Served::start(&cluster.replicas[0]).await;
        for &in_flight in IN_FLIGHT.iter().filter(|it| only.is_none_or(|only| only == **it)) {
            let target = cluster.replicas[0].target(CLIENT);
            let theirs = connect(&Target { addr: bare.addr.clone(), ..target }, in_flight.min(8)).await;
            let mut ours = Vec::new();
            for nth in 0..in_flight.min(8) {
                ours.extend(connect(&cluster.replicas[nth % count].target(CLIENT), 1).await);
            }
            println!("{count:>8} {in_flight:>9}  {}", beside(&ours, &theirs, in_flight, seconds).await);
        }
        bare.stop().await;
        cluster.stop().await;
    }
}
