//! Reads a backup from end to end, and checks everything in it.
//!
//! Steps, in the order of the file: the keyring opens; each chunk opens at its place; the records fold into a state, each
//! after its predecessor, and end with the head; the seal row is the one that the log ends with; every key opens, and none is
//! missing or left over; every writer is known and its end genuine; each of its rows follows the one before, from where rows
//! were pruned to the end; nothing comes after the totals, which count what came before them.
//!
//! Rows that were cleared for removal and are still there are passed over: they are not part of the vault any more.

use std::fs::File;
use std::io::{BufReader, Seek, SeekFrom};

use super::RestoreError;
use crate::broker::load::{self, LoadError};
use crate::domain::audit::AuditRow;
use crate::domain::state::{State, Writer};
use crate::id::{Chain, Head, Revision};
use crate::store::part::{PART_HEADER, Part, Totals, header};
use crate::store::{SealedKey, StoredEnd};
use crate::vault::audit_chain::{WriterEnd, follows};
use crate::vault::backup::{Beginning, FileError, Header, Opener};
use crate::vault::keyring::Keyring;
use crate::vault::log::SealedRecord;
use crate::vault::unseal::SealRow;

/// A part is taken into memory as it comes, and not as long as it says before it is there.
const STEP: usize = 1024 * 1024;

/// What a backup holds, once everything in it was checked.
#[derive(Debug)]
pub struct Checked {
    beginning: Beginning,
    seal: SealRow,
    keyring: Keyring,
    state: State,
    totals: Totals,
    bytes: u64,
    /// The head at the revision that was asked about.
    asked: Option<Head>,
}

impl Checked {
    /// What the file says of itself.
    pub fn header(&self) -> &Header {
        &self.beginning.header
    }

    /// How many parts it has.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// How long it is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The state that it ends with.
    pub fn state(&self) -> &State {
        &self.state
    }

    pub(super) fn seal(&self) -> &SealRow {
        &self.seal
    }

    pub(super) fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Whether this head, whose revision was asked about, stands in its history.
    pub(super) fn has(&self, head: Head) -> bool {
        head == Head::default() || self.asked == Some(head)
    }

    /// The same file from its beginning.
    pub(super) fn again(&self, mut file: File) -> Result<Again, RestoreError> {
        file.seek(SeekFrom::Start(0)).map_err(FileError::Io)?;
        let mut from = BufReader::new(file);
        let beginning = Beginning::read(&mut from)?;
        // INVARIANT (INV-RESTORE-1): the file that was checked, and its key opens no other.
        if beginning != self.beginning {
            return Err(RestoreError::Wrong("the file was replaced while it was read".to_owned()));
        }
        let pruned = self.state.writers().values().map(|writer| (writer.id.clone(), writer.pruned_sequence)).collect();
        let parts = PartsOf(Opener::new(&self.keyring, &beginning, from)?);
        Ok(Again { parts, pruned, totals: Totals::default() })
    }
}

/// The parts of a file.
struct PartsOf(Opener<BufReader<File>>);

impl PartsOf {
    fn next(&mut self) -> Result<Part, RestoreError> {
        let mut bytes = [0; PART_HEADER];
        self.0.fill(&mut bytes)?;
        let (kind, length) = header(bytes);
        let (mut left, mut fields) = (length as usize, Vec::new());
        while left > 0 {
            let start = fields.len();
            let step = left.min(STEP);
            fields.resize(start.saturating_add(step), 0);
            self.0.fill(fields.get_mut(start..).unwrap_or_default())?;
            left = left.saturating_sub(step);
        }
        Part::read(kind, &fields).map_err(|what| FileError::Unknown(what).into())
    }
}

/// A second reading, for writing.
pub(super) struct Again {
    parts: PartsOf,
    pruned: std::collections::HashMap<crate::id::WriterId, u64>,
    totals: Totals,
}

