//! Quotas at the store alone: counted exactly, never exceeded, in both engines; on PostgreSQL by several stores at once.

use std::sync::Arc;
use std::time::Duration;

use p8broker::clock::{Clock, SystemClock};
use p8broker::domain::audit::{AuditFilter, Outcome};
use p8broker::domain::quota::Quota;
use p8broker::id::{Head, WriterId};
use p8broker::metrics::Metrics;
use p8broker::store::postgres::PostgresStore;
use p8broker::store::sqlite::SqliteStore;
use p8broker::store::{AuditBatch, AuditCursor, Fenced, QuotaAsk, QuotaLeft, Store};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::conformance::{Fixture, settings};
use crate::harness::fleet::new_database;
use crate::harness::tables::{Counts, Tables};

const BOTH: Quota = Quota { tokens_per_hour: Some(10), fresh_per_minute: Some(4) };

fn ask(client: &str, quota: Quota, tokens: u32, fresh: u32) -> QuotaAsk {
    QuotaAsk { policy: "p".to_owned(), client: client.to_owned(), quota, tokens, fresh }
}

/// A batch of some rows with what it counts; what the rows say is nothing to the engine.
fn batch(fixture: &Fixture, asks: Vec<QuotaAsk>) -> AuditBatch {
    let rows = asks.iter().map(|ask| ask.tokens).sum::<u32>().min(200);
    AuditBatch { quota: asks, ..fixture.batch((0..rows).map(|_| fixture.event(None)).collect()) }
}

/// Commits; where that is over a quota, answers what is left and makes sure that nothing was written.
async fn commit(
    store: &dyn Store,
    tables: &Tables,
    fixture: &mut Fixture,
    asks: Vec<QuotaAsk>,
) -> Result<(), Vec<QuotaLeft>> {
    let start = AuditCursor { at: p8broker::clock::UnixMillis(i64::MIN), ..AuditCursor::default() };
    let there = async || {
        let mut counts = Vec::new();
        for ask in &asks {
            counts.push(tables.counts(&ask.policy, &ask.client).await);
        }
        let rows = store.list_rows(&AuditFilter::default(), &start, 100_000).await.unwrap().len();
        (rows, store.writer_ends().await.unwrap(), counts)
    };
    let batch = batch(fixture, asks.clone());
    let before = there().await;
    let fenced = store.commit_rows(Some(fixture.head), &batch).await.unwrap();
    match fenced {
        Fenced::Committed => {
            fixture.end = batch.end;
            assert_eq!(there().await.0, before.0 + batch.rows.len());
            Ok(())
        }
        Fenced::OverQuota(left) => {
            assert_eq!(there().await, before, "nothing was written: no row, no end, no count");
            Err(left)
        }
        Fenced::HeadMoved => panic!("the head did not move"),
    }
}

/// What is left, without the ends of the windows, which are checked here.
fn left(answer: Result<(), Vec<QuotaLeft>>) -> Vec<(String, u32, u32)> {
    let mut out: Vec<_> = (answer.expect_err("it is over").into_iter())
        .map(|left| {
            // Windows are pinned one hour and three minutes ahead, a while ago.
            assert!((3_500_000..=2 * 3_600_000).contains(&left.hour_ends_ms), "{left:?}");
            assert!((100_000..=4 * 60_000).contains(&left.minute_ends_ms), "{left:?}");
            (left.client, left.tokens, left.fresh)
        })
        .collect();
    out.sort();
    out
}

async fn counted(tables: &Tables, client: &str) -> Option<(i64, i64)> {
    tables.counts("p", client).await.map(|counts| (counts.hour_count, counts.minute_count))
}

/// Each engine passes it.
async fn suite(store: &dyn Store, tables: &Tables) {
    let mut fixture = Fixture::initialised(store).await;
    counts_are_exact(store, tables, &mut fixture).await;
    windows(store, tables, &mut fixture).await;
    bounds(store, tables, &mut fixture).await;
    the_head_comes_first(store, tables, &mut fixture).await;
    forgetting(store, tables).await;
    let ends = store.writer_ends().await.unwrap();
    assert_eq!((ends.len(), &ends[0].end), (1, &fixture.end));
}

