//! Clients that ask without pause, and a revoker that revokes what they ask under, both through every replica.
//!
//! A token that is to catch a broken fence must be decided before a revoke and arrive after it. So the clients that a
//! revoke is about ask for fresh tokens, several at a time, at the very moment that it begins; in between they ask slowly,
//! to see that they have an answer. The widest target then has few enough live tokens for the answer of the revoke alone to
//! be its exposure, nearly always: a page that is read later would show what was committed too late as well.
//!
//! Over 400 lines, as clients, revoker and the count of what they saw share one state.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use p8broker::client::Target;
use p8broker::clock::{Clock, SystemClock};
use p8broker::grpc::proto::{self, TargetKind};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::Random;
use super::cluster::{Cluster, REPLICAS, Sick, TEAMS, clients, policy_of};
use super::law::{Event, Revoke, Token};
use crate::harness::*;

/// The shortest life there is: exposures stay short.
const TOKEN_LIFE_S: i64 = 30;

/// How often a client asks while nothing happens.
const PACE: Duration = Duration::from_millis(100);

/// Fresh tokens that a client asks each replica for, together, when a revoke of it begins.
const BURST: usize = 4;

/// How long a client waits for an answer. Longer than any fault: what a paused replica answers in the end must be seen.
const ANSWER: Duration = Duration::from_secs(60);

/// How long the revoker waits for a replica that may be sick, before it asks another one.
const SICK_ANSWER: Duration = Duration::from_secs(1);

/// How long it waits for a healthy one. More than it may take: that it took too long is measured, not cut off.
const HEALTHY_ANSWER: Duration = Duration::from_secs(10);

/// More pages than any exposure here has.
const MOST_PAGES: usize = 100;

/// Between a failure and the next try.
const AGAIN: Duration = Duration::from_millis(20);

/// How long a change may take to get through at all, faults and repairs included.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happened, kept by everybody who takes part.
pub struct Record {
    pub history: Mutex<Vec<Event>>,
    pub operations: AtomicU64,
    /// Revokes that returned.
    pub revokes: watch::Sender<u64>,
    /// What is wrong in itself, whatever the faults.
    pub unexpected: Mutex<Vec<String>>,
    /// The longest that a revoke took through a replica that was healthy from its beginning to its end.
    pub slowest_revoke: Mutex<Duration>,
    /// Why revokes failed through such a replica.
    pub failed_revokes: Mutex<Vec<String>>,
    served: Vec<Mutex<Served>>,
    /// What is about to be revoked.
    next: watch::Sender<Option<proto::Target>>,
}

/// When one client last had an answer from the vault, by any replica: a token, or that it is revoked.
struct Served {
    last: Instant,
    longest: Duration,
}

impl Record {
    pub fn new() -> Self {
        let served = || Mutex::new(Served { last: Instant::now(), longest: Duration::ZERO });
        Self {
            history: Mutex::default(),
            operations: AtomicU64::default(),
            revokes: watch::Sender::default(),
            unexpected: Mutex::default(),
            slowest_revoke: Mutex::default(),
            failed_revokes: Mutex::default(),
            served: clients().iter().map(|_| served()).collect(),
            next: watch::Sender::default(),
        }
    }

    /// Waits until so many more revokes returned.
    pub async fn more_revokes(&self, count: u64) {
        let mut revokes = self.revokes.subscribe();
        let wanted = *revokes.borrow_and_update() + count;
        let returned = timeout(PATIENCE, revokes.wait_for(|now| *now >= wanted)).await;
        assert!(returned.is_ok(), "no revoke returned: {:?}", self.failed_revokes.lock().unwrap());
    }

    /// Waits until the next revoke is about to be sent.
    pub async fn next_revoke(&self) {
        let mut next = self.next.subscribe();
        assert!(timeout(PATIENCE, next.changed()).await.is_ok(), "nothing is revoked any more");
    }

