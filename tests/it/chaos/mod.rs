//! P5 under real faults: three replica processes on a real PostgreSQL, load through all of them, and something that breaks.
//!
//! Each scenario has a database and replicas of its own, so that one that fails spoils no other; they run one after the
//! other, because together they would starve each other on a small machine. After each: the law of P5 holds for every
//! token that a client received ([`law`]), the audit verifies and has every such token, and no client was without an
//! answer for longer than the database was away.
//!
//! What counts as a failure: a token outside of an exposure, a finding of the audit, a received token that is not in it,
//! a gap, a revoke through a healthy replica that takes longer than [`scenario::REVOKE_LIMIT`] while the database is there,
//! a replica that does not come back. What does not: an ask or a change that fails while something is broken.
//!
//! `CHAOS_ROUNDS` says how often all scenarios run (once in CI, five times in `make chaos`), `CHAOS_ONLY` names a single
//! one, `CHAOS_SEED` repeats the choices of a run; what the machine does between them is its own. `CHAOS_REPORT` names a
//! file for the last line.

mod cluster;
mod law;
mod load;
mod postgres;
mod proxy;
mod scenario;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

use p8broker::clock::{Clock, SystemClock};

pub use cluster::settings;
use scenario::{Scenario, Totals};

/// splitmix64: small, and the same on every machine.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, most: u64) -> u64 {
        self.next() % most
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let most = u64::try_from(from.len()).unwrap();
        &from[usize::try_from(self.below(most)).unwrap()]
    }

    /// A generator for one task, so that tasks do not take from each other in an order that nobody can repeat.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }
}

/// A port that a process can be told to listen on, again after a restart. It lies below the range that the kernel gives
/// out by itself, so that no outgoing connection takes it in between.
pub fn free_port(random: &mut Random) -> u16 {
    // One that was given to another test of this process may not be taken yet.
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    for _ in 0..1000 {
        let port = u16::try_from(20_000 + random.below(12_000)).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() && GIVEN.lock().unwrap().insert(port) {
            return port;
        }
    }
    panic!("no free port");
}

pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_holds_under_real_faults() {
    let seed = number("CHAOS_SEED").unwrap_or_else(|| u64::try_from(SystemClock.now().0).unwrap());
    println!("CHAOS_SEED={seed}");
    let only = std::env::var("CHAOS_ONLY").ok();
    let chosen: Vec<Scenario> =
        Scenario::ALL.into_iter().filter(|it| only.as_ref().is_none_or(|only| *only == it.name())).collect();
    assert!(!chosen.is_empty(), "CHAOS_ONLY names none of {:?}", Scenario::ALL.map(Scenario::name));
    let mut random = Random::new(seed);
    let mut totals = Totals::default();
    for round in 1..=number("CHAOS_ROUNDS").unwrap_or(1) {
        for scenario in &chosen {
            println!("round {round}: {}", scenario.name());
            totals.add(scenario.run(random.fork()).await);
        }
    }
    // The first say what is wrong; the rest is counted.
    for violation in totals.violations.iter().take(20) {
        println!("{violation}");
    }
    let violations = totals.violations.len();
    let last =
        format!("operations {} revokes {} violations {violations} seed {seed}", totals.operations, totals.revokes);
    if let Some(file) = std::env::var_os("CHAOS_REPORT") {
        std::fs::write(file, format!("{last}\n")).unwrap();
    }
    println!("{last}");
    assert_eq!(violations, 0, "the law of P5 is broken");
    assert!(only.is_some() || totals.crossings > 0, "the race has to be one: no token crossed a revoke");
}
