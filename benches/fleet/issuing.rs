//! Tokens a second, with one and with three replicas.

use p8broker::client::Target;

use crate::bare::{Figures, Served, connect, load, median};
use crate::harness::fleet::Cluster;
use crate::harness::*;

const ROUNDS: usize = 3;
const IN_FLIGHT: &[usize] = &[1, 8, 64];

pub async fn run() {
    let seconds = crate::seconds();
    println!("issuing over mTLS (TLS 1.3) with durable audit on PostgreSQL, {ROUNDS} rounds of {seconds} s, medians");
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
            for clients in [&ours, &theirs] {
                load(clients, in_flight, &ask(), 0.3).await;
            }
            let mut rounds: [Vec<Figures>; 3] = Default::default();
            for _ in 0..ROUNDS {
                rounds[0].push(load(&theirs, in_flight, &ask(), seconds).await);
                rounds[1].push(load(&ours, in_flight, &ask_fresh(), seconds).await);
                rounds[2].push(load(&ours, in_flight, &ask(), seconds).await);
            }
            let figure = |which: usize, part: fn(&Figures) -> f64| median(rounds[which].iter().map(part).collect());
            let ratio =
                |which: usize| median((0..ROUNDS).map(|nth| rounds[which][nth].rate / rounds[0][nth].rate).collect());
            let row = |which: usize| {
                let (p50, p99) = (figure(which, |it| it.p50) * 1e3, figure(which, |it| it.p99) * 1e3);
                format!("{:>8.0} {p50:>6.2} {p99:>6.2}", figure(which, |it| it.rate))
            };
            println!(
                "{count:>8} {in_flight:>9}  {}  {} {:>5.2}  {} {:>5.2}",
                row(0),
                row(1),
                ratio(1),
                row(2),
                ratio(2)
            );
        }
        bare.stop().await;
        cluster.stop().await;
    }
}
