//! What a `.p8` file is, and every way in which a file is not one.
//!
//! A `.p8` is PEM (RFC 7468) with the label `PRIVATE KEY`, around PKCS#8 (RFC 5958), around an EC key on P-256
//! (RFC 5915, RFC 5480). It is also taken with CRLF line ends, without its last line end, with line ends written as `\n`
//! (as environment variables have them), or the whole file once more in base64. Anything else is refused with a sentence
//! that says what was wrong, and never shows the bytes.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use data_encoding::BASE64;
use pkcs8::{ObjectIdentifier, PrivateKeyInfoRef};
use zeroize::Zeroizing;

use crate::secret::{P8Text, PrivateKeyDer};

/// Most bytes of a `.p8` in any form; Apple's have 257.
pub const MOST_BYTES: usize = 4096;

const BEGIN: &str = "-----BEGIN ";
const DASHES: &str = "-----";
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");

/// Why a file is not a `.p8` as Apple makes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum P8Error {
    /// There is nothing in it.
    #[error("the file is empty; Apple's .p8 can be downloaded once, so look for another copy")]
    Empty,
    /// It is too long.
    #[error("the file has more than 4096 bytes; a .p8 from Apple has about 260")]
    TooLong,
    /// It is no PEM.
    #[error("the file is not PEM: a .p8 from Apple starts with `-----BEGIN PRIVATE KEY-----`")]
    NotPem,
    /// It holds a second block.
    #[error("the file holds more than one PEM block; a .p8 from Apple holds one")]
    SeveralBlocks,
    /// The key is encrypted.
    #[error("the key is encrypted; Apple's .p8 files are not: import the file as it was downloaded")]
    Encrypted,
    /// The label is that of another kind of key.
    #[error(
        "the PEM label is that of another format (`EC PRIVATE KEY`, `RSA PRIVATE KEY`); a .p8 from Apple says `PRIVATE KEY`"
    )]
    OtherPrivateKey,
    /// It is a public key or a certificate.
    #[error("the file holds no private key but something else, such as a certificate or public key")]
    NotPrivateKey,
    /// The base64 within is damaged.
    #[error("the PEM content is damaged: it is not base64 from the BEGIN to the END line")]
    BadBase64,
    /// The content is not PKCS#8.
    #[error("the PEM content is not PKCS#8; the file is damaged")]
    NotPkcs8,
    /// The key is an RSA key.
    #[error("the key is an RSA key; App Store Connect keys are EC keys on P-256")]
    Rsa,
    /// The key is of some other kind.
    #[error("the key is not an EC key; App Store Connect keys are EC keys on P-256")]
    NotEc,
    /// The key is on another curve.
    #[error("the key is on another curve; App Store Connect keys are on P-256")]
    OtherCurve,
    /// The private and the public part do not fit.
    #[error("the key is damaged: its private number is out of range, or its public point is not the private key's")]
    BadKey,
}

/// A private key from a `.p8`, checked, with its public half.
#[derive(Debug)]
pub struct AppleKey {
    /// The private key.
    pub der: PrivateKeyDer,
    /// The public key as SubjectPublicKeyInfo (RFC 5280, section 4.1.2.7).
    pub public_key: Vec<u8>,
}

/// Reads a `.p8` in any of its forms.
///
/// # Errors
/// With what is wrong with it.
pub fn parse(text: &P8Text) -> Result<AppleKey, P8Error> {
    let bytes = text.expose_p8();
    if bytes.len() > MOST_BYTES {
        return Err(P8Error::TooLong);
    }
    let pem = plain_pem(bytes)?;
    let der = decode_pem(&pem)?;
    let info = PrivateKeyInfoRef::try_from(der.expose_der()).map_err(|_| P8Error::NotPkcs8)?;
    if info.algorithm.oid == RSA {
        return Err(P8Error::Rsa);
    }
    if info.algorithm.oid != EC_PUBLIC_KEY {
        return Err(P8Error::NotEc);
    }
    if info.algorithm.parameters_oid().ok() != Some(P256) {
        return Err(P8Error::OtherCurve);
    }
    let ec = sec1::EcPrivateKey::try_from(info.private_key.as_bytes()).map_err(|_| P8Error::BadKey)?;
    let pair =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.expose_der()).map_err(|_| P8Error::BadKey)?;
    let point = pair.public_key().as_ref();
    // The public point may stand in the file; then it must be the one that the private number makes.
    if ec.public_key.is_some_and(|claimed| claimed != point) {
        return Err(P8Error::BadKey);
    }
    let public_key = subject_public_key_info(point);
    Ok(AppleKey { der, public_key })
}