async fn counts_are_exact(store: &dyn Store, tables: &Tables, fixture: &mut Fixture) {
    for client in ["a", "b", "é ' \" \u{1F511}"] {
        tables.pin("p", &client.replace('\'', "''")).await;
    }
    // Several keys in one batch, each with its own count.
    let odd = "é ' \" \u{1F511}";
    let asks = vec![ask("a", BOTH, 3, 2), ask("b", BOTH, 10, 0), ask(odd, BOTH, 1, 1)];
    assert_eq!(commit(store, tables, fixture, asks).await, Ok(()));
    assert_eq!((counted(tables, "a").await, counted(tables, "b").await), (Some((3, 2)), Some((10, 0))));
    assert_eq!(counted(tables, odd).await, Some((1, 1)));
    // One key is over: the other is not counted either, and what is left of the one is told.
    let answer = commit(store, tables, fixture, vec![ask("a", BOTH, 1, 1), ask("b", BOTH, 1, 1)]).await;
    assert_eq!(left(answer), [("b".to_owned(), 0, 4)]);
    let answer = commit(store, tables, fixture, vec![ask("a", BOTH, 8, 1), ask("b", BOTH, 2, 0)]).await;
    assert_eq!(left(answer), [("a".to_owned(), 7, 2), ("b".to_owned(), 0, 4)]);
    // Over the minute alone, and what is reused is not held to it.
    let answer = commit(store, tables, fixture, vec![ask("a", BOTH, 3, 3)]).await;
    assert_eq!(left(answer), [("a".to_owned(), 7, 2)]);
    assert_eq!(commit(store, tables, fixture, vec![ask("a", BOTH, 2, 2)]).await, Ok(()));
    assert_eq!(commit(store, tables, fixture, vec![ask("a", BOTH, 5, 0)]).await, Ok(()));
    assert_eq!(counted(tables, "a").await, Some((10, 4)));
    let answer = commit(store, tables, fixture, vec![ask("a", BOTH, 1, 0)]).await;
    assert_eq!(left(answer), [("a".to_owned(), 0, 0)]);
    // The same client under another policy, and the other way round, is another key.
    let other = QuotaAsk { policy: "q".to_owned(), ..ask("a", BOTH, 4, 4) };
    assert_eq!(commit(store, tables, fixture, vec![other]).await, Ok(()));
    // A batch of many rows takes another path in SQLite.
    let many = Quota { tokens_per_hour: Some(150), fresh_per_minute: None };
    tables.pin("p", "many").await;
    let answer = commit(store, tables, fixture, vec![ask("many", many, 151, 151)]).await;
    assert_eq!(left(answer), [("many".to_owned(), 150, u32::MAX)]);
    assert_eq!(commit(store, tables, fixture, vec![ask("many", many, 150, 150)]).await, Ok(()));
    assert_eq!(counted(tables, "many").await, Some((150, 150)));
}

