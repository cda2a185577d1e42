//! A store between a replica and the database that does what networks and machines do: it is slow, fails before or after
//! the commit, carries out what it said had failed, loses notifications, and stops in the middle.
//!
//! What goes wrong is drawn from the seed; while all is calm, nothing does.
//!
//! Over 400 lines, as each operation of a store fails in its own ways.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use p8broker::clock::UnixMillis;
use p8broker::domain::audit::{AuditFilter, AuditRow, LiveToken};
use p8broker::id::{Chain, Head, Revision, TokenId, WriterId};
use p8broker::store::part::Snapshot;
use p8broker::store::{
    Append, AuditBatch, AuditCursor, ExposureCursor, ExposureGroup, ExposureTotals, Fenced, Hazard, LiveCount, Parts,
    Replica, SealedKey, ShadowCount, Store, StoreError, StoredEnd, Under,
};
use p8broker::vault::log::SealedRecord;
use p8broker::vault::unseal::SealRow;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::chaos::Random;

/// How long a pause lasts where the others do nothing meanwhile.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// What becomes of a write, in per mille; the rest works.
const FATES: [(u64, Fate); 6] = [
    (40, Fate::Slow),
    (6, Fate::Fails),
    (6, Fate::Lost),
    (5, Fate::Late),
    (8, Fate::PausedBefore),
    (8, Fate::PausedAfter),
];

/// Reads that fail, and reads that are slow, in per mille.
const FAILED_READS: u64 = 3;
const SLOW_READS: u64 = 20;

#[derive(Clone, Copy)]
pub enum Fate {
    Works,
    Slow,
    /// Nothing is written.
    Fails,
    /// Everything is written, and the answer is lost.
    Lost,
    /// The caller hears that it failed; it happens later, if it still can.
    Late,
    /// The replica stands still between deciding and committing, while the others go on.
    PausedBefore,
    /// The same between the commit and the answer.
    PausedAfter,
}

/// What all replicas of a fleet share.
pub struct Weather {
    moment: watch::Sender<Moment>,
    /// Writes that were said to have failed, and are still on their way.
    late: TaskTracker,
    /// One for each replica: another one may have changed something.
    hints: Vec<Notify>,
}

#[derive(Clone, Copy)]
struct Moment {
    /// Operations that were begun: what a pause is measured in.
    begun: u64,
    calm: bool,
}

impl Weather {
    pub fn calm(replicas: usize) -> Self {
        Self {
            moment: watch::Sender::new(Moment { begun: 0, calm: true }),
            late: TaskTracker::new(),
            hints: (0..replicas).map(|_| Notify::new()).collect(),
        }
    }

    pub fn begin(&self) {
        self.moment.send_modify(|moment| moment.begun += 1);
    }

    /// From now on things go wrong.
    pub fn turn(&self) {
        self.moment.send_modify(|moment| moment.calm = false);
    }

    /// From now on nothing does; pauses end, and what was on its way has arrived.
    pub async fn settle(&self) {
        self.moment.send_modify(|moment| moment.calm = true);
        self.late.close();
        self.late.wait().await;
        self.late.reopen();
    }

    fn is_calm(&self) -> bool {
        self.moment.borrow().calm
    }

    /// Waits until so many more operations were begun, or it is calm; not for ever, as all of them may wait for this one.
    pub async fn others(&self, operations: u64) {
        let mut moment = self.moment.subscribe();
        let wanted = moment.borrow_and_update().begun + operations;
        let _ = timeout(LONGEST_PAUSE, moment.wait_for(|moment| moment.calm || moment.begun >= wanted)).await;
    }
}

/// Whose store is closed when its broker stops, and who tells of changes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// One store, shared by all replicas.
    Shared,
    /// Each replica has its own.
    Own,
}

/// Calls that are held up until a test lets them pass, one by one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Held {
    Writes,
    Heads,
}

pub struct Gate {
    held: Held,
    arrived: Semaphore,
    open: Semaphore,
}

impl Gate {
    /// Waits until a call stands at the gate.
    pub async fn arrival(&self) {
        self.arrived.acquire().await.unwrap().forget();
    }

    pub fn pass(&self, calls: usize) {
        self.open.add_permits(calls);
    }

    async fn enter(&self) {
        self.arrived.add_permits(1);
        self.open.acquire().await.unwrap().forget();
    }
}

/// One replica's way to the database.
pub struct Faulty {
    inner: Arc<dyn Store>,
    engine: Engine,
    nth: usize,
    weather: Arc<Weather>,
    random: Mutex<Random>,
    /// The process is gone: whatever is left of it reaches nothing any more.
    killed: AtomicBool,
    /// What a test says of the next write, whatever the weather.
    next: Mutex<Option<Fate>>,
    gate: Mutex<Option<Arc<Gate>>>,
    deaf: AtomicBool,
}

impl Faulty {
    pub fn new(inner: Arc<dyn Store>, engine: Engine, nth: usize, weather: Arc<Weather>, random: Random) -> Self {
        Self {
            inner,
            engine,
            nth,
            weather,
            random: Mutex::new(random),
            killed: AtomicBool::default(),
            next: Mutex::default(),
            gate: Mutex::default(),
            deaf: AtomicBool::default(),
        }
    }