/// SubjectPublicKeyInfo of an uncompressed point on P-256 (RFC 5480, section 2): a fixed prefix, then the point.
fn subject_public_key_info(point: &[u8]) -> Vec<u8> {
    const PREFIX: [u8; 26] = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
        0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
    ];
    [&PREFIX, point].concat()
}

/// The uncompressed point within a SubjectPublicKeyInfo of P-256.
pub fn public_point(public_key: &[u8]) -> Option<&[u8]> {
    public_key.get(26..).filter(|point| point.len() == 65)
}

/// Undoes what environment variables do to a file. Buffers have their full size from the start, so that none leaves a copy
/// behind by growing.
fn plain_pem(bytes: &[u8]) -> Result<Zeroizing<String>, P8Error> {
    let text = std::str::from_utf8(bytes).map_err(|_| P8Error::NotPem)?.trim();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.is_empty() {
        return Err(P8Error::Empty);
    }
    let mut pem = Zeroizing::new(String::with_capacity(text.len()));
    if text.contains("-----") {
        for (at, line) in text.split("\\n").enumerate() {
            if at > 0 {
                pem.push('\n');
            }
            pem.push_str(line.strip_suffix("\\r").unwrap_or(line));
        }
    } else {
        let packed = without_white_space(text);
        let length = BASE64.decode_len(packed.len()).map_err(|_| P8Error::NotPem)?;
        let mut inner = Zeroizing::new(vec![0; length]);
        let written = BASE64.decode_mut(&packed, &mut inner).map_err(|_| P8Error::NotPem)?;
        let inner = inner.get(..written).and_then(|inner| std::str::from_utf8(inner).ok()).ok_or(P8Error::NotPem)?;
        if !inner.trim_start().starts_with(BEGIN) {
            return Err(P8Error::NotPem);
        }
        pem.push_str(inner);
    }
    Ok(pem)
}

fn without_white_space(text: &str) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(text.len()));
    out.extend(text.bytes().filter(|b| !b.is_ascii_whitespace()));
    out
}

