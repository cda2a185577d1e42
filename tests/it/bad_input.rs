//! Forty kinds of bad input and more: each a clear typed error, nothing changed, nothing written into the log or audit
//! that should not be there.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use data_encoding::BASE64;
use p8broker::grpc::proto;
use prost_types::{Duration, Timestamp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;
use tonic_types::StatusExt;

use crate::harness::*;

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64.encode(der))
}

/// What the control plane says before and after: bad input must not change it.
async fn revision(operator: &mut Client) -> u64 {
    operator.system.status(proto::StatusRequest {}).await.unwrap().into_inner().revision
}

#[tokio::test]
async fn bad_keys_are_refused_each_with_its_reason() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let before = revision(&mut operator).await;
    let good = new_p8();
    let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    let rsa = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let rsa: Pkcs8V1Der<'_> = rsa.as_der().unwrap();
    let files: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "empty"),
        ("white space", b" \r\n\t".to_vec(), "empty"),
        ("too long", vec![b'A'; 5000], "4096 bytes"),
        ("text", b"hello".to_vec(), "not PEM"),
        ("binary", vec![0, 159, 146, 150], "not PEM"),
        ("NUL bytes", vec![0; 200], "not PEM"),
        ("RSA", pem("PRIVATE KEY", rsa.as_ref()).into_bytes(), "RSA key"),
        ("P-384", pem("PRIVATE KEY", p384.to_pkcs8v1().unwrap().as_ref()).into_bytes(), "another curve"),
        ("encrypted", pem("ENCRYPTED PRIVATE KEY", &[48, 3, 2, 1, 0]).into_bytes(), "encrypted"),
        ("SEC 1", good.replace("PRIVATE", "EC PRIVATE").into_bytes(), "another format"),
        ("public key", good.replace("PRIVATE", "PUBLIC").into_bytes(), "no private key"),
        ("two keys", format!("{good}{good}").into_bytes(), "more than one PEM block"),
        ("cut short", good.as_bytes()[..150].to_vec(), "damaged"),
        ("not base64", good.replace("MIG", "*!*").into_bytes(), "damaged"),
        ("not PKCS#8", pem("PRIVATE KEY", b"nonsense").into_bytes(), "not PKCS#8"),
    ];
    for (name, p8, says) in files {
        let status = operator.import(&proto::ImportKeyRequest { p8, ..import("BADKEY2345", "") }).await.unwrap_err();
        assert!(status.message().contains(says), "{name}: {}", status.message());
        assert_eq!(refused::<()>(Err(status)), (Code::InvalidArgument, "BAD_P8".to_owned()), "{name}");
    }
    let individual = proto::KeyKind::Individual.into();
    let access =
        |all, ids: &[&str]| Some(proto::AppAccess { all, app_ids: ids.iter().map(|id| (*id).to_owned()).collect() });
    let fields: Vec<(proto::ImportKeyRequest, &[&str])> = vec![
        (import("short", &good), &["key_id"]),
        (import("２X9R4HXF34", &good), &["key_id"]),
        (import("../../etc/", &good), &["key_id"]),
        (proto::ImportKeyRequest { account: "a\0b".to_owned(), ..import("BADKEY2345", &good) }, &["account"]),
        (
            proto::ImportKeyRequest { account: "nobody".to_owned(), ..import("BADKEY2345", &good) },
            &["account", "app_groups[0]"],
        ),
        (proto::ImportKeyRequest { kind: 99, ..import("BADKEY2345", &good) }, &["kind"]),
        (proto::ImportKeyRequest { kind: individual, ..import("BADKEY2345", &good) }, &["user", "app_access"]),
        (
            proto::ImportKeyRequest {
                kind: individual,
                user: "a b".to_owned(),
                app_access: access(true, &["1"]),
                ..import("BADKEY2345", &good)
            },
            &["user", "app_access"],
        ),
        (
            proto::ImportKeyRequest {
                kind: individual,
                user: "a@b".to_owned(),
                app_access: access(false, &["1", "x"]),
                ..import("BADKEY2345", &good)
            },
            &["app_access.app_ids[1]"],
        ),
        (proto::ImportKeyRequest { user: "a@b".to_owned(), ..import("BADKEY2345", &good) }, &["kind"]),
        (proto::ImportKeyRequest { roles: vec![], ..import("BADKEY2345", &good) }, &["roles"]),
        (proto::ImportKeyRequest { roles: vec![1, 0, 77], ..import("BADKEY2345", &good) }, &["roles[1]", "roles[2]"]),
        (proto::ImportKeyRequest { app_groups: vec![], ..import("BADKEY2345", &good) }, &["app_groups"]),
        (
            proto::ImportKeyRequest { app_groups: vec!["nowhere".to_owned()], ..import("BADKEY2345", &good) },
            &["app_groups[0]"],
        ),
        (proto::ImportKeyRequest::default(), &["key_id", "account", "roles", "kind", "app_groups"]),
    ];
    for (request, expected) in fields {
        assert_eq!(wrong_fields(operator.import(&request).await), expected);
    }
    assert_eq!(revision(&mut operator).await, before, "nothing was changed");
    broker.stop().await;
}

