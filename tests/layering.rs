//! Holds the layers of the crate: a module uses only modules on lower lines, or before it on its own line.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

/// Bottom to top.
const LAYERS: &[&[&str]] = &[
    &["clock", "id", "secret", "pages"],
    &["domain"],
    &["metrics", "trace", "vault", "signer", "store"],
    &["broker"],
    &["identity", "grpc", "tls", "ops", "client"],
    &["config", "telemetry", "server", "cli", "main", "lib"],
];

/// Which external crates are confined to which modules.
const CONFINED: &[(&str, &[&str])] = &[
    ("tonic", &["grpc", "client", "tls", "server", "cli", "identity", "telemetry"]),
    ("sqlx", &["store"]),
    ("jsonwebtoken", &["signer", "identity"]),
    ("axum", &["ops", "server"]),
    ("vsss_rs", &["vault"]),
    ("clap", &["cli"]),
    ("figment", &["config"]),
    ("rcgen", &["cli"]),
    ("hyper", &["identity", "client"]),
    ("h2", &["client"]),
    ("jiff", &["domain"]),
    ("webpki_roots", &["identity", "telemetry"]),
    ("opentelemetry", &["trace", "telemetry"]),
    ("opentelemetry_sdk", &["trace", "telemetry"]),
    ("opentelemetry_proto", &["telemetry"]),
];

fn place(module: &str) -> (usize, usize) {
    let found = LAYERS
        .iter()
        .enumerate()
        .find_map(|(layer, line)| line.iter().position(|name| *name == module).map(|at| (layer, at)));
    found.unwrap_or_else(|| panic!("module `{module}` has no line in LAYERS yet: place it"))
}

/// Modules that one source text names: `crate::x`, `crate::{x, y::z}`.
fn used(source: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut out = Vec::new();
    for rest in source.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            None => out.push(word(rest)),
            Some(list) => {
                let mut depth = 0_i32;
                let mut start = true;
                for (at, c) in list.char_indices() {
                    if start && depth == 0 && (c.is_alphanumeric() || c == '_') {
                        out.push(word(&list[at..]));
                        start = false;
                    }
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        _ => {}
                    }
                }
            }
        }
    }
    out
}

fn violations(module: &str, path: &Path, source: &str) -> Vec<String> {
    let code: String =
        source.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut out = Vec::new();
    for name in used(&code) {
        if name != module && place(&name) >= place(module) {
            out.push(format!("{}: {module} uses {name}", path.display()));
        }
    }
    for (name, homes) in CONFINED {
        if code.contains(&format!("{name}::")) && !homes.contains(&module) {
            out.push(format!("{}: `{name}` does not belong into {module}", path.display()));
        }
    }
    out
}

fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn a_module_uses_only_lower_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 40, "the sources were not found");
    let mut found = Vec::new();
    for path in files {
        let relative = path.strip_prefix(&root).unwrap();
        let module =
            relative.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
        found.extend(violations(&module, relative, &fs::read_to_string(&path).unwrap()));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn an_upward_use_is_found() {
    let path = Path::new("src/domain/x.rs");
    assert_eq!(violations("domain", path, "use crate::{id, broker::Broker};").len(), 1);
    assert_eq!(violations("domain", path, "let x = crate::store::Y;").len(), 1);
    assert_eq!(violations("broker", path, "use tonic::Status;").len(), 1);
    assert_eq!(violations("vault", path, "use crate::signer::SigningKey;").len(), 1);
    assert!(violations("signer", path, "use crate::vault::VaultError;").is_empty());
}

#[test]
fn no_file_is_longer_than_600_lines() {
    let mut files = Vec::new();
    for folder in ["src", "tests"] {
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut files);
    }
    let long = |path: &PathBuf| fs::read_to_string(path).unwrap().lines().count() > 600;
    let long: Vec<_> = files.into_iter().filter(long).collect();
    assert!(long.is_empty(), "{long:?}");
}

#[test]
fn no_banned_library_is_in_the_tree() {
    // What is built, not what Cargo.lock mentions: it names optional crates that no feature brings in.
    let tree = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let tree = String::from_utf8(tree.stdout).unwrap();
    assert!(tree.contains("aws-lc-rs v"), "the tree was not read");
    for banned in ["ring", "openssl", "openssl-sys", "native-tls", "sharks", "blahaj", "serde_yaml"] {
        assert!(!tree.lines().any(|line| line.starts_with(&format!("{banned} v"))), "{banned} is in the tree");
    }
}