async fn windows(store: &dyn Store, tables: &Tables, fixture: &mut Fixture) {
    // They are those of Unix time, by the database's clock.
    assert_eq!(commit(store, tables, fixture, vec![ask("new", BOTH, 2, 1)]).await, Ok(()));
    let (new, now) = (tables.counts("p", "new").await.unwrap(), SystemClock.now().seconds());
    assert!((now / 3600 - 1..=now / 3600).contains(&new.hour) && (now / 60 - 1..=now / 60).contains(&new.minute));
    // A key that is new and over leaves no row.
    let unpinned = commit(store, tables, fixture, vec![ask("over", BOTH, 11, 1)]).await.unwrap_err();
    assert_eq!((unpinned[0].tokens, unpinned[0].fresh), (10, 4));
    assert!(unpinned[0].hour_ends_ms <= 3_600_000 && unpinned[0].minute_ends_ms <= 60_000);
    assert_eq!(tables.counts("p", "over").await, None);
    // The next hour begins with nothing, and so does the next minute.
    tables
        .put("p", "roll", Counts { hour: now / 3600 - 1, hour_count: 10, minute: now / 60 - 61, minute_count: 4 })
        .await;
    assert_eq!(commit(store, tables, fixture, vec![ask("roll", BOTH, 10, 4)]).await, Ok(()));
    assert_eq!(counted(tables, "roll").await, Some((10, 4)));
    // A minute that is over in an hour that goes on, pinned one hour ahead.
    let pinned = Counts { hour: now / 3600 + 1, hour_count: 5, minute: now / 60 - 1, minute_count: 4 };
    tables.put("p", "minute", pinned).await;
    assert_eq!(commit(store, tables, fixture, vec![ask("minute", BOTH, 1, 1)]).await, Ok(()));
    assert_eq!(counted(tables, "minute").await, Some((6, 1)));
    // A clock that was set back: windows go on where they are, and do not begin again.
    tables.pin("p", "ahead").await;
    let before = tables.counts("p", "ahead").await.unwrap();
    assert_eq!(commit(store, tables, fixture, vec![ask("ahead", BOTH, 10, 4)]).await, Ok(()));
    assert_eq!(
        left(commit(store, tables, fixture, vec![ask("ahead", BOTH, 1, 0)]).await),
        [("ahead".to_owned(), 0, 0)]
    );
    let after = tables.counts("p", "ahead").await.unwrap();
    assert_eq!((after.hour, after.minute), (before.hour, before.minute));
}

async fn bounds(store: &dyn Store, tables: &Tables, fixture: &mut Fixture) {
    let quota = |tokens_per_hour, fresh_per_minute| Quota { tokens_per_hour, fresh_per_minute };
    tables.pin("p", "c").await;
    let only_fresh = quota(None, Some(2));
    assert_eq!(commit(store, tables, fixture, vec![ask("c", only_fresh, 90, 2)]).await, Ok(()));
    let answer = commit(store, tables, fixture, vec![ask("c", only_fresh, 1, 1)]).await;
    assert_eq!(left(answer), [("c".to_owned(), u32::MAX, 0)]);
    // What was counted under another bound counts under this one.
    let only_tokens = quota(Some(91), None);
    assert_eq!(commit(store, tables, fixture, vec![ask("c", only_tokens, 1, 1)]).await, Ok(()));
    let answer = commit(store, tables, fixture, vec![ask("c", only_tokens, 1, 1)]).await;
    assert_eq!(left(answer), [("c".to_owned(), 0, u32::MAX)]);
    // Lowered below what was handed out, raised again; a lowered minute does not hold what is reused.
    let answer = commit(store, tables, fixture, vec![ask("c", quota(Some(5), None), 1, 0)]).await;
    assert_eq!(left(answer), [("c".to_owned(), 0, u32::MAX)]);
    assert_eq!(commit(store, tables, fixture, vec![ask("c", quota(Some(92), Some(1)), 1, 0)]).await, Ok(()));
    assert_eq!(counted(tables, "c").await, Some((92, 3)));
}

async fn the_head_comes_first(store: &dyn Store, tables: &Tables, fixture: &mut Fixture) {
    let over = batch(fixture, vec![ask("h", Quota { tokens_per_hour: Some(0), ..BOTH }, 1, 1)]);
    for head in [Head { revision: fixture.head.revision.next(), ..fixture.head }, Head::default()] {
        assert_eq!(store.commit_rows(Some(head), &over).await.unwrap(), Fenced::HeadMoved);
    }
    // And what would fit is not counted either.
    let fits = batch(fixture, vec![ask("h", BOTH, 1, 1)]);
    assert_eq!(store.commit_rows(Some(Head::default()), &fits).await.unwrap(), Fenced::HeadMoved);
    assert_eq!(tables.counts("p", "h").await, None);
    assert!(matches!(store.commit_rows(Some(fixture.head), &over).await.unwrap(), Fenced::OverQuota(_)));
}

async fn forgetting(store: &dyn Store, tables: &Tables) {
    let hour = SystemClock.now().seconds() / 3600;
    let ages: [i64; 7] = [-9000, -4, -1, 0, 1, 4, 9000];
    for age in ages {
        let counts = Counts { hour: hour + age, hour_count: 1, minute: (hour + age) * 60, minute_count: 1 };
        tables.put("forgetting", &age.to_string(), counts).await;
    }
    store.forget_quotas().await.unwrap();
    let mut kept = Vec::new();
    for age in ages {
        kept.extend(tables.counts("forgetting", &age.to_string()).await.map(|_| age));
    }
    assert_eq!(kept, [-1, 0, 1], "over for less than two hours, or not far ahead");
}

