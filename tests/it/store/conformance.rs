//! The suite that every engine passes: atomicity, durability, and the fence.
//!
//! Over 400 lines, as an engine passes all of it or is none.

use std::path::Path;
use std::sync::Arc;

use p8broker::clock::{Clock, SystemClock, UnixMillis};
use p8broker::config::{StoreAt, StoreConfig};
use p8broker::domain::audit::{AuditEvent, AuditFilter, AuditedToken, Outcome};
use p8broker::id::{
    AppGroupName, Chain, ClientId, Head, IssuerName, KeyId, PolicyName, Revision, TokenId, VaultId, WriterId,
};
use p8broker::metrics::Metrics;
use p8broker::store::postgres::{PostgresStore, Settings};
use p8broker::store::sqlite::SqliteStore;
use p8broker::store::{
    Append, AuditBatch, AuditCursor, ExposureCursor, ExposureGroup, Fenced, KeyBytes, Replica, SealedKey, Store,
    StoreError, Under,
};
use p8broker::vault::audit_chain::WriterEnd;
use p8broker::vault::keyring::Keyring;
use p8broker::vault::log::SealedRecord;
use p8broker::vault::unseal::{Method, SealRow, parse_key_file};
use tempfile::TempDir;

use crate::harness::fleet::new_database;

pub(super) struct Fixture {
    keyring: Keyring,
    vault: VaultId,
    pub(super) end: WriterEnd,
    pub(super) head: Head,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let key = parse_key_file("11".repeat(32).as_bytes()).unwrap();
        let keyring = Keyring::generate(&key).unwrap();
        let vault = VaultId::from_random(1);
        let end = WriterEnd::start(&keyring, &vault, WriterId::from_random(2)).unwrap();
        Self { keyring, vault, end, head: Head::default() }
    }

    pub(super) fn event(&self, token: Option<(u8, i64)>) -> AuditEvent {
        AuditEvent {
            at: UnixMillis(1000),
            event: "IssueToken".to_owned(),
            outcome: if token.is_some() { Outcome::Signed } else { Outcome::Changed },
            reason: "OK".to_owned(),
            decision_id: "d".to_owned(),
            caller: "spiffe://a/b".to_owned(),
            identity: String::new(),
            detail: "quote ' and \u{1F511}".to_owned(),
            policy: token.map(|_| "p".to_owned()),
            key_id: token.map(|_| "AAAAAAAAAA".to_owned()),
            app_group: token.map(|_| "g".to_owned()),
            role: None,
            scope: Some(String::new()),
            token: token.map(|(id, expires_at)| AuditedToken {
                id: TokenId::from_digest(&[id; 32]),
                issued_at: 1,
                expires_at,
            }),
            revision: self.head.revision,
        }
    }

    /// Rows after the end; committing them is up to the test.
    pub(super) fn batch(&self, events: Vec<AuditEvent>) -> AuditBatch {
        let mut end = self.end.clone();
        let rows = events.into_iter().map(|event| end.push(&self.keyring, event).unwrap()).collect();
        AuditBatch { rows, end: end.sealed(&self.keyring, &self.vault).unwrap(), quota: vec![] }
    }

    pub(super) fn append(&self, keys: Vec<KeyBytes>) -> Append {
        // The engine opens nothing: any bytes are a record to it.
        let record = SealedRecord {
            revision: self.head.revision.next(),
            checkpoint: false,
            previous: self.head.chain,
            sealed: vec![7; 100],
        };
        Append {
            expected: self.head,
            records: vec![record],
            audit: self.batch(vec![self.event(None)]),
            keys,
            seal: None,
        }
    }

    fn moved(&mut self, append: &Append) {
        self.head = append.head();
        self.end = append.audit.end.clone();
    }

    pub(super) async fn initialised(store: &dyn Store) -> Self {
        let mut fixture = Self::new();
        let row = SealRow::seal(&fixture.vault, 1, Method::KeyFile, &fixture.keyring).unwrap();
        let first = Append { seal: Some(row), ..fixture.append(vec![]) };
        store.initialise(first.clone()).await.unwrap();
        fixture.moved(&first);
        fixture
    }
}

