//! A whole vault as a sequence of parts, and each part as bytes: what a backup holds behind its header.
//!
//! Order: records, keys, then each writer's end with its rows after it, then the totals. Bytes of a part: its kind (1), the
//! length of what follows (4, big endian), and its fields in order: numbers have 8 bytes, big endian; texts and bytes have
//! their length (4) before them; what may be absent has a byte before it that says whether it is there.
//!
//! The seal row and the head stand in the header. Not in a backup: counts of quotas and of shadow mode, and what replicas
//! said of themselves. They are about now, and nothing rests on them.

use crate::clock::UnixMillis;
use crate::domain::audit::{AuditEvent, AuditRow, AuditedToken, Outcome};
use crate::id::{Chain, Head, KeyId, Revision, TokenId, WriterId};
use crate::store::SealedKey;
use crate::vault::audit_chain::WriterEnd;
use crate::vault::log::SealedRecord;
use crate::vault::unseal::SealRow;

/// Bytes before the fields of a part.
pub const PART_HEADER: usize = 5;

/// What a backup begins with, all of one moment. The rest is read later and is the same then: the log and each writer's rows
/// only grow at their ends, and both ends are here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The `seal` row.
    pub seal: SealRow,
    /// The head.
    pub head: Head,
    /// All sealed keys.
    pub keys: Vec<SealedKey>,
    /// Every writer's end, with the first of its rows; those before it were removed.
    pub writers: Vec<(WriterEnd, Option<u64>)>,
}

/// One part of a vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A record of the control log.
    Record(SealedRecord),
    /// A sealed key.
    Key(SealedKey),
    /// The end of one writer's chain; its rows follow.
    Writer(WriterEnd),
    /// An audit row of the writer before it.
    Row(Box<AuditRow>),
    /// The last part: how many there were of each.
    Totals(Totals),
}

/// How many parts there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Records of the control log.
    pub records: u64,
    /// Sealed keys.
    pub keys: u64,
    /// Writers of audit rows.
    pub writers: u64,
    /// Audit rows.
    pub rows: u64,
}

impl Totals {
    /// Counts one more part.
    pub fn count(&mut self, part: &Part) {
        let number = match part {
            Part::Record(_) => &mut self.records,
            Part::Key(_) => &mut self.keys,
            Part::Writer(_) => &mut self.writers,
            Part::Row(_) => &mut self.rows,
            Part::Totals(_) => return,
        };
        *number = number.saturating_add(1);
    }
}

const RECORD: u8 = 1;
const KEY: u8 = 2;
const WRITER: u8 = 3;
const ROW: u8 = 4;
const TOTALS: u8 = 5;

/// The kind and the length of a part, as its first bytes have them.
pub fn header(bytes: [u8; PART_HEADER]) -> (u8, u32) {
    let [kind, a, b, c, d] = bytes;
    (kind, u32::from_be_bytes([a, b, c, d]))
}

