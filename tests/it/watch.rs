//! `TokenService.Watch`: each client is told of its own, at once, without loss, and only for as long as it may be.

use std::time::Duration;

use p8broker::grpc::proto::watch_response::Event;
use p8broker::grpc::proto::{self, TargetKind};
use tonic::{Code, Status, Streaming};

use crate::harness::fleet::Cluster;
use crate::harness::*;

const OTHER: &str = "spiffe://acme.internal/ns/ci/sa/release-two";

struct Watching(Streaming<proto::WatchResponse>);

impl Watching {
    async fn of(broker: &Broker, identity: &str, from_revision: u64) -> Self {
        Self(broker.as_(identity).await.token.watch(proto::WatchRequest { from_revision }).await.unwrap().into_inner())
    }

    async fn next(&mut self) -> Result<proto::WatchResponse, Status> {
        let next = tokio::time::timeout(Duration::from_secs(15), self.0.message()).await.expect("something is told");
        Ok(next?.expect("the stream goes on"))
    }

    /// The next event that is no heartbeat.
    async fn news(&mut self) -> (u64, Event) {
        loop {
            let told = self.next().await.unwrap();
            match told.event.unwrap() {
                Event::Heartbeat(_) => {}
                event => return (told.revision, event),
            }
        }
    }

    async fn revoked(&mut self) -> (u64, TargetKind, Vec<String>) {
        match self.news().await {
            (revision, Event::Revoked(revoked)) => (revision, revoked.kind(), revoked.token_ids),
            other => panic!("{other:?}"),
        }
    }

    async fn end(&mut self) -> Status {
        for _ in 0..10 {
            if let Err(status) = self.next().await {
                return status;
            }
        }
        panic!("it goes on");
    }
}

async fn reinstate(operator: &mut Client, kind: TargetKind, name: &str) -> u64 {
    let lift = proto::ReinstateRequest { target: Some(target(kind, name)), reason: "a test".to_owned() };
    operator.revocation.reinstate(lift).await.unwrap().into_inner().revision
}

#[tokio::test]
async fn inv_watch_1_a_client_is_told_of_its_own_tokens_and_of_nothing_else() {
    let mut cluster = Cluster::start(2).await;
    let (here, there) = (&cluster.replicas[0], &cluster.replicas[1]);
    let mut operator = there.as_(OPERATOR).await;
    let mut mine = Watching::of(here, CLIENT, 0).await;
    let mut theirs = Watching::of(here, OTHER, 0).await;
    // The first thing told is that the watch stands.
    assert!(matches!(mine.next().await.unwrap().event, Some(Event::Heartbeat(_))));
    let token = here.as_(CLIENT).await.issue(ask()).await.unwrap();
    let other = here.as_(OTHER).await.issue(ask()).await.unwrap();
    let second = here.as_(CLIENT).await.issue(proto::IssueTokenRequest { ttl: duration(77), ..ask() }).await.unwrap();
    for (kind, name, ids) in [
        (TargetKind::Token, second.token_id.as_str(), vec![&second.token_id]),
        (TargetKind::Policy, "games-release-ci", vec![&token.token_id, &second.token_id]),
        (TargetKind::AppGroup, "games", vec![&token.token_id, &second.token_id]),
        (TargetKind::Account, "acme", vec![&token.token_id, &second.token_id]),
    ] {
        let done = operator.revoke(kind, name).await.unwrap();
        let (revision, told, mut got) = mine.revoked().await;
        assert_eq!((revision, told), (done.revision, kind));
        got.sort();
        let mut ids: Vec<_> = ids.into_iter().cloned().collect();
        ids.sort();
        assert_eq!(got, ids);
        if kind != TargetKind::Token {
            assert_eq!(theirs.revoked().await, (done.revision, kind, vec![other.token_id.clone()]));
            reinstate(&mut operator, kind, name).await;
        }
    }
    // Another client's end, a policy without tokens, a name that nobody has: told to nobody here.
    operator.revoke(TargetKind::Client, STRANGER).await.unwrap();
    operator.revoke(TargetKind::Policy, "nothing-here").await.unwrap();
    operator.revoke(TargetKind::Issuer, "github").await.unwrap();
    let last = operator.revoke(TargetKind::Key, KEY_ID).await.unwrap();
    assert_eq!(theirs.revoked().await, (last.revision, TargetKind::Key, vec![other.token_id]));
    assert_eq!(mine.revoked().await.0, last.revision);
    drop((mine, theirs));
    cluster.stop().await;
}

