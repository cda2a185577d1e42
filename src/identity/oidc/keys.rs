//! The public keys of an issuer: a JWK Set (RFC 7517, RFC 7518 section 6, RFC 8037), and which of them may have signed what.
//!
//! A key is used for nothing but what its type, its curve, its `use`, its `key_ops` and its `alg` allow, all of them
//! (RFC 8725, section 3.1). Keys that can't verify here are left out, as RFC 7517 (section 5) asks; so are symmetric
//! ones, those that are too short or too long, and those whose private half was published with them.
//!
//! # Invariants
//! - `INV-BEARER-1`: nothing symmetric is ever a key, and which key is tried depends on the issuer's set alone: a `kid` is
//!   compared with those of the set, and is no path, address or query.

use std::sync::Arc;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, VerificationAlgorithm,
};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Map, Value};

use super::error::BearerError;
use super::token::Presented;
use crate::domain::issuer::Algorithm;

/// Longest `kid`, in bytes.
pub(super) const MOST_KEY_ID_BYTES: usize = 256;

/// Most keys of a set.
const MOST_KEYS: usize = 100;

/// Most keys of one `kid` that are tried on one token.
const MOST_TRIES: usize = 4;

/// Shortest and longest modulus of an RSA key, in bits (RFC 7518, section 3.3; and what AWS-LC verifies).
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Least and greatest public exponent (FIPS 186-5, appendix A.1.1; and what AWS-LC verifies).
const RSA_EXPONENTS: std::ops::RangeInclusive<u64> = 65_537..=0xffff_ffff;

/// Why a text is no set of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeySetError {
    #[error("it is not one JSON object with a list of objects called `keys`")]
    Shape,
    #[error("it has more than {MOST_KEYS} keys")]
    TooMany,
}

/// The keys of an issuer that can verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeySet(Vec<Arc<Key>>);

/// One public key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key {
    id: Option<String>,
    /// The `alg`: the only algorithm that it is for.
    only: Option<Algorithm>,
    material: Material,
}

