//! The use cases. One replica is one [`Broker`]; each use case is one file, readable top to bottom as its steps.
//!
//! Over 400 lines, as the parts of a replica, its phases and what every use case asks first are here, and nothing else.

mod access;
mod apply;
mod aside;
mod audit;
mod backup;
mod break_glass;
mod canary;
mod denials;
pub mod error;
mod explain;
mod fleet;
mod follow;
mod gauges;
mod group;
mod history;
mod inspect;
mod issue;
mod keys;
mod ledger;
mod load;
mod open;
mod propose;
mod quota;
mod record;
pub mod restore;
mod revoke;
mod root;
mod seal;
mod session;
mod shadow;
mod watch;
mod writer;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use access::Whose;
pub use apply::{Applied, Wanted};
pub use audit::{AuditEnds, AuditPage, Finding, Pruned, Verification};
pub use backup::Backup;
pub use canary::CanaryError;
pub use error::BrokerError;
pub use explain::{Explained, Imagined};
pub use inspect::{Introspected, Whois};
pub use issue::{Issued, TokenAsk};
pub use keys::{KeyAnswer, KeyImport};
pub use propose::{Approved, Proposed};
pub use revoke::{Count, CountedBy, Exposure, Revoked};
pub use root::{RekeyStep, Rekeyed};
pub use seal::{Initialised, KeySource, Shares, Unsealed};
pub use watch::{Happened, Told, Watch};

use crate::clock::{Clock, UnixMillis};
use crate::domain::change::Actor;
use crate::domain::key::Stamp;
use crate::domain::operator::Power;
use crate::domain::principal::Principal;
use crate::domain::state::State;
use crate::id::{ClientId, DecisionId, Head, VaultId};
use crate::metrics::Metrics;
use crate::store::Store;
use crate::store::anchor::Anchor;
use crate::trace;

/// How long what runs beside the requests may take to end.
const STOP: Duration = Duration::from_secs(10);

/// A database that did not answer for so long is away, in seconds; it is asked every second.
const SILENCE_S: f64 = 5.0;

/// Who calls, as the edge authenticated them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Who it is.
    pub principal: Principal,
    /// The facts it rests on, for the audit.
    pub identity: String,
}

impl Caller {
    /// The caller's one name.
    pub fn client(&self) -> &ClientId {
        &self.principal.client
    }
}

/// Who makes a change, and what the audit says of it.
#[derive(Debug, Clone)]
pub struct Asker {
    actor: Actor,
    identity: String,
    decision_id: DecisionId,
}

impl Asker {
    fn broker(decision_id: DecisionId) -> Self {
        Self { actor: Actor::broker(), identity: String::new(), decision_id }
    }

    fn local(decision_id: DecisionId) -> Self {
        Self { actor: Actor::local(), identity: "on the machine itself".to_owned(), decision_id }
    }
}

/// What a replica can do now.
#[derive(Debug)]
pub enum Phase {
    /// There is no vault.
    NotInitialised,
    /// The vault is sealed; with what to do about it.
    Sealed(String),
    /// The database is not what this broker wrote, or not what it saw; with what was found.
    Refusing(Refusal),
    /// Tokens are issued.
    Open(Arc<OpenVault>),
}

/// Why a replica refuses to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What was found, and what to do.
    pub why: String,
    /// What the database lost, where that is it.
    pub lost: Option<Box<Lost>>,
    /// Whether the records that came since do not follow the ones that were seen.
    diverged: bool,
}

/// A database that went back in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The newest head that this replica, or its anchor, saw.
    pub seen: Head,
    /// The database's head when that was found out.
    pub database: Head,
    /// Acceptances that stand in the history that was seen, and so are about earlier losses.
    accepted: Vec<DecisionId>,
}

impl Refusal {
    fn tampered(why: String) -> Self {
        Self { why, lost: None, diverged: false }
    }

    fn lost(seen: Head, database: Head, accepted: Vec<DecisionId>) -> Self {
        let what = if database.revision < seen.revision {
            format!("revisions {} to {} are missing", database.revision.next(), seen.revision)
        } else {
            format!("revision {} is not the one that was seen: this is another history", seen.revision)
        };
        let why = format!(
            "the database went back in time: revision {} was seen, the database ends at {}; {what}. Restore it; or, where \
             what is missing is lost for good, an administrator runs `p8broker operator accept-history`",
            seen.revision, database.revision
        );
        Self { why, lost: Some(Box::new(Lost { seen, database, accepted })), diverged: true }
    }
}

