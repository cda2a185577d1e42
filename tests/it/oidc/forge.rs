//! Keys and tokens as issuers and attackers make them. ES256 is signed by a library that is not the broker's.

use std::sync::OnceLock;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512,
    RSA_PSS_SHA256, RsaEncoding, RsaKeyPair,
};
use data_encoding::BASE64URL_NOPAD;
use p256::ecdsa::signature::Signer;
use p256::elliptic_curve::Generate;
use serde_json::{Value, json};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::RSAPublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

pub fn b64(bytes: impl AsRef<[u8]>) -> String {
    BASE64URL_NOPAD.encode(bytes.as_ref())
}

/// A private key of an issuer, with its `kid`.
pub struct IssuerKey {
    pub kid: &'static str,
    pair: Pair,
}

enum Pair {
    P256(p256::ecdsa::SigningKey),
    P384(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(&'static RsaKeyPair),
}

/// Two RSA keys for all tests: they take long to make.
fn rsa_pair(which: usize) -> &'static RsaKeyPair {
    static PAIRS: OnceLock<[RsaKeyPair; 2]> = OnceLock::new();
    &PAIRS.get_or_init(|| [0, 1].map(|_| RsaKeyPair::generate(KeySize::Rsa2048).unwrap()))[which]
}

impl IssuerKey {
    pub fn p256(kid: &'static str) -> Self {
        Self { kid, pair: Pair::P256(p256::SecretKey::generate().into()) }
    }

    pub fn p384(kid: &'static str) -> Self {
        Self { kid, pair: Pair::P384(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap()) }
    }

    pub fn ed25519(kid: &'static str) -> Self {
        Self { kid, pair: Pair::Ed25519(Ed25519KeyPair::generate().unwrap()) }
    }

    pub fn rsa(kid: &'static str) -> Self {
        Self { kid, pair: Pair::Rsa(rsa_pair(0)) }
    }

    pub fn other_rsa(kid: &'static str) -> Self {
        Self { kid, pair: Pair::Rsa(rsa_pair(1)) }
    }

    pub fn jwk(&self) -> Value {
        let coordinates = |point: &[u8]| {
            let (x, y) = point[1..].split_at((point.len() - 1) / 2);
            (b64(x), b64(y))
        };
        match &self.pair {
            Pair::P256(key) => {
                let (x, y) = coordinates(key.verifying_key().to_sec1_point(false).as_bytes());
                json!({ "kty": "EC", "crv": "P-256", "kid": self.kid, "use": "sig", "x": x, "y": y })
            }
            Pair::P384(key) => {
                let (x, y) = coordinates(key.public_key().as_ref());
                json!({ "kty": "EC", "crv": "P-384", "kid": self.kid, "use": "sig", "x": x, "y": y })
            }
            Pair::Ed25519(key) => {
                json!({ "kty": "OKP", "crv": "Ed25519", "kid": self.kid, "use": "sig", "x": b64(key.public_key()) })
            }
            Pair::Rsa(key) => {
                let (_, public) = RSAPublicKey::from_der(key.public_key().as_ref()).unwrap();
                let trim = |bytes: &[u8]| b64(bytes.iter().copied().skip_while(|b| *b == 0).collect::<Vec<_>>());
                let (n, e) = (trim(public.modulus), trim(public.exponent));
                json!({ "kty": "RSA", "kid": self.kid, "use": "sig", "n": n, "e": e })
            }
        }
    }

    /// Bytes of the public half that a verifier could take for a secret.
    pub fn public_bytes(&self) -> Vec<u8> {
        match &self.pair {
            Pair::P256(key) => key.verifying_key().to_sec1_point(false).as_bytes().to_vec(),
            Pair::P384(key) => key.public_key().as_ref().to_vec(),
            Pair::Ed25519(key) => key.public_key().as_ref().to_vec(),
            Pair::Rsa(key) => {
                let der = AsDer::<aws_lc_rs::encoding::PublicKeyX509Der<'_>>::as_der(key.public_key()).unwrap();
                assert!(SubjectPublicKeyInfo::from_der(der.as_ref()).is_ok());
                der.as_ref().to_vec()
            }
        }
    }

    /// What the key's usual algorithm is called.
    pub fn algorithm(&self) -> &'static str {
        match &self.pair {
            Pair::P256(_) => "ES256",
            Pair::P384(_) => "ES384",
            Pair::Ed25519(_) => "EdDSA",
            Pair::Rsa(_) => "RS256",
        }
    }

    /// A signature of the key's usual algorithm, or of another one of RSA by its name.
    pub fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        match &self.pair {
            Pair::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                signature.to_bytes().to_vec()
            }
            Pair::P384(key) => key.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
            Pair::Ed25519(key) => key.sign(message).as_ref().to_vec(),
            Pair::Rsa(key) => {
                let scheme: &'static dyn RsaEncoding = match algorithm {
                    "PS256" => &RSA_PSS_SHA256,
                    "RS512" => &RSA_PKCS1_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(scheme, &SystemRandom::new(), message, &mut signature).unwrap();
                signature
            }
        }
    }

    pub fn header(&self) -> Value {
        json!({ "alg": self.algorithm(), "typ": "JWT", "kid": self.kid })
    }

    /// An honest token.
    pub fn token(&self, payload: &Value) -> String {
        self.token_with(&self.header(), payload)
    }

    /// A token with any header, signed as its `alg` says where the key can.
    pub fn token_with(&self, header: &Value, payload: &Value) -> String {
        self.token_of(&header.to_string(), payload.to_string().as_bytes())
    }

    /// A token of any bytes, signed.
    pub fn token_of(&self, header: &str, payload: &[u8]) -> String {
        let parsed: Value = serde_json::from_str(header).unwrap_or_default();
        let algorithm = parsed["alg"].as_str().unwrap_or_default().to_owned();
        compact(header.as_bytes(), payload, |message| self.sign(&algorithm, message))
    }
}

/// Three parts.
pub fn compact(header: &[u8], payload: &[u8], sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let signed = format!("{}.{}", b64(header), b64(payload));
    let signature = sign(signed.as_bytes());
    format!("{signed}.{}", b64(signature))
}

pub fn jwks(keys: &[Value]) -> Value {
    json!({ "keys": keys })
}

pub fn jwks_of(keys: &[&IssuerKey]) -> Value {
    jwks(&keys.iter().map(|key| key.jwk()).collect::<Vec<_>>())
}