impl Again {
    /// The next part, without rows that were cleared for removal.
    pub(super) fn next(&mut self) -> Result<Option<Part>, RestoreError> {
        loop {
            let part = self.parts.next()?;
            if let Part::Row(row) = &part
                && self.pruned.get(&row.writer).is_some_and(|pruned| row.sequence <= *pruned)
            {
                continue;
            }
            // The last chunk must have been the last before anything is committed.
            if matches!(part, Part::Totals(_)) && !self.parts.0.is_at_end()? {
                return Err(RestoreError::Wrong("something comes after its end".to_owned()));
            }
            self.totals.count(&part);
            return Ok(Some(part));
        }
    }

    pub(super) fn totals(&self) -> Totals {
        self.totals
    }
}

/// Reads a file; `asked` is a revision whose head is kept.
pub(super) fn read(
    file: &mut File,
    open: impl FnOnce(&SealRow) -> Result<Keyring, RestoreError>,
    asked: Option<Revision>,
) -> Result<Checked, RestoreError> {
    let mut from = BufReader::new(file.try_clone().map_err(FileError::Io)?);
    let beginning = Beginning::read(&mut from)?;
    let seal = beginning.header.seal_row()?;
    let keyring = open(&seal)?;
    let mut parts = PartsOf(Opener::new(&keyring, &beginning, from)?);
    let head = beginning.header.head;
    let mut reading = Reading { head, seal: &seal, keyring: &keyring, asked, asked_head: None, stage: Stage::Begin };
    let (mut totals, mut state) = (Totals::default(), State::default());
    loop {
        let part = parts.next()?;
        if let Part::Totals(said) = part {
            reading.finish(&state)?;
            if said != totals {
                return Err(RestoreError::Wrong("it does not hold as many parts as it says".to_owned()));
            }
            break;
        }
        totals.count(&part);
        reading.take(part, &mut state)?;
    }
    if !parts.0.is_at_end()? {
        return Err(RestoreError::Wrong("something comes after its end".to_owned()));
    }
    let bytes = file.metadata().map_err(FileError::Io)?.len();
    let asked = reading.asked_head;
    Ok(Checked { beginning, seal, keyring, state, totals, bytes, asked })
}

struct Reading<'a> {
    head: Head,
    seal: &'a SealRow,
    keyring: &'a Keyring,
    asked: Option<Revision>,
    asked_head: Option<Head>,
    stage: Stage,
}

enum Stage {
    Begin,
    Records,
    Keys(Vec<SealedKey>),
    Writers(Vec<StoredEnd>, Box<Chained>),
}

/// One writer's rows, as far as they were read.
struct Chained {
    end: WriterEnd,
    writer: Writer,
    at: u64,
    chain: Chain,
    has_row: bool,
}

