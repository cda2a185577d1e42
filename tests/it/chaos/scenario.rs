//! What breaks, and what must hold after it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use p8broker::grpc::proto::{self, TargetKind};
use tokio::time::{Instant, sleep};
use tonic::Code;

use super::cluster::{Cluster, REPLICAS, clients};
use super::law;
use super::load::{Load, Record};
use super::postgres::{Postgres, Stop};
use super::proxy::{Cut, Keep};
use super::{Random, free_port};
use crate::harness::*;

/// How long a revoke may take while the database is there, whatever is wrong with another replica: a second before it ends
/// the backends that block it, and as much again for the blocked ones that are in line before it.
pub const REVOKE_LIMIT: Duration = Duration::from_secs(3);

/// How long a client may be without an answer beyond the time that the database was away. Replicas come back by a backoff
/// that grows to a second or two, a revoke that finds the lock taken holds everybody up for one, and three replicas, the
/// database and the load share two slow cores.
const RECONNECT: Duration = Duration::from_secs(5);

/// How often a fault comes in one scenario.
const FAULTS: usize = 4;

/// The name of a standby.
const STANDBY: &str = "second";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// A replica is killed and started again.
    Kill,
    /// A replica is stopped anywhere, and goes on after revokes it knows nothing of.
    Pause,
    /// Notifications are lost, and the connections for them.
    Deaf,
    /// Nothing passes between a replica and the database.
    Stall,
    /// The same, from the middle of a statement on.
    Cut,
    /// The database stops as in a power cut, and comes back.
    Restart,
    /// The database is lost, and its synchronous standby takes over.
    Failover,
    /// The database is lost, and a standby takes over that missed a revoke.
    Lost,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Totals {
    pub operations: u64,
    pub revokes: u64,
    /// Tokens that were decided before a revoke of them, and arrived after it returned.
    pub crossings: usize,
    pub violations: Vec<String>,
}

impl Totals {
    pub fn add(&mut self, other: Self) {
        self.operations += other.operations;
        self.revokes += other.revokes;
        self.crossings += other.crossings;
        self.violations.extend(other.violations);
    }
}

impl Scenario {
    pub const ALL: [Self; 8] =
        [Self::Kill, Self::Pause, Self::Deaf, Self::Stall, Self::Cut, Self::Restart, Self::Failover, Self::Lost];

    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Deaf => "deaf",
            Self::Stall => "stall",
            Self::Cut => "cut",
            Self::Restart => "restart",
            Self::Failover => "failover",
            Self::Lost => "lost",
        }
    }

    pub async fn run(self, random: Random) -> Totals {
        let mut stage = Stage::set(random).await;
        match self {
            Self::Kill => stage.kill().await,
            Self::Pause => stage.pause().await,
            Self::Deaf => stage.deafen().await,
            Self::Stall => stage.stall().await,
            Self::Cut => stage.cut().await,
            Self::Restart => stage.restart().await,
            Self::Failover => stage.fail_over().await,
            Self::Lost => stage.lose_history().await,
        }
        stage.finish(self).await
    }

    /// Whether the database is away in it: then a revoke waits for it.
    fn loses_the_database(self) -> bool {
        matches!(self, Self::Restart | Self::Failover | Self::Lost)
    }
}

struct Stage {
    cluster: Cluster,
    record: Arc<Record>,
    load: Option<Load>,
    random: Random,
    /// The longest that the database was away.
    away: Duration,
}

impl Stage {
    /// Everything runs, and revokes return.
    async fn set(mut random: Random) -> Self {
        let cluster = Cluster::start(&mut random).await;
        let mut stage = Self { cluster, record: Arc::new(Record::new()), load: None, random, away: Duration::ZERO };
        stage.busy().await;
        stage
    }

    async fn busy(&mut self) {
        self.load = Some(Load::start(&mut self.cluster, &self.record, &mut self.random).await);
        self.record.more_revokes(2).await;
    }

    async fn quiet(&mut self) {
        self.load.take().expect("there is load").stop().await;
    }

    /// Somewhere in a revoke and the asks that race with it.
    async fn within_a_revoke(&mut self) {
        self.record.next_revoke().await;
        sleep(Duration::from_millis(self.random.below(25))).await;
    }

    /// Each replica in its turn.
    fn victim(fault: usize) -> usize {
        fault % REPLICAS
    }