/// Each engine runs the whole suite.
async fn suite(store: &dyn Store) {
    assert_eq!(store.seal_row().await.unwrap(), None);
    assert_eq!(store.head().await.unwrap(), Head::default());
    let mut fixture = Fixture::initialised(store).await;
    let again = Append { seal: store.seal_row().await.unwrap(), ..Fixture::new().append(vec![]) };
    assert_eq!(store.initialise(again).await, Err(StoreError::AlreadyInitialised));
    assert_eq!(store.head().await.unwrap(), fixture.head);
    fence(store, &mut fixture).await;
    keys(store, &mut fixture).await;
    exposure(store, &mut fixture).await;
    groups(store, &mut fixture).await;
    replicas(store).await;
    listing_and_pruning(store, &mut fixture).await;
}

/// Records that are appended together are there together, or not at all.
async fn groups(store: &dyn Store, fixture: &mut Fixture) {
    let mut group = fixture.append(vec![]);
    let second = SealedRecord {
        revision: group.head().revision.next(),
        checkpoint: true,
        previous: group.head().chain,
        sealed: vec![8; 50],
    };
    let third = SealedRecord { revision: second.revision.next(), previous: second.head().chain, ..second.clone() };
    group.records.extend([second.clone(), third.clone()]);
    let lost = Append { expected: Head::default(), ..group.clone() };
    assert_eq!(store.append(&lost).await.unwrap(), Fenced::HeadMoved);
    assert_eq!(store.append(&group).await.unwrap(), Fenced::Committed);
    assert_eq!(store.head().await.unwrap(), third.head());
    assert_eq!(store.newest_checkpoint().await.unwrap(), third.revision);
    for (at, checkpoint) in [(fixture.head.revision, Revision(0)), (second.revision, second.revision)] {
        assert_eq!(store.checkpoint_before(at).await.unwrap(), checkpoint);
    }
    assert_eq!(store.checkpoint_before(third.revision.next()).await.unwrap(), third.revision);
    assert_eq!(store.records_from(fixture.head.revision.next(), 10).await.unwrap(), group.records);
    fixture.moved(&group);
}

async fn replicas(store: &dyn Store) {
    let replica = |name: &str, seen: i64| Replica {
        name: name.to_owned(),
        version: "1.2.3".to_owned(),
        phase: "OPEN".to_owned(),
        revision: Revision(7),
        started: UnixMillis(1),
        seen: UnixMillis(seen),
    };
    store.report(&replica("b", 10), UnixMillis(0)).await.unwrap();
    store.report(&replica("a", 20), UnixMillis(0)).await.unwrap();
    store.report(&replica("a", 30), UnixMillis(11)).await.unwrap();
    assert_eq!(store.replicas().await.unwrap(), [replica("a", 30)], "described anew, and a quiet one forgotten");
}

