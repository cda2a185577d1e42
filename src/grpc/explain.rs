//! Draft.

use tonic::Status;

use super::proto;
use crate::broker::{Broker, Caller};

pub(super) async fn explain(
    _: &Broker,
    _: &Caller,
    _: proto::ExplainRequest,
) -> Result<proto::ExplainResponse, Status> {
    Err(Status::unimplemented("draft"))
}

pub(super) fn list_access(_: &Broker, _: proto::ListAccessRequest) -> Result<proto::ListAccessResponse, Status> {
    Err(Status::unimplemented("draft"))
}
