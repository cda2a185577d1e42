//! The hostile tokens, by what is wrong with them.

use serde_json::json;

use super::*;

impl Forge {
    pub fn form(&self) -> Vec<Case> {
        let malformed = "BEARER_MALFORMED";
        vec![
            ("nothing", malformed, String::new()),
            ("one part", malformed, "e30".to_owned()),
            ("two parts", malformed, self.parts(|header, payload, _| format!("{header}.{payload}"))),
            ("only dots", malformed, "..".to_owned()),
            ("four parts", malformed, self.parts(|h, p, s| format!("{h}.{p}.{s}.{s}"))),
            ("five parts, encrypted", malformed, self.parts(|h, p, s| format!("{h}.{p}.{s}.{s}.{s}"))),
            ("padding", malformed, self.parts(|h, p, s| format!("{h}.{p}.{s}=="))),
            ("padding within", malformed, self.parts(|h, p, s| format!("{h}=.{p}.{s}"))),
            ("the other alphabet", malformed, self.parts(|h, p, s| format!("{h}.{p}.+/{}", &s[2..]))),
            ("a scheme", malformed, self.parts(|h, p, s| format!("Bearer {h}.{p}.{s}"))),
            ("a line break after", malformed, self.parts(|h, p, s| format!("{h}.{p}.{s}\n"))),
            ("a space within", malformed, self.parts(|h, p, s| format!("{h}. {p}.{s}"))),
            ("no ASCII", malformed, self.parts(|h, p, s| format!("{h}.{p}.{s}\u{e9}"))),
            // 64 bytes leave four spare bits in the last character.
            ("spare bits", malformed, self.parts(|h, p, s| format!("{h}.{p}.{}", with_spare_bits(s)))),
            ("no header", malformed, self.parts(|_, p, s| format!(".{p}.{s}"))),
            ("no payload", malformed, self.parts(|h, _, s| format!("{h}..{s}"))),
            ("a header that is a list", malformed, self.ec.token_of("[]", self.payload().to_string().as_bytes())),
            ("a header that is text", malformed, self.ec.token_of("alg", self.payload().to_string().as_bytes())),
            ("a payload that is a list", malformed, self.text(|text| format!("[{text}]"))),
            ("a payload that is a text", malformed, self.text(|_| "\"x\"".to_owned())),
            ("a payload cut short", malformed, self.text(|text| text[..text.len() - 1].to_owned())),
            ("two payloads", malformed, self.text(|text| format!("{text}{text}"))),
            ("a payload after a mark", malformed, self.text(|text| format!("\u{feff}{text}"))),
            (
                "a payload that is no UTF-8",
                malformed,
                self.ec.token_of(&self.ec.header().to_string(), b"{\"sub\":\"\xff\"}"),
            ),
            ("a repeated claim", malformed, self.text(|text| text.replacen('{', r#"{"sub":"admin","#, 1))),
            (
                "a repeated claim, escaped",
                malformed,
                self.text(|text| text.replacen('{', r#"{"s\u0075b":"admin","#, 1)),
            ),
            (
                "a repeated claim within",
                malformed,
                self.text(|text| text.replacen(r#"{"unit""#, r#"{"unit":"x","unit""#, 1)),
            ),
            ("a repeated header", malformed, {
                let header = self.ec.header().to_string().replacen('{', r#"{"alg":"none","#, 1);
                compact(header.as_bytes(), self.payload().to_string().as_bytes(), |it| self.ec.sign("", it))
            }),
            (
                "deeper than any",
                malformed,
                self.text(|text| text.replacen('{', &format!("{{\"x\":{}{},", "[".repeat(300), "]".repeat(300)), 1)),
            ),
            ("too large", "BEARER_TOO_LARGE", self.claim("padding", json!("x".repeat(17 * 1024)))),
            ("too large, and no token", "BEARER_TOO_LARGE", "x".repeat(16 * 1024 + 1)),
        ]
    }

    pub fn headers(&self) -> Vec<Case> {
        let (malformed, algorithm) = ("BEARER_MALFORMED", "BEARER_ALGORITHM");
        let none = |name: &str| {
            compact(json!({ "alg": name }).to_string().as_bytes(), self.payload().to_string().as_bytes(), |_| {
                Vec::new()
            })
        };
        vec![
            ("crit", malformed, self.header("crit", json!(["exp"]))),
            ("crit of nothing", malformed, self.header("crit", json!([]))),
            ("b64", malformed, self.header("b64", json!(false))),
            ("b64 as usual", malformed, self.header("b64", json!(true))),
            ("a security event", malformed, self.header("typ", json!("secevent+jwt"))),
            ("a logout", malformed, self.header("typ", json!("logout+jwt"))),
            ("a proof of possession", malformed, self.header("typ", json!("dpop+jwt"))),
            ("a type that starts well", malformed, self.header("typ", json!("JWT2"))),
            ("a type that is a number", malformed, self.header("typ", json!(1))),
            ("a kid that is a number", malformed, self.header("kid", json!(1))),
            ("a kid that is a list", malformed, self.header("kid", json!(["ec-1"]))),
            ("a long kid", malformed, self.header("kid", json!("k".repeat(257)))),
            ("no alg", algorithm, self.header("alg", Value::Null)),
            ("alg as a list", algorithm, self.header("alg", json!(["ES256"]))),
            ("alg in lower case", algorithm, self.header("alg", json!("es256"))),
            ("alg with a space", algorithm, self.header("alg", json!("ES256 "))),
            ("alg of another curve", algorithm, self.header("alg", json!("ES256K"))),
            ("none", algorithm, none("none")),
            ("None", algorithm, none("None")),
            ("nOnE", algorithm, none("nOnE")),
            ("none with a signature", algorithm, self.header("alg", json!("none"))),
            ("an empty alg", algorithm, none("")),
            ("HS256 with RSA's public key", algorithm, {
                self.hmac(&json!({ "alg": "HS256", "kid": "rsa-1" }), &self.rsa.public_bytes())
            }),
            ("HS256 with the curve's public key", algorithm, {
                self.hmac(&json!({ "alg": "HS256", "kid": "ec-1" }), &self.ec.public_bytes())
            }),
            ("HS256 with the JWK", algorithm, {
                self.hmac(&json!({ "alg": "HS256", "kid": "ec-1" }), self.ec.jwk().to_string().as_bytes())
            }),
            ("HS256 with an empty secret", algorithm, self.hmac(&json!({ "alg": "HS256", "kid": "/dev/null" }), b"")),
            (
                "HS256 with a published secret",
                algorithm,
                self.hmac(&json!({ "alg": "HS256", "kid": "oct" }), b"secret"),
            ),
            ("ES256 over HMAC", "BEARER_SIGNATURE", {
                self.hmac(&json!({ "alg": "ES256", "kid": "ec-1" }), &self.ec.public_bytes())
            }),
            ("an algorithm that is not accepted", algorithm, self.ec384.token(&self.payload())),
            ("another one", algorithm, self.ed.token(&self.payload())),
            ("RSA with padding that is not accepted", algorithm, {
                self.rsa.token_with(&json!({ "alg": "PS256", "kid": "rsa-1" }), &self.payload())
            }),
            ("RS256 with a key of a curve", algorithm, self.header("alg", json!("RS256"))),
            ("ES256 with a key of RSA", algorithm, self.header("kid", json!("rsa-1"))),
            ("ES256 with a key of another curve", algorithm, self.header("kid", json!("ec-384"))),
            ("RS512 with a key for RS256", algorithm, {
                self.rs256.token_with(&json!({ "alg": "RS512", "kid": "rsa-256" }), &self.payload())
            }),
        ]
    }

    pub fn keys(&self) -> Vec<Case> {
        let unknown = "BEARER_KEY_UNKNOWN";
        let mut cases: Vec<Case> = vec![
            ("another kid", unknown, self.header("kid", json!("ec-3"))),
            ("a kid in another case", unknown, self.header("kid", json!("EC-1"))),
            ("a kid with a space", unknown, self.header("kid", json!("ec-1 "))),
            ("a kid with a zero byte", unknown, self.header("kid", json!("ec-1\u{0}"))),
            ("an empty kid", unknown, self.header("kid", json!(""))),
            ("a kid that is a path", unknown, self.header("kid", json!("../../../../../../dev/null"))),
            ("a kid that is a path to a key", unknown, self.header("kid", json!("x/../ec-1"))),
            ("a kid that is an address", unknown, self.header("kid", json!(self.provider.jwks_url()))),
            ("a kid that is a query", unknown, self.header("kid", json!("x' UNION SELECT 'ec-1"))),
            ("a kid that is a command", unknown, self.header("kid", json!("|cat /etc/passwd"))),
            ("a kid that is a pattern", unknown, self.header("kid", json!("ec-*"))),
            ("no kid, where two keys fit", unknown, self.header("kid", Value::Null)),
            ("a key that was never published", unknown, IssuerKey::p256("mine").token(&self.payload())),
            ("a weak key", unknown, {
                self.rsa.token_with(&json!({ "alg": "RS256", "kid": "weak" }), &self.payload())
            }),
        ];
        let mine = self.attacker.jwk();
        let brought = |name: &str, value: Value| {
            let mut header = self.attacker.header();
            header[name] = value;
            self.attacker.token_with(&header, &self.payload())
        };
        let address = json!(format!("https://127.0.0.1:{}/attacker", self.provider.port));
        cases.extend([
            ("a key in the header", "BEARER_SIGNATURE", brought("jwk", mine.clone())),
            ("an address of keys in the header", "BEARER_SIGNATURE", brought("jku", address.clone())),
            ("an address of certificates in the header", "BEARER_SIGNATURE", brought("x5u", address)),
            ("certificates in the header", "BEARER_SIGNATURE", brought("x5c", json!([b64("certificate")]))),
            ("a key in the header, and its own kid", unknown, {
                let header = json!({ "alg": "ES256", "kid": "mine", "jwk": mine });
                self.attacker.token_with(&header, &self.payload())
            }),
        ]);
        let names = [
            "a key for encryption",
            "a key for signing alone",
            "a key whose private half is known",
            "a key that says it is symmetric",
            "a key that is not on its curve",
        ];
        cases.extend(names.into_iter().zip(&self.unfit).map(|(name, key)| (name, unknown, key.token(&self.payload()))));
        cases
    }

    pub fn signatures(&self) -> Vec<Case> {
        let signature = "BEARER_SIGNATURE";
        let other = self.claim("jti", json!("another"));
        let other: Vec<_> = other.split('.').collect();
        let with = |bytes: Vec<u8>| self.parts(|h, p, _| format!("{h}.{p}.{}", b64(bytes)));
        let raw = self.parts(|_, _, s| s.to_owned());
        let raw = data_encoding::BASE64URL_NOPAD.decode(raw.as_bytes()).unwrap();
        let (r, s) = raw.split_at(32);
        vec![
            ("no signature", signature, with(Vec::new())),
            ("a signature of zeros", signature, with(vec![0; 64])),
            ("a signature of ones", signature, with(vec![0xff; 64])),
            ("half a signature", signature, with(raw[..32].to_vec())),
            ("a signature and more", signature, with([&raw[..], &[0]].concat())),
            ("a signature turned round", signature, with([s, r].concat())),
            ("a signature in DER", signature, with([&[0x30, 70, 2, 33, 0], r, &[2, 33, 0], s].concat())),
            ("a signature of another token", signature, self.parts(|h, p, _| format!("{h}.{p}.{}", other[2]))),
            ("a payload of another token", signature, self.parts(|h, _, s| format!("{h}.{}.{s}", other[1]))),
            ("a changed header", signature, {
                let header = b64(json!({ "alg": "ES256", "kid": "ec-1", "typ": "at+jwt" }).to_string());
                self.parts(|_, p, s| format!("{header}.{p}.{s}"))
            }),
            ("a key of somebody else", signature, self.attacker.token(&self.payload())),
            ("another key of the issuer", signature, self.header("kid", json!("ec-2"))),
            ("another RSA key of the issuer", signature, {
                self.rs256.token_with(&json!({ "alg": "RS256", "kid": "rsa-1" }), &self.payload())
            }),
            ("another hash of RSA", signature, {
                let header = json!({ "alg": "RS512", "kid": "rsa-1" }).to_string();
                compact(header.as_bytes(), self.payload().to_string().as_bytes(), |it| self.rsa.sign("RS256", it))
            }),
            ("another padding of RSA", signature, {
                let header = json!({ "alg": "RS256", "kid": "rsa-1" }).to_string();
                compact(header.as_bytes(), self.payload().to_string().as_bytes(), |it| self.rsa.sign("PS256", it))
            }),
        ]
    }

    pub fn claims(&self) -> Vec<Case> {
        let (malformed, url) = ("BEARER_MALFORMED", &self.provider.url);
        let (unknown, subject, audience) = ("BEARER_ISSUER_UNKNOWN", "BEARER_SUBJECT", "BEARER_AUDIENCE");
        vec![
            ("another issuer", unknown, self.claim("iss", json!("https://evil.example"))),
            ("an issuer with a slash", unknown, self.claim("iss", json!(format!("{url}/")))),
            ("an issuer in upper case", unknown, self.claim("iss", json!(url.to_uppercase()))),
            ("an issuer with a space", unknown, self.claim("iss", json!(format!("{url} ")))),
            ("an issuer with a user", unknown, self.claim("iss", json!(url.replace("//", "//x@")))),
            ("an empty issuer", unknown, self.claim("iss", json!(""))),
            ("no issuer", malformed, self.claim("iss", Value::Null)),
            ("two issuers", malformed, self.claim("iss", json!([url]))),
            ("expired", "BEARER_EXPIRED", self.claim("exp", json!(NOW - 3600))),
            ("expired at this second", "BEARER_EXPIRED", self.claim("exp", json!(NOW - 60))),
            ("expired from the start", "BEARER_EXPIRED", self.claim("exp", json!(0))),
            ("no exp", malformed, self.claim("exp", Value::Null)),
            ("exp as a text", malformed, self.claim("exp", json!((NOW + 600).to_string()))),
            ("exp below zero", malformed, self.claim("exp", json!(-1))),
            ("exp beyond all numbers", malformed, self.claim("exp", json!(u64::MAX))),
            ("exp beyond all floats", malformed, self.text(|text| text.replace(&(NOW + 600).to_string(), "1e400"))),
            ("exp in milliseconds", malformed, self.claim("exp", json!((NOW + 600) * 1000))),
            ("exp as a list", malformed, self.claim("exp", json!([NOW + 600]))),
            ("exp that is true", malformed, self.claim("exp", json!(true))),
            ("not yet valid", "BEARER_NOT_YET_VALID", self.claim("nbf", json!(NOW + 61))),
            ("issued in the future", "BEARER_NOT_YET_VALID", self.claim("iat", json!(NOW + 61))),
            ("nbf as a text", malformed, self.claim("nbf", json!(NOW.to_string()))),
            ("no iat", malformed, self.claim("iat", Value::Null)),
            ("iat as a text", malformed, self.claim("iat", json!(NOW.to_string()))),
            ("iat below zero", malformed, self.claim("iat", json!(-NOW))),
            ("issued too long ago", "BEARER_TOO_OLD", self.claim("iat", json!(NOW - 3661))),
            ("issued in another age", "BEARER_TOO_OLD", self.claim("iat", json!(0))),
            ("another audience", audience, self.claim("aud", json!("https://github.com/acme"))),
            ("an audience that starts well", audience, self.claim("aud", json!(format!("{AUDIENCE}.evil.example")))),
            ("an audience in upper case", audience, self.claim("aud", json!(AUDIENCE.to_uppercase()))),
            ("audiences of others", audience, self.claim("aud", json!(["a", "b"]))),
            ("audiences in one text", audience, self.claim("aud", json!(format!("{AUDIENCE} b")))),
            ("no audiences", audience, self.claim("aud", json!([]))),
            ("no audience", audience, self.claim("aud", Value::Null)),
            ("an audience that is a number", malformed, self.claim("aud", json!(1))),
            ("an audience that is an object", malformed, self.claim("aud", json!({ AUDIENCE: true }))),
            ("a list with a number", malformed, self.claim("aud", json!([AUDIENCE, 1]))),
            ("no subject", subject, self.claim("sub", Value::Null)),
            ("an empty subject", subject, self.claim("sub", json!(""))),
            ("a subject with a space", subject, self.claim("sub", json!("release bot"))),
            ("a subject with a line break", subject, self.claim("sub", json!("release-bot\nlevel=INFO"))),
            ("a subject that looks alike", subject, self.claim("sub", json!("rele\u{430}se-bot"))),
            ("a subject that turns round", subject, self.claim("sub", json!("\u{202e}release-bot"))),
            ("a subject with a zero byte", subject, self.claim("sub", json!("release-bot\u{0}"))),
            ("a long subject", subject, self.claim("sub", json!("s".repeat(1025)))),
            ("a subject that is a number", subject, self.claim("sub", json!(7))),
            ("another team", "BEARER_CLAIMS", self.claim("team", json!("sales"))),
            ("a team that starts well", "BEARER_CLAIMS", self.claim("team", json!("release-2"))),
            ("no team", "BEARER_CLAIMS", self.claim("team", Value::Null)),
            ("a team within", "BEARER_CLAIMS", self.claim("team", json!({ "team": "release" }))),
            (
                "a pointer as a name",
                "BEARER_CLAIMS",
                self.p(|payload| {
                    payload["org"] = json!({});
                    payload["/org/unit"] = json!("mobile");
                }),
            ),
        ]
    }

    pub fn confirmations(&self) -> Vec<Case> {
        let confirmation = "BEARER_CONFIRMATION";
        let of = |value: Value| self.p(|payload| payload["cnf"] = value);
        let right = b64(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, CERTIFICATE));
        vec![
            ("another certificate", confirmation, of(json!({ "x5t#S256": b64([7; 32]) }))),
            ("a thumbprint in hex", confirmation, of(json!({ "x5t#S256": "00".repeat(32) }))),
            ("a thumbprint with padding", confirmation, of(json!({ "x5t#S256": format!("{right}=") }))),
            ("an empty thumbprint", confirmation, of(json!({ "x5t#S256": "" }))),
            ("a thumbprint that is a list", confirmation, of(json!({ "x5t#S256": [right] }))),
            ("the thumbprint of a key", confirmation, of(json!({ "jkt": b64([7; 32]) }))),
            ("a key", confirmation, of(json!({ "jwk": self.attacker.jwk() }))),
            ("the name of a key", confirmation, of(json!({ "kid": "ec-1" }))),
            ("the certificate, and a key", confirmation, of(json!({ "x5t#S256": right, "jkt": b64([7; 32]) }))),
            ("an empty cnf", confirmation, of(json!({}))),
            ("a cnf that is null", confirmation, of(Value::Null)),
            ("a cnf that is a text", confirmation, of(json!(right))),
        ]
    }
}

/// The last character with a bit set that stands for nothing.
fn with_spare_bits(part: &str) -> String {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (rest, last) = part.split_at(part.len() - 1);
    let at = ALPHABET.find(last).unwrap();
    assert_eq!(at % 16, 0, "the honest one has none");
    format!("{rest}{}", &ALPHABET[at + 1..at + 2])
}
