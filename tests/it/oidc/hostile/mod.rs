//! Tokens that must be refused, each with its reason, by an issuer that accepts the honest token they were made from.

mod cases;

use std::collections::BTreeSet;

use aws_lc_rs::hmac;
use p8broker::domain::glob::ClaimGlob;
use serde_json::json;

use super::forge::{IssuerKey, b64, compact, jwks};
use super::provider::{JWKS, json_answer};
use super::*;

/// Name, reason, token.
type Case = (&'static str, &'static str, String);

struct Forge {
    world: World,
    provider: Provider,
    /// Published, and what honest tokens are signed with.
    ec: IssuerKey,
    rsa: IssuerKey,
    /// Published, for RS256 alone.
    rs256: IssuerKey,
    /// Published, of a kind that the issuer is not trusted with.
    ec384: IssuerKey,
    ed: IssuerKey,
    /// Published, and not for verifying.
    unfit: Vec<IssuerKey>,
    /// Of somebody else.
    attacker: IssuerKey,
}

impl Forge {
    async fn start() -> Self {
        let (ec, rsa, rs256) = (IssuerKey::p256("ec-1"), IssuerKey::rsa("rsa-1"), IssuerKey::other_rsa("rsa-256"));
        let (ec384, ed) = (IssuerKey::p384("ec-384"), IssuerKey::ed25519("ed-1"));
        let unfit: Vec<_> =
            ["enc", "sign-only", "leaked", "hidden-alg", "off-curve"].into_iter().map(IssuerKey::p256).collect();
        let changed = |key: &IssuerKey, name: &str, value: Value| {
            let mut jwk = key.jwk();
            jwk[name] = value;
            jwk
        };
        let keys = [
            ec.jwk(),
            IssuerKey::p256("ec-2").jwk(),
            rsa.jwk(),
            changed(&rs256, "alg", json!("RS256")),
            ec384.jwk(),
            ed.jwk(),
            changed(&unfit[0], "use", json!("enc")),
            changed(&unfit[1], "key_ops", json!(["sign"])),
            changed(&unfit[2], "d", json!(b64([7; 32]))),
            changed(&unfit[3], "alg", json!("HS256")),
            changed(&unfit[4], "y", json!(b64([7; 32]))),
            json!({ "kty": "RSA", "kid": "weak", "n": b64([0xff; 128]), "e": "AQAB" }),
            json!({ "kty": "oct", "kid": "oct", "alg": "HS256", "k": b64("secret") }),
        ];
        let provider = Provider::start(&[]).await;
        provider.set(JWKS, json_answer(&jwks(&keys)));
        let world = World::of(&provider);
        world.change(|issuer| {
            issuer.algorithms = [Algorithm::Rs256, Algorithm::Rs512, Algorithm::Es256].into();
            issuer.claims.insert("team".to_owned(), vec![ClaimGlob::parse("release").unwrap()]);
            issuer.claims.insert("/org/unit".to_owned(), vec![ClaimGlob::parse("mobile").unwrap()]);
        });
        Self { world, provider, ec, rsa, rs256, ec384, ed, unfit, attacker: IssuerKey::p256("ec-1") }
    }

    fn payload(&self) -> Value {
        let mut payload = self.world.payload();
        payload["org"] = json!({ "unit": "mobile" });
        payload
    }

    /// The honest token with another payload.
    fn p(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut payload = self.payload();
        change(&mut payload);
        self.ec.token(&payload)
    }

    /// The honest token with one claim changed; taken out where it is null.
    fn claim(&self, name: &str, value: Value) -> String {
        self.p(|payload| {
            payload.as_object_mut().unwrap().remove(name);
            if !value.is_null() {
                payload[name] = value;
            }
        })
    }

