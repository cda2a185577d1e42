//! Where keys may be fetched from: the URLs that are understood, and the IP addresses that are on the public internet.
//!
//! A URL is `https://HOST[:PORT][/PATH][?QUERY]` (RFC 3986, section 3) in printable ASCII and nothing else: no other
//! scheme, no user, no fragment, no host in a spelling that a resolver may take for an IP address. Addresses are judged
//! after resolution, by the registries of special purpose addresses (RFC 6890 and its updates), not by a URL's text.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::id::{is_dns_name, shown};

/// Longest URL, in bytes.
const MOST_BYTES: usize = 2048;

/// The port where none is given.
const PORT: u16 = 443;

/// Most addresses of one host that are tried.
const MOST_TRIES: usize = 4;

/// Why keys are not fetched from a URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{shown}` {why}")]
pub(super) struct UrlError {
    shown: String,
    why: &'static str,
}

/// An address of the web that is understood in one way only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HttpsUrl {
    /// In lower case; an IPv6 address without its brackets.
    pub(super) host: String,
    /// The host, where it is no name.
    pub(super) ip: Option<IpAddr>,
    pub(super) port: u16,
    /// Path and query, as they are asked for.
    pub(super) target: String,
}

impl HttpsUrl {
    pub(super) fn parse(text: &str) -> Result<Self, UrlError> {
        let no = |why| UrlError { shown: shown(text), why };
        let strange = |b: u8| !b.is_ascii_graphic() || b"\\<>\"{}|^`".contains(&b);
        if text.len() > MOST_BYTES || text.bytes().any(strange) {
            return Err(no("is no URL: it is too long, or has characters that URLs do not have"));
        }
        let rest = text.strip_prefix("https://").ok_or_else(|| no("does not start with https://"))?;
        if rest.contains('#') {
            return Err(no("has a fragment"));
        }
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(no("has a user"));
        }
        let (host, ip, port) = authority_of(authority).ok_or_else(|| no("does not name a host and a port"))?;
        let slash = if target.starts_with('/') { "" } else { "/" };
        Ok(Self { host, ip, port, target: format!("{slash}{target}") })
    }

    /// Takes a host as it stands in a URL: with a port, or without.
    pub(super) fn parse_host(text: &str) -> Result<Self, UrlError> {
        let bare = !text.contains(['/', '?']);
        let url = bare.then(|| Self::parse(&format!("https://{text}"))).and_then(Result::ok);
        url.ok_or_else(|| UrlError { shown: shown(text), why: "is not a host, or a host and a port" })
    }

    /// Where the discovery document of an issuer is (OpenID Connect Discovery 1.0, section 4).
    pub(super) fn of_discovery(issuer: &str) -> Result<Self, UrlError> {
        if issuer.contains('?') {
            return Err(UrlError { shown: shown(issuer), why: "has a query, and so no discovery document" });
        }
        let base = issuer.strip_suffix('/').unwrap_or(issuer);
        Self::parse(&format!("{base}/.well-known/openid-configuration"))
    }

    pub(super) fn same_host(&self, other: &Self) -> bool {
        self.host == other.host && self.port == other.port
    }

    /// What the `Host` header says (RFC 9110, section 7.2).
    pub(super) fn authority(&self) -> String {
        let host = match self.ip {
            Some(IpAddr::V6(ip)) => format!("[{ip}]"),
            _ => self.host.clone(),
        };
        if self.port == PORT { host } else { format!("{host}:{}", self.port) }
    }
}

fn authority_of(text: &str) -> Option<(String, Option<IpAddr>, u16)> {
    let (host, ip, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            let ip: Ipv6Addr = host.parse().ok()?;
            (ip.to_string(), Some(IpAddr::V6(ip)), port)
        }
        None => {
            let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            let host = host.to_ascii_lowercase();
            let ip = host.parse::<Ipv4Addr>().ok();
            // A resolver takes `2130706433`, `0x7f.1` and `127.1` for addresses: what ends in a number is no name.
            let last = host.rsplit('.').next().unwrap_or_default();
            let number = last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x");
            if ip.is_none() && (number || !is_dns_name(&host)) {
                return None;
            }
            (host, ip.map(IpAddr::V4), port)
        }
    };
    let port = match port.strip_prefix(':') {
        None => port.is_empty().then_some(PORT)?,
        Some(digits) => digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()?,
    };
    (port != 0).then_some((host, ip, port))
}

/// What an IP address is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// The internet.
    Public,
    /// This machine, its link, or a private network.
    Inside,
    /// Nothing that keys could come from: multicast, documentation, addresses of the future and of transition.
    Nowhere,
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::Inside => {
                "private, loopback or link-local: to allow that, name it in [[oidc.hosts]] with private = true"
            }
            Self::Nowhere => "not one that keys could come from",
        })
    }
}

/// What this address is on.
pub(super) fn reach(ip: IpAddr) -> Reach {
    match ip {
        IpAddr::V4(ip) => reach_v4(ip),
        IpAddr::V6(ip) => reach_v6(ip),
    }
}

fn reach_v4(ip: Ipv4Addr) -> Reach {
    let [a, b, c, _] = ip.octets();
    match (a, b, c) {
        (10 | 127, ..) | (172, 16..=31, _) | (192, 168, _) => Reach::Inside,
        // Link-local, with the metadata services of clouds; carriers' NAT; benchmarks.
        (169, 254, _) | (100, 64..=127, _) | (198, 18..=19, _) => Reach::Inside,
        (0, ..) | (192, 0, 0 | 2) | (192, 88, 99) | (198, 51, 100) | (203, 0, 113) | (224.., ..) => Reach::Nowhere,
        _ => Reach::Public,
    }
}

fn reach_v6(ip: Ipv6Addr) -> Reach {
    let [.., w, x, y, z] = ip.octets();
    let embedded = reach_v4(Ipv4Addr::new(w, x, y, z));
    match ip.segments() {
        // IPv4-mapped, and NAT64 (RFC 6052): what they stand for.
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => embedded,
        [0, 0, 0, 0, 0, 0, 0, 1] | [0xfc00..=0xfdff | 0xfe80..=0xfebf, ..] => Reach::Inside,
        // Protocol assignments with Teredo; documentation; 6to4 (all of it: RFC 7526 has taken it out of use).
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0xfff, ..] => Reach::Nowhere,
        [0x2000..=0x3fff, ..] => Reach::Public,
        _ => Reach::Nowhere,
    }
}

/// Those of a host's addresses that are tried, or the first one for which the host is refused: one bad address among
/// good ones is a trick or a mistake.
pub(super) fn allowed(found: Vec<SocketAddr>, private: bool) -> Result<Vec<SocketAddr>, (IpAddr, Reach)> {
    let refused = |address: &&SocketAddr| match reach(address.ip()) {
        Reach::Public => false,
        Reach::Inside => !private,
        Reach::Nowhere => true,
    };
    if let Some(address) = found.iter().find(refused) {
        return Err((address.ip(), reach(address.ip())));
    }
    Ok(found.into_iter().take(MOST_TRIES).collect())
}

#[cfg(test)]
mod tests;
