//! A store that fails when it is told to: real SQLite behind a wrapper. P4 is what this is about: no row, no token.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use async_trait::async_trait;
use p8broker::clock::UnixMillis;
use p8broker::domain::audit::{AuditFilter, AuditRow, LiveToken};
use p8broker::grpc::proto;
use p8broker::id::{Chain, Head, Revision, TokenId, WriterId};
use p8broker::store::part::Snapshot;
use p8broker::store::{
    Append, AuditBatch, AuditCursor, ExposureCursor, ExposureGroup, ExposureTotals, Fenced, Hazard, LiveCount, Parts,
    QuotaAsk, QuotaLeft, Replica, SealedKey, ShadowCount, Store, StoreError, StoredEnd, Under,
};
use p8broker::vault::log::SealedRecord;
use p8broker::vault::unseal::SealRow;
use tonic::Code;

use crate::harness::*;

/// What happens to the next writes.
#[derive(Clone, Default)]
struct Switch(Arc<AtomicU8>);

const WORKS: u8 = 0;
/// Nothing is written, and the caller hears of it.
const FAILS: u8 = 1;
/// Everything is written, and the caller hears that it failed: the outcome of a commit is unknown.
const LIES: u8 = 2;

/// Whatever counts against a quota is over it, and would fit by the time it is told.
const CONTENDED: u8 = 3;

struct Faulty {
    inner: Arc<dyn Store>,
    switch: Switch,
}

impl Faulty {
    async fn write(&self, work: impl Future<Output = Result<Fenced, StoreError>>) -> Result<Fenced, StoreError> {
        let down = || Err(StoreError::Unavailable("injected".to_owned()));
        match self.switch.0.load(Ordering::SeqCst) {
            FAILS => down(),
            LIES => {
                assert_eq!(work.await, Ok(Fenced::Committed));
                down()
            }
            _ => work.await,
        }
    }
}

#[async_trait]
impl Store for Faulty {
    async fn seal_row(&self) -> Result<Option<SealRow>, StoreError> {
        self.inner.seal_row().await
    }

    async fn head(&self) -> Result<Head, StoreError> {
        self.inner.head().await
    }

    async fn initialise(&self, first: Append) -> Result<(), StoreError> {
        self.inner.initialise(first).await
    }

    async fn snapshot(&self) -> Result<Option<Snapshot>, StoreError> {
        self.inner.snapshot().await
    }

    async fn is_used(&self) -> Result<bool, StoreError> {
        self.inner.is_used().await
    }

    async fn restore(&self, seal: &SealRow, head: Head, parts: Parts) -> Result<(), StoreError> {
        self.inner.restore(seal, head, parts).await
    }

    async fn commit_rows(&self, decided_at: Option<Head>, batch: &AuditBatch) -> Result<Fenced, StoreError> {
        if self.switch.0.load(Ordering::SeqCst) == CONTENDED && !batch.quota.is_empty() {
            return Ok(Fenced::OverQuota(batch.quota.iter().map(all_of).collect()));
        }
        self.write(self.inner.commit_rows(decided_at, batch)).await
    }

    async fn append(&self, append: &Append) -> Result<Fenced, StoreError> {
        self.write(self.inner.append(append)).await
    }

    async fn scrub(&self) -> Result<(), StoreError> {
        self.inner.scrub().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }

    async fn newest_checkpoint(&self) -> Result<Revision, StoreError> {
        self.inner.newest_checkpoint().await
    }

    async fn checkpoint_before(&self, revision: Revision) -> Result<Revision, StoreError> {
        self.inner.checkpoint_before(revision).await
    }

    async fn records_from(&self, from: Revision, limit: u32) -> Result<Vec<SealedRecord>, StoreError> {
        self.inner.records_from(from, limit).await
    }

    async fn sealed_keys(&self) -> Result<Vec<SealedKey>, StoreError> {
        self.inner.sealed_keys().await
    }

    async fn writer_ends(&self) -> Result<Vec<StoredEnd>, StoreError> {
        self.inner.writer_ends().await
    }