#[tokio::test]
async fn inv_quota_1_sqlite_counts_exactly_and_writes_nothing_that_is_over() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("vault.db");
    let store = SqliteStore::open(&path).await.unwrap();
    suite(&store, &Tables::Sqlite(path)).await;
    store.close().await;
}

#[tokio::test]
async fn inv_quota_1_postgres_counts_exactly_and_writes_nothing_that_is_over() {
    let url = new_database().await;
    let store = open(&url).await;
    suite(&store, &Tables::Postgres(url)).await;
    store.close().await;
}

async fn open(url: &str) -> PostgresStore {
    PostgresStore::open(settings(url), &Metrics::new().unwrap()).await.unwrap()
}

/// One store of several on a vault, with a chain of its own.
struct Side {
    store: PostgresStore,
    fixture: Fixture,
}

impl Side {
    /// Sides on a new database.
    async fn start(count: u64) -> (Arc<Tables>, Vec<Self>) {
        let url = new_database().await;
        let first = open(&url).await;
        let vault = Fixture::initialised(&first).await;
        first.close().await;
        let mut sides = Vec::new();
        for nth in 0..count {
            let mut fixture = Fixture::new();
            fixture.head = vault.head;
            fixture.end.writer = WriterId::from_random(u128::from(nth) + 100);
            sides.push(Self { store: open(&url).await, fixture });
        }
        (Arc::new(Tables::Postgres(url)), sides)
    }

