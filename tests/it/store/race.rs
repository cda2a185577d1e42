//! Commits and revokes that race on PostgreSQL, at the store alone: with the lock that the fence takes, and once with each
//! one that was considered and rejected (docs/adr/0001), so that the race is seen to catch a wrong one.
//!
//! The law here: a row that was acknowledged as committed at a head older than a revoke is among what that revoke reads
//! after its append. Time is counted in revisions: a row "expires" at the revision it was decided at, so that a revoke
//! reads the rows of the last revisions alone, however long the race is.
//!
//! `RACE_OPS` says how many commits and appends: 4,000 in CI, 100,000 in `make race`, which shows the figures, too.
//!
//! Over 400 lines, as the rejected locks race beside the one that was taken.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use p8broker::clock::UnixMillis;
use p8broker::config::{StoreAt, StoreConfig};
use p8broker::domain::audit::{AuditEvent, AuditedToken, Outcome};
use p8broker::domain::quota::Quota;
use p8broker::id::{Head, Revision, TokenId, VaultId, WriterId};
use p8broker::metrics::Metrics;
use p8broker::store::postgres::PostgresStore;
use p8broker::store::{Append, AuditBatch, ExposureCursor, Fenced, QuotaAsk, Store, Under};
use p8broker::vault::audit_chain::WriterEnd;
use p8broker::vault::keyring::Keyring;
use p8broker::vault::log::SealedRecord;
use p8broker::vault::unseal::{Method, SealRow, parse_key_file};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::chaos::number;
use crate::harness::fleet::new_database;

/// Operations of the product's own strategy in CI, and at most of one that is to be caught.
const CI_OPERATIONS: u64 = 4000;
const MOST_TO_CATCH: u64 = 20_000;

/// A wrong one is looked at each time after so many.
const CHUNK: u64 = 1000;

/// Revisions whose rows a revoke reads, and more rows than they can have.
const READ_BACK: u64 = 50;
const ALL: u32 = 1_000_000;

/// Rows of one commit.
const ROWS: u64 = 3;

/// How the lock of `p8broker_commit_v2` begins, and the comparison after it, as the migration spells them.
const LOCK: &str = "perform pg_advisory_xact_lock_shared(";
const COMPARE: &str = "if not exists (
            select 1 from control_head where revision = decided_revision and chain = decided_chain
        ) then";

/// How a commit makes sure of the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strategy {
    /// What the migration has: the lock, then the comparison in a statement of its own.
    Product,
    /// Both in one statement, whose snapshot is taken before it waits.
    OneStatement,
    /// The comparison alone.
    NoLock,
    /// Both in a function that is `STABLE`, and so has the snapshot of who calls it.
    Stable,
    /// A shared lock on the head's row: right, but a stream of commits keeps a change waiting.
    ForShare,
}

impl Strategy {
    async fn install(self, url: &str) {
        let mut connection = PgConnection::connect(url).await.unwrap();
        let definition: String = sqlx::query_scalar("select pg_get_functiondef('p8broker_commit_v2'::regproc)")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        let lock =
            definition.lines().map(str::trim).find(|line| line.starts_with(LOCK)).expect("the lock of the fence");
        assert!(definition.contains(COMPARE), "the comparison is another one: {definition}");
        let call = lock.trim_start_matches("perform ").trim_end_matches(';');
        let (before, compare) = match self {
            Self::Product => return,
            Self::OneStatement => (
                String::new(),
                format!(
                    "if not exists (
                        select 1 from control_head, {call}
                        where revision = decided_revision and chain = decided_chain
                    ) then"
                ),
            ),
            Self::NoLock => (String::new(), COMPARE.to_owned()),
            Self::Stable => (
                format!(
                    "create function is_head(expected_revision bigint, expected_chain bytea) returns boolean
                    language plpgsql stable as $$
                    begin
                        perform {call};
                        return exists (
                            select 1 from control_head where revision = expected_revision and chain = expected_chain
                        );
                    end
                    $$;"
                ),
                "if not is_head(decided_revision, decided_chain) then".to_owned(),
            ),
            Self::ForShare => (
                String::new(),
                "perform 1 from control_head where revision = decided_revision and chain = decided_chain for share;
                if not found then"
                    .to_owned(),
            ),
        };
        let changed = definition.replace(lock, "").replace(COMPARE, &compare);
        sqlx::raw_sql(AssertSqlSafe(format!("{before} {changed}"))).execute(&mut connection).await.unwrap();
    }
}

