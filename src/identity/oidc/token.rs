//! A bearer token taken apart: what it says, before anything of it is believed.
//!
//! JWS compact serialisation (RFC 7515, section 7.1) of a JWT (RFC 7519), read strictly: base64url without padding or
//! spare bits, JSON without repeated members, no extension that changes what is signed. A key, or the address of one, that
//! the header brings along (`jwk`, `jku`, `x5c`, `x5u`) is not looked at (RFC 8725, section 3.10).

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Map, Value};

use super::error::BearerError;
use super::json;
use super::keys::MOST_KEY_ID_BYTES;
use crate::domain::issuer::Algorithm;

/// Longest token, in bytes.
pub(super) const MOST_BYTES: usize = 16 * 1024;

/// What a token says. It borrows from a credential, so it has no `Debug`.
pub(super) struct Presented<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) key_id: Option<String>,
    pub(super) payload: Map<String, Value>,
    /// `header.payload`, as it was signed.
    pub(super) signed: &'a str,
    pub(super) signature: Vec<u8>,
}

impl<'a> Presented<'a> {
    pub(super) fn parse(token: &'a str) -> Result<Self, BearerError> {
        let malformed = BearerError::Malformed("it needs three parts, each base64url without padding");
        let (signed, signature) = token.rsplit_once('.').ok_or(malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(malformed)?;
        let bytes = |part: &str| BASE64URL_NOPAD.decode(part.as_bytes()).map_err(|_| malformed);
        let (header, payload, signature) = (bytes(header)?, bytes(payload)?, bytes(signature)?);
        let header = json::object(&header).ok_or(BearerError::Malformed("its header is not one JSON object"))?;
        let (algorithm, key_id) = read(&header)?;
        let payload = json::object(&payload).ok_or(BearerError::Malformed("its payload is not one JSON object"))?;
        Ok(Self { algorithm, key_id, payload, signed, signature })
    }

    /// The `iss`, to the letter.
    pub(super) fn issuer(&self) -> Result<&str, BearerError> {
        let issuer = self.payload.get("iss").and_then(Value::as_str);
        issuer.ok_or(BearerError::Malformed("its `iss` is not a text"))
    }
}

/// Algorithm and key of a header (RFC 7515, section 4.1).
fn read(header: &Map<String, Value>) -> Result<(Algorithm, Option<String>), BearerError> {
    // `b64` (RFC 7797) says that something else was signed; all of `crit` must be understood, and nothing of it is.
    if header.contains_key("crit") || header.contains_key("b64") {
        return Err(BearerError::Malformed("its header asks for an extension"));
    }
    match header.get("typ") {
        None => {}
        Some(Value::String(kind)) if is_jwt(kind) => {}
        Some(_) => return Err(BearerError::Malformed("its `typ` is not JWT")),
    }
    let key_id = match header.get("kid") {
        None => None,
        Some(Value::String(id)) if id.len() <= MOST_KEY_ID_BYTES => Some(id.clone()),
        Some(_) => return Err(BearerError::Malformed("its `kid` is not a text of at most 256 bytes")),
    };
    // INVARIANT (INV-BEARER-1): there is no `none` and nothing symmetric to parse.
    let algorithm = header.get("alg").and_then(Value::as_str).and_then(Algorithm::parse);
    Ok((algorithm.ok_or(BearerError::Algorithm)?, key_id))
}

/// Whether a `typ` names a JWT (RFC 7519, section 5.1) or an access token (RFC 9068, section 2.1). Without its own type, a
/// JWT for another purpose, such as a security event or a logout, could be taken for a credential (RFC 8725, section 3.11).
fn is_jwt(kind: &str) -> bool {
    let kind = kind.to_ascii_lowercase();
    matches!(kind.strip_prefix("application/").unwrap_or(&kind), "jwt" | "at+jwt")
}
