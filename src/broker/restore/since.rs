//! What happened after a backup, from the control log of the database that it stands in for: what a restored older state
//! brings back to life, and what it loses.
//!
//! The log is read as far as it can be: a database that stands for repair may be damaged, and half of the answer is better
//! than none, where it says that it is half.

use std::collections::{BTreeMap, BTreeSet};

use super::check::not_whole;
use super::{Checked, RestoreError, Unsealing};
use crate::broker::load::{self, LoadError};
use crate::clock::UnixMillis;
use crate::domain::change::{Change, Record};
use crate::domain::target::Target;
use crate::id::{Head, KeyId, PolicyName, Revision};
use crate::store::Store;
use crate::vault::keyring::Keyring;

/// Records read at a time.
const PAGE: u32 = 500;

/// What came after a backup.
#[derive(Debug, Clone, Default)]
pub struct Since {
    /// The newest head that could be read.
    pub head: Head,
    /// The revision of the backup.
    pub backup: Revision,
    /// Why what comes after that head can't be read, where it can't.
    pub unreadable: Option<String>,
    /// What was stopped since and stands, oldest first: it would be alive again.
    pub undone: Vec<Undone>,
    /// Whatever else changed since, oldest first: it would be as it was before.
    pub lost: Vec<Lost>,
}

/// Something that was stopped after the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undone {
    /// What.
    pub what: Stopped,
    /// The revision that did it.
    pub revision: Revision,
    /// Who, and when.
    pub who: String,
    /// Why.
    pub reason: String,
}

/// What was stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stopped {
    /// Something was revoked.
    Revoked(Target),
    /// A key was suspended.
    Suspended(KeyId),
    /// Somebody saw that a revoked key is revoked at Apple.
    ConfirmedAtApple(KeyId),
    /// A break-glass policy was closed.
    BreakGlass(PolicyName),
    /// The vault was sealed.
    Vault,
}

/// A change that is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The revision that made it.
    pub revision: Revision,
    /// Who, and when.
    pub who: String,
    /// What it was, and what to do.
    pub what: String,
}

impl Since {
    /// Whether there is anything after the backup, if only a process that started.
    pub fn is_newer(&self) -> bool {
        self.head.revision > self.backup || self.unreadable.is_some()
    }

    fn take(&mut self, record: &Record, walk: &mut Walk, now: UnixMillis) {
        if self.take_of_new(record, walk) {
            return;
        }
        let who = format!("{} at {}", record.actor.name, record.at);
        let mut stop = |what: Stopped, reason: &str| {
            self.undone.retain(|undone| undone.what != what);
            self.undone.push(Undone { what, revision: record.revision, who: who.clone(), reason: reason.to_owned() });
        };
        let note = match &record.change {
            Change::WriterStarted { .. }
            | Change::Checkpoint { .. }
            | Change::AuditPruned { .. }
            | Change::CanarySuspended
            | Change::CanaryResumed => return,
            // A token that is dead by now needs nobody to revoke it.
            Change::Revoked { dies_at: Some(dies_at), .. } if *dies_at <= now.seconds() => return,
            Change::Revoked { target, reason, .. } => return stop(Stopped::Revoked(target.clone()), reason),
            Change::KeySuspended { key_id, reason } => return stop(Stopped::Suspended(key_id.clone()), reason),
            Change::KeyConfirmedAtApple { key_id } => return stop(Stopped::ConfirmedAtApple(key_id.clone()), ""),
            Change::VaultSealed { reason } => return stop(Stopped::Vault, reason),
            Change::BreakGlassClosed { policy, reason } => return stop(Stopped::BreakGlass(policy.clone()), reason),
            Change::Reinstated { target, .. } if self.forget(&Stopped::Revoked(target.clone())) => return,
            Change::KeyResumed { key_id, .. } if self.forget(&Stopped::Suspended(key_id.clone())) => return,
            Change::VaultUnsealed if self.forget(&Stopped::Vault) => return,
            Change::Reinstated { .. } => "it is revoked as before; reinstate it",
            Change::KeyResumed { .. } => "it is suspended as before; resume it",
            Change::VaultUnsealed => "the vault is sealed as before; an operator unseals it",
            Change::BreakGlassOpened { .. } => "it is closed; open it where it still must be",
            Change::KeyImported { .. } => "the key is not in the backup: import it again from its .p8",
            Change::DocumentApplied { .. } | Change::ProposalApproved { .. } => {
                "documents are as before: what was narrowed or removed grants again; apply them again"
            }
            Change::ChangeProposed { .. } | Change::ProposalClosed { .. } => "look at proposals again",
            Change::UnsealKeyReplaced { .. } => {
                "the unseal key from before is in force, and its shares or key file open the vault: rekey again"
            }
            Change::RootKeyRotated { .. } => "keys are sealed with the root key from before: rotate again",
            Change::HistoryAccepted { .. } => "the acceptance is lost; where a replica asks for it, accept again",
            Change::VaultInitialised { .. } => "",
        };
        self.lose(record, note);
    }