impl Reading<'_> {
    fn take(&mut self, part: Part, state: &mut State) -> Result<(), RestoreError> {
        match (part, &mut self.stage) {
            (Part::Record(record), Stage::Begin) => {
                self.stage = Stage::Records;
                self.first_record(&record, state)
            }
            (Part::Record(record), Stage::Records) => self.record(&record, state),
            (Part::Key(key), Stage::Records) => {
                self.end_of_records(state)?;
                self.stage = Stage::Keys(vec![key]);
                Ok(())
            }
            (Part::Key(key), Stage::Keys(keys)) => {
                keys.push(key);
                Ok(())
            }
            (Part::Writer(end), Stage::Records | Stage::Keys(_) | Stage::Writers(..)) => self.writer(end, state),
            (Part::Row(row), Stage::Writers(_, chained)) => chained.row(&row, self.keyring),
            _ => Err(RestoreError::Wrong("its parts are not in order".to_owned())),
        }
    }

    fn first_record(&mut self, record: &SealedRecord, state: &mut State) -> Result<(), RestoreError> {
        if record.revision == Revision(1) {
            return self.record(record, state);
        }
        *state = load::begin_at(record, &self.seal.vault, self.keyring).map_err(not_whole)?;
        self.remember(state);
        Ok(())
    }

    fn record(&mut self, record: &SealedRecord, state: &mut State) -> Result<(), RestoreError> {
        load::follow(state, record, &self.seal.vault, self.keyring).map_err(not_whole)?;
        self.remember(state);
        Ok(())
    }

    fn remember(&mut self, state: &State) {
        if self.asked == Some(state.head().revision) {
            self.asked_head = Some(state.head());
        }
    }

    fn end_of_records(&self, state: &State) -> Result<(), RestoreError> {
        if state.head() != self.head {
            return Err(RestoreError::Wrong(format!(
                "its control log ends at revision {}, but its header says {}",
                state.head().revision,
                self.head.revision
            )));
        }
        load::check_seal(state, self.seal, self.keyring).map_err(not_whole)
    }

    /// What stood before the first writer, and the rows of the one before.
    fn begin_writers(&mut self, state: &State) -> Result<Vec<StoredEnd>, RestoreError> {
        let keys = match std::mem::replace(&mut self.stage, Stage::Begin) {
            Stage::Records => {
                self.end_of_records(state)?;
                Vec::new()
            }
            Stage::Keys(keys) => keys,
            Stage::Writers(mut ends, chained) => {
                ends.push(chained.end()?);
                return Ok(ends);
            }
            Stage::Begin => return Err(RestoreError::Wrong("it has no records".to_owned())),
        };
        load::open_keys(keys, state, &self.seal.vault, self.keyring).map_err(not_whole)?;
        Ok(Vec::new())
    }

    fn writer(&mut self, end: WriterEnd, state: &State) -> Result<(), RestoreError> {
        let ends = self.begin_writers(state)?;
        let unknown = || RestoreError::Wrong(format!("audit writer {} was never started", end.writer));
        let writer = state.writers().get(&end.writer).ok_or_else(unknown)?.clone();
        let (at, chain) = (writer.pruned_sequence, writer.pruned_chain);
        self.stage = Stage::Writers(ends, Box::new(Chained { end, writer, at, chain, has_row: false }));
        Ok(())
    }

    fn finish(&mut self, state: &State) -> Result<(), RestoreError> {
        let ends = self.begin_writers(state)?;
        load::check_writers(&ends, state, &self.seal.vault, self.keyring).map_err(not_whole)
    }
}

impl Chained {
    fn row(&mut self, row: &AuditRow, keyring: &Keyring) -> Result<(), RestoreError> {
        let wrong = |what: &str| {
            RestoreError::Wrong(format!("audit row {} of writer {} {what}", row.sequence, self.end.writer))
        };
        if row.writer != self.end.writer {
            return Err(wrong("stands among those of another writer"));
        }
        if row.sequence <= self.writer.pruned_sequence && !self.has_row {
            return Ok(());
        }
        if row.sequence != self.at.saturating_add(1) {
            return Err(wrong("does not follow the one before it: rows are missing"));
        }
        if !follows(keyring, &self.chain, row).map_err(|error| wrong(&error.to_string()))? {
            return Err(wrong("was changed"));
        }
        (self.at, self.chain, self.has_row) = (row.sequence, row.chain, true);
        Ok(())
    }

    fn end(self) -> Result<StoredEnd, RestoreError> {
        if self.at != self.end.sequence || self.chain != self.end.chain {
            return Err(RestoreError::Wrong(format!(
                "the audit rows of writer {} end at {}, but its end says {}",
                self.end.writer, self.at, self.end.sequence
            )));
        }
        Ok(StoredEnd { row_chain: self.has_row.then_some(self.chain), has_more: false, end: self.end })
    }
}

pub(super) fn not_whole(error: LoadError) -> RestoreError {
    match error {
        LoadError::Store(error) => error.into(),
        other => RestoreError::Wrong(other.to_string()),
    }
}
