//! Where the unseal key comes from: Shamir shares held by people, or a key file.
//!
//! A share is one line of text, `p8share-<vault>-<generation>-<index>-<data>-<check>`: the first 8 hex digits of the
//! vault's name, the generation of the unseal key, the share's index, 33 bytes of data in hex (the x coordinate and one
//! byte of polynomial for each byte of the key, over GF(2^8)), and the first 8 hex digits of SHA-256 over all before.
//! With it a mistyped, foreign, outdated or repeated share is told from a wrong one. A SHA-256 of each share stands in
//! the `seal` row; a share has 256 bits of entropy, so the digest gives nothing away.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};
use rand_core::UnwrapErr;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use vsss_rs::Gf256;
use zeroize::Zeroizing;

use super::VaultError;
use super::envelope::Place;
use super::keyring::Keyring;
use crate::id::{Chain, Revision, VaultId};
use crate::secret::{ShareText, UnsealKey};

/// Most shares of one unseal key.
pub const MOST_SHARES: u32 = 32;

/// How a vault is unsealed, with the sealed keyring: the one row of the `seal` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealRow {
    /// The vault's name.
    pub vault: VaultId,
    /// Counts the unseal keys this vault has had, from 1.
    pub generation: u32,
    /// Where the unseal key comes from.
    pub method: Method,
    /// The keyring, sealed by the unseal key.
    pub keyring: Vec<u8>,
}

/// Where the unseal key comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
pub enum Method {
    /// From people who each hold a share.
    Shares {
        /// How many shares it takes.
        threshold: u32,
        /// SHA-256 of each share's text, in hex, by index from 1.
        digests: Vec<String>,
    },
    /// From a file or an environment variable of the broker.
    KeyFile,
}

/// Why a share was not taken. The progress made so far is kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// It is no share at all, or mistyped.
    #[error("this is not a share, or it was mistyped: a share is one line that starts with `p8share-`; copy it whole")]
    Malformed,
    /// It belongs to another vault.
    #[error("this share belongs to vault {theirs}…, not to this vault {ours}…")]
    Foreign {
        /// The share's vault.
        theirs: String,
        /// This vault.
        ours: String,
    },
    /// It belongs to an unseal key that was replaced.
    #[error("this share is outdated: it is of generation {theirs}, and the unseal key is now of generation {ours}")]
    Outdated {
        /// The share's generation.
        theirs: u32,
        /// The vault's generation.
        ours: u32,
    },
    /// It belongs to an unseal key that never came into force.
    #[error(
        "this share is of generation {theirs}, whose rekey was never confirmed; use the shares of generation {ours}"
    )]
    Unconfirmed {
        /// The share's generation.
        theirs: u32,
        /// The vault's generation.
        ours: u32,
    },
    /// It was given before.
    #[error("share {index} was given before; another one is needed")]
    Repeated {
        /// Its index.
        index: u8,
    },
    /// It is well formed, but not the share that was handed out.
    #[error("this is not share {index} of this vault: its content was changed")]
    Wrong {
        /// Its index.
        index: u8,
    },
    /// The vault is not unsealed by shares.
    #[error("this vault is unsealed by a key file, not by shares")]
    NotByShares,
}

/// Shares given so far, on one replica.
#[derive(Debug, Default)]
pub struct Progress {
    shares: BTreeMap<u8, Zeroizing<Vec<u8>>>,
}

impl Progress {
    /// How many shares there are.
    pub fn len(&self) -> u32 {
        u32::try_from(self.shares.len()).unwrap_or(u32::MAX)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.shares.is_empty()
    }

    /// Takes a share; answers the unseal key when there are enough.
    ///
    /// # Errors
    /// With what is wrong with the share; those given before are kept.
    pub fn add(&mut self, text: &ShareText, row: &SealRow) -> Result<Option<UnsealKey>, ShareError> {
        let Method::Shares { threshold, digests } = &row.method else { return Err(ShareError::NotByShares) };
        let share = ParsedShare::parse(text.expose_share())?;
        let ours = short(&row.vault);
        if share.vault != ours {
            return Err(ShareError::Foreign { theirs: share.vault, ours: ours.to_owned() });
        }
        let (theirs, ours) = (share.generation, row.generation);
        if theirs < ours {
            return Err(ShareError::Outdated { theirs, ours });
        }
        if theirs > ours {
            return Err(ShareError::Unconfirmed { theirs, ours });
        }
        let index = share.index;
        let known =
            usize::from(index).checked_sub(1).and_then(|at| digests.get(at)).ok_or(ShareError::Wrong { index })?;
        if !bool::from(known.as_bytes().ct_eq(share_digest(text).as_bytes())) {
            return Err(ShareError::Wrong { index });
        }
        if self.shares.contains_key(&index) {
            return Err(ShareError::Repeated { index });
        }
        self.shares.insert(index, share.data);
        if self.len() < *threshold {
            return Ok(None);
        }
        let shares: Zeroizing<Vec<Vec<u8>>> =
            Zeroizing::new(self.shares.values().map(|share| share.to_vec()).collect());
        let secret = Gf256::combine_bytes(shares.as_slice()).map(Zeroizing::new);
        self.shares.clear();
        let key = secret.ok().and_then(|secret| UnsealKey::from_slice(&secret));
        key.map(Some).ok_or(ShareError::Wrong { index })
    }
}