/// What a revoke saw.
struct Revoke {
    /// Whose it was.
    store: usize,
    revision: u64,
    read: HashSet<u64>,
    took: Duration,
}

/// What happened.
#[derive(Default)]
struct History {
    /// Rows that were acknowledged, by the revision they were decided at.
    acknowledged: HashMap<u64, Vec<u64>>,
    revokes: Vec<Revoke>,
}

impl History {
    /// Rows that a revoke had to read, and did not.
    fn violations(&self) -> usize {
        let missed = |revoke: &Revoke| {
            let before = revoke.revision.saturating_sub(READ_BACK)..revoke.revision;
            let due = before.filter_map(|revision| self.acknowledged.get(&revision)).flatten();
            due.filter(|row| !revoke.read.contains(row)).count()
        };
        self.revokes.iter().map(missed).sum()
    }
}

/// A database with a vault that nobody serves, and what races on it.
struct Race {
    url: String,
    keyring: Keyring,
    vault: VaultId,
    /// The next row, writer and operation.
    rows: AtomicU64,
    writers: AtomicU64,
    operations: AtomicU64,
    history: Mutex<History>,
    /// Whether what is committed counts against a quota that all stores share.
    counts: bool,
}

/// One store of a race, with the chain that it writes.
struct Side {
    nth: usize,
    race: Arc<Race>,
    store: PostgresStore,
    end: WriterEnd,
}

impl Race {
    async fn new(strategy: Strategy) -> Arc<Self> {
        Self::that(strategy, false).await
    }

    async fn that(strategy: Strategy, counts: bool) -> Arc<Self> {
        let keyring = Keyring::generate(&parse_key_file("11".repeat(32).as_bytes()).unwrap()).unwrap();
        let (url, vault) = (new_database().await, VaultId::from_random(1));
        let row = SealRow::seal(&vault, 1, Method::KeyFile, &keyring).unwrap();
        let race = Arc::new(Self {
            url,
            keyring,
            vault,
            rows: AtomicU64::new(0),
            writers: AtomicU64::new(1),
            operations: AtomicU64::new(0),
            history: Mutex::default(),
            counts,
        });
        let first = Side::new(&race, 0).await;
        first.store.initialise(Append { seal: Some(row), ..first.append(Head::default()) }).await.unwrap();
        first.store.close().await;
        strategy.install(&race.url).await;
        race
    }

    /// Goes on until so many operations were done; answers how long that took.
    async fn run(self: &Arc<Self>, until: u64, committers: usize, revokers: usize) -> Duration {
        let mut sides = JoinSet::new();
        for nth in 0..committers + revokers {
            let side = Side::new(self, nth).await;
            sides.spawn(
                async move { if nth < committers { side.commit(until).await } else { side.revoke(until).await } },
            );
        }
        let began = Instant::now();
        sides.join_all().await;
        began.elapsed()
    }

    fn is_over(&self, until: u64) -> bool {
        self.operations.fetch_add(1, Ordering::SeqCst) >= until
    }

    fn violations(&self) -> usize {
        self.history.lock().unwrap().violations()
    }
}

impl Side {
    async fn new(race: &Arc<Race>, nth: usize) -> Self {
        let StoreAt::Postgres(settings) = StoreConfig::url(&race.url).at().unwrap() else { panic!("not PostgreSQL") };
        let store = PostgresStore::open(settings, &Metrics::new().unwrap()).await.unwrap();
        let writer = WriterId::from_random(race.writers.fetch_add(1, Ordering::SeqCst).into());
        let end = WriterEnd::start(&race.keyring, &race.vault, writer).unwrap();
        Self { nth, race: Arc::clone(race), store, end }
    }

    fn batch(&self, events: Vec<AuditEvent>) -> AuditBatch {
        let mut end = self.end.clone();
        let rows = events.into_iter().map(|event| end.push(&self.race.keyring, event).unwrap()).collect();
        AuditBatch { rows, end: end.sealed(&self.race.keyring, &self.race.vault).unwrap(), quota: vec![] }
    }