#[tokio::test]
async fn bad_requests_for_tokens_are_refused_with_every_violation() {
    let mut broker = Broker::start().await;
    let mut client = broker.as_(CLIENT).await;
    let ttl = |seconds, nanos| Some(Duration { seconds, nanos });
    let scope = |entries: &[&str]| entries.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>();
    let cases: Vec<(proto::IssueTokenRequest, &[&str])> = vec![
        (proto::IssueTokenRequest::default(), &["app_group", "role"]),
        (proto::IssueTokenRequest { app_group: "Games".to_owned(), ..ask() }, &["app_group"]),
        (proto::IssueTokenRequest { app_group: "a".repeat(10_000), ..ask() }, &["app_group"]),
        (proto::IssueTokenRequest { app_group: "games\u{202e}".to_owned(), ..ask() }, &["app_group"]),
        (proto::IssueTokenRequest { role: 0, ..ask() }, &["role"]),
        (proto::IssueTokenRequest { role: -1, ..ask() }, &["role"]),
        (proto::IssueTokenRequest { ttl: ttl(-1, 0), ..ask() }, &["ttl"]),
        (proto::IssueTokenRequest { ttl: ttl(0, 0), ..ask() }, &["ttl"]),
        (proto::IssueTokenRequest { ttl: ttl(29, 0), ..ask() }, &["ttl"]),
        (proto::IssueTokenRequest { ttl: ttl(60, 5), ..ask() }, &["ttl"]),
        (proto::IssueTokenRequest { ttl: ttl(i64::MAX, 0), ..ask() }, &["ttl"]),
        (proto::IssueTokenRequest { ttl: ttl(i64::MIN, 0), ..ask() }, &["ttl"]),
        (
            proto::IssueTokenRequest {
                scope: scope(&["POST /v1/apps", "GET /v1/apps", "GET /v1/../users", "get /v1/apps", ""]),
                ..ask()
            },
            &["scope[0]", "scope[2]", "scope[3]", "scope[4]"],
        ),
        (proto::IssueTokenRequest { scope: scope(&["GET /v1/apps/{app}"]), ..ask() }, &["scope[0]"]),
        (proto::IssueTokenRequest { scope: scope(&["GET /v1/apps/%2e%2e"]), ..ask() }, &["scope[0]"]),
        (proto::IssueTokenRequest { scope: vec!["GET /v1/apps".to_owned(); 51], ..ask() }, &["scope"]),
        (proto::IssueTokenRequest { scope: vec!["x".repeat(5000)], ..ask() }, &["scope"]),
    ];
    for (request, expected) in cases {
        assert_eq!(wrong_fields(client.issue(request).await), expected);
    }
    let refusal =
        client.issue(proto::IssueTokenRequest { scope: scope(&["PATCH /v1/apps"]), ..ask() }).await.unwrap_err();
    let details = refusal.get_error_details();
    let says = &details.bad_request().unwrap().field_violations[0].description;
    assert!(says.contains("GET only") && says.contains("405"), "{says}");
    broker.stop().await;
}