async fn fence(store: &dyn Store, fixture: &mut Fixture) {
    let batch = fixture.batch(vec![fixture.event(Some((1, 100)))]);
    // More rows than one statement takes: another path in SQLite, the same fence.
    let large = fixture.batch((0..150).map(|_| fixture.event(None)).collect());
    let before = store.writer_ends().await.unwrap();
    // Another revision, and the right revision of another history.
    for head in [
        Head { revision: fixture.head.revision.next(), ..fixture.head },
        Head { chain: Chain([9; 32]), ..fixture.head },
        Head::default(),
    ] {
        assert_eq!(store.commit_rows(Some(head), &batch).await.unwrap(), Fenced::HeadMoved);
        assert_eq!(store.commit_rows(Some(head), &large).await.unwrap(), Fenced::HeadMoved);
        let mut append = fixture.append(vec![]);
        append.expected = head;
        assert_eq!(store.append(&append).await.unwrap(), Fenced::HeadMoved);
    }
    assert_eq!(store.writer_ends().await.unwrap(), before, "nothing was written");
    assert_eq!(store.records_from(Revision(1), 10).await.unwrap().len(), 1);
    assert_eq!(store.commit_rows(Some(fixture.head), &batch).await.unwrap(), Fenced::Committed);
    fixture.end = batch.end.clone();
    let append = fixture.append(vec![]);
    assert_eq!(store.append(&append).await.unwrap(), Fenced::Committed);
    fixture.end = append.audit.end.clone();
    // The row that was decided before the change comes too late.
    let late = fixture.batch(vec![fixture.event(Some((2, 100)))]);
    assert_eq!(store.commit_rows(Some(fixture.head), &late).await.unwrap(), Fenced::HeadMoved);
    fixture.moved(&append);
    assert_eq!(store.head().await.unwrap(), fixture.head);
    assert_eq!(store.records_from(Revision(2), 10).await.unwrap(), append.records);
    let large = fixture.batch((0..150).map(|_| fixture.event(None)).collect());
    assert_eq!(store.commit_rows(Some(fixture.head), &large).await.unwrap(), Fenced::Committed);
    fixture.end = large.end;
    // Refusals need no fence.
    let refusal = fixture.batch(vec![fixture.event(None)]);
    assert_eq!(store.commit_rows(None, &refusal).await.unwrap(), Fenced::Committed);
    fixture.end = refusal.end;
    let ends = store.writer_ends().await.unwrap();
    assert_eq!((ends.len(), &ends[0].end), (1, &fixture.end));
    assert!(ends[0].row_chain == Some(fixture.end.chain) && !ends[0].has_more);
}

async fn keys(store: &dyn Store, fixture: &mut Fixture) {
    let id = KeyId::parse("AAAAAAAAAA").unwrap();
    let key = SealedKey { key_id: id.clone(), imported: fixture.head.revision.next(), sealed: vec![1; 300] };
    let put = fixture.append(vec![KeyBytes::Put(key.clone())]);
    assert_eq!(store.append(&put).await.unwrap(), Fenced::Committed);
    fixture.moved(&put);
    assert_eq!(store.sealed_keys().await.unwrap(), [key]);
    let destroy = fixture.append(vec![KeyBytes::Destroy(id)]);
    // All or nothing: a change that loses the fence leaves the key.
    let mut lost = destroy.clone();
    lost.expected = Head::default();
    assert_eq!(store.append(&lost).await.unwrap(), Fenced::HeadMoved);
    assert_eq!(store.sealed_keys().await.unwrap().len(), 1);
    assert_eq!(store.append(&destroy).await.unwrap(), Fenced::Committed);
    fixture.moved(&destroy);
    store.scrub().await.unwrap();
    assert_eq!(store.sealed_keys().await.unwrap(), []);
}