struct ParsedShare {
    vault: String,
    generation: u32,
    index: u8,
    data: Zeroizing<Vec<u8>>,
}

impl ParsedShare {
    fn parse(text: &str) -> Result<Self, ShareError> {
        let (body, check) = text.trim().rsplit_once('-').ok_or(ShareError::Malformed)?;
        if check != check_digits(body) {
            return Err(ShareError::Malformed);
        }
        let parts: Vec<&str> = body.split('-').collect();
        let ["p8share", vault, generation, index, data] = parts.as_slice() else { return Err(ShareError::Malformed) };
        let data = HEXLOWER.decode(data.as_bytes()).map(Zeroizing::new).map_err(|_| ShareError::Malformed)?;
        let index: u8 = index.parse().map_err(|_| ShareError::Malformed)?;
        if data.len() != 33 || data.first() != Some(&index) {
            return Err(ShareError::Malformed);
        }
        let generation = generation.parse().map_err(|_| ShareError::Malformed)?;
        Ok(Self { vault: (*vault).to_owned(), generation, index, data })
    }
}

/// A new unseal key with its shares, each for one person.
///
/// # Errors
/// Where the numbers make no sense, or the cryptographic library fails.
pub fn split(
    vault: &VaultId,
    generation: u32,
    shares: u32,
    threshold: u32,
) -> Result<(UnsealKey, Vec<ShareText>), SplitError> {
    if !(2..=MOST_SHARES).contains(&shares) || !(2..=shares).contains(&threshold) {
        return Err(SplitError::Numbers { shares, threshold });
    }
    let key = UnsealKey::fill_with(rand::fill).map_err(|_| VaultError::Crypto("draw an unseal key"))?;
    let rng = UnwrapErr(getrandom::SysRng);
    let parts = Gf256::split_bytes(threshold as usize, shares as usize, key.expose_key(), rng)
        .map(Zeroizing::new)
        .map_err(|_| VaultError::Crypto("split the unseal key"))?;
    let texts = parts.iter().map(|part| {
        let index = part.first().copied().unwrap_or_default();
        let data = Zeroizing::new(HEXLOWER.encode(part));
        let body = Zeroizing::new(format!("p8share-{}-{generation}-{index}-{}", short(vault), data.as_str()));
        ShareText::new(format!("{}-{}", body.as_str(), check_digits(&body)))
    });
    Ok((key, texts.collect()))
}

/// Why an unseal key could not be split.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// The numbers make no sense.
    #[error(
        "{shares} shares with a threshold of {threshold} can't be: 2 to {MOST_SHARES} shares, and a threshold from 2 to their number"
    )]
    Numbers {
        /// How many shares were asked for.
        shares: u32,
        /// How many it should take.
        threshold: u32,
    },
    /// The cryptographic library failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// What the `seal` row keeps of a share.
pub fn share_digest(text: &ShareText) -> String {
    HEXLOWER.encode(digest(&SHA256, text.expose_share().trim().as_bytes()).as_ref())
}

/// Takes the content of a key file: 32 bytes, as 64 hex digits or in base64.
///
/// # Errors
/// With what to write instead.
pub fn parse_key_file(content: &[u8]) -> Result<UnsealKey, KeyFileError> {
    let text = content.trim_ascii();
    let bytes = match text.len() {
        64 => HEXLOWER_PERMISSIVE.decode(text).ok(),
        44 => BASE64.decode(text).ok(),
        _ => None,
    };
    bytes.map(Zeroizing::new).and_then(|bytes| UnsealKey::from_slice(&bytes)).ok_or(KeyFileError)
}

/// The content is no unseal key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an unseal key is 32 random bytes as 64 hex digits or in base64: make one with `openssl rand -hex 32`")]
pub struct KeyFileError;

impl SealRow {
    /// Seals a keyring into a row.
    ///
    /// # Errors
    /// Where the cryptographic library fails.
    pub fn seal(vault: &VaultId, generation: u32, method: Method, keyring: &Keyring) -> Result<Self, VaultError> {
        let mut row = Self { vault: vault.clone(), generation, method, keyring: Vec::new() };
        row.keyring = keyring.seal(&row.place(&row.says()))?;
        Ok(row)
    }

    /// Opens the row's keyring.
    ///
    /// # Errors
    /// Where the unseal key is another one, or anything in the row was changed.
    pub fn open(&self, key: &UnsealKey) -> Result<Keyring, VaultError> {
        Keyring::open(key, &self.place(&self.says()), &self.keyring)
    }

