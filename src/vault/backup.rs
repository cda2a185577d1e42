//! The backup file: a header in the clear, and behind it everything else, sealed in chunks.
//!
//! Bytes: the magic (16), the format (4, big endian), the header's length (4), the header as JSON, then chunks to the end of
//! the file. A chunk is 65536 bytes of plain text and a tag of 16; the last one is shorter, or as long. Each is sealed with
//! AES-256-GCM under a key of this file alone (HKDF over a root key and 32 random bytes of the header), with a nonce that is
//! the chunk's number and whether it is the last: the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizar: "Online
//! Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", 2015). The associated data of each is SHA-256 over all
//! before the chunks. docs/adr/0014 says why.
//!
//! # Invariants
//! - `INV-BACKUP-1`: a file opens to its end as it was written, or the first chunk that is not as it was written is named:
//!   no byte can be changed, and no chunk can be left out, added, repeated, moved or taken from another file.
//! - P2: names and rows are sealed; the header shows what a copy of the `seal` row and the head shows.
//!
//! Non-goal: it does not tell that a file is the newest one.

use std::io::{self, Read};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use data_encoding::{BASE64, HEXLOWER};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::VaultError;
use super::keyring::Keyring;
use super::unseal::{Method, SealRow};
use crate::clock::UnixMillis;
use crate::id::{Head, VaultId};
use crate::secret::BackupKey;

const MAGIC: &[u8; 16] = b"p8broker-backup\n";

/// The format that this release writes, and the only one there is.
const FORMAT: u32 = 1;

/// Plain text of a chunk, and its tag.
const CHUNK: usize = 64 * 1024;
const TAG: usize = 16;

/// A longer header is none of ours: it has one digest for each of at most 32 shares, and 36 bytes for each root key.
const MOST_HEADER: u32 = 4 * 1024 * 1024;

/// What a backup says in the clear: enough to open it with the unseal key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The vault's name.
    pub vault: VaultId,
    /// When it was made, by the clock of the replica that made it.
    pub created: UnixMillis,
    /// The release that made it.
    pub release: String,
    /// The replica that made it.
    pub replica: String,
    /// The newest revision, with its chain value.
    pub head: Head,
    /// The generation of the unseal key that opens it.
    pub generation: u32,
    /// Where that key comes from.
    pub unseal: Method,
    /// The sealed keyring, in base64.
    pub keyring: String,
    /// The root key version whose key seals the chunks.
    pub root_version: u32,
    /// 32 random bytes that make the key this file's own, in hex.
    pub file: String,
}

/// Why a file can't be read as a backup.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is something else.
    #[error("this is no backup of p8broker, or its beginning was changed: {0}")]
    NotABackup(String),
    /// A newer release made it.
    #[error(
        "this backup has format {0}, and this release reads format {FORMAT}: use the release that made it, or a newer one"
    )]
    Newer(u32),
    /// It is shorter than it was.
    #[error("the backup was cut off: it ends at byte {0}, before its last chunk")]
    CutOff(u64),
    /// It is not what was written.
    #[error("the backup was changed: the bytes from {from} to {to} are not what was written there")]
    Changed {
        /// The first byte of the chunk.
        from: u64,
        /// The byte after it.
        to: u64,
    },
    /// It opens, and yet holds what no release writes.
    #[error("the backup holds what this release does not know ({0}): use the release that made it, or a newer one")]
    Unknown(String),
    /// The file can't be read.
    #[error("the backup can't be read: {0}")]
    Io(#[from] io::Error),
    /// The key does not open it.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

impl Header {
    /// The header of a new file.
    ///
    /// # Errors
    /// Where the cryptographic library fails.
    pub fn new(
        seal: &SealRow,
        root_version: u32,
        head: Head,
        created: UnixMillis,
        replica: &str,
    ) -> Result<Self, VaultError> {
        let mut file = [0; 32];
        rand::fill(&mut file).map_err(|_| VaultError::Crypto("draw random bytes"))?;
        Ok(Self {
            vault: seal.vault.clone(),
            created,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            replica: replica.to_owned(),
            head,
            generation: seal.generation,
            unseal: seal.method.clone(),
            keyring: BASE64.encode(&seal.keyring),
            root_version,
            file: HEXLOWER.encode(&file),
        })
    }

    /// The `seal` row as it was.
    ///
    /// # Errors
    /// Where the keyring is not in base64.
    pub fn seal_row(&self) -> Result<SealRow, FileError> {
        let keyring = BASE64.decode(self.keyring.as_bytes());
        Ok(SealRow {
            vault: self.vault.clone(),
            generation: self.generation,
            method: self.unseal.clone(),
            keyring: keyring.map_err(|_| FileError::NotABackup("its keyring is not in base64".to_owned()))?,
        })
    }

    fn key(&self, keyring: &Keyring) -> Result<BackupKey, FileError> {
        let file = HEXLOWER.decode(self.file.as_bytes()).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let file = file.ok_or_else(|| FileError::NotABackup("its random bytes are not 32 in hex".to_owned()))?;
        Ok(keyring.backup_key(self.root_version, &file)?)
    }
}

/// What stands before the chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// What it says.
    pub header: Header,
    /// Its bytes: associated data of every chunk, by their digest.
    bytes: Vec<u8>,
}