#[derive(Debug, PartialEq, Eq)]
enum Material {
    /// Big-endian, without leading zeros.
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// Uncompressed points (SEC 1, section 2.3.3).
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl KeySet {
    pub(super) fn of(document: &Map<String, Value>) -> Result<Self, KeySetError> {
        let keys = document.get("keys").and_then(Value::as_array).ok_or(KeySetError::Shape)?;
        if keys.len() > MOST_KEYS {
            return Err(KeySetError::TooMany);
        }
        let keys: Option<Vec<_>> = keys.iter().map(Value::as_object).collect();
        Ok(Self(keys.ok_or(KeySetError::Shape)?.into_iter().filter_map(Key::of).map(Arc::new).collect()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this key is one of the set.
    pub(super) fn holds(&self, key: &Arc<Key>) -> bool {
        self.0.iter().any(|ours| Arc::ptr_eq(ours, key) || ours == key)
    }

    /// The key that has signed a token.
    pub(super) fn verify(&self, token: &Presented<'_>) -> Result<Arc<Key>, BearerError> {
        let tried: Vec<_> = match &token.key_id {
            Some(id) => {
                let named: Vec<_> = self.0.iter().filter(|key| key.id.as_ref() == Some(id)).collect();
                if named.is_empty() {
                    return Err(BearerError::KeyUnknown);
                }
                named.into_iter().filter(|key| key.fits(token.algorithm)).take(MOST_TRIES).collect()
            }
            None => {
                let fitting: Vec<_> = self.0.iter().filter(|key| key.fits(token.algorithm)).collect();
                if fitting.len() != 1 {
                    return Err(BearerError::KeyUnknown);
                }
                fitting
            }
        };
        if tried.is_empty() {
            return Err(BearerError::Algorithm);
        }
        let mut tried = tried.into_iter();
        let key = tried.find(|key| key.verifies(token.algorithm, token.signed.as_bytes(), &token.signature));
        key.cloned().ok_or(BearerError::Signature)
    }
}

impl Key {
    /// Takes a JWK; `None` for one that is not for verifying here.
    fn of(jwk: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        // A private half that everybody can read signs for everybody.
        if jwk.contains_key("d") || jwk.get("use").is_some_and(|usage| usage != "sig") {
            return None;
        }
        if let Some(operations) = jwk.get("key_ops") {
            operations.as_array()?.iter().find(|operation| *operation == "verify")?;
        }
        let id = match jwk.get("kid") {
            None => None,
            Some(id) => Some(id.as_str().filter(|id| id.len() <= MOST_KEY_ID_BYTES)?.to_owned()),
        };
        let only = match jwk.get("alg") {
            None => None,
            Some(name) => Some(Algorithm::parse(name.as_str()?)?),
        };
        let material = match (text("kty")?, text("crv")) {
            ("RSA", _) => rsa(&bytes(text("n")?)?, &bytes(text("e")?)?)?,
            ("EC", Some("P-256")) => Material::P256(point(text("x")?, text("y")?, 32, &ECDSA_P256_SHA256_FIXED)?),
            ("EC", Some("P-384")) => Material::P384(point(text("x")?, text("y")?, 48, &ECDSA_P384_SHA384_FIXED)?),
            ("OKP", Some("Ed25519")) => {
                let key = bytes(text("x")?)?;
                ParsedPublicKey::new(&ED25519, &key).ok()?;
                Material::Ed25519(key)
            }
            _ => return None,
        };
        let key = Self { id, only, material };
        // One that is for an algorithm of another type is for none.
        key.only.is_none_or(|algorithm| key.fits(algorithm)).then_some(key)
    }

    /// Whether it is for this algorithm: by its own word, and by its type and curve.
    fn fits(&self, algorithm: Algorithm) -> bool {
        use Algorithm::{EdDsa, Es256, Es384, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
        let typed = match self.material {
            Material::Rsa { .. } => matches!(algorithm, Rs256 | Rs384 | Rs512 | Ps256 | Ps384 | Ps512),
            Material::P256(_) => algorithm == Es256,
            Material::P384(_) => algorithm == Es384,
            Material::Ed25519(_) => algorithm == EdDsa,
        };
        typed && self.only.is_none_or(|only| only == algorithm)
    }

    /// Whether it has signed this. An algorithm that is not of its type has no line here, so that it verifies nothing.
    fn verifies(&self, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
        use Algorithm::{EdDsa, Es256, Es384, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
        let rsa = |parameters: &RsaParameters| match &self.material {
            Material::Rsa { modulus, exponent } => {
                RsaPublicKeyComponents { n: modulus, e: exponent }.verify(parameters, signed, signature).is_ok()
            }
            Material::P256(_) | Material::P384(_) | Material::Ed25519(_) => false,
        };
        let other =
            |key: &[u8], algorithm: &dyn VerificationAlgorithm| algorithm.verify_sig(key, signed, signature).is_ok();
        match (algorithm, &self.material) {
            (Rs256, _) => rsa(&RSA_PKCS1_2048_8192_SHA256),
            (Rs384, _) => rsa(&RSA_PKCS1_2048_8192_SHA384),
            (Rs512, _) => rsa(&RSA_PKCS1_2048_8192_SHA512),
            (Ps256, _) => rsa(&RSA_PSS_2048_8192_SHA256),
            (Ps384, _) => rsa(&RSA_PSS_2048_8192_SHA384),
            (Ps512, _) => rsa(&RSA_PSS_2048_8192_SHA512),
            (Es256, Material::P256(key)) => other(key, &ECDSA_P256_SHA256_FIXED),
            (Es384, Material::P384(key)) => other(key, &ECDSA_P384_SHA384_FIXED),
            (EdDsa, Material::Ed25519(key)) => other(key, &ED25519),
            (Es256 | Es384 | EdDsa, _) => false,
        }
    }
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    BASE64URL_NOPAD.decode(text.as_bytes()).ok()
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> Option<Material> {
    // RFC 7518 (section 6.3.1.1) forbids leading zeros, and some issuers write them.
    let trim = |bytes: &[u8]| bytes.iter().copied().skip_while(|b| *b == 0).collect::<Vec<u8>>();
    let (modulus, exponent) = (trim(modulus), trim(exponent));
    let spare = usize::try_from(modulus.first()?.leading_zeros()).ok()?;
    let bits = modulus.len().checked_mul(8)?.checked_sub(spare)?;
    let power = exponent.iter().try_fold(0_u64, |sum, b| Some(sum.checked_mul(256)? | u64::from(*b)))?;
    let odd = power % 2 == 1 && modulus.last()? % 2 == 1;
    if !odd || !RSA_BITS.contains(&bits) || !RSA_EXPONENTS.contains(&power) {
        return None;
    }
    Some(Material::Rsa { modulus, exponent })
}

/// A point of the curve; a coordinate has all its bytes (RFC 7518, section 6.2.1.2).
fn point(x: &str, y: &str, length: usize, curve: &'static dyn VerificationAlgorithm) -> Option<Vec<u8>> {
    let (x, y) = (bytes(x)?, bytes(y)?);
    if x.len() != length || y.len() != length {
        return None;
    }
    let point = [&[4], x.as_slice(), &y].concat();
    ParsedPublicKey::new(curve, &point).ok()?;
    Some(point)
}

#[cfg(test)]
mod tests;