    fn lose(&mut self, record: &Record, note: &str) {
        let (key, summary) = record.change.summary();
        let key = key.map(|key| format!(" {key}")).unwrap_or_default();
        let what = format!("{}{key}: {summary}; {note}", record.change.event());
        let who = format!("{} at {}", record.actor.name, record.at);
        self.lost.push(Lost { revision: record.revision, who, what });
    }

    /// Takes what is about something that the backup does not have; answers whether that was all there is to it.
    fn take_of_new(&mut self, record: &Record, walk: &mut Walk) -> bool {
        match &record.change {
            Change::KeyImported { .. } => {
                if let (Some(key), _) = record.change.summary() {
                    walk.imported.insert(key.to_string(), New { since: record.revision, suspended: None });
                }
                false
            }
            // INVARIANT (P6): nobody is told to import again what was revoked.
            Change::Revoked { target: Target::Key(key), .. } => {
                let Some(new) = walk.imported.remove(key.as_str()) else { return false };
                self.lost.retain(|lost| lost.revision != new.since && Some(lost.revision) != new.suspended);
                walk.gone.insert(key.to_string());
                self.lose(
                    record,
                    "it was imported since, too, and the restored vault does not know it: never import it again",
                );
                true
            }
            Change::KeyConfirmedAtApple { key_id } => walk.gone.contains(key_id.as_str()),
            Change::KeySuspended { key_id, .. } => {
                let Some(new) = walk.imported.get_mut(key_id.as_str()) else { return false };
                new.suspended = Some(record.revision);
                self.lose(record, "suspend it once it is imported again");
                true
            }
            Change::KeyResumed { key_id, .. } => {
                let Some(new) = walk.imported.get_mut(key_id.as_str()) else { return false };
                let suspended = new.suspended.take();
                self.lost.retain(|lost| Some(lost.revision) != suspended);
                true
            }
            Change::BreakGlassOpened { policy, .. } => {
                let earlier = walk.opened.insert(policy.clone(), record.revision);
                self.lost.retain(|lost| Some(lost.revision) != earlier);
                false
            }
            Change::BreakGlassClosed { policy, .. } => {
                let Some(opened) = walk.opened.remove(policy) else { return false };
                self.lost.retain(|lost| lost.revision != opened);
                true
            }
            _ => false,
        }
    }

    fn forget(&mut self, what: &Stopped) -> bool {
        let before = self.undone.len();
        self.undone.retain(|undone| undone.what != *what);
        self.undone.len() < before
    }
}

/// What began after a backup, and may have ended after it, too.
#[derive(Debug, Default)]
struct Walk {
    opened: BTreeMap<PolicyName, Revision>,
    imported: BTreeMap<String, New>,
    /// Imported and revoked.
    gone: BTreeSet<String>,
}

/// A key that was imported after a backup.
#[derive(Debug)]
struct New {
    since: Revision,
    suspended: Option<Revision>,
}

/// Reads what a database has after a backup.
///
/// # Errors
/// Where it is of another vault, or can't be opened at all.
pub(super) async fn read(
    previous: &dyn Store,
    checked: &Checked,
    unsealing: &Unsealing<'_>,
    now: UnixMillis,
) -> Result<Since, RestoreError> {
    let row = previous.seal_row().await?;
    let row = row.ok_or_else(|| RestoreError::Wrong("the previous database holds no vault".to_owned()))?;
    if row.vault != checked.header().vault {
        let (ours, theirs) = (checked.header().vault.clone(), row.vault);
        return Err(RestoreError::OtherVault { ours, theirs, whose: "the previous database" });
    }
    // The same unseal key, or the one that replaced it.
    let keyring = match row.open_newer(checked.keyring()) {
        Ok(keyring) => keyring,
        Err(_) => unsealing.open(&row)?,
    };
    let named = previous.head().await?;
    let backup = checked.header().head;
    let mut since = Since { head: backup, backup: backup.revision, ..Since::default() };
    if let Err(why) = follow(previous, checked, &keyring, &mut since, now).await? {
        since.unreadable = Some(why);
    } else if since.head.revision < named.revision {
        since.unreadable = Some(format!("the records after revision {} are not there", since.head.revision));
    }
    Ok(since)
}

async fn follow(
    previous: &dyn Store,
    checked: &Checked,
    keyring: &Keyring,
    since: &mut Since,
    now: UnixMillis,
) -> Result<Result<(), String>, RestoreError> {
    let mut state = checked.state().clone();
    let mut walk = Walk::default();
    loop {
        let page = match previous.records_from(state.head().revision.next(), PAGE).await {
            Ok(page) => page,
            Err(crate::store::StoreError::Corrupt(why)) => return Ok(Err(why)),
            Err(error) => return Err(error.into()),
        };
        for sealed in &page {
            match load::follow(&mut state, sealed, &checked.header().vault, keyring) {
                Ok(record) => since.take(&record, &mut walk, now),
                Err(error @ LoadError::Store(_)) => return Err(not_whole(error)),
                Err(other) => return Ok(Err(other.to_string())),
            }
            since.head = state.head();
        }
        if page.len() < PAGE as usize {
            return Ok(Ok(()));
        }
    }
}
