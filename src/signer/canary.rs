//! The canary's key: made from the vault's root key, so that it is there wherever the vault is open and in no table, and not
//! known to Apple.

use aws_lc_rs::agreement::{ECDH_P256, PrivateKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use zeroize::Zeroizing;

use super::SignError;
use crate::secret::CanarySecret;

/// What the canary signs is for nobody: no audience, no issuer, nothing that Apple would take.
const TOKEN: &[u8] = b"p8broker canary";

/// Nearly every secret is a private key of P-256; of those that are not, the digest is tried.
const MOST_TRIES: u32 = 4;

/// The canary's key.
pub struct CanaryKey(EcdsaKeyPair);

impl CanaryKey {
    /// Makes it.
    ///
    /// # Errors
    /// Where the cryptographic library fails.
    pub fn derive(secret: &CanarySecret) -> Result<Self, SignError> {
        let mut scalar = Zeroizing::new(secret.expose_key().to_vec());
        for _ in 0..MOST_TRIES {
            if let Ok(private) = PrivateKey::from_private_key(&ECDH_P256, &scalar) {
                let public = private.compute_public_key().map_err(|_| SignError::Failed)?;
                let public = public.as_ref();
                return EcdsaKeyPair::from_private_key_and_public_key(
                    &ECDSA_P256_SHA256_FIXED_SIGNING,
                    &scalar,
                    public,
                )
                .map(Self)
                .map_err(|_| SignError::BadKey);
            }
            scalar = Zeroizing::new(digest(&SHA256, &scalar).as_ref().to_vec());
        }
        Err(SignError::BadKey)
    }

    /// Signs once, verifies, and drops what was signed.
    ///
    /// # Errors
    /// Where what was signed does not verify.
    pub fn sign(&self) -> Result<(), SignError> {
        let signature = self.0.sign(&SystemRandom::new(), TOKEN).map_err(|_| SignError::Failed)?;
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.0.public_key().as_ref());
        public.verify(TOKEN, signature.as_ref()).map_err(|_| SignError::DoesNotVerify)
    }
}

// INVARIANT (P1): a key that is formatted shows nothing.
impl std::fmt::Debug for CanaryKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CanaryKey").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(bytes: [u8; 32]) -> CanarySecret {
        CanarySecret::from_slice(&bytes).unwrap()
    }

    #[test]
    fn one_secret_is_one_key_and_every_secret_is_one() {
        let public = |bytes| CanaryKey::derive(&secret(bytes)).unwrap().0.public_key().as_ref().to_vec();
        assert_eq!(public([7; 32]), public([7; 32]));
        assert_ne!(public([7; 32]), public([8; 32]));
        // Neither of these is a private key of P-256.
        for bytes in [[0; 32], [0xff; 32]] {
            CanaryKey::derive(&secret(bytes)).unwrap().sign().unwrap();
        }
    }
}
