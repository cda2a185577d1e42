//! `shadow report`: what policies and ceilings in shadow mode would have refused.

use clap::Subcommand;
use serde_json::{Value, json};

use super::Connection;
use super::apply::client;
use super::error::CliError;
use super::output::{Printer, time_text};
use crate::grpc::proto;

/// Shadow mode.
#[derive(Debug, Subcommand)]
pub(super) enum ShadowCommand {
    /// Print what would have been refused, on all replicas, most often first.
    Report,
}

impl ShadowCommand {
    pub(super) async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        let Self::Report = self;
        let report = client(connection).await?.report_shadows(proto::ReportShadowsRequest {}).await?.into_inner();
        let (counts, has_more) = (report.counts, report.has_more);
        let object = json!({ "counts": counts.iter().map(count_json).collect::<Vec<Value>>(), "has_more": has_more });
        print.answer(&object, || {
            if counts.is_empty() {
                return "nothing that is in shadow mode would have refused anything".to_owned();
            }
            let line = |it: &proto::ShadowCount| {
                let last = it.last.as_ref().map(time_text).unwrap_or_default();
                format!(
                    "{:>8}  {} {}  {}  {} on {}  last {last}",
                    it.count, it.kind, it.name, it.reason, it.client, it.app_group
                )
            };
            let rest =
                has_more.then(|| "there are more, of less often; tighten or drop some of these first".to_owned());
            counts.iter().map(line).chain(rest).collect::<Vec<_>>().join("\n")
        })
    }
}

fn count_json(it: &proto::ShadowCount) -> Value {
    json!({
        "kind": it.kind, "name": it.name, "reason": it.reason, "client": it.client, "app_group": it.app_group,
        "count": it.count, "last": it.last.as_ref().map(time_text),
    })
}