#[tokio::test]
async fn bad_documents_revocations_and_times_are_refused() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let before = revision(&mut operator).await;
    let policy = |change: fn(&mut proto::Policy)| {
        let mut policy = release_policy();
        change(&mut policy);
        policies(vec![policy])
    };
    let cases: Vec<(proto::Document, &[&str])> = vec![
        (policy(|it| it.name = "a/b".to_owned()), &["policies[0].name"]),
        (policy(|it| it.clients = vec![proto::ClientPattern { pattern: None }]), &["policies[0].clients[0]"]),
        (policy(|it| it.clients = vec![spiffe("spiffe://acme.internal/*")]), &["policies[0].clients[0].spiffe"]),
        (policy(|it| it.clients = vec![spiffe("spiffe://*.internal/x")]), &["policies[0].clients[0].spiffe"]),
        (policy(|it| it.clients = vec![spiffe("spiffe://acme.internal/x"); 1001]), &["policies[0].clients"]),
        (policy(|it| it.roles = vec![0]), &["policies[0].roles[0]"]),
        (policy(|it| it.max_ttl = duration(1201)), &["policies[0].max_ttl"]),
        (policy(|it| it.max_ttl = duration(-5)), &["policies[0].max_ttl"]),
        (policy(|it| it.default_ttl = duration(601)), &["policies[0].default_ttl"]),
        (policy(|it| it.operations = vec!["DELETE /v1/apps/{app}".to_owned()]), &["policies[0].operations[0]"]),
        (
            policy(|it| {
                it.not_before = Some(Timestamp { seconds: 10, nanos: 0 });
                it.not_after = Some(Timestamp { seconds: 10, nanos: 0 });
            }),
            &["policies[0].not_after"],
        ),
        (policies(vec![release_policy(), release_policy()]), &["policies[1].name"]),
        (
            proto::Document {
                accounts: vec![proto::Account { name: "b".to_owned(), issuer_id: "x".to_owned() }],
                ..proto::Document::default()
            },
            &["accounts[0].issuer_id"],
        ),
        (
            proto::Document {
                operators: vec![proto::Operator {
                    name: "o".to_owned(),
                    clients: vec![spiffe(STRANGER)],
                    powers: vec![99],
                    app_groups: vec![],
                }],
                ..proto::Document::default()
            },
            &["operators[0].powers[0]"],
        ),
    ];
    for (document, expected) in cases {
        assert_eq!(wrong_fields(operator.apply(document).await), expected);
    }
    let target = |kind: i32, name: &str| Some(proto::Target { kind, name: name.to_owned() });
    let revoke = |target, reason: &str| proto::RevokeRequest { target, reason: reason.to_owned() };
    assert_eq!(wrong_fields(operator.revocation.revoke(revoke(None, "")).await), ["target", "reason"]);
    assert_eq!(wrong_fields(operator.revocation.revoke(revoke(target(9, "x"), "why")).await), ["target.kind"]);
    assert_eq!(
        wrong_fields(operator.revocation.revoke(revoke(target(2, "x"), "a\nb")).await),
        ["target.name", "reason"]
    );
    assert_eq!(wrong_fields(operator.revocation.revoke(revoke(target(3, "p"), &"x".repeat(501))).await), ["reason"]);
    let absent = operator.revocation.revoke(revoke(target(1, "NOSUCHKEY1"), "why")).await;
    assert_eq!(refused(absent), (Code::NotFound, "NOT_FOUND".to_owned()));
    let page = proto::ListRequest { page_token: "%%%".to_owned(), ..proto::ListRequest::default() };
    assert_eq!(wrong_fields(operator.audit.list(page).await), ["page_token"]);
    let page = proto::ListRequest { page_size: -1, ..proto::ListRequest::default() };
    assert_eq!(wrong_fields(operator.audit.list(page).await), ["page_size"]);
    assert_eq!(wrong_fields(operator.audit.prune(proto::PruneRequest { before: None }).await), ["before"]);
    assert_eq!(revision(&mut operator).await, before, "nothing was changed");
    broker.stop().await;
}

