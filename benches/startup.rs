//! What must not grow: a decision with the number of policies, a start with the number of audit rows.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a benchmark")]

use std::collections::BTreeSet;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use p8broker::broker::{Broker, KeySource, Parts, Phase};
use p8broker::clock::{Clock, Stopwatch, SystemClock, UnixMillis};
use p8broker::domain::account::Account;
use p8broker::domain::app_group::AppGroup;
use p8broker::domain::audit::{AuditEvent, AuditedToken, Outcome};
use p8broker::domain::change::{Actor, AuditPosition, Change, Object, Record};
use p8broker::domain::decide::{TokenRequest, decide};
use p8broker::domain::key::{Key, KeyKind, KeyState, Profile, Stamp};
use p8broker::domain::pattern::ClientPattern;
use p8broker::domain::policy::{MOST_PER_APP_GROUP, Policy};
use p8broker::domain::principal::Principal;
use p8broker::domain::role::Role;
use p8broker::domain::state::State;
use p8broker::id::{
    AccountName, AppGroupName, AppId, Chain, ClientId, IssuerId, KeyId, PolicyName, Revision, TokenId, WriterId,
};
use p8broker::metrics::Metrics;
use p8broker::store::sqlite::SqliteStore;
use p8broker::store::{AuditBatch, Store};
use p8broker::vault::unseal::parse_key_file;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// As many policies, at most 100 for one app group; the caller is named by the last one of its group.
fn state(policies: usize) -> State {
    let account = AccountName::parse("acme").unwrap();
    let issuer_id = IssuerId::parse("57246542-96fe-1a63-e053-0824d011072a").unwrap();
    let groups = policies.div_ceil(MOST_PER_APP_GROUP);
    let group = |nth: usize| AppGroupName::parse(&format!("g{nth}")).unwrap();
    let mut put = vec![Object::Account(Account { name: account.clone(), issuer_id })];
    let apps: BTreeSet<AppId> = [AppId::parse("1234567890").unwrap()].into();
    put.extend(
        (0..groups)
            .map(|nth| Object::AppGroup(AppGroup { name: group(nth), account: account.clone(), apps: apps.clone() })),
    );
    put.extend((0..policies).map(|nth| {
        Object::Policy(Arc::new(Policy {
            name: PolicyName::parse(&format!("p{nth:06}")).unwrap(),
            clients: vec![ClientPattern::spiffe(&format!("spiffe://acme.internal/ns/ci/sa/job-{nth}-*")).unwrap()],
            app_group: group(nth % groups),
            roles: [Role::AppManager].into_iter().collect(),
            max_ttl_s: 600,
            default_ttl_s: 600,
            operations: vec![],
            require_scope: false,
            not_before: None,
            not_after: None,
            features: vec![],
            quota: None,
            hours: None,
            require_mtls: vec![],
            break_glass: false,
            shadow: false,
        }))
    }));
    let key = Key {
        id: KeyId::parse("AAAAAAAAAA").unwrap(),
        account,
        profile: Profile::AppStoreConnect,
        kind: KeyKind::Team,
        roles: [Role::AppManager].into_iter().collect(),
        app_groups: (0..groups).map(group).collect(),
        fingerprint: String::new(),
        public_key: String::new(),
        state: KeyState::Active,
        imported: Stamp { by: String::new(), at: UnixMillis(0) },
        imported_revision: Revision(0),
        revoked: None,
        confirmed_at_apple: None,
    };
    let mut state = State::default();
    for change in [Change::DocumentApplied { put, removed: vec![] }, Change::KeyImported { key: Box::new(key) }] {
        let record = Record {
            revision: state.head().revision.next(),
            at: UnixMillis(0),
            actor: Actor::broker(),
            audit: AuditPosition { writer: WriterId::from_random(1), sequence: 1 },
            change,
        };
        state.fold(&record, Chain::default()).unwrap();
    }
    state
}

fn deciding() {
    println!("decide, median of 200 batches of 100:");
    for policies in [10, 1000, 100_000] {
        let state = state(policies);
        let last = policies - 1;
        let groups = policies.div_ceil(MOST_PER_APP_GROUP);
        let request = TokenRequest {
            principal: Principal::of_certificate(
                ClientId::parse(&format!("spiffe://acme.internal/ns/ci/sa/job-{last}-x")).unwrap(),
            ),
            app_group: AppGroupName::parse(&format!("g{}", last % groups)).unwrap(),
            role: Role::AppManager,
            ttl_s: None,
            scope: vec![],
        };
        let batch = || {
            let watch = Stopwatch::start();
            for _ in 0..100 {
                assert!(black_box(decide(black_box(&request), &state, UnixMillis(1_800_000_000_000))).is_ok());
            }
            watch.seconds() / 100.0
        };
        let time = median((0..200).map(|_| batch()).collect());
        println!("  {policies:>7} policies in {groups:>4} app groups: {:.2} us", time * 1e6);
    }
}

async fn open(dir: &Path) -> (Arc<dyn Store>, Arc<Broker>) {
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&dir.join("vault.db")).await.unwrap());
    let broker = Broker::new(Parts {
        store: Arc::clone(&store),
        clock: Arc::new(SystemClock),
        metrics: Metrics::new().unwrap(),
        key_source: KeySource::Files { current: dir.join("unseal.key"), previous: None },
        bootstrap: vec![],
        anchor: None,
        replica: "bench".to_owned(),
    });
    broker.start().await;
    (store, broker)
}

/// Adds rows as a writer of this vault would.
async fn add_rows(dir: &Path, rows: u32) {
    let store = SqliteStore::open(&dir.join("vault.db")).await.unwrap();
    let row = store.seal_row().await.unwrap().unwrap();
    let key = parse_key_file(&std::fs::read(dir.join("unseal.key")).unwrap()).unwrap();
    let keyring = row.open(&key).unwrap();
    let (head, now) = (store.head().await.unwrap(), SystemClock.now());
    let mut end = store.writer_ends().await.unwrap().remove(0).end;
    for batch in 0..rows / 1000 {
        let mut out = Vec::with_capacity(1000);
        for nth in 0..1000_u32 {
            let mut digest = [0; 32];
            digest[..4].copy_from_slice(&(batch * 1000 + nth).to_be_bytes());
            let token = AuditedToken {
                id: TokenId::from_digest(&digest),
                issued_at: now.seconds(),
                expires_at: now.seconds() + 600,
            };
            let event = AuditEvent {
                at: now,
                event: "IssueToken".to_owned(),
                outcome: Outcome::Signed,
                reason: "OK".to_owned(),
                decision_id: format!("{nth:032x}"),
                caller: "spiffe://acme.internal/ns/ci/sa/release-bot".to_owned(),
                identity: "certificate sha256:00".to_owned(),
                detail: "ttl default, 0 scope entries".to_owned(),
                policy: Some("games-release-ci".to_owned()),
                key_id: Some("AAAAAAAAAA".to_owned()),
                app_group: Some("games".to_owned()),
                role: Some("APP_MANAGER".to_owned()),
                scope: None,
                token: Some(token),
                revision: head.revision,
            };
            out.push(end.push(&keyring, event).unwrap());
        }
        end = end.sealed(&keyring, &row.vault).unwrap();
        let _ = store.commit_rows(None, &AuditBatch { rows: out, end: end.clone() }).await.unwrap();
    }
    store.close().await;
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
    deciding();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(starting());
}
