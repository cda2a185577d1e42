//! What a token claims, judged: times, audience, subject and confirmation (RFC 7519, section 4.1; RFC 7800). Only called
//! for a token whose signature holds.

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Map, Value};

use super::error::BearerError;
use crate::domain::issuer::Issuer;
use crate::id::ClientId;

/// The last second of the year 9999: what lies beyond is a mistake, or a test of somebody's arithmetic.
const LATEST: i64 = 253_402_300_799;

/// When a token is valid, in Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    issued_at: i64,
    not_before: Option<i64>,
    pub(super) expires_at: i64,
}

impl Times {
    pub(super) fn of(payload: &Map<String, Value>) -> Result<Self, BearerError> {
        Ok(Self {
            issued_at: date(payload, "iat")?.ok_or(BearerError::Malformed("it has no `iat`"))?,
            not_before: date(payload, "nbf")?,
            expires_at: date(payload, "exp")?.ok_or(BearerError::Malformed("it has no `exp`"))?,
        })
    }

    /// The first second, in Unix time, at which it is valid no more; the leeway comes on top.
    pub(super) fn ends_at(self, issuer: &Issuer) -> i64 {
        self.expires_at.min(self.issued_at.saturating_add(issuer.max_age_s).saturating_add(1))
    }

    /// Whether it is valid at this second.
    pub(super) fn check(self, now: i64, issuer: &Issuer) -> Result<(), BearerError> {
        let (soonest, latest) = (now.saturating_sub(issuer.leeway_s), now.saturating_add(issuer.leeway_s));
        if soonest >= self.expires_at {
            return Err(BearerError::Expired);
        }
        if latest < self.issued_at || self.not_before.is_some_and(|at| latest < at) {
            return Err(BearerError::NotYetValid);
        }
        if soonest.saturating_sub(self.issued_at) > issuer.max_age_s {
            return Err(BearerError::TooOld);
        }
        Ok(())
    }
}

/// A NumericDate (RFC 7519, section 2) in whole seconds.
fn date(payload: &Map<String, Value>, name: &str) -> Result<Option<i64>, BearerError> {
    let Some(value) = payload.get(name) else { return Ok(None) };
    let seconds = value.as_i64().or_else(|| {
        let seconds = value.as_f64().filter(|seconds| (0.0..=LATEST as f64).contains(seconds))?;
        Some(seconds.floor() as i64)
    });
    let seconds = seconds.filter(|seconds| (0..=LATEST).contains(seconds));
    seconds.map(Some).ok_or(BearerError::Malformed("one of its `iat`, `nbf` and `exp` is no date"))
}

/// Whether one of the token's audiences is one of the issuer's (RFC 7519, section 4.1.3).
pub(super) fn check_audience(payload: &Map<String, Value>, issuer: &Issuer) -> Result<(), BearerError> {
    let malformed = BearerError::Malformed("its `aud` is neither a text nor a list of texts");
    let ours = match payload.get("aud") {
        None => false,
        Some(Value::String(audience)) => issuer.audiences.contains(audience),
        Some(Value::Array(audiences)) => {
            let audiences: Option<Vec<_>> = audiences.iter().map(Value::as_str).collect();
            audiences.ok_or(malformed)?.into_iter().any(|audience| issuer.audiences.contains(audience))
        }
        Some(_) => return Err(malformed),
    };
    if ours { Ok(()) } else { Err(BearerError::Audience) }
}

/// The subject, and the client that it names.
pub(super) fn subject<'a>(
    payload: &'a Map<String, Value>,
    issuer: &Issuer,
) -> Result<(&'a str, ClientId), BearerError> {
    let subject = payload.get("sub").and_then(Value::as_str).ok_or(BearerError::Subject)?;
    let client = ClientId::parse(&format!("{}{subject}", issuer.name.client_prefix()));
    Ok((subject, client.map_err(|_| BearerError::Subject)?))
}

/// The certificate that a token is bound to, where it is bound to one (RFC 8705, section 3.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Confirmation(Option<String>);

impl Confirmation {
    /// Takes the `cnf`. One that says anything but the thumbprint of a certificate can't be checked here, so that a token
    /// with it is nobody's.
    pub(super) fn of(payload: &Map<String, Value>) -> Result<Self, BearerError> {
        let Some(confirmation) = payload.get("cnf") else { return Ok(Self(None)) };
        let members = confirmation.as_object().filter(|members| members.len() == 1);
        let thumbprint = members.and_then(|members| members.get("x5t#S256")).and_then(Value::as_str);
        thumbprint.map(|text| Self(Some(text.to_owned()))).ok_or(BearerError::Confirmation)
    }

    /// Whether this is the certificate, in DER.
    pub(super) fn check(&self, certificate: Option<&[u8]>) -> Result<(), BearerError> {
        let Some(wanted) = &self.0 else { return Ok(()) };
        let found = certificate.map(|der| BASE64URL_NOPAD.encode(digest(&SHA256, der).as_ref()));
        if found.as_ref() == Some(wanted) { Ok(()) } else { Err(BearerError::Confirmation) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn dates_are_whole_seconds_of_this_era_or_none() {
        let of = |value: Value| {
            let payload = json!({ "exp": value });
            date(payload.as_object().unwrap(), "exp")
        };
        assert_eq!(of(json!(0)), Ok(Some(0)));
        assert_eq!(of(json!(1_790_000_000)), Ok(Some(1_790_000_000)));
        assert_eq!(of(json!(1_790_000_000.9)), Ok(Some(1_790_000_000)));
        assert_eq!(of(json!(1.79e9)), Ok(Some(1_790_000_000)));
        assert_eq!(of(json!(LATEST)), Ok(Some(LATEST)));
        for bad in [
            json!(-1),
            json!(-0.5),
            json!(LATEST + 1),
            json!(i64::MAX),
            json!(u64::MAX),
            json!(i64::MIN),
            json!(1e300),
            json!("1790000000"),
            json!(null),
            json!(true),
            json!([1_790_000_000]),
            json!({}),
        ] {
            assert!(of(bad.clone()).is_err(), "{bad}");
        }
        assert_eq!(date(&Map::new(), "exp"), Ok(None));
    }
}