    /// The honest token with another header, signed over it.
    fn header(&self, name: &str, value: Value) -> String {
        let mut header = self.ec.header();
        header.as_object_mut().unwrap().remove(name);
        if !value.is_null() {
            header[name] = value;
        }
        // Whatever `alg` says, the signature is one of the key.
        compact(header.to_string().as_bytes(), self.payload().to_string().as_bytes(), |it| self.ec.sign("ES256", it))
    }

    /// The honest token with its payload's text changed.
    fn text(&self, change: impl FnOnce(String) -> String) -> String {
        self.ec.token_of(&self.ec.header().to_string(), change(self.payload().to_string()).as_bytes())
    }

    fn honest(&self) -> String {
        self.ec.token(&self.payload())
    }

    /// The honest token's three parts, put together in another way.
    fn parts(&self, join: impl FnOnce(&str, &str, &str) -> String) -> String {
        let token = self.honest();
        let parts: Vec<_> = token.split('.').collect();
        join(parts[0], parts[1], parts[2])
    }

    /// A token under a secret that is no secret.
    fn hmac(&self, header: &Value, secret: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        compact(header.to_string().as_bytes(), self.payload().to_string().as_bytes(), |message| {
            hmac::sign(&key, message).as_ref().to_vec()
        })
    }
}

const CERTIFICATE: &[u8] = b"the certificate of the connection";

#[tokio::test]
async fn hostile_tokens_are_refused_with_the_right_reason() {
    let forge = Forge::start().await;
    let thumbprint = b64(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, CERTIFICATE));
    let rs512 = json!({ "alg": "RS512", "kid": "rsa-1" });
    let honest = [
        forge.honest(),
        forge.rsa.token(&forge.payload()),
        forge.rsa.token_with(&rs512, &forge.payload()),
        forge.rs256.token(&forge.payload()),
        forge.claim("exp", json!(NOW - 59)),
        forge.claim("nbf", json!(NOW + 60)),
        forge.claim("iat", json!(NOW - 3660)),
        forge.claim("nbf", Value::Null),
        forge.claim("aud", json!(["other", AUDIENCE])),
        forge.claim("sub", json!("s".repeat(1024))),
        forge.claim("team", json!(["sales", "release"])),
        forge.header("typ", Value::Null),
        forge.header("x5t", json!("not looked at")),
        forge.p(|payload| payload["cnf"] = json!({ "x5t#S256": thumbprint })),
    ];
    let cases =
        [forge.form(), forge.headers(), forge.keys(), forge.signatures(), forge.claims(), forge.confirmations()]
            .concat();
    let names: BTreeSet<&str> = cases.iter().map(|(name, ..)| *name).collect();
    let reasons: BTreeSet<&str> = cases.iter().map(|(_, reason, _)| *reason).collect();
    assert!(cases.len() > 150 && names.len() == cases.len(), "{} cases, {} names", cases.len(), names.len());
    assert_eq!(reasons.len(), 13, "every reason but the issuer's own: {reasons:?}");
    let accepted = async || {
        for (at, token) in honest.iter().enumerate() {
            let answer = forge.world.verify_from(token, Some(CERTIFICATE)).await;
            assert!(answer.is_ok(), "honest token {at}: {answer:?}");
        }
    };
    accepted().await;
    let mut wrong = Vec::new();
    for (name, reason, token) in &cases {
        let answer = forge.world.verify_from(token, Some(CERTIFICATE)).await;
        let found = answer.as_ref().err().map_or("accepted", |error| error.reason());
        if found != *reason {
            wrong.push(format!("{name}: {found}, not {reason}"));
        }
        let message = answer.err().map(|error| error.to_string()).unwrap_or_default();
        let echoed = token.split('.').filter(|part| part.len() > 8).any(|part| message.contains(part));
        assert!(!echoed && message.len() < 200 && !message.contains('\n'), "{name}: {message}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Nothing that a header names was asked for, and nothing that was refused has changed what is accepted.
    assert_eq!((forge.provider.requests("/attacker"), forge.provider.requests(JWKS)), (0, 1));
    accepted().await;
}
