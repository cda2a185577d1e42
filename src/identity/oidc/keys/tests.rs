use serde_json::json;

use super::*;

const N_2048: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";

fn set(keys: Value) -> Result<KeySet, KeySetError> {
    KeySet::of(json!({ "keys": keys }).as_object().unwrap())
}

fn rsa_jwk() -> Value {
    json!({ "kty": "RSA", "n": N_2048, "e": "AQAB" })
}

fn ec_jwk() -> Value {
    json!({
        "kty": "EC", "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    })
}

fn ed_jwk() -> Value {
    json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" })
}

fn usable(jwk: Value) -> bool {
    !set(json!([jwk])).unwrap().is_empty()
}

fn verdict(jwk: Value, algorithm: Algorithm, jws: &str) -> Result<(), BearerError> {
    let (signed, signature) = jws.rsplit_once('.').unwrap();
    let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap();
    let token = Presented { algorithm, key_id: None, payload: Map::new(), signed, signature };
    set(json!([jwk])).unwrap().verify(&token).map(|_| ())
}

/// RFC 7515, appendices A.2 and A.3; RFC 8037, appendix A.4.
#[test]
fn signatures_of_the_specifications_hold_and_others_do_not() {
    let rs256 = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
    let es256 = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    let eddsa = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    for (jwk, algorithm, jws) in
        [(rsa_jwk(), Algorithm::Rs256, rs256), (ec_jwk(), Algorithm::Es256, es256), (ed_jwk(), Algorithm::EdDsa, eddsa)]
    {
        assert_eq!(verdict(jwk.clone(), algorithm, jws), Ok(()), "{algorithm:?}");
        assert_eq!(verdict(jwk, algorithm, &format!("x{jws}")), Err(BearerError::Signature));
    }
    for other in [Algorithm::Rs384, Algorithm::Rs512, Algorithm::Ps256, Algorithm::Ps384, Algorithm::Ps512] {
        assert_eq!(verdict(rsa_jwk(), other, rs256), Err(BearerError::Signature), "{other:?}");
    }
}

#[test]
fn a_key_is_for_what_all_of_it_allows() {
    let fits = |jwk: Value| -> Vec<_> {
        let set = set(json!([jwk])).unwrap();
        Algorithm::ALL.iter().filter(|algorithm| set.0[0].fits(**algorithm)).map(|it| it.as_str()).collect()
    };
    assert_eq!(fits(rsa_jwk()), ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]);
    assert_eq!(fits(ec_jwk()), ["ES256"]);
    assert_eq!(fits(ed_jwk()), ["EdDSA"]);
    let with = |mut jwk: Value, name: &str, value: Value| {
        jwk[name] = value;
        jwk
    };
    assert_eq!(fits(with(rsa_jwk(), "alg", json!("PS256"))), ["PS256"]);
    for (name, good) in [("use", json!("sig")), ("key_ops", json!(["sign", "verify"])), ("kid", json!("../../x"))] {
        assert!(usable(with(ec_jwk(), name, good)), "{name}");
    }
    for (name, bad) in [
        ("use", json!("enc")),
        ("use", json!(["sig"])),
        ("use", json!(null)),
        ("key_ops", json!(["sign"])),
        ("key_ops", json!([])),
        ("key_ops", json!("verify")),
        ("alg", json!("RS256")),
        ("alg", json!("ES384")),
        ("alg", json!("HS256")),
        ("alg", json!("none")),
        ("alg", json!(7)),
        ("kid", json!(7)),
        ("kid", json!("k".repeat(257))),
        ("kty", json!("oct")),
        ("kty", json!("ec")),
        ("crv", json!("P-384")),
        ("crv", json!("P-521")),
        ("crv", json!("secp256k1")),
        ("d", json!("jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI")),
        ("x", json!("AA")),
        ("x", json!("f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU=")),
        ("y", json!("x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a1")),
        ("y", json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")),
    ] {
        assert!(!usable(with(ec_jwk(), name, bad.clone())), "{name} {bad}");
    }
    // The same point, cut in another place.
    let coordinate = |name: &str| bytes(ec_jwk()[name].as_str().unwrap()).unwrap();
    let cut = [coordinate("x"), coordinate("y")].concat();
    let moved = with(ec_jwk(), "x", json!(BASE64URL_NOPAD.encode(&cut[..33])));
    assert!(!usable(with(moved, "y", json!(BASE64URL_NOPAD.encode(&cut[33..])))));
    assert!(!usable(json!({ "kty": "oct", "k": "c2VjcmV0", "alg": "HS256" })));
    assert!(!usable(with(ed_jwk(), "crv", json!("X25519"))));
    assert!(!usable(with(ed_jwk(), "x", json!("AAAA"))));
}

#[test]
fn rsa_keys_have_2048_to_8192_bits_and_a_usual_exponent() {
    let key = |modulus: Vec<u8>, exponent: &[u8]| rsa(&modulus, exponent).is_some();
    let modulus = |bits: usize| {
        let mut out = vec![0xff; bits.div_ceil(8)];
        out[0] = u8::MAX >> (out.len() * 8 - bits);
        out
    };
    let usual = [1, 0, 1];
    for bits in [2048, 2049, 3072, 4096, 8192] {
        assert!(key(modulus(bits), &usual), "{bits}");
    }
    for bits in [8, 512, 1024, 2040, 2047, 8193, 8200, 16_384] {
        assert!(!key(modulus(bits), &usual), "{bits}");
    }
    assert!(key([vec![0, 0], modulus(2048)].concat(), &[0, 1, 0, 1]));
    assert!(!key([vec![0; 200], modulus(1024)].concat(), &usual));
    assert!(!key(Vec::new(), &usual) && !key(vec![0; 256], &usual));
    for exponent in [&[][..], &[0], &[1], &[2], &[3], &[17], &[1, 0, 0], &[1, 0, 0, 0, 1], &[0xff; 9]] {
        assert!(!key(modulus(2048), exponent), "{exponent:?}");
    }
    let mut even = modulus(2048);
    even[255] = 0xfe;
    assert!(!key(even, &usual));
}

#[test]
fn a_set_is_a_list_of_at_most_a_hundred_objects() {
    assert!(set(json!([])).unwrap().is_empty());
    assert_eq!(set(json!(vec![ec_jwk(); 100])).unwrap().0.len(), 100);
    assert_eq!(set(json!(vec![ec_jwk(); 101])), Err(KeySetError::TooMany));
    for bad in [json!({}), json!("x"), json!(null), json!([1]), json!([[]]), json!([ec_jwk(), null])] {
        assert_eq!(set(bad.clone()), Err(KeySetError::Shape), "{bad}");
    }
    assert_eq!(KeySet::of(&Map::new()), Err(KeySetError::Shape));
    // What is not understood is left out, and the rest is used.
    assert_eq!(set(json!([{}, {"kty":"XYZ"}, ec_jwk(), {"kty":"RSA"}])).unwrap().0.len(), 1);
}