    fn append(&self, expected: Head) -> Append {
        // Nothing is opened here: any bytes are a record, and other ones another history.
        let sealed = self.end.writer.as_str().as_bytes().to_vec();
        let record =
            SealedRecord { revision: expected.revision.next(), checkpoint: false, previous: expected.chain, sealed };
        let audit = self.batch(vec![event(record.revision, None)]);
        Append { expected, records: vec![record], audit, keys: vec![], seal: None }
    }

    /// Commits rows at the head that was last read, until it has moved.
    async fn commit(mut self, until: u64) {
        let mut head = self.store.head().await.unwrap();
        while !self.race.is_over(until) {
            let first = self.race.rows.fetch_add(ROWS, Ordering::SeqCst);
            let rows: Vec<u64> = (first..first + ROWS).collect();
            let mut batch = self.batch(rows.iter().map(|row| event(head.revision, Some(*row))).collect());
            if self.race.counts {
                let quota = Quota { tokens_per_hour: Some(u32::MAX), fresh_per_minute: Some(u32::MAX) };
                let (policy, client) = ("p".to_owned(), "spiffe://a/b".to_owned());
                batch.quota = vec![QuotaAsk { policy, client, quota, tokens: 3, fresh: 3 }];
            }
            match self.store.commit_rows(Some(head), &batch).await.unwrap() {
                Fenced::Committed => {
                    self.end = batch.end;
                    let mut history = self.race.history.lock().unwrap();
                    history.acknowledged.entry(head.revision.0).or_default().extend(rows);
                }
                Fenced::HeadMoved => head = self.store.head().await.unwrap(),
                Fenced::OverQuota(left) => panic!("over a bound that is none: {left:?}"),
            }
        }
        self.store.close().await;
    }

    /// Appends at the head, and reads what is exposed.
    async fn revoke(mut self, until: u64) {
        while !self.race.is_over(until) {
            let append = self.append(self.store.head().await.unwrap());
            let began = Instant::now();
            if self.store.append(&append).await.unwrap() == Fenced::HeadMoved {
                continue;
            }
            let took = began.elapsed();
            let revision = append.head().revision;
            let now = i64::try_from(revision.0.saturating_sub(READ_BACK)).unwrap() - 1;
            let cursor = ExposureCursor { expires_at: i64::MIN, ..ExposureCursor::default() };
            let exposed = self.store.exposure(&Under::Everything, revision, now, &cursor, ALL).await.unwrap();
            let read = exposed.iter().map(|token| row_of(&token.id)).collect();
            self.end = append.audit.end;
            self.race.history.lock().unwrap().revokes.push(Revoke {
                store: self.nth,
                revision: revision.0,
                read,
                took,
            });
        }
        self.store.close().await;
    }
}

fn event(decided_at: Revision, row: Option<u64>) -> AuditEvent {
    AuditEvent {
        at: UnixMillis(1000),
        event: "IssueToken".to_owned(),
        outcome: if row.is_some() { Outcome::Signed } else { Outcome::Changed },
        reason: "OK".to_owned(),
        decision_id: "d".to_owned(),
        caller: "spiffe://a/b".to_owned(),
        identity: String::new(),
        detail: String::new(),
        policy: Some("p".to_owned()),
        key_id: Some("AAAAAAAAAA".to_owned()),
        app_group: Some("g".to_owned()),
        role: None,
        scope: None,
        token: row.map(|row| AuditedToken {
            id: token_id(row),
            issued_at: 0,
            expires_at: i64::try_from(decided_at.0).unwrap(),
        }),
        revision: decided_at,
    }
}

fn token_id(row: u64) -> TokenId {
    let mut digest = [0; 32];
    digest[24..].copy_from_slice(&row.to_be_bytes());
    TokenId::from_digest(&digest)
}

fn row_of(id: &TokenId) -> u64 {
    u64::from_str_radix(&id.as_str()[48..], 16).unwrap()
}

