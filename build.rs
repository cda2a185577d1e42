//! Compiles `proto/` without a `protoc` binary: protox parses, tonic-prost-build generates.

use std::path::PathBuf;

/// Messages that carry a secret get no derived `Debug`; `src/grpc/mod.rs` writes one for each.
const SECRET: &[&str] = &[
    "p8broker.v1.ImportKeyRequest",
    "p8broker.v1.IssueTokenResponse",
    "p8broker.v1.InitResponse",
    "p8broker.v1.UnsealRequest",
    "p8broker.v1.RekeyRequest",
    "p8broker.v1.RekeyResponse",
    "p8broker.v1.ConfirmRekeyRequest",
    "p8broker.v1.WhoisRequest",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=migrations");
    let services = ["token", "key", "policy", "revocation", "system", "audit"];
    let files = services.map(|name| format!("p8broker/v1/{name}_service.proto"));
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(false);
    compiler.open_files(services.map(|name| format!("p8broker/v1/{name}_service.proto")))?;
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    // With comments, which the reference is made of; no part of the program.
    let commented = compiler.include_source_info(true).encode_file_descriptor_set();
    std::fs::write(out.join("commented.bin"), commented)?;
    tonic_prost_build::configure().skip_debug(SECRET).compile_fds(descriptors)?;
    Ok(())
}
