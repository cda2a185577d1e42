//! Buffers that must not leave the process: wiped on drop, silent in `Debug`, never cloned or serialised.
//!
//! Bytes are lent by `expose_*` in the one expression that consumes them; those calls are the review list of P1.

use std::fmt;

use zeroize::Zeroizing;

macro_rules! secret_bytes {
    ($(#[$doc:meta])* $name:ident, $expose:ident) => {
        $(#[$doc])*
        pub struct $name(Zeroizing<Vec<u8>>);

        impl $name {
            /// Takes the bytes over; the buffer is wiped when this is dropped.
            pub fn new(bytes: Vec<u8>) -> Self {
                Self(Zeroizing::new(bytes))
            }

            /// Lends the bytes to the expression that consumes them.
            pub fn $expose(&self) -> &[u8] {
                &self.0
            }
        }

        // INVARIANT (P1): a secret that is formatted shows its type and nothing else.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    };
}

secret_bytes!(
    /// The text of a `.p8` file in any of the forms it arrives in.
    P8Text, expose_p8
);
secret_bytes!(
    /// PKCS#8 DER of an Apple ES256 private key (RFC 5958), decoded from a `.p8` file.
    PrivateKeyDer, expose_der
);

macro_rules! secret_key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        pub struct $name(Zeroizing<[u8; 32]>);

        impl $name {
            /// Lets `fill` write the 32 bytes in place.
            ///
            /// # Errors
            /// What `fill` answers.
            pub fn fill_with<E>(fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Self, E> {
                let mut bytes = Zeroizing::new([0; 32]);
                fill(bytes.as_mut_slice())?;
                Ok(Self(bytes))
            }

            /// Copies 32 bytes; `None` for any other length.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                let mut copy = Zeroizing::new([0; 32]);
                if bytes.len() != copy.len() {
                    return None;
                }
                copy.copy_from_slice(bytes);
                Some(Self(copy))
            }

            /// Lends the bytes to the expression that consumes them.
            pub fn expose_key(&self) -> &[u8; 32] {
                &self.0
            }
        }

        // INVARIANT (P1): a secret that is formatted shows its type and nothing else.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    };
}

secret_key!(
    /// Seals the keyring. Comes from shares or from a key file, and stays in memory only while it is used.
    UnsealKey
);
secret_key!(
    /// Derived from the unseal key; kept while unsealed, so that a rotated keyring can be sealed again without it.
    KeyringKey
);
secret_key!(
    /// One version of the root key, from which a key for each use is derived.
    RootKey
);
secret_key!(
    /// What the canary's key is made of. Derived from the root key; nothing that Apple takes is signed with it.
    CanarySecret
);
secret_key!(
    /// Seals one `.p8` and is itself sealed by a key derived from the root key.
    DataKey
);
secret_key!(
    /// Seals one backup file; derived from a root key for that file alone.
    BackupKey
);

/// One Shamir share as text, on its way to or from the person who keeps it.
pub struct ShareText(Zeroizing<String>);

impl ShareText {
    /// Takes the text over; the buffer is wiped when this is dropped.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// Lends the text to the expression that consumes it.
    pub fn expose_share(&self) -> &str {
        &self.0
    }
}

// INVARIANT (P1): a share that is formatted shows its type and nothing else.
impl fmt::Debug for ShareText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShareText").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_nothing_of_itself() {
        let text = format!("{:?} {:?}", P8Text::new(b"canary".to_vec()), RootKey::from_slice(&[0x41; 32]));
        assert_eq!(text, "P8Text { .. } Some(RootKey { .. })");
        assert!(DataKey::from_slice(&[0; 31]).is_none());
    }
}
