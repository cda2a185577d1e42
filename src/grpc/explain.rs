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