async fn exposure(store: &dyn Store, fixture: &mut Fixture) {
    let mut events: Vec<_> = (10..20).map(|id| fixture.event(Some((id, 1000 + i64::from(id))))).collect();
    // One token that was signed twice within a second is one token.
    events.push(fixture.event(Some((19, 1019))));
    let batch = fixture.batch(events);
    assert_eq!(store.commit_rows(Some(fixture.head), &batch).await.unwrap(), Fenced::Committed);
    fixture.end = batch.end;
    let client = Under::Client(ClientId::parse("spiffe://a/b").unwrap());
    let next = fixture.head.revision.next();
    let totals = store.exposure_totals(&client, next, 1012).await.unwrap();
    assert_eq!((totals.count, totals.last_expires_at), (7, Some(1019)), "alive is strictly after now");
    let none = store.exposure_totals(&client, fixture.head.revision, 1012).await.unwrap();
    assert_eq!((none.count, none.last_expires_at), (0, None), "strictly before the revision");
    let first = store.exposure(&client, next, 1012, &ExposureCursor::default(), 4).await.unwrap();
    let last = first.last().unwrap();
    let rest = store.exposure(&client, next, 1012, &ExposureCursor::at(last), 4).await.unwrap();
    let times: Vec<i64> = first.iter().chain(&rest).map(|token| token.expires_at).collect();
    assert_eq!(times, (1013..1020).collect::<Vec<_>>());
    let other = Under::Client(ClientId::parse("spiffe://a/c").unwrap());
    assert_eq!(store.exposure_totals(&other, next, 0).await.unwrap().count, 0);
    let key = |text: &str| KeyId::parse(text).unwrap();
    let dies_last = TokenId::from_digest(&[19; 32]);
    for (under, count) in [
        (Under::Everything, 7),
        (Under::Token(dies_last.clone()), 1),
        (Under::Policy(PolicyName::parse("p").unwrap()), 7),
        (Under::Policy(PolicyName::parse("q").unwrap()), 0),
        (Under::AppGroup(AppGroupName::parse("g").unwrap()), 7),
        (Under::Keys(vec![key("BBBBBBBBBB"), key("AAAAAAAAAA")]), 7),
        (Under::Keys(vec![key("BBBBBBBBBB")]), 0),
        (Under::Keys(vec![]), 0),
        (Under::Issuer(IssuerName::parse("github").unwrap()), 0),
    ] {
        assert_eq!(store.exposure_totals(&under, next, 1012).await.unwrap().count, count, "{under:?}");
        let groups = store.exposure_groups(&under, next, 1012).await.unwrap();
        let expected = (count > 0).then(|| ExposureGroup {
            client: "spiffe://a/b".to_owned(),
            policy: "p".to_owned(),
            key_id: "AAAAAAAAAA".to_owned(),
            count,
            last_expires_at: 1019,
        });
        assert_eq!(groups, Vec::from_iter(expected), "{under:?}");
    }
    let handouts = store.handouts(&dies_last, UnixMillis(0), UnixMillis(2000), 10).await.unwrap();
    assert_eq!(handouts.len(), 2, "each time that it was handed out");
    assert_eq!(store.handouts(&dies_last, UnixMillis(1001), UnixMillis(2000), 10).await.unwrap(), []);
    by_certificate(store, fixture).await;
}

/// Tokens of callers whom an issuer vouches for are also under the certificates that they came with.
async fn by_certificate(store: &dyn Store, fixture: &mut Fixture) {
    let through = |facts: &str| AuditEvent {
        caller: "oidc:github:job".to_owned(),
        identity: format!("token sha256:00 of github{facts}"),
        ..fixture.event(Some((40, 2000)))
    };
    let events = [
        r#"; certificate spiffe://a/one; claims {"ref":["; certificate spiffe://a/three; claims "]}"#,
        "; certificate spiffe://a/two; claims {}",
        "; certificate none; claims {}",
    ];
    let batch = fixture.batch(events.map(through).into());
    assert_eq!(store.commit_rows(Some(fixture.head), &batch).await.unwrap(), Fenced::Committed);
    fixture.end = batch.end;
    let next = fixture.head.revision.next();
    let under = |name: &str| Under::Client(ClientId::parse(name).unwrap());
    for (name, certificates) in [
        ("spiffe://a/one", vec!["spiffe://a/one"]),
        ("spiffe://a/two", vec!["spiffe://a/two"]),
        ("spiffe://a/three", vec![]),
        ("oidc:github:job", vec!["", "spiffe://a/one", "spiffe://a/two"]),
    ] {
        // Page by page: what differs in the certificate alone is told, too.
        let (mut after, mut found) = (ExposureCursor::default(), Vec::new());
        for _ in 0..4 {
            let page = store.exposure(&under(name), next, 1500, &after, 1).await.unwrap();
            after = page.first().map_or(after, ExposureCursor::at);
            found.extend(page.into_iter().map(|token| token.certificate));
        }
        assert_eq!(found, certificates, "{name}");
    }
    let held = Under::HeldBy(ClientId::parse("spiffe://a/one").unwrap());
    assert_eq!(store.exposure_totals(&held, next, 1500).await.unwrap().count, 0);
}