    pub fn next_write(&self, fate: Fate) {
        *self.next.lock().unwrap() = Some(fate);
    }

    /// From now on no notification arrives.
    pub fn deafen(&self) {
        self.deaf.store(true, Ordering::SeqCst);
    }

    pub fn hold(&self, held: Held) -> Arc<Gate> {
        let gate = Arc::new(Gate { held, arrived: Semaphore::new(0), open: Semaphore::new(0) });
        *self.gate.lock().unwrap() = Some(Arc::clone(&gate));
        gate
    }

    async fn at_gate(&self, call: Held) {
        let gate = self.gate.lock().unwrap().clone();
        if let Some(gate) = gate.filter(|gate| gate.held == call) {
            gate.enter().await;
        }
    }

    pub fn kill(&self) {
        self.killed.store(true, Ordering::SeqCst);
    }

    fn draw(&self, below: u64) -> u64 {
        self.random.lock().unwrap().below(below)
    }

    fn is_there(&self) -> Result<(), StoreError> {
        if self.killed.load(Ordering::SeqCst) { Err(away("killed")) } else { Ok(()) }
    }

    fn fate(&self) -> Fate {
        if let Some(fate) = self.next.lock().unwrap().take() {
            return fate;
        }
        if self.weather.is_calm() {
            return Fate::Works;
        }
        let mut drawn = self.draw(1000);
        for (share, fate) in FATES {
            if drawn < share {
                return fate;
            }
            drawn -= share;
        }
        Fate::Works
    }

    async fn write(
        &self,
        work: impl Future<Output = Result<Fenced, StoreError>> + Send + 'static,
    ) -> Result<Fenced, StoreError> {
        self.is_there()?;
        self.at_gate(Held::Writes).await;
        let done = match self.fate() {
            Fate::Works => work.await,
            Fate::Slow => {
                let (before, after) = (self.draw(3), self.draw(3));
                self.weather.others(before).await;
                let done = work.await;
                self.weather.others(after).await;
                done
            }
            Fate::Fails => Err(away("failed before the commit")),
            Fate::Lost => work.await.and(Err(away("the answer was lost"))),
            Fate::Late => {
                let (weather, operations) = (Arc::clone(&self.weather), self.draw(40));
                self.weather.late.spawn(async move {
                    weather.others(operations).await;
                    // Nobody waits for it any more.
                    let _ = work.await;
                });
                Err(away("no answer in time"))
            }
            Fate::PausedBefore => {
                self.weather.others(self.draw(40)).await;
                self.is_there()?;
                work.await
            }
            Fate::PausedAfter => {
                let done = work.await;
                self.weather.others(self.draw(40)).await;
                done
            }
        };
        self.is_there()?;
        done
    }

    async fn read<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        self.is_there()?;
        if !self.weather.is_calm() {
            let drawn = self.draw(1000);
            if drawn < FAILED_READS {
                return Err(away("a read failed"));
            }
            if drawn < FAILED_READS + SLOW_READS {
                self.weather.others(self.draw(5)).await;
            }
        }
        let done = work.await;
        self.is_there()?;
        done
    }
}

fn away(why: &str) -> StoreError {
    StoreError::Unavailable(format!("injected: {why}"))
}

#[async_trait]
impl Store for Faulty {
    async fn seal_row(&self) -> Result<Option<SealRow>, StoreError> {
        self.read(self.inner.seal_row()).await
    }

    async fn head(&self) -> Result<Head, StoreError> {
        self.at_gate(Held::Heads).await;
        self.read(self.inner.head()).await
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
        let (inner, batch) = (Arc::clone(&self.inner), batch.clone());
        self.write(async move { inner.commit_rows(decided_at, &batch).await }).await
    }

    async fn append(&self, append: &Append) -> Result<Fenced, StoreError> {
        let (inner, append) = (Arc::clone(&self.inner), append.clone());
        let (weather, nth) = (Arc::clone(&self.weather), self.nth);
        self.write(async move {
            let done = inner.append(&append).await;
            weather.hints.iter().enumerate().filter(|(other, _)| *other != nth).for_each(|(_, hint)| hint.notify_one());
            done
        })
        .await
    }

    async fn confirm(&self) -> Result<(), StoreError> {
        self.read(self.inner.confirm()).await
    }

    async fn hint(&self) {
        loop {
            match self.engine {
                Engine::Shared => self.weather.hints[self.nth].notified().await,
                Engine::Own => self.inner.hint().await,
            }
            match self.draw(4) {
                _ if self.deaf.load(Ordering::SeqCst) => {}
                _ if self.weather.is_calm() => return,
                // Lost.
                0 => {}
                1 => {
                    self.weather.others(self.draw(20)).await;
                    return;
                }
                _ => return,
            }
        }
    }

    async fn hazards(&self, now: UnixMillis) -> Result<Vec<Hazard>, StoreError> {
        self.read(self.inner.hazards(now)).await
    }

