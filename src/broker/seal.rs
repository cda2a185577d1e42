//! Init, unseal and seal. Each gathers the unseal key, from shares or a key file; `open` does the rest.
//!
//! # Invariants
//! - P7: an operator's seal is a record of the control log, so it survives restarts, and an automatic unseal meets it.

use std::path::PathBuf;
use std::sync::Arc;

use super::error::BrokerError;
use super::ledger::Proposal;
use super::open::Opener;
use super::record::{first_record, random_bits};
use super::root::Rekeying;
use super::{Asker, Broker, Caller, Phase, Refusal};
use crate::domain::change::{Actor, Change};
use crate::domain::operator::{Operator, Power};
use crate::domain::pattern::ClientPattern;
use crate::domain::state::State;
use crate::id::{ClientId, Head, OperatorName, Revision, VaultId};
use crate::secret::{ShareText, UnsealKey};
use crate::store::StoreError;
use crate::vault::keyring::Keyring;
use crate::vault::unseal::{Method, Progress, SealRow, parse_key_file, share_digest, split};

/// Where the unseal key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// From people with shares.
    Shares,
    /// From files.
    Files {
        /// The key.
        current: PathBuf,
        /// The one before it, while a rekey is on its way.
        previous: Option<PathBuf>,
    },
    /// From environment variables. A file is better: an environment stays in memory.
    Environment {
        /// The variable with the key.
        current: String,
        /// The variable with the one before it.
        previous: Option<String>,
    },
}

/// How many shares there are to be, and how many it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// How many there are.
    pub shares: u32,
    /// How many it takes.
    pub threshold: u32,
}

/// A new vault.
#[derive(Debug)]
pub struct Initialised {
    /// Its name.
    pub vault: VaultId,
    /// The shares, shown once; none with a key file.
    pub shares: Vec<ShareText>,
    /// How many it takes.
    pub threshold: u32,
}

/// Where an unseal stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsealed {
    /// Whether the vault is still sealed.
    pub sealed: bool,
    /// How many shares are given.
    pub given: u32,
    /// How many it takes; 0 with a key file.
    pub threshold: u32,
    /// What is in the way, where it is sealed.
    pub why: String,
}

/// Shares given so far, and a rekey on its way.
#[derive(Debug, Default)]
pub(super) struct Sealing {
    pub(super) unseal: Progress,
    pub(super) rekey: Rekeying,
}

impl KeySource {
    /// Reads the keys: the current one, and the one before it where there is one.
    pub(super) fn read(&self) -> Result<(UnsealKey, Option<UnsealKey>), BrokerError> {
        let read = |what: &str, content: std::io::Result<Vec<u8>>| {
            let content = content
                .map(zeroize::Zeroizing::new)
                .map_err(|error| BrokerError::KeyFile(format!("{what} can't be read: {error}")))?;
            parse_key_file(&content).map_err(|error| BrokerError::KeyFile(format!("{what}: {error}")))
        };
        let variable = |name: &String| {
            let value = std::env::var_os(name).map(std::ffi::OsString::into_encoded_bytes);
            read(name, value.ok_or_else(|| std::io::Error::other("the environment variable is not set")))
        };
        let file = |path: &PathBuf| read(&path.display().to_string(), std::fs::read(path));
        match self {
            Self::Shares => Err(BrokerError::WrongMethod("this vault is unsealed by shares; none was given")),
            Self::Files { current, previous } => Ok((file(current)?, previous.as_ref().map(file).transpose()?)),
            Self::Environment { current, previous } => {
                Ok((variable(current)?, previous.as_ref().map(variable).transpose()?))
            }
        }
    }
}

