//! `export`: the whole desired state that is in force, as a document. Applied again, it changes nothing.

use clap::Args;
use serde_json::Value;

use super::Connection;
use super::apply::client;
use super::error::CliError;
use super::output::Printer;
use super::yaml_writer::{json, spelled, yaml};
use crate::domain::document::Document;
use crate::domain::document::shape::{DOCUMENT, REVISION, Shape};
use crate::grpc::proto;

/// Print the whole desired state as YAML; `--output json` prints it as JSON, which can be applied, too.
#[derive(Debug, Args)]
pub(super) struct Export {}

impl Export {
    pub(super) async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        let answer = client(connection).await?.export(proto::ExportRequest {}).await?.into_inner();
        let value = fields(answer.document.unwrap_or_default())?;
        if !print.is_json() {
            return print.text(format!("# revision {}\n{}", answer.revision, yaml(&value, DOCUMENT)).trim_end());
        }
        let mut object = spelled(&value, &Shape::Fields(DOCUMENT));
        if let Some(fields) = object.as_object_mut() {
            fields.insert(REVISION.to_owned(), Value::from(answer.revision));
        }
        print.text(&json(&object))
    }
}

/// A document as its shape has it.
pub(super) fn fields(document: proto::Document) -> Result<Value, CliError> {
    serde_json::to_value(Document::from(document)).map_err(|error| CliError::failed(error.to_string()))
}