    /// Opens the row with the key that opened an earlier one.
    ///
    /// # Errors
    /// Where the unseal key is another one by now, or anything in the row was changed.
    pub fn open_newer(&self, keyring: &Keyring) -> Result<Keyring, VaultError> {
        keyring.open_newer(&self.place(&self.says()), &self.keyring)
    }

    /// Whether this keyring's own key opens the row: then what is sealed by it next opens with the same unseal key.
    pub fn is_sealed_by(&self, keyring: &Keyring) -> bool {
        keyring.opens(&self.place(&self.says()), &self.keyring)
    }

    /// All that the row says in the clear, so that it can't be changed either.
    fn says(&self) -> String {
        match &self.method {
            Method::Shares { threshold, digests } => format!("shares {threshold} {}", digests.join(" ")),
            Method::KeyFile => "key file".to_owned(),
        }
    }

    fn place<'a>(&'a self, says: &'a str) -> Place<'a> {
        let revision = Revision(u64::from(self.generation));
        Place { vault: &self.vault, table: "seal", id: says, revision, previous: Chain::default() }
    }
}

fn short(vault: &VaultId) -> &str {
    vault.as_str().get(..8).unwrap_or_default()
}

fn check_digits(body: &str) -> String {
    let hash = digest(&SHA256, body.as_bytes());
    HEXLOWER.encode(hash.as_ref().get(..4).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(vault: &VaultId, generation: u32, texts: &[ShareText], threshold: u32, key: &UnsealKey) -> SealRow {
        let method = Method::Shares { threshold, digests: texts.iter().map(share_digest).collect() };
        SealRow::seal(vault, generation, method, &Keyring::generate(key).unwrap()).unwrap()
    }

    #[test]
    fn any_threshold_of_shares_opens_and_fewer_do_not() {
        let vault = VaultId::from_random(1);
        let (key, texts) = split(&vault, 1, 5, 3).unwrap();
        let row = row(&vault, 1, &texts, 3, &key);
        for pick in [[0, 1, 2], [4, 2, 0], [1, 3, 4]] {
            let mut progress = Progress::default();
            assert!(progress.add(&texts[pick[0]], &row).unwrap().is_none());
            assert!(progress.add(&texts[pick[1]], &row).unwrap().is_none());
            let key = progress.add(&texts[pick[2]], &row).unwrap().unwrap();
            assert!(row.open(&key).is_ok());
        }
    }

    #[test]
    fn a_bad_share_is_named_and_the_progress_kept() {
        let (vault, other) = (VaultId::from_random(1 << 120), VaultId::from_random(2 << 120));
        let (key, texts) = split(&vault, 2, 3, 2).unwrap();
        let row = row(&vault, 2, &texts, 2, &key);
        let mut progress = Progress::default();
        assert!(progress.add(&texts[0], &row).unwrap().is_none());
        let share = |vault, generation| split(vault, generation, 3, 2).unwrap().1.remove(1);
        assert_eq!(progress.add(&texts[0], &row).err(), Some(ShareError::Repeated { index: 1 }));
        assert!(matches!(progress.add(&share(&other, 2), &row), Err(ShareError::Foreign { .. })));
        assert!(matches!(progress.add(&share(&vault, 1), &row), Err(ShareError::Outdated { theirs: 1, ours: 2 })));
        assert!(matches!(progress.add(&share(&vault, 3), &row), Err(ShareError::Unconfirmed { theirs: 3, ours: 2 })));
        assert_eq!(progress.add(&share(&vault, 2), &row).err(), Some(ShareError::Wrong { index: 2 }));
        let mistyped = ShareText::new(texts[1].expose_share().replacen('-', "_", 1));
        assert_eq!(progress.add(&mistyped, &row).err(), Some(ShareError::Malformed));
        assert_eq!(progress.len(), 1);
        assert!(progress.add(&texts[1], &row).unwrap().is_some());
    }

    #[test]
    fn a_changed_seal_row_does_not_open() {
        let vault = VaultId::from_random(1);
        let (key, texts) = split(&vault, 1, 3, 2).unwrap();
        let row = row(&vault, 1, &texts, 2, &key);
        assert!(row.open(&key).is_ok());
        assert!(SealRow { generation: 2, ..row.clone() }.open(&key).is_err());
        assert!(SealRow { method: Method::KeyFile, ..row.clone() }.open(&key).is_err());
        assert!(SealRow { vault: VaultId::from_random(3), ..row }.open(&key).is_err());
    }

    #[test]
    fn key_files_are_32_bytes_in_hex_or_base64() {
        assert!(parse_key_file(format!("{}\n", "0a".repeat(32)).as_bytes()).is_ok());
        assert!(parse_key_file(BASE64.encode(&[7; 32]).as_bytes()).is_ok());
        for bad in [&b""[..], b"hunter2", &[0; 32], "zz".repeat(32).as_bytes()] {
            assert!(parse_key_file(bad).is_err());
        }
    }
}