    async fn report(&self, replica: &Replica, forget: UnixMillis) -> Result<(), StoreError> {
        self.read(self.inner.report(replica, forget)).await
    }

    async fn add_shadows(&self, counts: &[ShadowCount], forget: UnixMillis) -> Result<(), StoreError> {
        self.read(self.inner.add_shadows(counts, forget)).await
    }

    async fn shadows(&self, of: &[String], limit: u32) -> Result<Vec<ShadowCount>, StoreError> {
        self.read(self.inner.shadows(of, limit)).await
    }

    async fn forget_shadows(&self, of: &[String]) -> Result<(), StoreError> {
        self.read(self.inner.forget_shadows(of)).await
    }

    fn connections(&self) -> (u32, u32) {
        self.inner.connections()
    }

    async fn live_counts(&self, now_s: i64) -> Result<Vec<LiveCount>, StoreError> {
        self.read(self.inner.live_counts(now_s)).await
    }

    async fn quotas_used(&self) -> Result<Vec<(String, u32)>, StoreError> {
        self.read(self.inner.quotas_used()).await
    }

    async fn begin_canary(&self, every_ms: i64) -> Result<bool, StoreError> {
        self.read(self.inner.begin_canary(every_ms)).await
    }

    async fn end_canary(&self) -> Result<(), StoreError> {
        self.read(self.inner.end_canary()).await
    }

    async fn canary_succeeded(&self) -> Result<Option<UnixMillis>, StoreError> {
        self.read(self.inner.canary_succeeded()).await
    }

    async fn report_refusal(&self, replica: &str, revision: Revision) -> Result<(), StoreError> {
        self.read(self.inner.report_refusal(replica, revision)).await
    }

    async fn canary_refusals(&self) -> Result<Vec<(String, Revision)>, StoreError> {
        self.read(self.inner.canary_refusals()).await
    }

    async fn forget_quotas(&self) -> Result<(), StoreError> {
        self.read(self.inner.forget_quotas()).await
    }

    async fn replicas(&self) -> Result<Vec<Replica>, StoreError> {
        self.read(self.inner.replicas()).await
    }

    async fn scrub(&self) -> Result<(), StoreError> {
        self.read(self.inner.scrub()).await
    }

    async fn close(&self) {
        if self.engine == Engine::Own {
            self.inner.close().await;
        }
    }

    async fn newest_checkpoint(&self) -> Result<Revision, StoreError> {
        self.read(self.inner.newest_checkpoint()).await
    }

    async fn checkpoint_before(&self, revision: Revision) -> Result<Revision, StoreError> {
        self.read(self.inner.checkpoint_before(revision)).await
    }

    async fn records_from(&self, from: Revision, limit: u32) -> Result<Vec<SealedRecord>, StoreError> {
        self.read(self.inner.records_from(from, limit)).await
    }

    async fn sealed_keys(&self) -> Result<Vec<SealedKey>, StoreError> {
        self.read(self.inner.sealed_keys()).await
    }

    async fn writer_ends(&self) -> Result<Vec<StoredEnd>, StoreError> {
        self.read(self.inner.writer_ends()).await
    }

    async fn rows_of_writer(&self, writer: &WriterId, after: u64, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        self.read(self.inner.rows_of_writer(writer, after, limit)).await
    }

    async fn rows_of_unknown_writers(&self) -> Result<u64, StoreError> {
        self.read(self.inner.rows_of_unknown_writers()).await
    }

    async fn list_rows(
        &self,
        filter: &AuditFilter,
        after: &AuditCursor,
        limit: u32,
    ) -> Result<Vec<AuditRow>, StoreError> {
        self.read(self.inner.list_rows(filter, after, limit)).await
    }

    async fn prunable(
        &self,
        writer: &WriterId,
        before: UnixMillis,
        now_s: i64,
    ) -> Result<Option<(u64, Chain)>, StoreError> {
        self.read(self.inner.prunable(writer, before, now_s)).await
    }

    async fn remove_rows(&self, writer: &WriterId, upto: u64, limit: u32) -> Result<u64, StoreError> {
        self.read(self.inner.remove_rows(writer, upto, limit)).await
    }

    async fn handouts(
        &self,
        token: &TokenId,
        from: UnixMillis,
        until: UnixMillis,
        limit: u32,
    ) -> Result<Vec<AuditRow>, StoreError> {
        self.read(self.inner.handouts(token, from, until, limit)).await
    }

    async fn exposure_totals(&self, under: &Under, before: Revision, now_s: i64) -> Result<ExposureTotals, StoreError> {
        self.read(self.inner.exposure_totals(under, before, now_s)).await
    }

    async fn exposure_groups(
        &self,
        under: &Under,
        before: Revision,
        now_s: i64,
    ) -> Result<Vec<ExposureGroup>, StoreError> {
        self.read(self.inner.exposure_groups(under, before, now_s)).await
    }

    async fn exposure(
        &self,
        under: &Under,
        before: Revision,
        now_s: i64,
        after: &ExposureCursor,
        limit: u32,
    ) -> Result<Vec<LiveToken>, StoreError> {
        self.read(self.inner.exposure(under, before, now_s, after, limit)).await
    }
}