async fn listing_and_pruning(store: &dyn Store, fixture: &mut Fixture) {
    let start = AuditCursor { at: UnixMillis(i64::MIN), ..AuditCursor::default() };
    let all = store.list_rows(&AuditFilter::default(), &start, 1000).await.unwrap();
    assert_eq!(u64::try_from(all.len()).unwrap(), fixture.end.sequence);
    assert_eq!(all[0].event.detail, "quote ' and \u{1F511}");
    assert_eq!(all[0].event.scope, Some(String::new()), "empty and absent differ");
    let id = &fixture.end.writer;
    assert_eq!(store.rows_of_writer(id, 0, 1000).await.unwrap(), all);
    assert_eq!(store.rows_of_writer(id, 3, 2).await.unwrap(), all[3..5]);
    assert_eq!(store.rows_of_unknown_writers().await.unwrap(), 0);
    // Rows of tokens alive at 1015 keep themselves and all after them.
    let (upto, chain) = store.prunable(id, UnixMillis(i64::MAX), 1015).await.unwrap().unwrap();
    assert_eq!(all[usize::try_from(upto).unwrap()].event.token.as_ref().unwrap().expires_at, 1016);
    assert_eq!(chain, all[usize::try_from(upto).unwrap() - 1].chain);
    assert_eq!(store.prunable(id, UnixMillis(0), 1015).await.unwrap(), None);
    let mut removed = 0;
    loop {
        let chunk = store.remove_rows(id, upto, 3).await.unwrap();
        assert!(chunk <= 3);
        removed += chunk;
        if chunk == 0 {
            break;
        }
    }
    assert_eq!(removed, upto);
    assert_eq!(store.rows_of_writer(id, 0, 1000).await.unwrap(), all[usize::try_from(upto).unwrap()..]);
}

#[tokio::test]
async fn postgres_passes_the_suite_and_keeps_what_it_acknowledged() {
    let settings = settings(&new_database().await);
    let store = PostgresStore::open(settings.clone(), &Metrics::new().unwrap()).await.unwrap();
    suite(&store).await;
    let (head, ends) = (store.head().await.unwrap(), store.writer_ends().await.unwrap());
    store.close().await;
    assert!(
        store.head().await.is_err() && store.commit_rows(None, &Fixture::new().batch(vec![])).await.is_err(),
        "closed"
    );
    let store = PostgresStore::open(settings, &Metrics::new().unwrap()).await.unwrap();
    assert_eq!((store.head().await.unwrap(), store.writer_ends().await.unwrap()), (head, ends));
    store.close().await;
}

pub(super) fn settings(url: &str) -> Settings {
    match StoreConfig::url(url).at().unwrap() {
        StoreAt::Postgres(settings) => settings,
        StoreAt::Sqlite(_) => panic!("not this one"),
    }
}

async fn run(url: &str, sql: &str) {
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
}

/// The pins of the fence: a session that could break it is refused by the functions themselves.
#[tokio::test]
async fn p5_on_postgres_the_fence_refuses_a_session_in_which_it_would_not_hold() {
    let url = new_database().await;
    let store = PostgresStore::open(settings(&url), &Metrics::new().unwrap()).await.unwrap();
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.unwrap();
    for (setting, named) in [
        ("set default_transaction_isolation = 'repeatable read'", "read committed"),
        (
            "set default_transaction_isolation = 'read committed'; set synchronous_commit = off",
            "synchronous_commit is off",
        ),
        ("set synchronous_commit = local", "synchronous_commit is local"),
    ] {
        sqlx::raw_sql(setting).execute(&mut connection).await.unwrap();
        let refused = sqlx::raw_sql("select p8broker_check_session_v1()").execute(&mut connection).await;
        assert!(refused.unwrap_err().to_string().contains(named), "{setting}");
    }
    sqlx::raw_sql("set synchronous_commit = on; select p8broker_check_session_v1()")
        .execute(&mut connection)
        .await
        .unwrap();
    store.close().await;
}