    /// The longest that any client was without an answer.
    pub fn longest_gap(&self) -> Duration {
        self.served.iter().map(|served| served.lock().unwrap().longest).max().unwrap_or_default()
    }

    pub fn received(&self) -> HashSet<String> {
        let history = self.history.lock().unwrap();
        let id = |event: &Event| if let Event::Received(token) = event { Some(token.id.clone()) } else { None };
        history.iter().filter_map(id).collect()
    }

    fn note(&self, event: Event) {
        self.history.lock().unwrap().push(event);
    }

    fn serve(&self, who: usize) {
        let mut served = self.served[who].lock().unwrap();
        let now = Instant::now();
        served.longest = served.longest.max(now - served.last);
        served.last = now;
    }

    fn complain(&self, what: String) {
        self.unexpected.lock().unwrap().push(what);
    }
}

/// What runs until it is told to stop.
pub struct Load {
    stop: CancellationToken,
    tasks: JoinSet<()>,
    record: Arc<Record>,
}

impl Load {
    pub async fn start(cluster: &mut Cluster, record: &Arc<Record>, random: &mut Random) -> Self {
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        for (who, (client, team)) in clients().into_iter().enumerate() {
            record.served[who].lock().unwrap().last = Instant::now();
            for nth in 0..REPLICAS {
                let asker = Arc::new(Asker {
                    target: cluster.target(nth, &client),
                    name: client.clone(),
                    team,
                    scope: format!("{}{}", who + 1, nth + 1),
                    who,
                    record: Arc::clone(record),
                });
                tasks.spawn(asker.run(stop.clone()));
            }
        }
        let mut revoker = Revoker::new(cluster, record, random.fork()).await;
        let until = stop.clone();
        tasks.spawn(async move {
            while !until.is_cancelled() {
                revoker.round().await;
            }
        });
        Self { stop, tasks, record: Arc::clone(record) }
    }

    /// Stops, after every answer that is on its way has arrived.
    pub async fn stop(mut self) {
        // Who has no answer now was without one until now.
        for who in 0..self.record.served.len() {
            self.record.serve(who);
        }
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("no task failed");
        }
    }
}

/// One client at one replica.
struct Asker {
    target: Target,
    name: String,
    team: &'static str,
    /// A number of its own: every fresh token has other claims than any other token.
    scope: String,
    who: usize,
    record: Arc<Record>,
}

