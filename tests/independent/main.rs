//! An implementation that is not ours: makes a sample `.p8` and verifies tokens with the RustCrypto crates.
//!
//! `independent make-p8 FILE` writes a key in Apple's form. `independent verify FILE` reads a token from standard input,
//! verifies it with the public half of that key, and prints its header and claims.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program whose answer is what it prints")]

use std::io::Read;
use std::process::ExitCode;

use data_encoding::BASE64URL_NOPAD;
use p256::SecretKey;
use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{Signature, VerifyingKey};
use p256::elliptic_curve::Generate;
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey, LineEnding};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["make-p8", file] => make(file),
        ["verify", file] => verify(file),
        _ => Err("usage: independent make-p8 FILE | independent verify FILE < token".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("independent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn make(file: &str) -> Result<(), Box<dyn std::error::Error>> {
    std::fs::write(file, SecretKey::generate().to_pkcs8_pem(LineEnding::LF)?.as_bytes())?;
    Ok(())
}

fn verify(file: &str) -> Result<(), Box<dyn std::error::Error>> {
    let key = SecretKey::from_pkcs8_pem(&std::fs::read_to_string(file)?)?;
    let mut token = String::new();
    std::io::stdin().read_to_string(&mut token)?;
    let (signed, signature) = token.trim().rsplit_once('.').ok_or("this is no token")?;
    let signature = Signature::from_slice(&BASE64URL_NOPAD.decode(signature.as_bytes())?)?;
    VerifyingKey::from(key.public_key()).verify(signed.as_bytes(), &signature)?;
    for part in signed.split('.') {
        println!("  {}", String::from_utf8(BASE64URL_NOPAD.decode(part.as_bytes())?)?);
    }
    println!("  signature: valid, says the p256 crate of RustCrypto");
    Ok(())
}
