//! A fleet on PostgreSQL: issuing, revoking, telling watchers, catching up; beside a bare service in the same run. Servers,
//! clients and the database share this machine's cores. Figures are medians over alternating rounds where a ratio is
//! given. `P8BROKER_BENCH_SECONDS` sets the length of a round (default 2); `P8BROKER_BENCH_ONLY` picks one part.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a benchmark")]
#![expect(clippy::print_stdout, unreachable_pub, dead_code, reason = "a benchmark that uses the tests' harness")]

#[path = "../../tests/it/harness/mod.rs"]
mod harness;

#[path = "../bare/mod.rs"]
mod bare;

mod behind;
mod issuing;
mod revoking;
mod watching;

fn seconds() -> f64 {
    std::env::var("P8BROKER_BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2.0)
}

fn main() {
    let only = std::env::var("P8BROKER_BENCH_ONLY").unwrap_or_default();
    let picked = |name: &str| only.is_empty() || only == name;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if picked("issuing") {
        runtime.block_on(issuing::run());
    }
    if picked("revoking") {
        runtime.block_on(revoking::run());
    }
    if picked("watching") {
        runtime.block_on(watching::run());
    }
    if picked("behind") {
        runtime.block_on(behind::run());
    }
}
