//! What a change looks like in the audit, and the first record of a vault, before there is a writer.

use aws_lc_rs::rand;

use super::Asker;
use super::error::BrokerError;
use crate::clock::UnixMillis;
use crate::domain::audit::{AuditEvent, Outcome};
use crate::domain::change::{AuditPosition, Change, Record};
use crate::id::{Head, Revision, WriterId};
use crate::store::{Append, AuditBatch};
use crate::vault::audit_chain::WriterEnd;
use crate::vault::keyring::Keyring;
use crate::vault::log::SealedRecord;
use crate::vault::unseal::SealRow;

/// The audit row of a change.
pub(super) fn change_event(asker: &Asker, record: &Record) -> AuditEvent {
    let (key_id, detail) = record.change.summary();
    let target = match &record.change {
        Change::Revoked { target, .. } | Change::Reinstated { target, .. } => Some(target),
        _ => None,
    };
    let named = |kind: &str| target.filter(|target| target.kind() == kind).map(|target| target.name().to_owned());
    AuditEvent {
        at: record.at,
        event: record.change.event().to_owned(),
        outcome: Outcome::Changed,
        reason: "OK".to_owned(),
        decision_id: asker.decision_id.to_string(),
        caller: asker.actor.client.as_ref().map_or_else(|| asker.actor.name.clone(), ToString::to_string),
        identity: asker.identity.clone(),
        detail,
        policy: named("policy"),
        key_id: key_id.map(ToString::to_string),
        app_group: named("app-group"),
        role: None,
        scope: None,
        token: None,
        revision: record.revision,
    }
}

/// 128 random bits, for a name.
pub(super) fn random_bits() -> Result<u128, BrokerError> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| BrokerError::Internal("no randomness".to_owned()))?;
    Ok(u128::from_be_bytes(bytes))
}

/// The first record of a vault, before there is a ledger.
pub(super) fn first_record(
    asker: &Asker,
    change: Change,
    keyring: &Keyring,
    seal: SealRow,
    at: UnixMillis,
) -> Result<Append, BrokerError> {
    let writer = WriterId::from_random(random_bits()?);
    let mut end = WriterEnd::start(keyring, &seal.vault, writer.clone())?;
    let record = Record {
        revision: Revision(1),
        at,
        actor: asker.actor.clone(),
        audit: AuditPosition { writer, sequence: 1 },
        change,
    };
    let row = end.push(keyring, change_event(asker, &record))?;
    Ok(Append {
        expected: Head::default(),
        records: vec![SealedRecord::seal(keyring, &seal.vault, Head::default(), &record)?],
        audit: AuditBatch { rows: vec![row], end: end.sealed(keyring, &seal.vault)?, quota: Vec::new() },
        keys: Vec::new(),
        seal: Some(seal),
    })
}