#[tokio::test]
async fn a_watch_resumes_from_a_revision_without_loss() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let mut client = broker.as_(CLIENT).await;
    let token = client.issue(ask()).await.unwrap();
    // All of it happens while nobody watches; a revocation that was lifted still ended what came before it.
    let policy = operator.revoke(TargetKind::Policy, "games-release-ci").await.unwrap();
    reinstate(&mut operator, TargetKind::Policy, "games-release-ci").await;
    let group = operator.revoke(TargetKind::AppGroup, "games").await.unwrap();
    let mut watch = Watching::of(&broker, CLIENT, token.revision).await;
    assert_eq!(watch.revoked().await, (policy.revision, TargetKind::Policy, vec![token.token_id.clone()]));
    assert_eq!(watch.revoked().await, (group.revision, TargetKind::AppGroup, vec![token.token_id.clone()]));
    // From the last one told, nothing is told twice.
    let mut watch = Watching::of(&broker, CLIENT, group.revision).await;
    let account = operator.revoke(TargetKind::Account, "acme").await.unwrap();
    assert_eq!(watch.revoked().await.0, account.revision);
    // A revision that this history does not have: something is missing, and the watch says so.
    let mut watch = Watching::of(&broker, CLIENT, 1_000_000).await;
    assert!(matches!(watch.news().await.1, Event::Resynchronise(_)));
    drop(watch);
    broker.stop().await;
}

#[tokio::test]
async fn a_watch_from_before_a_checkpoint_and_a_restart_loses_nothing_either() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let token = broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    let policy = operator.revoke(TargetKind::Policy, "games-release-ci").await.unwrap();
    for nth in 0..1005 {
        if nth % 2 == 0 {
            operator.revoke(TargetKind::Policy, "churn").await.unwrap();
        } else {
            reinstate(&mut operator, TargetKind::Policy, "churn").await;
        }
    }
    broker.restart().await;
    let mut watch = Watching::of(&broker, CLIENT, token.revision).await;
    assert_eq!(watch.revoked().await, (policy.revision, TargetKind::Policy, vec![token.token_id]));
    drop(watch);
    broker.stop().await;
}

#[tokio::test]
async fn a_revoked_client_and_a_lapsed_certificate_lose_the_open_watch() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let token = broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    let mut watch = Watching::of(&broker, CLIENT, 0).await;
    let mut without_tokens = Watching::of(&broker, STRANGER, 0).await;
    let mut lapsing = Watching::of(&broker, OTHER, 0).await;
    let revoked = operator.revoke(TargetKind::Client, CLIENT).await.unwrap();
    assert_eq!(watch.revoked().await, (revoked.revision, TargetKind::Client, vec![token.token_id]));
    let end = watch.end().await;
    assert_eq!(refused::<()>(Err(end)), (Code::PermissionDenied, "CLIENT_REVOKED".to_owned()));
    let again = broker.as_(CLIENT).await.token.watch(proto::WatchRequest::default()).await;
    assert_eq!(refused(again.map(|_| ())).1, "CLIENT_REVOKED");
    operator.revoke(TargetKind::Client, STRANGER).await.unwrap();
    assert_eq!(refused::<()>(Err(without_tokens.end().await)).1, "CLIENT_REVOKED");
    // Certificates of the tests lapse in the year 4096; the clock goes there.
    broker.clock.advance(Duration::from_secs(70_000_000_000));
    assert_eq!(lapsing.end().await.code(), Code::Unauthenticated);
    broker.stop().await;
}

#[tokio::test]
async fn a_slow_reader_is_told_to_resynchronise_and_holds_up_nobody() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let token = broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    broker.as_(OTHER).await.issue(ask()).await.unwrap();
    let slow = broker.inner();
    // One that is opened and never read: its queue is bounded.
    let caller = p8broker::broker::Caller { principal: principal(CLIENT), identity: String::new() };
    let mut watch = slow.watch(&caller, p8broker::id::Revision(0)).await.unwrap();
    let mut quick = Watching::of(&broker, OTHER, 0).await;
    for nth in 0..40 {
        let (kind, name) = (TargetKind::AppGroup, "games");
        let done = operator.revoke(kind, name).await.unwrap();
        assert_eq!(quick.revoked().await.0, done.revision, "revoke {nth}");
        reinstate(&mut operator, kind, name).await;
    }
    let first = std::future::poll_fn(|context| watch.poll_next(context)).await.unwrap();
    assert_eq!(first.happened, p8broker::broker::Happened::Resynchronise, "{}", token.token_id);
    // After that it is told again.
    let done = operator.revoke(TargetKind::AppGroup, "games").await.unwrap();
    let next = std::future::poll_fn(|context| watch.poll_next(context)).await.unwrap();
    assert_eq!(next.revision.0, done.revision);
    drop(watch);
    drop(quick);
    broker.stop().await;
}

#[tokio::test]
async fn watches_of_one_client_are_bounded_and_end_with_the_vault() {
    let mut broker = Broker::start().await;
    let mut client = broker.as_(CLIENT).await;
    let mut open = Vec::new();
    for _ in 0..64 {
        open.push(client.token.watch(proto::WatchRequest::default()).await.unwrap().into_inner());
    }
    let one_more = client.token.watch(proto::WatchRequest::default()).await;
    assert_eq!(refused(one_more.map(|_| ())), (Code::ResourceExhausted, "TOO_MANY_WATCHES".to_owned()));
    let mut last = Watching(open.pop().unwrap());
    broker.as_(OPERATOR).await.system.seal(proto::SealRequest { reason: "a test".to_owned() }).await.unwrap();
    assert_eq!(refused::<()>(Err(last.end().await)), (Code::Unavailable, "SEALED".to_owned()));
    drop(open);
    broker.stop().await;
}