impl Phase {
    /// The name, as the API spells it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NotInitialised => "NOT_INITIALISED",
            Self::Sealed(_) => "SEALED",
            Self::Refusing(_) => "REFUSING",
            Self::Open(_) => "OPEN",
        }
    }

    fn sealed_by(stamp: &Stamp) -> Self {
        Self::Sealed(format!("{} sealed it at {}; an operator with the power `unseal` lifts that", stamp.by, stamp.at))
    }
}

/// An open vault with its ledger.
#[derive(Debug)]
pub struct OpenVault {
    vault: Arc<session::Vault>,
    follow: Arc<follow::Follow>,
    ledger: ledger::Ledger,
    tokens: issue::Tokens,
    watchers: Arc<watch::Watchers>,
    used_up: Arc<quota::UsedUp>,
}

impl OpenVault {
    /// The state now.
    pub fn state(&self) -> Arc<State> {
        self.vault.state()
    }

    /// Whether the database answered within the last seconds; where not, no token can be issued either.
    pub fn hears_the_database(&self) -> bool {
        self.follow.last_look.load().seconds() < SILENCE_S
    }

    /// The vault's name.
    pub fn id(&self) -> &VaultId {
        &self.vault.id
    }
}

/// What a broker is made of.
pub struct Parts {
    /// Where facts are kept.
    pub store: Arc<dyn Store>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// What is counted.
    pub metrics: Metrics,
    /// Where the unseal key comes from.
    pub key_source: KeySource,
    /// Who may initialise and unseal before there is a policy.
    pub bootstrap: Vec<ClientId>,
    /// Where the newest head is kept outside of the database.
    pub anchor: Option<Anchor>,
    /// This replica's name.
    pub replica: String,
    /// Most tokens signed in a second, for all callers together.
    pub signatures_per_second: NonZeroU32,
    /// How often the fleet tries its revocation, in seconds; 0 for never.
    pub canary_every_s: u32,
}

/// One replica.
pub struct Broker {
    parts: Parts,
    phase: Arc<ArcSwap<Phase>>,
    /// Shares given so far, and rekeys on their way; one operator at a time.
    sealing: Mutex<seal::Sealing>,
    /// The keyring of a vault whose database lost history, until somebody accepts that.
    waiting: Mutex<Option<history::Waiting>>,
    /// The head at which an operator's seal was met: only when it has moved can that seal have been lifted.
    sealed_at: ArcSwap<Option<Head>>,
    started: UnixMillis,
    denials: denials::Denials,
    /// In front of signing, whoever asks.
    signing: DefaultDirectRateLimiter,
    shadows: shadow::Shadows,
    slots: aside::Slots,
    near_expiry: gauges::NearExpiry,
    unconfirmed: gauges::Unconfirmed,
    canary: canary::Canary,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

impl Broker {
    /// A replica that is not unsealed yet.
    pub fn new(parts: Parts) -> Arc<Self> {
        let phase = Phase::Sealed("it has not been opened since the start".to_owned());
        Arc::new(Self {
            started: parts.clock.now(),
            shadows: shadow::Shadows::default(),
            slots: aside::Slots::default(),
            near_expiry: gauges::NearExpiry::default(),
            unconfirmed: gauges::Unconfirmed::default(),
            canary: canary::Canary::default(),
            signing: RateLimiter::direct(Quota::per_second(parts.signatures_per_second)),
            parts,
            phase: Arc::new(ArcSwap::from_pointee(phase)),
            sealing: Mutex::default(),
            waiting: Mutex::default(),
            sealed_at: ArcSwap::default(),
            denials: denials::Denials::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        })
    }

    /// What this replica can do now.
    pub fn phase(&self) -> Arc<Phase> {
        self.phase.load_full()
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.parts.metrics
    }

    /// What time it is.
    pub fn clock(&self) -> &dyn Clock {
        self.parts.clock.as_ref()
    }

    /// Whether callers can be named by bearer tokens now.
    pub fn trusts_issuers(&self) -> bool {
        matches!(&**self.phase.load(), Phase::Open(open) if !open.vault.state().issuers().is_empty())
    }