#[tokio::test]
async fn a_newer_schema_refuses_an_older_binary_and_only_then() {
    let url = new_database().await;
    let open = async |migrate| {
        let settings = Settings { migrate, ..settings(&url) };
        PostgresStore::open(settings, &Metrics::new().unwrap()).await
    };
    assert!(matches!(open(false).await.err(), Some(StoreError::Unfit(why)) if why.contains("p8broker migrate")));
    assert_eq!(PostgresStore::migrate(&settings(&url)).await, Ok(SqliteStore::newest_migration()));
    open(false).await.unwrap().close().await;
    // A newer release that only added: both work, side by side.
    run(&url, "insert into _sqlx_migrations select 900, 'later', now(), true, '', 1").await;
    open(true).await.unwrap().close().await;
    run(&url, "update schema_release set oldest = '99.0.0'").await;
    for migrate in [true, false] {
        assert!(matches!(open(migrate).await.err(), Some(StoreError::Unfit(why)) if why.contains("99.0.0")));
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("vault.db");
    SqliteStore::open(&path).await.unwrap().close().await;
    let mut connection =
        <sqlx::SqliteConnection as sqlx::Connection>::connect(&format!("sqlite://{}", path.display())).await.unwrap();
    sqlx::raw_sql("update schema_release set oldest = '99.0.0'").execute(&mut connection).await.unwrap();
    assert!(matches!(SqliteStore::open(&path).await.err(), Some(StoreError::Unfit(_))));
}

#[test]
fn both_engines_have_the_same_migrations() {
    let names = |engine: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(engine);
        let mut names: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names("sqlite"), names("postgres"));
    assert!(names("sqlite").len() >= 4);
}

#[tokio::test]
async fn hazards_name_what_could_lose_an_acknowledged_commit() {
    let url = new_database().await;
    let store = PostgresStore::open(settings(&url), &Metrics::new().unwrap()).await.unwrap();
    let names = async |at| store.hazards(at).await.unwrap().into_iter().map(|hazard| hazard.name).collect::<Vec<_>>();
    let now = SystemClock.now();
    assert_eq!(names(now).await, [""; 0]);
    assert_eq!(names(UnixMillis(now.0 + 60_000)).await, ["CLOCKS_APART"]);
    let role = "alter role p8broker set synchronous_commit = off";
    run(
        &url,
        &role.replace(
            "role p8broker",
            &format!("database {}", url.rsplit('/').next().unwrap().split('?').next().unwrap()),
        ),
    )
    .await;
    let other = PostgresStore::open(settings(&url), &Metrics::new().unwrap()).await.unwrap();
    let found = other.hazards(now).await.unwrap();
    assert_eq!(found.first().map(|hazard| hazard.name), Some("SYNCHRONOUS_COMMIT_OFF"), "{found:?}");
    // And the broker's own sessions are pinned all the same.
    let mut fixture = Fixture::initialised(&other).await;
    let append = fixture.append(vec![]);
    assert_eq!(other.append(&append).await.unwrap(), Fenced::Committed);
    fixture.moved(&append);
    other.close().await;
    store.close().await;
}

#[tokio::test]
async fn sqlite_passes_the_suite_and_keeps_what_it_acknowledged() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("vault.db");
    let store = SqliteStore::open(&path).await.unwrap();
    suite(&store).await;
    let (head, ends) = (store.head().await.unwrap(), store.writer_ends().await.unwrap());
    store.close().await;
    assert!(store.head().await.is_err(), "closed");
    drop(store);
    let store = SqliteStore::open(&path).await.unwrap();
    assert_eq!((store.head().await.unwrap(), store.writer_ends().await.unwrap()), (head, ends));
}

#[tokio::test]
async fn sqlite_lets_one_process_in_and_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("vault.db");
    let store = Arc::new(SqliteStore::open(&path).await.unwrap());
    assert!(matches!(SqliteStore::open(&path).await.err(), Some(StoreError::Locked(_))));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&dir.path().join("vault.db-wal"))), (0o600, 0o600));
    store.close().await;
    drop(store);
    std::fs::write(&path, b"this is not a database, and never was one, whatever its name says").unwrap();
    assert!(matches!(SqliteStore::open(&path).await.err(), Some(StoreError::Corrupt(_))));
}