impl Asker {
    async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut next = self.record.next.subscribe();
        let (mut client, mut count) = (None, 0_u64);
        while !stop.is_cancelled() {
            if client.is_none() {
                client = self.target.connect().await.ok().map(Client::new);
            }
            if let Some(client) = &client {
                Arc::clone(&self).ask(client.clone(), None).await;
            }
            let targeted = tokio::select! {
                () = stop.cancelled() => false,
                // The record has the sender.
                _ = next.changed() => next.borrow_and_update().as_ref().is_some_and(|target| self.is_under(target)),
                () = sleep(PACE) => false,
            };
            if let Some(client) = client.as_ref().filter(|_| targeted) {
                let mut burst = JoinSet::new();
                for _ in 0..BURST {
                    count += 1;
                    burst.spawn(Arc::clone(&self).ask(client.clone(), Some(count)));
                }
                burst.join_all().await;
            }
        }
    }

    fn is_under(&self, target: &proto::Target) -> bool {
        [self.name.as_str(), &policy_of(self.team), self.team].contains(&target.name.as_str())
    }

    async fn ask(self: Arc<Self>, mut client: Client, fresh: Option<u64>) {
        let scope =
            vec![format!("GET /v1/builds/{}{}", self.scope, fresh.map_or_else(String::new, |nth| format!("{nth:06}")))];
        let request = proto::IssueTokenRequest {
            app_group: self.team.to_owned(),
            ttl: duration(TOKEN_LIFE_S),
            scope,
            fresh: fresh.is_some(),
            ..ask()
        };
        self.record.operations.fetch_add(1, Ordering::SeqCst);
        match timeout(ANSWER, client.issue(request)).await {
            Ok(Ok(issued)) => {
                self.record.note(Event::Received(Token {
                    id: issued.token_id,
                    client: self.name.clone(),
                    policy: issued.policy,
                    app_group: self.team.to_owned(),
                    revision: issued.revision,
                    expires_at: issued.expires_at.expect("a token has an end").seconds,
                }));
                self.record.serve(self.who);
            }
            Ok(Err(status)) if is_revoked(&status) => self.record.serve(self.who),
            Ok(Err(status)) if is_a_decision(&status) => {
                self.record.complain(format!("{} was told {status}", self.name))
            }
            // Something is broken, and it is asked again.
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

fn is_revoked(status: &Status) -> bool {
    status.code() == Code::PermissionDenied && reason(status).ends_with("_REVOKED")
}

/// Whether the vault said no, other than for want of something that is broken.
fn is_a_decision(status: &Status) -> bool {
    [Code::PermissionDenied, Code::InvalidArgument, Code::NotFound, Code::Unauthenticated, Code::ResourceExhausted]
        .contains(&status.code())
}

/// Revokes and reinstates, one target at a time.
struct Revoker {
    record: Arc<Record>,
    replicas: Vec<(Client, Sick)>,
    targets: Vec<proto::Target>,
    random: Random,
}

impl Revoker {
    async fn new(cluster: &mut Cluster, record: &Arc<Record>, random: Random) -> Self {
        let mut replicas = Vec::new();
        for nth in 0..REPLICAS {
            replicas.push((cluster.operator(nth).await, cluster.replicas[nth].sick.clone()));
        }
        let target = |kind: TargetKind, name: String| proto::Target { kind: kind.into(), name };
        let mut targets: Vec<_> = clients().into_iter().map(|(name, _)| target(TargetKind::Client, name)).collect();
        targets.extend(TEAMS.map(|team| target(TargetKind::Policy, policy_of(team))));
        targets.extend(TEAMS.map(|team| target(TargetKind::AppGroup, team.to_owned())));
        Self { record: Arc::clone(record), replicas, targets, random }
    }

    async fn round(&mut self) {
        let target = self.random.pick(&self.targets).clone();
        self.record.next.send_replace(Some(target.clone()));
        // The first asks of the burst are somewhere on their way when the revoke comes.
        self.pause(10).await;
        self.revoke(&target).await;
        // Answers that were on their way when it returned arrive now.
        self.pause(80).await;
        self.record.note(Event::Reinstating(target.clone()));
        self.reinstate(&target).await;
        // Everybody has tokens again when the next one comes.
        self.pause(120).await;
    }

    async fn pause(&mut self, most_ms: u64) {
        sleep(Duration::from_millis(self.random.below(most_ms))).await;
    }

    /// Repeats it until it returns: one that failed is in doubt, and repeating it is idempotent.
    async fn revoke(&mut self, target: &proto::Target) {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let (mut client, sick) = self.random.pick(&self.replicas).clone();
            self.record.operations.fetch_add(1, Ordering::SeqCst);
            let sent = Instant::now();
            let (answer, health) = unless_sick(&sick, client.revoke(target.kind(), &target.name)).await;
            if health == Health::Throughout {
                let mut slowest = self.record.slowest_revoke.lock().unwrap();
                *slowest = (*slowest).max(sent.elapsed());
                // One without a reason comes from a connection that was lost in an earlier fault.
                if let Some(Err(status)) =
                    answer.as_ref().filter(|it| it.as_ref().is_err_and(|it| !reason(it).is_empty()))
                {
                    self.record.failed_revokes.lock().unwrap().push(status.to_string());
                }
            }
            let Some(Ok(revocation)) = answer else {
                sleep(AGAIN).await;
                continue;
            };
            let (revision, at) = (revocation.revision, SystemClock.now().seconds());
            if let Some(exposure) = whole(&mut client, target, revocation).await {
                self.record.note(Event::Revoked(Revoke { target: target.clone(), revision, exposure, at }));
                self.record.revokes.send_modify(|revokes| *revokes += 1);
                return;
            }
        }
        panic!("a revoke of `{}` never returned: {:?}", target.name, self.record.failed_revokes.lock().unwrap());
    }

    /// Repeats it until it is done. Once one was in doubt, its target is never revoked again: a replica that is paused
    /// may still carry it out, and would lift the next revoke as nobody knows when.
    async fn reinstate(&mut self, target: &proto::Target) {
        let (began, mut in_doubt) = (Instant::now(), false);
        while began.elapsed() < PATIENCE {
            let healthy: Vec<_> = self.replicas.iter().filter(|(_, sick)| !*sick.borrow()).cloned().collect();
            if healthy.is_empty() {
                sleep(AGAIN).await;
                continue;
            }
            let (mut client, sick) = self.random.pick(&healthy).clone();
            let request = proto::ReinstateRequest { target: Some(target.clone()), reason: "next round".to_owned() };
            self.record.operations.fetch_add(1, Ordering::SeqCst);
            let revision = match unless_sick(&sick, client.revocation.reinstate(request)).await.0 {
                Some(Ok(done)) => Some(done.into_inner().revision),
                Some(Err(status)) if reason(&status) == "NOT_REVOKED" => {
                    if !in_doubt {
                        self.record.complain(format!("nobody reinstated `{}`, and it is not revoked", target.name));
                    }
                    None
                }
                Some(Err(_)) | None => {
                    in_doubt = true;
                    self.targets.retain(|it| it != target);
                    assert!(!self.targets.is_empty(), "every target has a reinstatement in doubt");
                    sleep(AGAIN).await;
                    continue;
                }
            };
            self.record.note(Event::Reinstated { target: target.clone(), revision });
            return;
        }
        panic!("`{}` is never reinstated", target.name);
    }
}

#[derive(PartialEq, Eq)]
enum Health {
    /// Nothing was wrong with the replica, from the question to the answer.
    Throughout,
    Sick,
}

/// An answer, or `None` where it takes too long for how the replica is.
async fn unless_sick<T>(sick: &Sick, answer: impl Future<Output = T>) -> (Option<T>, Health) {
    let mut now = sick.subscribe();
    let began = *now.borrow_and_update();
    let given_up = async {
        let _ = now.wait_for(|sick| *sick).await;
        sleep(SICK_ANSWER).await;
    };
    let answer = tokio::select! {
        answer = timeout(HEALTHY_ANSWER, answer) => answer.ok(),
        () = given_up => None,
    };
    let throughout = !began && !now.has_changed().unwrap_or(true) && !*now.borrow();
    (answer, if throughout { Health::Throughout } else { Health::Sick })
}

/// Every id of an exposure: those in the answer, and the rest in pages; `None` where a page fails.
async fn whole(client: &mut Client, target: &proto::Target, revocation: proto::Revocation) -> Option<HashSet<String>> {
    let complete = u64::try_from(revocation.exposure.len()).unwrap() == revocation.count;
    let mut out: HashSet<String> = revocation.exposure.into_iter().map(|token| token.token_id).collect();
    let mut page_token = String::new();
    if complete {
        return Some(out);
    }
    for _ in 0..MOST_PAGES {
        let request = proto::ExposureRequest { target: Some(target.clone()), page_token };
        let page = timeout(HEALTHY_ANSWER, client.revocation.exposure(request)).await.ok()?.ok()?.into_inner();
        out.extend(page.exposure.into_iter().map(|token| token.token_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Some(out);
        }
    }
    panic!("an exposure of more than {MOST_PAGES} pages");
}