    async fn rows_of_writer(&self, writer: &WriterId, after: u64, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        self.inner.rows_of_writer(writer, after, limit).await
    }

    async fn rows_of_unknown_writers(&self) -> Result<u64, StoreError> {
        self.inner.rows_of_unknown_writers().await
    }

    async fn list_rows(
        &self,
        filter: &AuditFilter,
        after: &AuditCursor,
        limit: u32,
    ) -> Result<Vec<AuditRow>, StoreError> {
        self.inner.list_rows(filter, after, limit).await
    }

    async fn prunable(
        &self,
        writer: &WriterId,
        before: UnixMillis,
        now_s: i64,
    ) -> Result<Option<(u64, Chain)>, StoreError> {
        self.inner.prunable(writer, before, now_s).await
    }

    async fn remove_rows(&self, writer: &WriterId, upto: u64, limit: u32) -> Result<u64, StoreError> {
        self.inner.remove_rows(writer, upto, limit).await
    }

    async fn confirm(&self) -> Result<(), StoreError> {
        self.inner.confirm().await
    }

    /// As if every notification were lost.
    async fn hint(&self) {
        std::future::pending().await
    }

    async fn hazards(&self, now: UnixMillis) -> Result<Vec<Hazard>, StoreError> {
        self.inner.hazards(now).await
    }

    async fn report(&self, replica: &Replica, forget: UnixMillis) -> Result<(), StoreError> {
        self.inner.report(replica, forget).await
    }

    async fn add_shadows(&self, counts: &[ShadowCount], forget: UnixMillis) -> Result<(), StoreError> {
        self.inner.add_shadows(counts, forget).await
    }

    async fn shadows(&self, of: &[String], limit: u32) -> Result<Vec<ShadowCount>, StoreError> {
        self.inner.shadows(of, limit).await
    }

    async fn forget_shadows(&self, of: &[String]) -> Result<(), StoreError> {
        self.inner.forget_shadows(of).await
    }

    fn connections(&self) -> (u32, u32) {
        self.inner.connections()
    }

    async fn live_counts(&self, now_s: i64) -> Result<Vec<LiveCount>, StoreError> {
        self.inner.live_counts(now_s).await
    }

    async fn quotas_used(&self) -> Result<Vec<(String, u32)>, StoreError> {
        self.inner.quotas_used().await
    }

    async fn begin_canary(&self, every_ms: i64) -> Result<bool, StoreError> {
        self.inner.begin_canary(every_ms).await
    }

    async fn end_canary(&self) -> Result<(), StoreError> {
        self.inner.end_canary().await
    }

    async fn canary_succeeded(&self) -> Result<Option<UnixMillis>, StoreError> {
        self.inner.canary_succeeded().await
    }

    async fn report_refusal(&self, replica: &str, revision: Revision) -> Result<(), StoreError> {
        self.inner.report_refusal(replica, revision).await
    }

    async fn canary_refusals(&self) -> Result<Vec<(String, Revision)>, StoreError> {
        self.inner.canary_refusals().await
    }

    async fn forget_quotas(&self) -> Result<(), StoreError> {
        self.inner.forget_quotas().await
    }

    async fn replicas(&self) -> Result<Vec<Replica>, StoreError> {
        self.inner.replicas().await
    }

    async fn handouts(
        &self,
        token: &TokenId,
        from: UnixMillis,
        until: UnixMillis,
        limit: u32,
    ) -> Result<Vec<AuditRow>, StoreError> {
        self.inner.handouts(token, from, until, limit).await
    }

    async fn exposure_totals(&self, under: &Under, before: Revision, now_s: i64) -> Result<ExposureTotals, StoreError> {
        self.inner.exposure_totals(under, before, now_s).await
    }

    async fn exposure_groups(
        &self,
        under: &Under,
        before: Revision,
        now_s: i64,
    ) -> Result<Vec<ExposureGroup>, StoreError> {
        self.inner.exposure_groups(under, before, now_s).await
    }

