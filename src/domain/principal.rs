//! Who asks: the name that was authenticated, and the facts that policies may ask about beside it.

use std::sync::Arc;

use super::claims::Claims;
use super::issuer::Issuer;
use crate::id::ClientId;

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Its one name: the certificate's, or the trusted issuer's name and the `sub`.
    pub client: ClientId,
    /// The name in the certificate of its connection, where there is one.
    pub certificate: Option<ClientId>,
    /// What a trusted issuer says, where it is one that vouches.
    pub vouched: Option<Arc<Vouched>>,
}

/// What a trusted issuer says of a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vouched {
    /// The issuer, as it was trusted when the token was verified.
    pub issuer: Arc<Issuer>,
    /// The `sub`.
    pub subject: String,
    /// All that the token says.
    pub claims: Claims,
    /// When the token expires, in Unix seconds.
    pub expires_at: i64,
}

impl Principal {
    /// Whom a certificate names.
    pub fn of_certificate(client: ClientId) -> Self {
        Self { certificate: Some(client.clone()), client, vouched: None }
    }
}