impl Beginning {
    /// A header as bytes.
    ///
    /// # Errors
    /// Where it can't be written as JSON.
    pub fn of(header: Header) -> Result<Self, VaultError> {
        let failed = |_| VaultError::Crypto("write a header");
        let json = serde_json::to_vec(&header).map_err(failed)?;
        let length = u32::try_from(json.len()).map_err(|_| VaultError::Crypto("write a header"))?;
        let bytes = [MAGIC.as_slice(), &FORMAT.to_be_bytes(), &length.to_be_bytes(), &json].concat();
        Ok(Self { header, bytes })
    }

    /// Reads what stands before the chunks. Nothing of it is authenticated until the first chunk opens.
    ///
    /// # Errors
    /// Where it is no backup, or of a newer release.
    pub fn read(from: &mut impl Read) -> Result<Self, FileError> {
        let mut bytes = vec![0; MAGIC.len().saturating_add(8)];
        let short = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => FileError::NotABackup("it is too short".to_owned()),
            _ => FileError::Io(error),
        };
        from.read_exact(&mut bytes).map_err(short)?;
        let (format, length) = match bytes.strip_prefix(MAGIC.as_slice()) {
            Some(&[a, b, c, d, e, f, g, h]) => (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])),
            _ => return Err(FileError::NotABackup("it does not start with `p8broker-backup`".to_owned())),
        };
        if format != FORMAT {
            return Err(FileError::Newer(format));
        }
        if length > MOST_HEADER {
            return Err(FileError::NotABackup(format!("its header has {length} bytes")));
        }
        let mut json = Vec::new();
        from.take(length.into()).read_to_end(&mut json)?;
        if json.len() != length as usize {
            return Err(FileError::NotABackup("it is too short".to_owned()));
        }
        let header = serde_json::from_slice(&json).map_err(|error| FileError::NotABackup(error.to_string()))?;
        bytes.extend_from_slice(&json);
        Ok(Self { header, bytes })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn digest(&self) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(digest(&SHA256, &self.bytes).as_ref());
        out
    }
}

/// One key, for one file.
struct Chunks {
    key: LessSafeKey,
    aad: [u8; 32],
    /// Chunks so far.
    count: u64,
}

impl Chunks {
    fn new(keyring: &Keyring, beginning: &Beginning) -> Result<Self, FileError> {
        let key = beginning.header.key(keyring)?;
        let key = UnboundKey::new(&AES_256_GCM, key.expose_key()).map_err(|_| VaultError::Crypto("take an AES key"))?;
        Ok(Self { key: LessSafeKey::new(key), aad: beginning.digest(), count: 0 })
    }

    /// INVARIANT (INV-BACKUP-1): the place in the file, and whether it is the last one. The key is this file's own, so no
    /// nonce is ever used twice under it.
    fn nonce(&self, last: bool) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        let (number, rest) = nonce.split_at_mut(8);
        number.copy_from_slice(&self.count.to_be_bytes());
        if let Some(flag) = rest.last_mut() {
            *flag = u8::from(last);
        }
        Nonce::assume_unique_for_key(nonce)
    }

    fn seal(&mut self, chunk: &mut [u8], last: bool, out: &mut Vec<u8>) -> Result<(), VaultError> {
        let tag = self.key.seal_in_place_separate_tag(self.nonce(last), Aad::from(self.aad), chunk);
        out.extend_from_slice(chunk);
        out.extend_from_slice(tag.map_err(|_| VaultError::Crypto("seal"))?.as_ref());
        self.count = self.count.saturating_add(1);
        Ok(())
    }

    fn open(&self, chunk: &mut Vec<u8>, last: bool) -> bool {
        let opened = self.key.open_in_place(self.nonce(last), Aad::from(self.aad), chunk).map(|plain| plain.len());
        opened.map(|length| chunk.truncate(length)).is_ok()
    }
}