fn decode_pem(pem: &str) -> Result<PrivateKeyDer, P8Error> {
    let rest = pem.trim().strip_prefix(BEGIN).ok_or(P8Error::NotPem)?;
    let (label, rest) = rest.split_once(DASHES).ok_or(P8Error::NotPem)?;
    if rest.contains(BEGIN) {
        return Err(P8Error::SeveralBlocks);
    }
    match label {
        "PRIVATE KEY" => {}
        "ENCRYPTED PRIVATE KEY" => return Err(P8Error::Encrypted),
        label if label.ends_with("PRIVATE KEY") && rest.contains("ENCRYPTED") => return Err(P8Error::Encrypted),
        label if label.ends_with("PRIVATE KEY") => return Err(P8Error::OtherPrivateKey),
        _ => return Err(P8Error::NotPrivateKey),
    }
    let body = rest.strip_suffix("-----END PRIVATE KEY-----").ok_or(P8Error::BadBase64)?;
    let packed = without_white_space(body);
    // Decoded into a buffer of the full size, so that no copy is left behind by growing.
    let length = BASE64.decode_len(packed.len()).map_err(|_| P8Error::BadBase64)?;
    let mut der = Zeroizing::new(vec![0; length]);
    let written = BASE64.decode_mut(&packed, &mut der).map_err(|_| P8Error::BadBase64)?;
    der.truncate(written);
    Ok(PrivateKeyDer::new(std::mem::take(&mut *der)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> String {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        pem("PRIVATE KEY", pair.to_pkcs8v1().unwrap().as_ref())
    }

    fn pem(label: &str, der: &[u8]) -> String {
        let body = BASE64.encode(der);
        let lines: Vec<&str> = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    }

    fn read(text: &str) -> Result<AppleKey, P8Error> {
        parse(&P8Text::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn every_form_of_one_key_is_the_same_key() {
        let pem = fresh();
        let expected = read(&pem).unwrap().public_key;
        assert_eq!(expected.len(), 91);
        for form in [
            pem.replace('\n', "\r\n"),
            pem.trim_end().to_owned(),
            pem.trim_end().replace('\n', "\\n"),
            pem.replace('\n', "\\n"),
            pem.replace('\n', "\\r\\n"),
            BASE64.encode(pem.as_bytes()),
            format!("\u{feff}{pem}"),
        ] {
            assert_eq!(read(&form).unwrap().public_key, expected);
        }
    }

    #[test]
    fn what_is_not_a_p8_is_refused_with_its_own_reason() {
        let good = fresh();
        let body = good.lines().nth(1).unwrap();
        let cases = [
            (String::new(), P8Error::Empty),
            ("\n \n".to_owned(), P8Error::Empty),
            ("A".repeat(5000), P8Error::TooLong),
            ("hello".to_owned(), P8Error::NotPem),
            (BASE64.encode(b"hello there"), P8Error::NotPem),
            (format!("{good}{good}"), P8Error::SeveralBlocks),
            (pem("ENCRYPTED PRIVATE KEY", &[1, 2, 3]), P8Error::Encrypted),
            (
                "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END EC PRIVATE KEY-----"
                    .to_owned(),
                P8Error::Encrypted,
            ),
            (good.replace("PRIVATE", "EC PRIVATE"), P8Error::OtherPrivateKey),
            (pem("CERTIFICATE", &[1, 2, 3]), P8Error::NotPrivateKey),
            (good.replace(body, &body.replace(&body[..4], "*&^%")), P8Error::BadBase64),
            (good.replace("-----END PRIVATE KEY-----", ""), P8Error::BadBase64),
            (pem("PRIVATE KEY", &[0x30, 0x03, 0x02, 0x01, 0x00]), P8Error::NotPkcs8),
        ];
        for (text, expected) in cases {
            assert_eq!(read(&text).err(), Some(expected), "{text}");
        }
    }

    #[test]
    fn keys_on_other_curves_and_of_other_kinds_are_named() {
        let p384 = EcdsaKeyPair::generate(&aws_lc_rs::signature::ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        assert_eq!(read(&pem("PRIVATE KEY", p384.to_pkcs8v1().unwrap().as_ref())).err(), Some(P8Error::OtherCurve));
        use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
        let rsa = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = rsa.as_der().unwrap();
        assert_eq!(read(&pem("PRIVATE KEY", der.as_ref())).err(), Some(P8Error::Rsa));
        let ed = aws_lc_rs::signature::Ed25519KeyPair::generate().unwrap();
        assert_eq!(read(&pem("PRIVATE KEY", ed.to_pkcs8v1().unwrap().as_ref())).err(), Some(P8Error::NotEc));
    }

    #[test]
    fn a_public_point_of_another_key_is_found() {
        let (a, b) = (fresh(), fresh());
        let der = |pem: &str| {
            BASE64.decode(pem.lines().filter(|line| !line.starts_with('-')).collect::<String>().as_bytes()).unwrap()
        };
        let (mut mixed, other) = (der(&a), der(&b));
        let at = mixed.len() - 64;
        mixed[at..].copy_from_slice(&other[at..]);
        assert_eq!(read(&pem("PRIVATE KEY", &mixed)).err(), Some(P8Error::BadKey));
        let mut zero = der(&a);
        zero[36..68].fill(0);
        assert_eq!(read(&pem("PRIVATE KEY", &zero)).err(), Some(P8Error::BadKey));
    }
}
