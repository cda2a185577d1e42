//! Signs App Store Connect JWTs: ES256 (RFC 7518, section 3.4) in JWS compact form (RFC 7515, section 7.1).
//!
//! The parsed key is kept, as parsing costs half as much as signing. There is no way to sign anything but what policy
//! permitted: [`SigningKey::sign`] takes a [`Permit`] and builds every claim from it.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use zeroize::Zeroizing;

use crate::domain::apple::{Claims, Header};
use crate::domain::decide::Permit;
use crate::id::{KeyId, TokenId};
use crate::secret::PrivateKeyDer;

/// Why nothing was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The bytes are no key.
    #[error("the private key can't be read")]
    BadKey,
    /// The cryptographic library failed.
    #[error("the cryptographic library failed to sign")]
    Failed,
    /// What was signed does not verify.
    #[error("what the key signs does not verify with its public half")]
    DoesNotVerify,
    /// The permit is for another key.
    #[error("the permit is for another key")]
    OtherKey,
}

/// One Apple key, parsed and ready.
pub struct SigningKey {
    id: KeyId,
    pair: EcdsaKeyPair,
    header: String,
}

/// A signed token: the bearer credential, and the permit it was signed under.
pub struct SignedToken {
    jwt: Zeroizing<String>,
    id: TokenId,
    permit: Permit,
}

impl SigningKey {
    /// Parses a private key.
    ///
    /// # Errors
    /// Where the bytes are no P-256 key.
    pub fn new(id: KeyId, der: &PrivateKeyDer) -> Result<Self, SignError> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.expose_der())
            .map_err(|_| SignError::BadKey)?;
        let header = Header { alg: "ES256".to_owned(), kid: id.to_string(), typ: "JWT".to_owned() };
        let header = serde_json::to_vec(&header).map_err(|_| SignError::Failed)?;
        Ok(Self { id, pair, header: BASE64URL_NOPAD.encode(&header) })
    }

    /// Signs what was permitted.
    ///
    /// # Errors
    /// Where the cryptographic library fails, or the permit names another key.
    pub fn sign(&self, permit: Permit) -> Result<SignedToken, SignError> {
        if permit.key().id != self.id {
            return Err(SignError::OtherKey);
        }
        let claims = serde_json::to_vec(&permit.claims()).map_err(|_| SignError::Failed)?;
        let (jwt, id) = self.sign_claims(&claims)?;
        Ok(SignedToken { jwt, id, permit })
    }

    /// Signs once and has another library verify it, so that a key that can't sign is found when it is imported. The
    /// audience is the broker's own: what is signed here is of no use at Apple, and it is dropped at once.
    ///
    /// # Errors
    /// Where what was signed does not verify.
    pub fn prove(&self) -> Result<(), SignError> {
        let probe =
            Claims { iss: None, sub: None, iat: 0, exp: 0, aud: "p8broker-import-check".to_owned(), scope: None };
        let (jwt, _) = self.sign_claims(&serde_json::to_vec(&probe).map_err(|_| SignError::Failed)?)?;
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&[&probe.aud]);
        validation.validate_exp = false;
        let key = DecodingKey::from_ec_der(self.pair.public_key().as_ref());
        let verified =
            jsonwebtoken::decode::<Claims>(jwt.as_str(), &key, &validation).map_err(|_| SignError::DoesNotVerify)?;
        if verified.claims == probe { Ok(()) } else { Err(SignError::DoesNotVerify) }
    }

    fn sign_claims(&self, claims: &[u8]) -> Result<(Zeroizing<String>, TokenId), SignError> {
        let capacity = self.header.len().saturating_add(claims.len().saturating_mul(2)).saturating_add(128);
        let mut jwt = Zeroizing::new(String::with_capacity(capacity));
        jwt.push_str(&self.header);
        jwt.push('.');
        BASE64URL_NOPAD.encode_append(claims, &mut jwt);
        let hash = digest(&SHA256, jwt.as_bytes());
        let hash: &[u8; 32] = hash.as_ref().try_into().map_err(|_| SignError::Failed)?;
        let id = TokenId::from_digest(hash);
        let signature = self.pair.sign(&SystemRandom::new(), jwt.as_bytes()).map_err(|_| SignError::Failed)?;
        jwt.push('.');
        BASE64URL_NOPAD.encode_append(signature.as_ref(), &mut jwt);
        Ok((jwt, id))
    }
}

impl SignedToken {
    /// Lends the bearer credential to the answer that carries it.
    pub fn expose_jwt(&self) -> &str {
        &self.jwt
    }

    /// Its name.
    pub fn id(&self) -> &TokenId {
        &self.id
    }

    /// What it was signed under.
    pub fn permit(&self) -> &Permit {
        &self.permit
    }
}

// INVARIANT (P1): a key or token that is formatted shows its name and nothing else.
impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl fmt::Debug for SignedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedToken").field("id", &self.id).finish_non_exhaustive()
    }
}