    async fn kill(&mut self) {
        for victim in (0..FAULTS).map(Self::victim) {
            self.within_a_revoke().await;
            self.cluster.replicas[victim].kill();
            self.record.more_revokes(2).await;
            self.cluster.replicas[victim].run();
            self.cluster.well(victim).await;
        }
    }

    async fn pause(&mut self) {
        for victim in (0..2 * FAULTS).map(Self::victim) {
            self.within_a_revoke().await;
            self.cluster.replicas[victim].pause();
            self.record.more_revokes(2).await;
            self.cluster.replicas[victim].go_on();
            self.cluster.well(victim).await;
        }
    }

    async fn deafen(&mut self) {
        for _ in 0..FAULTS {
            self.within_a_revoke().await;
            self.cluster.replicas.iter().for_each(|replica| replica.proxy.cut_listeners());
            self.record.more_revokes(1).await;
        }
        // With nobody to tell them, replicas follow all the same.
        self.cluster.replicas.iter().for_each(|replica| replica.proxy.set_deaf(true));
        self.record.more_revokes(2).await;
        let revision = self.cluster.status(0).await.revision;
        for nth in 0..REPLICAS {
            self.cluster.reaches(nth, revision).await;
        }
        self.cluster.replicas.iter().for_each(|replica| replica.proxy.set_deaf(false));
        eventually("every replica listens again", async || {
            self.cluster.replicas.iter().all(|replica| replica.proxy.listeners() > 0)
        })
        .await;
    }

    async fn stall(&mut self) {
        for victim in (0..FAULTS).map(Self::victim) {
            self.within_a_revoke().await;
            let replica = &self.cluster.replicas[victim];
            replica.sick.send_replace(true);
            replica.proxy.stall();
            self.record.more_revokes(3).await;
            self.cluster.replicas[victim].proxy.resume();
            self.cluster.well(victim).await;
        }
    }

    async fn cut(&mut self) {
        for fault in 0..2 * FAULTS {
            let keep = if fault.is_multiple_of(2) { Keep::AllButTheLastByte } else { Keep::Half };
            // Small enough for a change or an audit row, too large for what only reads.
            let cut = Cut { at_least: *self.random.pick(&[300, 500]), keep };
            let victim = Self::victim(fault);
            self.within_a_revoke().await;
            let replica = &self.cluster.replicas[victim];
            replica.sick.send_replace(true);
            replica.proxy.stall_within(cut);
            eventually("a statement is cut", async || replica.proxy.is_stalled()).await;
            self.record.more_revokes(2).await;
            self.cluster.replicas[victim].proxy.resume();
            self.cluster.well(victim).await;
        }
    }

    async fn restart(&mut self) {
        for _ in 0..FAULTS / 2 {
            self.within_a_revoke().await;
            let gone = self.lose_the_database().await;
            self.cluster.postgres.start().await;
            self.have_a_database(gone).await;
            self.record.more_revokes(2).await;
        }
    }

    async fn fail_over(&mut self) {
        let standby = self.standby().await;
        standby.start().await;
        self.cluster.postgres.wait_for(Some(STANDBY)).await;
        self.record.more_revokes(3).await;
        self.within_a_revoke().await;
        // The old primary is fenced off: it is stopped, no replica is led to it, and it is never started again.
        let gone = self.lose_the_database().await;
        standby.promote().await;
        self.cluster.move_to(standby);
        self.have_a_database(gone).await;
        self.record.more_revokes(3).await;
    }

