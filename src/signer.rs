//! Signs App Store Connect JWTs: ES256 (RFC 7518, section 3.4) in JWS compact form (RFC 7515, section 7.1).
//!
//! The parsed key is kept, as parsing costs half as much as signing. There is no way to sign anything but what policy
//! permitted: [`SigningKey::sign`] takes a [`Permit`] and builds every claim from it.

mod canary;

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::domain::apple::{Claims, Header, LONGEST_LIFETIME_S};
use crate::domain::decide::Permit;
use crate::id::{KeyId, TokenId};
use crate::secret::PrivateKeyDer;

pub use canary::CanaryKey;

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

/// A JWT that somebody presents, read but not trusted. It is a bearer credential, so that its text is not kept.
pub struct Presented {
    key_id: KeyId,
    id: TokenId,
    issued_at: i64,
    expires_at: i64,
    signed: Zeroizing<String>,
    signature: Vec<u8>,
}

impl Presented {
    /// Reads a JWT.
    ///
    /// # Errors
    /// With what is not as in a token of App Store Connect.
    pub fn read(jwt: &str) -> Result<Self, &'static str> {
        // Claims that the broker would not sign are read over: a stolen key signs what its thief likes.
        #[derive(Deserialize)]
        struct Head {
            alg: String,
            kid: String,
        }
        #[derive(Deserialize)]
        struct Times {
            iat: Option<i64>,
            exp: i64,
        }
        let parts: Vec<&str> = jwt.trim().split('.').collect();
        let [header, claims, signature] = parts.as_slice() else {
            return Err("this is no JWT: three parts in base64url, with dots between them (RFC 7519)");
        };
        let part = |text: &str| BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| "a part of it is not base64url");
        let head: Head = serde_json::from_slice(&part(header)?).map_err(|_| "its header has no `alg` and `kid`")?;
        if head.alg != "ES256" {
            return Err("its algorithm is not ES256: it is no token of App Store Connect");
        }
        let times: Times = serde_json::from_slice(&part(claims)?).map_err(|_| "its claims have no `exp`")?;
        let signed = Zeroizing::new(jwt.trim().rsplit_once('.').map_or("", |(signed, _)| signed).to_owned());
        let hash = digest(&SHA256, signed.as_bytes());
        let hash: &[u8; 32] = hash.as_ref().try_into().map_err(|_| "it can't be digested")?;
        Ok(Self {
            key_id: KeyId::parse(&head.kid).map_err(|_| "its `kid` is no Key ID of Apple's")?,
            id: TokenId::from_digest(hash),
            issued_at: times.iat.unwrap_or_else(|| times.exp.saturating_sub(LONGEST_LIFETIME_S)),
            expires_at: times.exp,
            signature: part(signature)?,
            signed,
        })
    }

    /// The key that it names.
    pub fn key_id(&self) -> &KeyId {
        &self.key_id
    }

    /// Its name. ES256 signatures are malleable, so that this holds whichever of the two forms is presented.
    pub fn id(&self) -> &TokenId {
        &self.id
    }

    /// Its `iat`, in Unix seconds.
    pub fn issued_at(&self) -> i64 {
        self.issued_at
    }

    /// Its `exp`, in Unix seconds.
    pub fn expires_at(&self) -> i64 {
        self.expires_at
    }

    /// Whether the holder of this public key's private half signed it (RFC 7518, section 3.4).
    pub fn is_signed_by(&self, public_key: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public_key);
        key.verify(self.signed.as_bytes(), &self.signature).is_ok()
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