    /// Commits as much of it as fits, in as many tries as that takes; answers how much that was.
    async fn commit_what_fits(&mut self, mut wanted: QuotaAsk) -> u32 {
        while wanted.tokens > 0 {
            let batch = batch(&self.fixture, vec![wanted.clone()]);
            match self.store.commit_rows(Some(self.fixture.head), &batch).await.unwrap() {
                Fenced::Committed => {
                    self.fixture.end = batch.end;
                    return wanted.tokens;
                }
                Fenced::OverQuota(left) => {
                    assert_eq!(left.len(), 1);
                    assert!(left[0].tokens < wanted.tokens || left[0].fresh < wanted.fresh, "it would have fitted");
                    wanted.tokens = wanted.tokens.min(left[0].tokens).min(left[0].fresh);
                    wanted.fresh = wanted.tokens;
                }
                Fenced::HeadMoved => panic!("the head did not move"),
            }
        }
        0
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inv_quota_1_three_stores_that_hammer_one_key_commit_exactly_its_bound() {
    const BOUND: u32 = 1000;
    for quota in [
        Quota { tokens_per_hour: Some(BOUND), fresh_per_minute: None },
        Quota { tokens_per_hour: None, fresh_per_minute: Some(BOUND) },
    ] {
        let (tables, sides) = Side::start(3).await;
        tables.pin("p", "hot").await;
        let mut hammering = JoinSet::new();
        for mut side in sides {
            hammering.spawn(async move {
                let mut done = 0;
                for size in (1..=7).cycle() {
                    let committed = side.commit_what_fits(ask("hot", quota, size, size)).await;
                    done += committed;
                    if committed == 0 {
                        break;
                    }
                }
                side.store.close().await;
                done
            });
        }
        let done = timeout(Duration::from_secs(120), hammering.join_all()).await.expect("in time");
        assert_eq!(done.iter().sum::<u32>(), BOUND, "{done:?}");
        assert!(done.iter().all(|done| *done > 0), "it has to be a race: {done:?}");
        assert_eq!(counted(&tables, "hot").await, Some((BOUND.into(), BOUND.into())));
        let Tables::Postgres(url) = &*tables else { panic!("not this one") };
        let reader = open(url).await;
        let filter = AuditFilter { outcome: Some(Outcome::Changed), ..AuditFilter::default() };
        let start = AuditCursor { at: p8broker::clock::UnixMillis(i64::MIN), ..AuditCursor::default() };
        let rows = reader.list_rows(&filter, &start, 100_000).await.unwrap().len();
        assert_eq!(rows, 1 + usize::try_from(BOUND).unwrap(), "as many rows as were counted, and the vault's first");
        reader.close().await;
    }
}

/// The first tokens of a key, by three stores at once: none is lost to another's new row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inv_quota_1_a_key_that_several_stores_count_for_the_first_time_is_counted_once_each() {
    const KEYS: usize = 150;
    let (tables, sides) = Side::start(3).await;
    let began = SystemClock.now().seconds() / 3600;
    let mut counting = JoinSet::new();
    for mut side in sides {
        counting.spawn(async move {
            for key in 0..KEYS {
                assert_eq!(side.commit_what_fits(ask(&format!("new{key}"), BOTH, 1, 1)).await, 1);
            }
            side.store.close().await;
        });
    }
    counting.join_all().await;
    let mut counts = Vec::new();
    for key in 0..KEYS {
        counts.push(tables.counts("p", &format!("new{key}")).await.unwrap());
    }
    // Once in a while an hour begins meanwhile: then some begin with it.
    if SystemClock.now().seconds() / 3600 == began {
        assert!(counts.iter().all(|counts| counts.hour_count == 3), "{counts:?}");
    }
}

/// Whoever counts takes rows in one order, in whatever order they are asked for: nobody waits in a circle. Keys are new in
/// the first rounds and known in the others; old ones are forgotten meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_that_count_the_same_keys_in_opposite_order_do_not_lock_each_other_out() {
    const ROUNDS: i64 = 300;
    const KEYS: usize = 24;
    let (tables, sides) = Side::start(2).await;
    let plenty = Quota { tokens_per_hour: Some(u32::MAX), fresh_per_minute: None };
    let mut committing = JoinSet::new();
    for (nth, mut side) in sides.into_iter().enumerate() {
        committing.spawn(async move {
            for round in 0..ROUNDS {
                let generation = round / 100;
                let mut asks: Vec<_> =
                    (0..KEYS).map(|key| ask(&format!("k{generation}-{key:02}"), plenty, 1, 1)).collect();
                if nth == 1 {
                    asks.reverse();
                }
                let batch = batch(&side.fixture, asks);
                let fenced = side.store.commit_rows(Some(side.fixture.head), &batch).await;
                assert_eq!(fenced, Ok(Fenced::Committed), "round {round}");
                side.fixture.end = batch.end;
            }
            side.store.close().await;
        });
    }
    let Tables::Postgres(url) = &*tables else { panic!("not this one") };
    let forgetting = open(url).await;
    let done = async {
        while !committing.is_empty() {
            if let Ok(Some(done)) = timeout(Duration::from_millis(5), committing.join_next()).await {
                done.unwrap();
            }
            forgetting.forget_quotas().await.unwrap();
            // As if all of them were old: what is in use just now is passed over.
            tables.run("update quota set hour = hour - 9 where client in (select client from quota for update skip locked)").await;
        }
    };
    timeout(Duration::from_secs(120), done).await.expect("in time, without a deadlock");
    forgetting.close().await;
}

#[tokio::test]
async fn what_is_being_counted_is_not_waited_for_when_forgetting() {
    let url = new_database().await;
    let (store, tables) = (open(&url).await, Tables::Postgres(url.clone()));
    let old = Counts { hour: 1, hour_count: 1, minute: 60, minute_count: 1 };
    for client in ["held", "free"] {
        tables.put("p", client, old).await;
    }
    let mut holder = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.unwrap();
    sqlx::raw_sql("begin; update quota set hour_count = 2 where client = 'held'").execute(&mut holder).await.unwrap();
    timeout(Duration::from_secs(5), store.forget_quotas()).await.expect("at once").unwrap();
    assert_eq!(tables.counts("p", "free").await, None);
    sqlx::raw_sql("commit").execute(&mut holder).await.unwrap();
    assert!(tables.counts("p", "held").await.is_some());
    store.forget_quotas().await.unwrap();
    assert_eq!(tables.counts("p", "held").await, None);
    store.close().await;
}