    /// What is lost here is one revoke and nothing else, so that the law can be asked of all the rest: the load rests
    /// meanwhile, and everything from before has reached the standby.
    async fn lose_history(&mut self) {
        let standby = self.standby().await;
        standby.start().await;
        self.cluster.postgres.wait_for(Some(STANDBY)).await;
        self.record.more_revokes(2).await;
        self.quiet().await;
        self.cluster.postgres.wait_for(None).await;
        standby.stop(Stop::Immediate).await;
        let (client, team) = clients().swap_remove(0);
        let lost = self.cluster.operator(0).await.revoke(TargetKind::Client, &client).await.unwrap().revision;
        for nth in 0..REPLICAS {
            self.cluster.reaches(nth, lost).await;
        }
        let gone = self.lose_the_database().await;
        standby.start().await;
        standby.promote().await;
        self.cluster.move_to(standby);
        let ask = proto::IssueTokenRequest { app_group: team.to_owned(), ..ask_fresh() };
        let mut missing = Vec::new();
        for nth in 0..REPLICAS {
            let mut asking = self.cluster.connect(nth, &client).await;
            eventually("a database that went back in time is refused", async || {
                let answer = asking.issue(ask.clone()).await;
                assert!(answer.is_err(), "a token of a history that lost its revoke");
                refused(answer) == (Code::Unavailable, "REFUSING_TO_SERVE".to_owned())
            })
            .await;
            let status = self.cluster.status(nth).await;
            assert_eq!(status.phase(), proto::Phase::Refusing, "{}", status.why);
            let history = status.lost_history.expect("it says what was lost");
            assert!(history.database_revision < lost && lost <= history.seen_revision, "{history:?}, lost {lost}");
            missing.push((history.seen_revision, nth, history.database_revision));
        }
        // Whoever saw the most is asked, so that accepting it is enough for all.
        let (seen_revision, nth, database_revision) = missing.into_iter().max().unwrap();
        let reason = "the standby was behind".to_owned();
        let accept = proto::AcceptHistoryRequest { database_revision, seen_revision, reason };
        let mut operator = self.cluster.operator(nth).await;
        let wrong = proto::AcceptHistoryRequest { seen_revision: seen_revision + 1, ..accept.clone() };
        assert_eq!(refused(operator.system.accept_history(wrong).await).1, "HISTORY_MOVED");
        let accepted = operator.system.accept_history(accept).await.unwrap().into_inner();
        assert!(accepted.revision > database_revision);
        self.have_a_database(gone).await;
        // The revoke is gone with the history that had it, as the operator was told.
        for nth in 0..REPLICAS {
            self.cluster.connect(nth, &client).await.issue(ask.clone()).await.unwrap();
        }
        self.busy().await;
        self.record.more_revokes(2).await;
    }

    async fn standby(&mut self) -> Postgres {
        let (folder, port) = (self.cluster.folder("standby"), free_port(&mut self.random));
        self.cluster.postgres.standby(&folder, port, STANDBY).await
    }

    async fn lose_the_database(&mut self) -> Instant {
        for replica in &self.cluster.replicas {
            replica.sick.send_replace(true);
        }
        let gone = Instant::now();
        self.cluster.postgres.stop(Stop::Immediate).await;
        gone
    }

    async fn have_a_database(&mut self, gone: Instant) {
        self.away = self.away.max(gone.elapsed());
        for nth in 0..REPLICAS {
            self.cluster.well(nth).await;
        }
    }

    async fn finish(mut self, scenario: Scenario) -> Totals {
        for nth in 0..REPLICAS {
            self.cluster.well(nth).await;
        }
        self.quiet().await;
        let record = Arc::clone(&self.record);
        let unexpected = record.unexpected.lock().unwrap().clone();
        assert!(unexpected.is_empty(), "{unexpected:?}");
        let (gap, slowest) = (record.longest_gap(), *record.slowest_revoke.lock().unwrap());
        println!("  database away {:?}, longest without an answer {gap:?}, slowest revoke {slowest:?}", self.away);
        assert!(gap <= self.away + RECONNECT, "a client was without an answer for {gap:?}");
        if !scenario.loses_the_database() {
            let failed = record.failed_revokes.lock().unwrap().clone();
            assert!(failed.is_empty(), "revokes failed through replicas that nothing was wrong with: {failed:?}");
            assert!(slowest <= REVOKE_LIMIT, "a revoke took {slowest:?}");
        }

        let mut operator = self.cluster.operator(0).await;
        let findings = operator.verify().await.findings;
        assert!(findings.is_empty(), "{findings:?}");
        let written: std::collections::HashSet<String> = operator
            .all_events()
            .await
            .into_iter()
            .filter(|event| matches!(event.outcome(), proto::Outcome::Signed | proto::Outcome::Reused))
            .map(|event| event.token_id)
            .collect();
        let received = record.received();
        let missing: Vec<_> = received.difference(&written).collect();
        assert!(missing.is_empty(), "{} tokens were received and are not in the audit: {missing:?}", missing.len());
        assert!(received.len() > 60, "the load has to be one: {} tokens", received.len());
        drop(operator);
        self.cluster.stop().await;
        let history = record.history.lock().unwrap();
        let crossings = law::crossings(&history);
        println!("  {} tokens, {crossings} times one crossed a revoke", received.len());
        Totals {
            operations: record.operations.load(Ordering::SeqCst),
            revokes: *record.revokes.borrow(),
            crossings,
            violations: law::violations(&history),
        }
    }
}
