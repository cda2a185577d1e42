//! Why a bearer token is refused, in words for whoever sent it: what to do, nothing of the token, and nothing of what the
//! broker knows beside it.

/// Why a bearer token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BearerError {
    /// It is no signed JWT, or says something in a way that could be read in two.
    #[error("the bearer token is no signed JWT that can be read: {0}")]
    Malformed(&'static str),
    /// It is longer than any honest one.
    #[error("the bearer token is longer than 16 KiB; ask its issuer for one with fewer claims")]
    TooLarge,
    /// Nobody trusts its issuer.
    #[error("the bearer token is of an issuer that is not trusted here; an operator can trust it in a document")]
    IssuerUnknown,
    /// Its signature is of a kind that is not accepted.
    #[error("the bearer token is signed with an algorithm that is not accepted of its issuer, or not of its key")]
    Algorithm,
    /// The issuer publishes no such key.
    #[error("the bearer token is signed with a key that its issuer does not publish; ask the issuer for another one")]
    KeyUnknown,
    /// The signature does not hold.
    #[error("the signature of the bearer token does not hold; send the token as its issuer made it")]
    Signature,
    /// Its `exp` is over.
    #[error("the bearer token has expired; ask its issuer for another one")]
    Expired,
    /// Its `nbf` or `iat` is yet to come.
    #[error("the bearer token is not valid yet; set the clocks of its issuer and the broker right")]
    NotYetValid,
    /// Its `iat` is longer ago than the issuer is trusted for.
    #[error("the bearer token was issued too long ago; ask its issuer for a fresh one")]
    TooOld,
    /// It is for somebody else.
    #[error("the bearer token is for another audience; ask its issuer for one with the audience of this broker")]
    Audience,
    /// Its subject can't name a client.
    #[error("the `sub` of the bearer token can't name a client: 1 to 1024 printable ASCII characters without spaces")]
    Subject,
    /// The issuer is not trusted for such tokens.
    #[error("the issuer of the bearer token is trusted here, but not for tokens with this subject and these claims")]
    Claims,
    /// It is bound to a key that this connection does not show.
    #[error("the bearer token is bound to a certificate or key that is not the one of this connection")]
    Confirmation,
    /// The record of the issuer changed while its keys were fetched.
    #[error("what this broker knows of the bearer token's issuer has just changed; ask again with the same token")]
    IssuerChanged,
    /// The issuer's keys can't be had.
    #[error("the keys of the bearer token's issuer can't be had right now; try again in a minute")]
    IssuerUnavailable,
}

impl BearerError {
    /// The stable constant.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Malformed(_) => "BEARER_MALFORMED",
            Self::TooLarge => "BEARER_TOO_LARGE",
            Self::IssuerUnknown => "BEARER_ISSUER_UNKNOWN",
            Self::Algorithm => "BEARER_ALGORITHM",
            Self::KeyUnknown => "BEARER_KEY_UNKNOWN",
            Self::Signature => "BEARER_SIGNATURE",
            Self::Expired => "BEARER_EXPIRED",
            Self::NotYetValid => "BEARER_NOT_YET_VALID",
            Self::TooOld => "BEARER_TOO_OLD",
            Self::Audience => "BEARER_AUDIENCE",
            Self::Subject => "BEARER_SUBJECT",
            Self::Claims => "BEARER_CLAIMS",
            Self::Confirmation => "BEARER_CONFIRMATION",
            Self::IssuerChanged => "ISSUER_CHANGED",
            Self::IssuerUnavailable => "ISSUER_UNAVAILABLE",
        }
    }
}