/// Makes a backup: plain text goes in, sealed chunks come out.
pub struct Sealer {
    chunks: Chunks,
    waiting: Zeroizing<Vec<u8>>,
}

impl Sealer {
    /// A new file with this beginning.
    ///
    /// # Errors
    /// Where the keyring does not have the header's version, or the cryptographic library fails.
    pub fn new(keyring: &Keyring, beginning: &Beginning) -> Result<Self, FileError> {
        Ok(Self { chunks: Chunks::new(keyring, beginning)?, waiting: Zeroizing::default() })
    }

    /// Takes plain text; adds the chunks that it fills to `out`.
    ///
    /// # Errors
    /// Where the cryptographic library fails.
    pub fn push(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), VaultError> {
        self.waiting.extend_from_slice(plain);
        // One that is exactly full waits: it may be the last.
        while self.waiting.len() > CHUNK {
            let rest = Zeroizing::new(self.waiting.split_off(CHUNK));
            self.chunks.seal(&mut self.waiting, false, out)?;
            self.waiting = rest;
        }
        Ok(())
    }

    /// The last chunk.
    ///
    /// # Errors
    /// Where the cryptographic library fails.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), VaultError> {
        self.chunks.seal(&mut self.waiting, true, out)
    }
}

/// Opens a backup, chunk by chunk: what it gives out was written there.
pub struct Opener<R> {
    from: R,
    chunks: Chunks,
    /// The sealed chunk after the one that is open.
    next: Vec<u8>,
    /// Plain text, given out up to a place.
    open: Zeroizing<Vec<u8>>,
    given: usize,
    /// Where the next chunk starts.
    at: u64,
    /// Whether the open chunk is the last.
    ended: bool,
}

impl<R: Read> Opener<R> {
    /// A file whose beginning was read.
    ///
    /// # Errors
    /// Where the keyring does not have the header's version, or the file can't be read.
    pub fn new(keyring: &Keyring, beginning: &Beginning, mut from: R) -> Result<Self, FileError> {
        let chunks = Chunks::new(keyring, beginning)?;
        let next = sealed_chunk(&mut from)?;
        let at = beginning.bytes.len() as u64;
        Ok(Self { from, chunks, next, open: Zeroizing::default(), given: 0, at, ended: false })
    }

    /// Fills the buffer.
    ///
    /// # Errors
    /// Where the file is not what was written, or ends before.
    pub fn fill(&mut self, mut out: &mut [u8]) -> Result<(), FileError> {
        while !out.is_empty() {
            let left = self.open.get(self.given..).unwrap_or_default();
            if left.is_empty() {
                if self.ended {
                    return Err(FileError::Unknown("it ends in the middle of something".to_owned()));
                }
                self.open_next()?;
                continue;
            }
            let count = left.len().min(out.len());
            let (filled, rest) = out.split_at_mut(count);
            filled.copy_from_slice(left.get(..count).unwrap_or_default());
            self.given = self.given.saturating_add(count);
            out = rest;
        }
        Ok(())
    }

    /// Whether everything was given out.
    ///
    /// # Errors
    /// Where the file is not what was written.
    pub fn is_at_end(&mut self) -> Result<bool, FileError> {
        while !self.ended && self.given >= self.open.len() {
            self.open_next()?;
        }
        Ok(self.given >= self.open.len())
    }

    fn open_next(&mut self) -> Result<(), FileError> {
        let mut chunk = Zeroizing::new(std::mem::take(&mut self.next));
        let length = chunk.len() as u64;
        if chunk.is_empty() {
            return Err(FileError::CutOff(self.at));
        }
        self.next = sealed_chunk(&mut self.from)?;
        let last = self.next.is_empty();
        // Opening overwrites it: a copy tells a file that was cut off at a chunk from one that was changed.
        let copy = if last { chunk.to_vec() } else { Vec::new() };
        let (from, to) = (self.at, self.at.saturating_add(length));
        if !self.chunks.open(&mut chunk, last) {
            let cut_off = last && self.chunks.open(&mut copy.clone(), false);
            return Err(if cut_off { FileError::CutOff(to) } else { FileError::Changed { from, to } });
        }
        self.chunks.count = self.chunks.count.saturating_add(1);
        (self.open, self.given, self.at, self.ended) = (chunk, 0, to, last);
        Ok(())
    }
}

fn sealed_chunk(from: &mut impl Read) -> Result<Vec<u8>, FileError> {
    let mut out = Vec::with_capacity(CHUNK.saturating_add(TAG));
    from.take((CHUNK + TAG) as u64).read_to_end(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests;
