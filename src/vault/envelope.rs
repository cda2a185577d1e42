//! The envelope: AES-256-GCM (NIST SP 800-38D) over some bytes, bound to the place where they stand.
//!
//! Bytes on disk: format (1, value 1), root key version (4, big endian), nonce (12, random), ciphertext and tag (16).
//! Nonces are random: one key seals far fewer than 2^32 envelopes (SP 800-38D, section 8.3), as there is one for each
//! change of the control plane.
//!
//! # Invariants
//! - P2: format, version and [`Place`] are associated data, so an envelope opens only where it was sealed.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use zeroize::Zeroizing;

use super::VaultError;
use crate::id::{Chain, Revision, VaultId};

const FORMAT: u8 = 1;
const HEADER_LEN: usize = 5;

/// Where sealed bytes stand: in which vault, table and row, for which revision, after which predecessor.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The vault.
    pub vault: &'a VaultId,
    /// The table.
    pub table: &'static str,
    /// The row, as its table names it.
    pub id: &'a str,
    /// The revision that the bytes belong to.
    pub revision: Revision,
    /// The chain value before them; zeros for what is not chained.
    pub previous: Chain,
}

impl Place<'_> {
    fn associated_data(&self, header: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        // Each part has its length before it, so that no two places read alike.
        for part in [header, self.vault.as_str().as_bytes(), self.table.as_bytes(), self.id.as_bytes()] {
            out.extend_from_slice(&(part.len() as u64).to_be_bytes());
            out.extend_from_slice(part);
        }
        out.extend_from_slice(&self.revision.0.to_be_bytes());
        out.extend_from_slice(&self.previous.0);
        out
    }

    fn name(&self) -> String {
        format!("{} {}", self.table, self.id)
    }
}

/// An AES-256-GCM key of one root key version, for one use.
pub struct SealingKey {
    version: u32,
    key: LessSafeKey,
}

impl SealingKey {
    /// A key from 32 bytes.
    ///
    /// # Errors
    /// Where the cryptographic library refuses the key.
    pub fn new(version: u32, bytes: &[u8; 32]) -> Result<Self, VaultError> {
        let key = UnboundKey::new(&AES_256_GCM, bytes).map_err(|_| VaultError::Crypto("take an AES key"))?;
        Ok(Self { version, key: LessSafeKey::new(key) })
    }

    /// Seals bytes for a place.
    ///
    /// # Errors
    /// Where the cryptographic library fails.
    pub fn seal(&self, place: &Place<'_>, plaintext: &[u8]) -> Result<Vec<u8>, VaultError> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| VaultError::Crypto("draw a nonce"))?;
        let mut out = header(self.version).to_vec();
        let aad = Aad::from(place.associated_data(&out));
        let mut sealed = Zeroizing::new(plaintext.to_vec());
        let tag = self
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed)
            .map_err(|_| VaultError::Crypto("seal"))?;
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&sealed);
        out.extend_from_slice(tag.as_ref());
        Ok(out)
    }

    /// Opens what was sealed for this very place.
    ///
    /// # Errors
    /// Where the bytes or the place are not what they were.
    pub fn open(&self, place: &Place<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let failed = || VaultError::does_not_open(&place.name());
        let (head, rest) = sealed.split_at_checked(HEADER_LEN).ok_or_else(failed)?;
        let (nonce, rest) = rest.split_at_checked(NONCE_LEN).ok_or_else(failed)?;
        if head != header(self.version) {
            return Err(failed());
        }
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| failed())?;
        let mut buffer = Zeroizing::new(rest.to_vec());
        let aad = Aad::from(place.associated_data(head));
        let length = self.key.open_in_place(nonce, aad, &mut buffer).map_err(|_| failed())?.len();
        buffer.truncate(length);
        Ok(buffer)
    }
}

/// The root key version that an envelope names.
///
/// # Errors
/// Where the bytes are no envelope.
pub fn version(place: &Place<'_>, sealed: &[u8]) -> Result<u32, VaultError> {
    match sealed {
        [FORMAT, a, b, c, d, ..] => Ok(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => Err(VaultError::does_not_open(&place.name())),
    }
}

fn header(version: u32) -> [u8; HEADER_LEN] {
    let [a, b, c, d] = version.to_be_bytes();
    [FORMAT, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_of_the_envelope_fails_to_open() {
        let vault = VaultId::from_random(7);
        let place =
            Place { vault: &vault, table: "control_log", id: "5", revision: Revision(5), previous: Chain([9; 32]) };
        let key = SealingKey::new(3, &[1; 32]).unwrap();
        let sealed = key.seal(&place, b"a record").unwrap();
        assert_eq!(key.open(&place, &sealed).unwrap().as_slice(), b"a record");
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(key.open(&place, &changed).is_err(), "bit {bit}");
        }
        for cut in 0..sealed.len() {
            assert!(key.open(&place, &sealed[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn an_envelope_opens_only_in_its_place() {
        let (vault, other) = (VaultId::from_random(7), VaultId::from_random(8));
        let place =
            Place { vault: &vault, table: "control_log", id: "5", revision: Revision(5), previous: Chain([9; 32]) };
        let key = SealingKey::new(3, &[1; 32]).unwrap();
        let sealed = key.seal(&place, b"a record").unwrap();
        let elsewhere = [
            Place { vault: &other, ..place },
            Place { table: "sealed_keys", ..place },
            Place { id: "6", ..place },
            Place { revision: Revision(6), ..place },
            Place { previous: Chain([8; 32]), ..place },
        ];
        for place in elsewhere {
            assert!(key.open(&place, &sealed).is_err(), "{place:?}");
        }
        assert!(SealingKey::new(4, &[1; 32]).unwrap().open(&place, &sealed).is_err());
        assert!(SealingKey::new(3, &[2; 32]).unwrap().open(&place, &sealed).is_err());
    }
}