    /// Who may initialise and unseal before there is a policy.
    pub fn is_bootstrap(&self, client: &ClientId) -> bool {
        self.parts.bootstrap.contains(client)
    }

    /// Those who may.
    pub fn bootstrap(&self) -> &[ClientId] {
        &self.parts.bootstrap
    }

    /// Runs something beside the requests, which ends when the broker stops.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Does something to its end, whether or not its caller goes on waiting for it.
    ///
    /// # Errors
    /// With what went wrong in it.
    pub async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, BrokerError>> + Send + 'static,
    ) -> Result<T, BrokerError> {
        self.tasks.spawn(trace::carried(work)).await.map_err(|error| BrokerError::Internal(error.to_string()))?
    }

    /// Is cancelled when the broker is about to end.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// The open vault.
    ///
    /// # Errors
    /// With what is in the way.
    pub fn open(&self) -> Result<Arc<OpenVault>, BrokerError> {
        match &*self.phase.load_full() {
            Phase::Open(open) => Ok(Arc::clone(open)),
            Phase::NotInitialised => Err(BrokerError::NotInitialised),
            Phase::Sealed(why) => {
                self.parts.metrics.while_sealed.inc();
                Err(BrokerError::Sealed { why: why.clone() })
            }
            Phase::Refusing(refusal) => Err(BrokerError::Refusing(refusal.clone())),
        }
    }

    /// The state, for a caller who holds the power.
    ///
    /// # Errors
    /// Where the vault is not open, or the caller lacks the power.
    pub fn state_for(&self, caller: &Caller, power: Power) -> Result<Arc<State>, BrokerError> {
        let state = self.open()?.state();
        require(&state, &caller.principal, power)?;
        Ok(state)
    }

    /// Says that the broker is about to end: what runs beside the requests ends by itself.
    pub fn begin_stop(&self) {
        self.stopping.cancel();
        if let Phase::Open(open) = &*self.phase() {
            // Watches would go on for ever; their clients connect to another replica.
            open.watchers.end();
        }
    }

    /// Stops: what is queued is committed, then the ledger ends and the database is closed.
    pub async fn stop(&self) {
        self.flush_all_denials();
        self.flush_shadows().await;
        let open = self.open().ok();
        self.phase.store(Arc::new(Phase::Sealed("the broker is stopping".to_owned())));
        self.begin_stop();
        if let Some(open) = open {
            open.follow.ended.cancel();
        }
        self.tasks.close();
        if tokio::time::timeout(STOP, self.tasks.wait()).await.is_err() {
            tracing::warn!("something did not end in time; what was queued before it is committed");
        }
        self.say_goodbye().await;
        self.parts.store.close().await;
    }

    /// Makes sure that what was deleted is in no file; goes on to its end where the caller stops waiting.
    async fn scrub(&self) -> Result<(), BrokerError> {
        let store = Arc::clone(&self.parts.store);
        let scrubbed = self.tasks.spawn(async move { store.scrub().await }).await;
        Ok(scrubbed.map_err(|error| BrokerError::Internal(error.to_string()))??)
    }

    fn asker(&self, state: &State, caller: &Caller, power: Power) -> Result<Asker, BrokerError> {
        Ok(Asker {
            actor: Actor { name: require(state, &caller.principal, power)?, client: Some(caller.client().clone()) },
            identity: caller.identity.clone(),
            decision_id: self.decision_id()?,
        })
    }

    fn decision_id(&self) -> Result<DecisionId, BrokerError> {
        record::random_bits().map(DecisionId::from_random)
    }

    /// Makes a change for an operator, whose power is checked on the very state that the change is made on.
    async fn change(
        &self,
        caller: &Caller,
        power: Power,
        mut propose: ledger::Propose,
    ) -> Result<ledger::Changed, BrokerError> {
        let open = self.open()?;
        let asker = self.asker(&open.state(), caller, power)?;
        let principal = caller.principal.clone();
        let checked: ledger::Propose = Box::new(move |state, keyring| {
            require(state, &principal, power)?;
            propose(state, keyring)
        });
        open.ledger.change(asker, checked).await
    }
}

/// The name of the operator that holds the power.
fn require(state: &State, principal: &Principal, power: Power) -> Result<String, BrokerError> {
    let operator = state.operator_with(principal, power).ok_or(BrokerError::LacksPower(power))?;
    Ok(operator.name.to_string())
}
