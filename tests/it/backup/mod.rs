//! Backup and restore: drills under load on both engines, and what is refused.

mod commands;
mod damage;
mod drill;
mod older;
mod serving;

use std::path::{Path, PathBuf};

use p8broker::config::{StoreAt, StoreConfig};
use p8broker::grpc::proto;
use serde_json::Value;

use crate::cli::json_as;
use crate::harness::*;

/// A broker's configuration as a file, as the command line reads it; `store` is what stands under `[store]`.
pub fn config_file(broker: &Broker, name: &str, store: &str) -> PathBuf {
    let (pki, config) = (broker.pki.dir.display(), &broker.config);
    let mut text = format!(
        "[listen]\ngrpc = \"127.0.0.1:0\"\nops = \"127.0.0.1:0\"\n[tls]\ncertificate = \"{pki}/server.pem\"\nkey = \
         \"{pki}/server-key.pem\"\n[[tls.client_cas]]\nfile = \"{pki}/ca.pem\"\ntrust_domains = [\"acme.internal\"]\n[store]\n\
         {store}\n"
    );
    if let Some(key) = &config.unseal.key_file {
        text.push_str(&format!("[unseal]\nkey_file = \"{}\"\n", key.display()));
    }
    if let Some(key) = &config.unseal.previous_key_file {
        text.push_str(&format!("previous_key_file = \"{}\"\n", key.display()));
    }
    if let Some(anchor) = &config.anchor.file {
        text.push_str(&format!("[anchor]\nfile = \"{}\"\n", anchor.display()));
    }
    let file = broker.dir.path().join(name);
    std::fs::write(&file, text).unwrap();
    file
}

/// What stands under `[store]` for a broker's own database.
pub fn store_of(broker: &Broker) -> String {
    match broker.config.store.at().unwrap() {
        StoreAt::Sqlite(file) => format!("sqlite = \"{}\"", file.display()),
        StoreAt::Postgres(settings) => format!("url = \"{}\"", settings.url.as_str()),
    }
}

/// Backs a running broker up into a file of its folder.
pub async fn back_up(broker: &Broker, name: &str) -> PathBuf {
    let file = broker.dir.path().join(name);
    let (code, answer) = json_as(broker, OPERATOR, &["operator", "backup", "--out", file.to_str().unwrap()], "").await;
    assert_eq!(code, 0, "{answer}");
    assert_eq!(answer["bytes"].as_u64().unwrap(), std::fs::metadata(&file).unwrap().len());
    file
}

/// Runs a command of the machine itself: exit code, and its answer or its error.
pub fn here(arguments: &[&str]) -> (i32, Value) {
    let output = std::process::Command::new(crate::cli::BINARY)
        .args(arguments)
        .args(["--output", "json"])
        .env_remove("P8BROKER_STORE_URL")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let code = output.status.code().unwrap();
    let text = if code == 0 { output.stdout } else { output.stderr };
    let text = String::from_utf8(text).unwrap();
    let line = if code == 0 { text.as_str() } else { text.lines().last().unwrap_or_default() };
    let mut value: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{arguments:?}: {text}"));
    (code, if code == 0 { value } else { value["error"].take() })
}

pub fn verify(file: &Path, config: &Path) -> (i32, Value) {
    here(&["operator", "verify-backup", "--in", file.to_str().unwrap(), "--config", config.to_str().unwrap()])
}

pub fn restore(file: &Path, config: &Path, more: &[&str]) -> (i32, Value) {
    let whole = ["restore", "--from", file.to_str().unwrap(), "--config", config.to_str().unwrap()];
    here(&[&whole, more].concat())
}

/// Another broker in the same folder, on another database, which does not run yet.
pub fn elsewhere(broker: &Broker, store: StoreConfig) -> Broker {
    let mut other = broker.sibling(1);
    other.config.store = store;
    other
}