#[tokio::test]
async fn oversized_messages_and_wrong_transports_are_refused() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let big =
        operator.import(&proto::ImportKeyRequest { p8: vec![b'A'; 2 * 1024 * 1024], ..import("BADKEY2345", "") }).await;
    assert_eq!(refused(big).0, Code::OutOfRange);
    // Plain HTTP/2 to the TLS port ends without an answer.
    let mut plain = tokio::net::TcpStream::connect(broker.grpc()).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(answer.len() < 64 && !answer.starts_with(b"HTTP"), "{answer:?}");
    // TLS 1.2 is not spoken, and no certificate is no connection.
    for with_tls12 in [true, false] {
        assert!(handshake(&broker, with_tls12).await.is_err(), "TLS 1.2: {with_tls12}");
    }
    let answers = broker.ops("/no/such/page").await;
    assert_eq!(answers.0, 404);
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    broker.stop().await;
}

/// A connection without anything of ours on this side of it; with a certificate where somebody is named.
pub async fn raw(
    broker: &Broker,
    identity: Option<&str>,
    version: &'static rustls::SupportedProtocolVersion,
) -> std::io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(broker.pki.dir.join("ca.pem")).unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = if let Some(identity) = identity {
        let (cert, key) = broker.pki.client(identity);
        let key = PrivateKeyDer::from_pem_file(key).unwrap();
        builder.with_client_auth_cert(vec![CertificateDer::from_pem_file(cert).unwrap()], key).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = tokio::net::TcpStream::connect(broker.grpc()).await?;
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    connector.connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await
}