fn operations() -> u64 {
    number("RACE_OPS").unwrap_or(CI_OPERATIONS)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_no_revoke_misses_a_row_however_commits_and_revokes_race() {
    let race = Race::new(Strategy::Product).await;
    race.run(operations(), 4, 2).await;
    let history = race.history.lock().unwrap();
    let rows: usize = history.acknowledged.values().map(Vec::len).sum();
    println!("{} operations, {} revokes, {rows} rows", operations(), history.revokes.len());
    assert!(history.revokes.len() > 100 && rows > 100, "it has to be a race");
    assert_eq!(history.violations(), 0, "rows that a revoke did not read");
}

/// Waiting for the count of a key, within the lock, changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_no_revoke_misses_a_row_that_counts_against_a_quota() {
    let race = Race::that(Strategy::Product, true).await;
    let took = race.run(operations() / 2, 4, 2).await;
    println!("4 stores commit against one quota, 2 revoke: {}", race.figures(took));
    let history = race.history.lock().unwrap();
    let rows: usize = history.acknowledged.values().map(Vec::len).sum();
    assert!(history.revokes.len() > 100 && rows > 100, "it has to be a race");
    assert_eq!(history.violations(), 0, "rows that a revoke did not read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_the_race_catches_each_lock_that_was_rejected_as_wrong() {
    for strategy in [Strategy::OneStatement, Strategy::NoLock, Strategy::Stable] {
        let race = Race::new(strategy).await;
        let mut done = 0;
        while race.violations() == 0 && done < MOST_TO_CATCH {
            done += CHUNK;
            race.run(done, 4, 2).await;
        }
        println!("{strategy:?}: {} violations in {done} operations", race.violations());
        assert!(race.violations() > 0, "{strategy:?} is wrong, and the race did not see it");
    }
}

/// The lock that was rejected because revokes wait longer for it: no violation, and the latency of its revokes beside the product's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_a_shared_lock_on_the_heads_row_is_right_too() {
    for strategy in [Strategy::Product, Strategy::ForShare] {
        let race = Race::new(strategy).await;
        let took = race.run(operations() / 2, 8, 1).await;
        println!("{strategy:?}, 8 stores commit without pause, one revokes: {}", race.figures(took));
        assert_eq!(race.violations(), 0, "{strategy:?}");
    }
}

/// Nobody starves: neither commits under a storm of changes, nor one of three stores that all change without pause.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_changes_starves_neither_commits_nor_any_store() {
    let race = Race::new(Strategy::Product).await;
    let took = race.run(operations() / 2, 3, 3).await;
    println!("3 stores commit and 3 revoke without pause: {}", race.figures(took));
    assert!(!race.history.lock().unwrap().acknowledged.is_empty(), "nothing was committed");
    let race = Race::new(Strategy::Product).await;
    let took = race.run(operations() / 2, 0, 3).await;
    let history = race.history.lock().unwrap();
    let of = |store| history.revokes.iter().filter(|revoke| revoke.store == store).count();
    let shares = [0, 1, 2].map(|store| of(store) * 100 / history.revokes.len());
    println!("3 stores revoke without pause: {:.0} a second, shares {shares:?} %", rate(history.revokes.len(), took));
    assert!(shares.iter().all(|share| *share > 10), "a store starves: {shares:?}");
}

impl Race {
    fn figures(&self, took: Duration) -> String {
        let history = self.history.lock().unwrap();
        let rows: usize = history.acknowledged.values().map(Vec::len).sum();
        format!(
            "{:.0} revokes a second, p50 {:.1} ms, p99 {:.1} ms; {:.0} commits a second",
            rate(history.revokes.len(), took),
            quantile(&history.revokes, 50),
            quantile(&history.revokes, 99),
            rate(rows / usize::try_from(ROWS).unwrap(), took)
        )
    }
}

fn rate(count: usize, took: Duration) -> f64 {
    f64::from(u32::try_from(count).unwrap()) / took.as_secs_f64()
}

/// How long that share of revokes took at most, in milliseconds.
fn quantile(revokes: &[Revoke], percent: usize) -> f64 {
    let mut took: Vec<_> = revokes.iter().map(|revoke| revoke.took.as_secs_f64() * 1000.0).collect();
    took.sort_by(f64::total_cmp);
    took.get((took.len() * percent / 100).min(took.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
