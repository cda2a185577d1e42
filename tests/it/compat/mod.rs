//! The compatibility rule: what a release wrote, every later one reads, and means the same by it; and what both write is the
//! same, so that two releases work side by side on one database.
//!
//! `frozen/RELEASE` is what that release wrote: its records as JSON, the state they make, a vault on SQLite, a backup, and the
//! statements that it sends to the database. `make freeze` writes such a folder; what is there is never written again.

mod freeze;
mod side_by_side;

use std::path::{Path, PathBuf};

use p8broker::domain::change::Record;
use p8broker::domain::state::State;
use p8broker::id::{Chain, Head, Revision};
use p8broker::secret::UnsealKey;
use p8broker::vault::keyring::Keyring;
use p8broker::vault::log::SealedRecord;
use serde_json::Value;

use crate::harness::*;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/compat/frozen")
}

/// Every release that was frozen.
fn releases() -> Vec<PathBuf> {
    let mut all: Vec<_> = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    assert!(!all.is_empty(), "nothing was frozen");
    all
}

fn json(release: &Path, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(release.join(name)).unwrap()).unwrap()
}

/// The state that records make, and every record as this release writes it.
fn fold(records: &[Value]) -> (State, Vec<Value>) {
    let (mut state, mut written) = (State::default(), Vec::new());
    for record in records {
        let record: Record = serde_json::from_value(record.clone()).unwrap_or_else(|error| panic!("{error}: {record}"));
        state.fold(&record, Chain::default()).unwrap();
        written.push(serde_json::to_value(&record).unwrap());
    }
    (state, written)
}

/// Rule: a field that is new is left out where it says what was meant before it came, so an older release that runs beside this
/// one reads whatever this one writes of old things.
#[test]
fn records_of_every_frozen_release_are_read_and_written_again_to_the_letter() {
    for release in releases() {
        let records = json(&release, "records.json");
        let records = records.as_array().unwrap();
        let (state, written) = fold(records);
        for (theirs, ours) in records.iter().zip(&written) {
            assert_eq!(theirs, ours, "{}", release.display());
        }
        // And they mean what they meant.
        let state = serde_json::to_value(state.snapshot()).unwrap();
        assert_eq!(state, json(&release, "state.json"), "{}", release.display());
    }
}

#[test]
fn every_kind_of_record_that_a_release_knew_is_frozen() {
    let known = [
        "audit_pruned",
        "break_glass_closed",
        "break_glass_opened",
        "canary_resumed",
        "canary_suspended",
        "change_proposed",
        "checkpoint",
        "document_applied",
        "history_accepted",
        "key_confirmed_at_apple",
        "key_imported",
        "key_resumed",
        "key_suspended",
        "proposal_approved",
        "proposal_closed",
        "reinstated",
        "revoked",
        "root_key_rotated",
        "unseal_key_replaced",
        "vault_initialised",
        "vault_sealed",
        "vault_unsealed",
        "writer_started",
    ];
    for release in releases() {
        let records = json(&release, "records.json");
        let mut kinds: Vec<&str> =
            records.as_array().unwrap().iter().map(|record| record["change"]["change"].as_str().unwrap()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        for known in known {
            assert!(kinds.contains(&known), "{}: {known}", release.display());
        }
    }
}

/// A checkpoint of that release is a place to start from.
#[test]
fn a_start_from_a_frozen_checkpoint_is_the_same_as_one_from_the_first_record() {
    for release in releases() {
        let snapshot = serde_json::from_value(json(&release, "state.json")).unwrap();
        let records = json(&release, "records.json");
        let (folded, _) = fold(records.as_array().unwrap());
        let begun = State::from_snapshot(Head { revision: folded.head().revision, chain: Chain::default() }, snapshot);
        assert_eq!(begun.snapshot(), folded.snapshot());
    }
}

fn keyring(row: &p8broker::vault::unseal::SealRow) -> Keyring {
    row.open(&UnsealKey::from_slice(&[0x5b; 32]).unwrap()).unwrap()
}

/// Seals JSON as the record after a head, as a release that knows more would.
fn sealed(row: &p8broker::vault::unseal::SealRow, head: Head, json: &Value) -> SealedRecord {
    use p8broker::vault::envelope::Place;
    let revision = Revision(head.revision.0 + 1);
    let id = revision.to_string();
    let place = Place { vault: &row.vault, table: "control_log", id: &id, revision, previous: head.chain };
    let sealed = keyring(row).seal_record(&place, json.to_string().as_bytes()).unwrap();
    SealedRecord { revision, checkpoint: false, previous: head.chain, sealed }
}