    async fn exposure(
        &self,
        under: &Under,
        before: Revision,
        now_s: i64,
        after: &ExposureCursor,
        limit: u32,
    ) -> Result<Vec<LiveToken>, StoreError> {
        self.inner.exposure(under, before, now_s, after, limit).await
    }
}

fn all_of(ask: &QuotaAsk) -> QuotaLeft {
    QuotaLeft {
        policy: ask.policy.clone(),
        client: ask.client.clone(),
        tokens: ask.tokens,
        fresh: ask.fresh,
        hour_ends_ms: 1000,
        minute_ends_ms: 1000,
    }
}

/// A store on which others use up every quota in the very moment.
pub fn contended() -> Wrap {
    Box::new(|inner| Arc::new(Faulty { inner, switch: Switch(Arc::new(AtomicU8::new(CONTENDED))) }))
}

/// A store that works, but never hears of what other replicas do.
pub fn deaf() -> Wrap {
    Box::new(|inner| Arc::new(Faulty { inner, switch: Switch::default() }))
}

async fn faulty() -> (Broker, Switch) {
    let switch = Switch::default();
    let inside = switch.clone();
    let wrap: Wrap = Box::new(move |inner| Arc::new(Faulty { inner, switch: inside }));
    (Broker::with(Options { wrap: Some(wrap), ..Options::default() }).await, switch)
}

#[tokio::test]
async fn p4_without_its_row_no_token_leaves() {
    let (mut broker, switch) = faulty().await;
    let (mut client, mut operator) = (broker.as_(CLIENT).await, broker.as_(OPERATOR).await);
    let before = client.issue(ask()).await.unwrap();
    for fault in [FAILS, LIES] {
        switch.0.store(fault, Ordering::SeqCst);
        for request in [ask_fresh(), ask()] {
            assert_eq!(refused(client.issue(request).await), (Code::Unavailable, "AUDIT_UNAVAILABLE".to_owned()));
        }
        switch.0.store(WORKS, Ordering::SeqCst);
        // It goes on by itself, with a new writer whose chain is whole.
        client.issue(ask_fresh()).await.unwrap();
        assert!(operator.verify().await.findings.is_empty());
    }
    assert!(operator.all_events().await.iter().any(|event| event.token_id == before.token_id));
    // Those have no row, and are counted all the same.
    let (_, text) = broker.ops("/metrics").await;
    assert!(text.contains("p8broker_denials_total{reason=\"AUDIT_UNAVAILABLE\"} 4\n"), "{text}");
    assert!(text.contains("p8broker_denials_total{reason=\"NO_POLICY\"} 0\n"), "those known are there from the start");
    broker.restart().await;
    let mut operator = broker.as_(OPERATOR).await;
    assert!(operator.verify().await.findings.is_empty());
    broker.stop().await;
}

#[tokio::test]
async fn a_change_of_unknown_outcome_is_found_out() {
    let (mut broker, switch) = faulty().await;
    let (mut client, mut operator) = (broker.as_(CLIENT).await, broker.as_(OPERATOR).await);
    switch.0.store(FAILS, Ordering::SeqCst);
    let revoked = operator.revoke(proto::TargetKind::Client, CLIENT).await;
    assert_eq!(refused(revoked), (Code::Unavailable, "AUDIT_UNAVAILABLE".to_owned()));
    switch.0.store(WORKS, Ordering::SeqCst);
    client.issue(ask()).await.unwrap();
    // Committed, but the acknowledgement was lost: the log says that it happened, so the revoke stands and says so.
    switch.0.store(LIES, Ordering::SeqCst);
    let revoked = operator.revoke(proto::TargetKind::Client, CLIENT).await.unwrap();
    assert_eq!(revoked.count, 1);
    switch.0.store(WORKS, Ordering::SeqCst);
    assert_eq!(refused(client.issue(ask()).await).1, "CLIENT_REVOKED");
    assert!(operator.verify().await.findings.is_empty());
    broker.stop().await;
}
