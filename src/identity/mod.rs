//! Who is asking: what an authenticated connection, or the bearer of a trusted issuer's token, is called.

pub mod mtls;
pub mod oidc;

/// Why a peer has no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// There is nothing to go by.
    #[error("the connection has no client certificate, and the request no bearer token; give one of the two")]
    NoCertificate,
    /// No configured CA vouches for the certificate.
    #[error("the client certificate is not accepted: {0}")]
    NotAccepted(String),
    /// The certificate does not name exactly one client.
    #[error("the client certificate names no client: it needs one SPIFFE ID as its only URI SAN, or one DNS SAN")]
    NoName,
    /// The CA may not vouch for that name.
    #[error("the CA of the client certificate may not vouch for `{0}`")]
    OutsideCa(String),
}

impl IdentityError {
    /// The stable constant.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCertificate | Self::NotAccepted(_) | Self::NoName | Self::OutsideCa(_) => "IDENTITY_REFUSED",
        }
    }
}