impl Part {
    /// Adds this part's bytes. Fields are far below 4 GiB: a checkpoint of 100,000 policies has some 100 MB.
    pub fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; PART_HEADER]);
        let mut put = Put(out);
        let kind = match self {
            Self::Record(record) => {
                put.number(record.revision.0);
                put.number(u64::from(record.checkpoint));
                put.bytes(&record.previous.0);
                put.bytes(&record.sealed);
                RECORD
            }
            Self::Key(key) => {
                put.bytes(key.key_id.as_str().as_bytes());
                put.number(key.imported.0);
                put.bytes(&key.sealed);
                KEY
            }
            Self::Writer(end) => {
                put.bytes(end.writer.as_str().as_bytes());
                put.number(end.sequence);
                put.bytes(&end.chain.0);
                put.number(end.revision.0);
                put.number(end.key_version.into());
                put.bytes(&end.tag.0);
                WRITER
            }
            Self::Row(row) => {
                put.row(row);
                ROW
            }
            Self::Totals(totals) => {
                for number in [totals.records, totals.keys, totals.writers, totals.rows] {
                    put.number(number);
                }
                TOTALS
            }
        };
        let length = u32::try_from(out.len().saturating_sub(start).saturating_sub(PART_HEADER)).unwrap_or(u32::MAX);
        if let Some(head) = out.get_mut(start..start.saturating_add(PART_HEADER)) {
            let [a, b, c, d] = length.to_be_bytes();
            head.copy_from_slice(&[kind, a, b, c, d]);
        }
    }

    /// A part from its kind and its fields.
    ///
    /// # Errors
    /// With what this release does not know.
    pub fn read(kind: u8, fields: &[u8]) -> Result<Self, String> {
        let mut take = Take(fields);
        let part = match kind {
            RECORD => Self::Record(SealedRecord {
                revision: Revision(take.number()?),
                checkpoint: take.number()? == 1,
                previous: take.chain()?,
                sealed: take.bytes()?.to_vec(),
            }),
            KEY => Self::Key(SealedKey {
                key_id: KeyId::parse(take.text()?).map_err(|error| error.to_string())?,
                imported: Revision(take.number()?),
                sealed: take.bytes()?.to_vec(),
            }),
            WRITER => Self::Writer(WriterEnd {
                writer: take.writer()?,
                sequence: take.number()?,
                chain: take.chain()?,
                revision: Revision(take.number()?),
                key_version: take.version()?,
                tag: take.chain()?,
            }),
            ROW => Self::Row(Box::new(take.row()?)),
            TOTALS => Self::Totals(Totals {
                records: take.number()?,
                keys: take.number()?,
                writers: take.number()?,
                rows: take.number()?,
            }),
            other => return Err(format!("a part of kind {other}")),
        };
        if take.0.is_empty() { Ok(part) } else { Err(format!("a part of kind {kind} with more fields")) }
    }
}

struct Put<'a>(&'a mut Vec<u8>);

impl Put<'_> {
    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    /// As many bits, read back the same way.
    fn signed(&mut self, number: i64) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        self.0.extend_from_slice(bytes);
    }

    fn row(&mut self, row: &AuditRow) {
        let event = &row.event;
        self.bytes(row.writer.as_str().as_bytes());
        self.number(row.sequence);
        self.signed(event.at.0);
        for text in [
            &event.event,
            event.outcome.as_str(),
            &event.reason,
            &event.decision_id,
            &event.caller,
            &event.identity,
            &event.detail,
        ] {
            self.bytes(text.as_bytes());
        }
        for maybe in [&event.policy, &event.key_id, &event.app_group, &event.role, &event.scope] {
            self.0.push(u8::from(maybe.is_some()));
            if let Some(text) = maybe {
                self.bytes(text.as_bytes());
            }
        }
        self.0.push(u8::from(event.token.is_some()));
        if let Some(token) = &event.token {
            self.bytes(token.id.as_str().as_bytes());
            self.signed(token.issued_at);
            self.signed(token.expires_at);
        }
        self.number(event.revision.0);
        self.number(row.key_version.into());
        self.bytes(&row.chain.0);
    }
}

struct Take<'a>(&'a [u8]);

impl<'a> Take<'a> {
    fn some(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("a part with fewer fields")?;
        self.0 = rest;
        Ok(taken)
    }

    fn eight(&mut self) -> Result<[u8; 8], String> {
        self.some(8)?.try_into().map_err(|_| "a short number".to_owned())
    }

    fn number(&mut self) -> Result<u64, String> {
        self.eight().map(u64::from_be_bytes)
    }

    fn signed(&mut self) -> Result<i64, String> {
        self.eight().map(i64::from_be_bytes)
    }

