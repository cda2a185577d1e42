use super::*;

fn reach_of(text: &str) -> Reach {
    reach(text.parse().unwrap())
}

#[test]
fn only_addresses_of_the_internet_are_public() {
    for public in ["1.1.1.1", "8.8.8.8", "140.82.112.3", "172.15.0.1", "172.32.0.1", "100.63.0.1", "100.128.0.1"] {
        assert_eq!(reach_of(public), Reach::Public, "{public}");
    }
    for public in ["169.253.0.1", "192.0.1.1", "198.17.0.1", "198.20.0.1", "223.255.255.254", "192.167.0.1"] {
        assert_eq!(reach_of(public), Reach::Public, "{public}");
    }
    for public in ["2606:4700::1111", "2a00:1450::1", "2001:200::1", "::ffff:1.1.1.1", "64:ff9b::8.8.8.8"] {
        assert_eq!(reach_of(public), Reach::Public, "{public}");
    }
}

#[test]
fn private_loopback_and_link_local_addresses_are_inside() {
    for inside in [
        "10.0.0.1",
        "10.255.255.255",
        "127.0.0.1",
        "127.255.0.1",
        "169.254.169.254",
        "169.254.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.0.1",
        "100.64.0.1",
        "100.127.255.255",
        "198.18.0.1",
        "198.19.255.255",
        "::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "febf::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:10.0.0.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b::169.254.169.254",
    ] {
        assert_eq!(reach_of(inside), Reach::Inside, "{inside}");
    }
}

#[test]
fn what_no_host_has_is_nowhere() {
    for nowhere in [
        "0.0.0.0",
        "0.1.2.3",
        "192.0.0.1",
        "192.0.2.1",
        "192.88.99.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::7f00:1",
        "::ffff:0.0.0.0",
        "::ffff:0:127.0.0.1",
        "64:ff9b::224.0.0.1",
        "64:ff9b:1::10.0.0.1",
        "2001::1",
        "2001:2::1",
        "2001:10::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2002:808:808::",
        "3fff::1",
        "5f00::1",
        "fec0::1",
        "ff02::1",
        "100::1",
        "4000::1",
    ] {
        assert_eq!(reach_of(nowhere), Reach::Nowhere, "{nowhere}");
    }
}

#[test]
fn one_bad_address_refuses_the_host() {
    let found = |texts: &[&str]| texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 443)).collect();
    assert_eq!(allowed(found(&["1.1.1.1", "8.8.8.8"]), false).unwrap().len(), 2);
    assert!(allowed(found(&["1.1.1.1", "127.0.0.1"]), false).is_err());
    assert!(allowed(found(&["1.1.1.1", "::ffff:10.0.0.1"]), false).is_err());
    assert!(allowed(found(&["10.0.0.1", "::1", "1.1.1.1"]), true).is_ok());
    assert!(allowed(found(&["10.0.0.1", "0.0.0.0"]), true).is_err());
    assert!(allowed(found(&["255.255.255.255"]), true).is_err());
    assert_eq!(allowed(found(&["1.1.1.1"; 100]), false).unwrap().len(), MOST_TRIES);
}

#[test]
fn urls_are_taken_apart() {
    let parts = |text: &str| {
        let url = HttpsUrl::parse(text).unwrap_or_else(|error| panic!("{error}"));
        (url.authority(), url.ip.is_some(), url.port, url.target)
    };
    let of = |authority: &str, ip, port, target: &str| (authority.to_owned(), ip, port, target.to_owned());
    assert_eq!(parts("https://acme.example"), of("acme.example", false, 443, "/"));
    assert_eq!(parts("https://ACME.example:443/a/b?c=d"), of("acme.example", false, 443, "/a/b?c=d"));
    assert_eq!(parts("https://acme.example?x"), of("acme.example", false, 443, "/?x"));
    assert_eq!(parts("https://127.0.0.1:6443/jwks"), of("127.0.0.1:6443", true, 6443, "/jwks"));
    assert_eq!(parts("https://[::1]:8443/"), of("[::1]:8443", true, 8443, "/"));
    assert_eq!(parts("https://x.example/../y"), of("x.example", false, 443, "/../y"));
    let discovery = |text: &str| HttpsUrl::of_discovery(text).unwrap().target;
    assert_eq!(discovery("https://acme.example"), "/.well-known/openid-configuration");
    assert_eq!(discovery("https://acme.example/"), "/.well-known/openid-configuration");
    assert_eq!(discovery("https://acme.example/realms/ci"), "/realms/ci/.well-known/openid-configuration");
    assert!(HttpsUrl::of_discovery("https://acme.example/?tenant=1").is_err());
}

#[test]
fn urls_that_could_mean_something_else_are_refused() {
    for bad in [
        "",
        "http://acme.example/jwks",
        "HTTPS://acme.example",
        "file:///etc/passwd",
        "ftp://acme.example",
        "gopher://127.0.0.1:70/",
        "//acme.example",
        "https:/acme.example",
        "https://",
        "https:///jwks",
        "https://user@acme.example/",
        "https://user:secret@acme.example/",
        "https://acme.example@evil.example/",
        "https://acme.example#@evil.example/",
        "https://acme.example/#fragment",
        "https://acme.example\\@evil.example/",
        "https://acme.example/a b",
        "https://acme.example/\r\nHost: evil",
        "https://acme.example/\u{e9}",
        "https://acme.example:0/",
        "https://acme.example:/",
        "https://acme.example:65536/",
        "https://acme.example:+443/",
        "https://acme.example:443:443/",
        "https://acme.example./",
        "https://acme..example/",
        "https://-acme.example/",
        "https://2130706433/",
        "https://127.1/",
        "https://0x7f000001/",
        "https://0x7f.0.0.1/",
        "https://0177.0.0.1/",
        "https://127.0.0.1.1/",
        "https://1.2.3.0x4/",
        "https://::1/",
        "https://[::1/",
        "https://[::1]x/",
        "https://[fe80::1%25eth0]/",
        "https://[127.0.0.1]/",
        "https://%31%32%37.0.0.1/",
    ] {
        assert!(HttpsUrl::parse(bad).is_err(), "{bad:?}");
    }
    assert!(HttpsUrl::parse(&format!("https://acme.example/{}", "a".repeat(3000))).is_err());
    let error = HttpsUrl::parse("https://evil\n.example").unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
}
