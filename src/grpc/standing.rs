//! Whether the caller of a stream still is whom it was authenticated as: asked before each thing that it is told.
//!
//! # Invariants
//! - The caller of a stream is the one that was let in: a token named it where there was one, whatever certificate the
//!   connection has.

use std::sync::Arc;

use tonic::{Request, Status};

use super::caller;
use crate::broker::{Broker, BrokerError, Caller};
use crate::domain::decide::DenyReason;
use crate::identity::mtls::Peer;
use crate::identity::oidc::BearerError;

/// The caller of a stream, and what it rests on.
pub(super) struct Standing {
    broker: Arc<Broker>,
    peer: Peer,
    caller: Caller,
}

impl Standing {
    /// Whoever calls now.
    pub(super) fn of<T>(request: &Request<T>, broker: &Arc<Broker>) -> Result<Self, Status> {
        let peer = request.extensions().get::<Peer>().cloned().ok_or_else(|| Status::internal("no peer"))?;
        Ok(Self { broker: Arc::clone(broker), peer, caller: caller(request)? })
    }

    /// The caller, where it still is: its certificate and its token are accepted, and its issuer is trusted as it was.
    pub(super) fn caller(&self) -> Result<&Caller, Status> {
        let principal = &self.caller.principal;
        if self.peer.certificate().is_some() || principal.vouched.is_none() {
            self.peer.caller()?;
        }
        let Some(vouched) = &principal.vouched else { return Ok(&self.caller) };
        if self.broker.clock().now().seconds() >= vouched.expires_at.saturating_add(vouched.issuer.leeway_s) {
            return Err(BearerError::Expired.into());
        }
        let state = self.broker.open()?.state();
        match state.refuses(principal) {
            Some(DenyReason::IssuerNotTrusted) => Err(BearerError::IssuerUnknown.into()),
            // That the caller itself is revoked is the last word of its stream, after what was revoked with it.
            Some(reason @ DenyReason::ClientRevoked) if !state.is_client_revoked(&principal.client) => {
                Err(BrokerError::Refused(reason).into())
            }
            _ => Ok(&self.caller),
        }
    }

    /// When the certificate or the token lapses, in Unix seconds.
    pub(super) fn ends_at(&self) -> i64 {
        let vouched = self.caller.principal.vouched.as_ref();
        let ends = [self.peer.not_after(), vouched.map(|it| it.expires_at.saturating_add(it.issuer.leeway_s))];
        ends.into_iter().flatten().min().unwrap_or(i64::MAX)
    }
}