    fn bytes(&mut self) -> Result<&'a [u8], String> {
        let length: [u8; 4] = self.some(4)?.try_into().map_err(|_| "a short length".to_owned())?;
        self.some(u32::from_be_bytes(length) as usize)
    }

    fn text(&mut self) -> Result<&'a str, String> {
        std::str::from_utf8(self.bytes()?).map_err(|_| "a text that is none".to_owned())
    }

    fn string(&mut self) -> Result<String, String> {
        self.text().map(ToOwned::to_owned)
    }

    fn is_there(&mut self) -> Result<bool, String> {
        match self.some(1)? {
            [0] => Ok(false),
            [1] => Ok(true),
            other => Err(format!("{other:?} where a 0 or 1 must be")),
        }
    }

    fn maybe(&mut self) -> Result<Option<String>, String> {
        if self.is_there()? { self.string().map(Some) } else { Ok(None) }
    }

    fn chain(&mut self) -> Result<Chain, String> {
        self.bytes()?.try_into().map(Chain).map_err(|_| "a chain value without 32 bytes".to_owned())
    }

    fn version(&mut self) -> Result<u32, String> {
        u32::try_from(self.number()?).map_err(|error| error.to_string())
    }

    fn writer(&mut self) -> Result<WriterId, String> {
        WriterId::parse(self.text()?).map_err(|error| error.to_string())
    }

    fn row(&mut self) -> Result<AuditRow, String> {
        let (writer, sequence) = (self.writer()?, self.number()?);
        let at = UnixMillis(self.signed()?);
        let (event, outcome) = (self.string()?, self.text()?);
        let event = AuditEvent {
            at,
            event,
            outcome: Outcome::parse(outcome).ok_or_else(|| format!("the outcome {outcome}"))?,
            reason: self.string()?,
            decision_id: self.string()?,
            caller: self.string()?,
            identity: self.string()?,
            detail: self.string()?,
            policy: self.maybe()?,
            key_id: self.maybe()?,
            app_group: self.maybe()?,
            role: self.maybe()?,
            scope: self.maybe()?,
            token: if self.is_there()? { Some(self.token()?) } else { None },
            revision: Revision(self.number()?),
        };
        Ok(AuditRow { writer, sequence, event, key_version: self.version()?, chain: self.chain()? })
    }

    fn token(&mut self) -> Result<AuditedToken, String> {
        Ok(AuditedToken {
            id: TokenId::parse(self.text()?).map_err(|error| error.to_string())?,
            issued_at: self.signed()?,
            expires_at: self.signed()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(token: bool) -> AuditRow {
        let text = |text: &str| Some(text.to_owned()).filter(|_| token);
        AuditRow {
            writer: WriterId::from_random(5),
            sequence: 7,
            key_version: 2,
            event: AuditEvent {
                at: UnixMillis(-3),
                event: "IssueToken".to_owned(),
                outcome: Outcome::Signed,
                reason: "OK".to_owned(),
                decision_id: "d".repeat(26),
                caller: "dns:ci.acme.internal".to_owned(),
                identity: "certificate ü".to_owned(),
                detail: String::new(),
                policy: text("p"),
                key_id: text(""),
                app_group: text("g"),
                role: text("ADMIN"),
                scope: None,
                token: token.then(|| AuditedToken {
                    id: TokenId::parse(&"ab".repeat(32)).unwrap(),
                    issued_at: 5,
                    expires_at: -1,
                }),
                revision: Revision(9),
            },
            chain: Chain([8; 32]),
        }
    }

    #[test]
    fn every_part_is_read_as_it_was_written_and_no_shorter_or_longer() {
        let writer = WriterId::from_random(5);
        let (chain, tag) = (Chain([1; 32]), Chain([2; 32]));
        let end = WriterEnd { writer, sequence: u64::MAX, chain, revision: Revision(3), key_version: 1, tag };
        let parts = [
            Part::Record(SealedRecord {
                revision: Revision(1),
                checkpoint: true,
                previous: chain,
                sealed: vec![0; 300],
            }),
            Part::Key(SealedKey {
                key_id: KeyId::parse("2X9R4HXF34").unwrap(),
                imported: Revision(4),
                sealed: Vec::new(),
            }),
            Part::Writer(end),
            Part::Row(Box::new(row(true))),
            Part::Row(Box::new(row(false))),
            Part::Totals(Totals { records: 1, keys: 2, writers: 3, rows: 4 }),
        ];
        for part in parts {
            let mut bytes = Vec::new();
            part.write(&mut bytes);
            let (kind, length) = header(*bytes.first_chunk().unwrap());
            let fields = &bytes[PART_HEADER..];
            assert_eq!(fields.len(), length as usize);
            assert_eq!(Part::read(kind, fields), Ok(part.clone()));
            for cut in 0..fields.len() {
                assert!(Part::read(kind, &fields[..cut]).is_err(), "{part:?} cut at {cut}");
            }
            assert!(Part::read(kind, &[fields, &[0]].concat()).is_err(), "{part:?} with more");
        }
        assert!(Part::read(9, &[]).unwrap_err().contains("kind 9"));
    }
}