impl Broker {
    /// Opens the vault at the start where that needs nobody: with a key file, and no operator's seal.
    pub async fn start(self: &Arc<Self>) {
        let row = match self.parts.store.seal_row().await {
            Ok(row) => row,
            Err(StoreError::Corrupt(why)) => return self.set_phase(Phase::Refusing(Refusal::tampered(why))),
            Err(error) => return self.set_phase(Phase::Sealed(format!("the seal can't be read: {error}"))),
        };
        match row {
            None => match self.parts.store.head().await {
                Ok(head) if head == Head::default() => self.set_phase(Phase::NotInitialised),
                // INVARIANT (P2): a vault without its seal row is no empty database.
                Ok(_) => {
                    let why = "the seal row is missing, but there is a control log".to_owned();
                    self.set_phase(Phase::Refusing(Refusal::tampered(why)));
                }
                Err(error) => self.set_phase(Phase::Sealed(format!("the head can't be read: {error}"))),
            },
            Some(row) => match &row.method {
                Method::Shares { threshold, .. } => self.set_phase(waiting(0, *threshold)),
                Method::KeyFile => {
                    if let Err(error) = self.open_with_key_file(Opener::Start).await {
                        tracing::error!(%error, "the vault was not opened at the start");
                        if !matches!(error, BrokerError::Refusing(_)) {
                            self.set_phase(Phase::Sealed(error.to_string()));
                        }
                    }
                }
            },
        }
    }

    /// Makes the vault. `caller` is `None` on the machine itself.
    ///
    /// # Errors
    /// Where there is a vault, the numbers make no sense, or nobody would be an operator.
    pub async fn init(
        self: &Arc<Self>,
        caller: Option<&Caller>,
        shares: Option<Shares>,
        operators: &[ClientId],
    ) -> Result<Initialised, BrokerError> {
        let _one_at_a_time = self.sealing.lock().await;
        if !matches!(&*self.phase(), Phase::NotInitialised) {
            return Err(BrokerError::AlreadyInitialised);
        }
        let vault = VaultId::from_random(random_bits()?);
        let by_shares = self.parts.key_source == KeySource::Shares;
        if !by_shares && shares.is_some() {
            return Err(BrokerError::WrongMethod(
                "this broker is configured with a key file: there are no shares to make",
            ));
        }
        let numbers = shares.unwrap_or(Shares { shares: 5, threshold: 3 });
        let (key, texts, method) = if by_shares {
            let (key, texts) = split(&vault, 1, numbers.shares, numbers.threshold).map_err(BrokerError::Split)?;
            let digests = texts.iter().map(share_digest).collect();
            (key, texts, Method::Shares { threshold: numbers.threshold, digests })
        } else {
            (self.parts.key_source.read()?.0, Vec::new(), Method::KeyFile)
        };
        let keyring = Keyring::generate(&key)?;
        let row = SealRow::seal(&vault, 1, method, &keyring)?;
        let asker = match caller {
            Some(caller) => Asker {
                actor: Actor { name: "bootstrap".to_owned(), client: Some(caller.client().clone()) },
                identity: caller.identity.clone(),
                decision_id: self.decision_id()?,
            },
            None => Asker::local(self.decision_id()?),
        };
        let change = Change::VaultInitialised { vault: vault.clone(), operators: first_operators(operators)? };
        let first = first_record(&asker, change, &keyring, row.clone(), self.parts.clock.now())?;
        if let Some(anchor) = self.parts.anchor.as_ref().filter(|anchor| anchor.path().exists() && !anchor.is_empty()) {
            let why = format!("the anchor {} is that of another vault; move it away first", anchor.path().display());
            return Err(BrokerError::invalid("anchor", why));
        }
        self.parts.store.initialise(first).await?;
        // From here on there is a vault, and its shares must reach somebody whatever else happens.
        if let Err(error) = self.open_with(|row| Ok(row.open(&key)?), Opener::Init).await {
            tracing::error!(%error, "the new vault was not opened");
            self.set_phase(Phase::Sealed(format!("it was not opened after init: {error}")));
        }
        Ok(Initialised { vault, shares: texts, threshold: if by_shares { numbers.threshold } else { 0 } })
    }

