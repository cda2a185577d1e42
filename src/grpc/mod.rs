//! The gRPC surface: one thin service a noun. Each method parses, calls one use case, and converts.

pub mod access;
mod access_list;
mod audit_service;
mod backup;
mod convert;
pub(crate) mod document;
mod explain;
mod key_service;
pub mod layer;
mod policy_service;
#[cfg(test)]
mod reference;
mod revocation_service;
mod standing;
pub mod status;
mod system_service;
mod token_service;
mod watch;

use std::fmt;
use std::sync::Arc;

use tonic::service::RoutesBuilder;
use tonic::{Request, Status};

pub(crate) use backup::backup_done;

use crate::broker::{Broker, Caller};

/// Generated from `proto/`, whose comments are the manual.
pub mod proto {
    #![expect(missing_docs, clippy::allow_attributes, clippy::allow_attributes_without_reason, reason = "generated")]
    #![expect(clippy::doc_markdown, clippy::default_trait_access, reason = "generated")]
    tonic::include_proto!("p8broker.v1");
}

/// Every file of `proto/`, for reflection and for the test that walks all RPCs.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Largest request, in bytes.
const MOST_BYTES: usize = 1024 * 1024;

/// Largest document.
const MOST_DOCUMENT_BYTES: usize = 16 * 1024 * 1024;

/// A service over the one broker.
#[derive(Clone)]
pub(crate) struct Service(Arc<Broker>);

/// Adds every service of this package.
pub fn add_services(routes: &mut RoutesBuilder, broker: &Arc<Broker>) {
    use proto::audit_service_server::AuditServiceServer;
    use proto::key_service_server::KeyServiceServer;
    use proto::policy_service_server::PolicyServiceServer;
    use proto::revocation_service_server::RevocationServiceServer;
    use proto::system_service_server::SystemServiceServer;
    use proto::token_service_server::TokenServiceServer;
    let service = || Service(Arc::clone(broker));
    routes.add_service(TokenServiceServer::new(service()).max_decoding_message_size(MOST_BYTES));
    routes.add_service(KeyServiceServer::new(service()).max_decoding_message_size(MOST_BYTES));
    routes.add_service(PolicyServiceServer::new(service()).max_decoding_message_size(MOST_DOCUMENT_BYTES));
    routes.add_service(RevocationServiceServer::new(service()).max_decoding_message_size(MOST_BYTES));
    routes.add_service(SystemServiceServer::new(service()).max_decoding_message_size(MOST_BYTES));
    routes.add_service(AuditServiceServer::new(service()).max_decoding_message_size(MOST_BYTES));
}

/// The caller, as the access layer authenticated it.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    // The layer lets nothing through without one; a missing caller is a mistake of ours.
    request.extensions().get::<Caller>().cloned().ok_or_else(|| Status::internal("the request has no caller"))
}

// INVARIANT (P1): messages that carry a secret show their name and nothing else.
macro_rules! quiet {
    ($($message:ident),*) => {$(
        impl fmt::Debug for proto::$message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($message)).finish_non_exhaustive()
            }
        }
    )*};
}
quiet!(
    ImportKeyRequest,
    IssueTokenResponse,
    InitResponse,
    UnsealRequest,
    RekeyRequest,
    RekeyResponse,
    ConfirmRekeyRequest,
    WhoisRequest
);