/// A handshake that must not succeed, followed by a read, as a refused certificate shows only then.
async fn handshake(broker: &Broker, with_tls12: bool) -> std::io::Result<()> {
    let mut stream = if with_tls12 {
        raw(broker, Some(CLIENT), &rustls::version::TLS12).await?
    } else {
        raw(broker, None, &rustls::version::TLS13).await?
    };
    let mut byte = [0];
    match stream.read(&mut byte).await? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

#[tokio::test]
async fn the_command_line_refuses_bad_input_and_changes_nothing() {
    let it = crate::cli::Playground::start().await;
    let revision = || it.json("operator", &["operator", "status"])["revision"].clone();
    let before = revision();
    let file = |name: &str, content: &[u8]| {
        let path = it.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let (key, empty) = (file("AuthKey_GOODNAME12.p8", new_p8().as_bytes()), file("AuthKey_EMPTYFILE1.p8", b""));
    let (misnamed, huge) =
        (file("AuthKey_short.p8", new_p8().as_bytes()), file("AuthKey_HUGEFILE12.p8", &[b'A'; 100_000]));
    let folder = it.dir.path().display().to_string();
    let import = |path: &str, more: &[&str]| {
        let mut out = vec!["key".to_owned(), "import".to_owned(), path.to_owned()];
        out.extend(["--account", "acme", "--app-group", "games"].map(ToOwned::to_owned));
        out.extend(more.iter().map(|it| (*it).to_owned()));
        out
    };
    let team = ["--kind", "team", "--role", "APP_MANAGER"];
    let issue = |more: &[&str]| {
        let mut out =
            ["token", "issue", "--app-group", "games", "--role", "APP_MANAGER"].map(ToOwned::to_owned).to_vec();
        out.extend(more.iter().map(|it| (*it).to_owned()));
        out
    };
    let text = |arguments: &[&str]| arguments.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
    let not_yaml = file("tabs.yaml", b"policies:\n\t- name: x\n");
    let unknown = file("unknown.yaml", b"polices: []\n");
    let cases: Vec<(&str, Vec<String>, i32, &str)> = vec![
        ("operator", import("/no/such/file.p8", &[&team[..], &["--key-id", "AAAAAAAAAA"]].concat()), 2, "USAGE"),
        ("operator", import(&folder, &[&team[..], &["--key-id", "AAAAAAAAAA"]].concat()), 2, "USAGE"),
        ("operator", import(&empty, &team), 1, "BAD_P8"),
        ("operator", import(&huge, &team), 1, "BAD_P8"),
        ("operator", import(&misnamed, &team), 2, "USAGE"),
        ("operator", import(&key, &["--kind", "team", "--role", "app_manager"]), 2, "USAGE"),
        ("operator", import(&key, &["--kind", "royal", "--role", "APP_MANAGER"]), 2, "USAGE"),
        ("operator", import(&key, &["--kind", "individual", "--role", "APP_MANAGER"]), 2, "USAGE"),
        ("operator", import(&key, &[&team[..], &["--key-id", "../../../x"]].concat()), 1, "INVALID_ARGUMENT"),
        ("client", import(&key, &team), 3, "POWER_MISSING"),
        ("client", issue(&["--ttl", "-5m"]), 2, "USAGE"),
        ("client", issue(&["--ttl", "5"]), 2, "USAGE"),
        ("client", issue(&["--ttl", "1s"]), 1, "INVALID_ARGUMENT"),
        ("client", issue(&["--ttl", "9999999days"]), 1, "INVALID_ARGUMENT"),
        ("client", issue(&["--scope", "POST /v1/apps"]), 1, "INVALID_ARGUMENT"),
        ("client", issue(&["--scope", "GET /v1/../x"]), 1, "INVALID_ARGUMENT"),
        ("client", issue(&["--addr", "nowhere"]), 2, "USAGE"),
        ("client", issue(&["--cacert", "/no/such/ca.pem"]), 2, "USAGE"),
        ("client", text(&["token", "issue", "--app-group", "a\u{202e}b", "--role", "ADMIN"]), 1, "INVALID_ARGUMENT"),
        ("operator", text(&["apply", "-f", &not_yaml]), 1, "INVALID_ARGUMENT"),
        ("operator", text(&["apply", "-f", &unknown]), 1, "INVALID_ARGUMENT"),
        ("operator", text(&["revoke", "key", "nokey", "--reason", "x", "--yes"]), 1, "INVALID_ARGUMENT"),
        ("operator", text(&["revoke", "client", "spiffe://a/b", "--reason", " ", "--yes"]), 1, "INVALID_ARGUMENT"),
        ("operator", text(&["audit", "list", "--from", "yesterday"]), 2, "USAGE"),
        ("operator", text(&["operator", "unseal", "--share-file", "/no/such/share"]), 2, "USAGE"),
        ("operator", text(&["conquer", "the", "world"]), 2, "USAGE"),
    ];
    for (who, arguments, code, reason) in cases {
        it.fails(who, &arguments.iter().map(String::as_str).collect::<Vec<_>>(), code, reason);
    }
    assert_eq!(revision(), before, "nothing was changed");
    // A certificate of a CA that the broker does not know is refused for certain, not by chance.
    let other = Pki::new(&it.dir.path().join("other"));
    let (cert, key) = other.client(CLIENT);
    for _ in 0..5 {
        let (cert, key) = (cert.display().to_string(), key.display().to_string());
        it.fails("client", &["key", "list", "--cert", &cert, "--key", &key], 3, "IDENTITY_REFUSED");
    }
}