    /// Takes a share, or reads the key file; lifts an operator's seal where the caller may.
    ///
    /// # Errors
    /// With what is wrong with the share (the others are kept), or what is in the way.
    pub async fn unseal(self: &Arc<Self>, caller: &Caller, share: Option<&ShareText>) -> Result<Unsealed, BrokerError> {
        let mut sealing = self.sealing.lock().await;
        if matches!(&*self.phase(), Phase::Open(_)) {
            return Ok(self.progress(0, 0));
        }
        let row = self.parts.store.seal_row().await?.ok_or(BrokerError::NotInitialised)?;
        let threshold = match &row.method {
            Method::KeyFile if share.is_some() => {
                return Err(BrokerError::WrongMethod(
                    "this vault is unsealed by a key file; run unseal without a share",
                ));
            }
            Method::KeyFile => {
                self.open_with_key_file(Opener::Operator(caller)).await?;
                return Ok(self.progress(0, 0));
            }
            Method::Shares { threshold, .. } => *threshold,
        };
        let Some(share) = share else {
            let given = sealing.unseal.len();
            self.set_phase(waiting(given, threshold));
            return Ok(self.progress(given, threshold));
        };
        let taken = sealing.unseal.add(share, &row);
        let given = sealing.unseal.len();
        match taken.map_err(|error| BrokerError::Share { error, given, threshold })? {
            Some(key) => {
                self.open_with(|row| Ok(row.open(&key)?), Opener::Operator(caller)).await?;
                Ok(self.progress(threshold, threshold))
            }
            None => {
                self.set_phase(waiting(given, threshold));
                Ok(self.progress(given, threshold))
            }
        }
    }

    /// Seals the vault, on every replica, until somebody with the power lifts it. Answers the revision that sealed it.
    ///
    /// # Errors
    /// Where the caller lacks the power, nobody could lift the seal, or it can't be recorded.
    pub async fn seal(&self, caller: &Caller, reason: String) -> Result<Revision, BrokerError> {
        let propose = move |state: &State, _: &Keyring| {
            if !state.could_be_unsealed() {
                return Err(BrokerError::NobodyCouldUnseal);
            }
            Ok(Proposal::of(Change::VaultSealed { reason: reason.clone() }))
        };
        let changed = self.change(caller, Power::Unseal, Box::new(propose)).await?;
        // Shares given towards a rekey do not outlive the seal in memory.
        *self.sealing.lock().await = Sealing::default();
        tracing::warn!(caller = %caller.client(), "the vault is sealed");
        Ok(changed.state.head().revision)
    }

    fn progress(&self, given: u32, threshold: u32) -> Unsealed {
        match &*self.phase() {
            Phase::Open(_) => Unsealed { sealed: false, given, threshold, why: String::new() },
            Phase::NotInitialised => {
                Unsealed { sealed: true, given, threshold, why: BrokerError::NotInitialised.to_string() }
            }
            Phase::Sealed(why) => Unsealed { sealed: true, given, threshold, why: why.clone() },
            Phase::Refusing(refusal) => Unsealed { sealed: true, given, threshold, why: refusal.why.clone() },
        }
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.parts.metrics.unsealed.set(i64::from(matches!(phase, Phase::Open(_))));
        self.phase.store(Arc::new(phase));
    }
}

fn waiting(given: u32, threshold: u32) -> Phase {
    Phase::Sealed(format!("it waits for shares: {given} of {threshold} are given; run `p8broker operator unseal`"))
}

fn first_operators(clients: &[ClientId]) -> Result<Vec<Operator>, BrokerError> {
    if clients.is_empty() {
        return Err(BrokerError::invalid("operators", "name at least one, or nobody could ever run this vault"));
    }
    let operator = |(at, client): (usize, &ClientId)| {
        let name = OperatorName::parse(&format!("bootstrap-{}", at.saturating_add(1)));
        Ok(Operator {
            name: name.map_err(|error| BrokerError::Internal(error.to_string()))?,
            clients: vec![exact(client)?],
            powers: Power::ALL.iter().copied().collect(),
            app_groups: std::collections::BTreeSet::new(),
        })
    };
    clients.iter().enumerate().map(operator).collect()
}

fn exact(client: &ClientId) -> Result<ClientPattern, BrokerError> {
    ClientPattern::name(client.as_str()).map_err(|error| BrokerError::invalid("operators", error.to_string()))
}
