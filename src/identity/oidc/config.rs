//! `[oidc]`: how the keys of trusted issuers are fetched. Which issuers are trusted is not a setting: the vault says it.

use std::path::PathBuf;

use serde::Deserialize;

use super::address::HttpsUrl;

/// `[oidc]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct OidcConfig {
    /// `[[oidc.hosts]]`
    pub hosts: Vec<OidcHost>,
    /// After how many seconds an issuer's keys are fetched again.
    pub jwks_refresh_s: u64,
    /// For how many seconds after the last fetch that succeeded its keys are used while the issuer is away.
    pub jwks_stale_s: u64,
    /// The least seconds between two fetches of one issuer's keys, whatever tokens arrive.
    pub jwks_cooldown_s: u64,
    /// How many seconds a fetch may take in all, discovery included.
    pub fetch_timeout_s: u64,
}

/// A host that keys are fetched from, and that differs from a host of the web.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct OidcHost {
    /// Its name or IP address as URLs have it, and `:PORT` where that is not 443.
    pub name: String,
    /// Whether its addresses may be private, loopback or link-local.
    #[serde(default)]
    pub private: bool,
    /// The CAs of its certificate, PEM; the web's where absent. Read at every fetch.
    pub ca_file: Option<PathBuf>,
    /// A file with the bearer token that it asks for. Read at every fetch, as Kubernetes renews such tokens.
    pub bearer_file: Option<PathBuf>,
}

impl Default for OidcConfig {
    fn default() -> Self {
        Self { hosts: Vec::new(), jwks_refresh_s: 3600, jwks_stale_s: 86_400, jwks_cooldown_s: 30, fetch_timeout_s: 5 }
    }
}

impl OidcConfig {
    /// Everything that is wrong with these settings, one a sentence.
    pub fn wrong(&self) -> Vec<String> {
        let mut out = Vec::new();
        let mut seen = Vec::new();
        for (at, host) in self.hosts.iter().enumerate() {
            match HttpsUrl::parse_host(&host.name) {
                Err(error) => out.push(format!("oidc.hosts[{at}].name: {error}")),
                Ok(url) if seen.contains(&url) => {
                    out.push(format!("oidc.hosts[{at}].name: `{}` is there twice", host.name));
                }
                Ok(url) => seen.push(url),
            }
            if !host.private && host.ca_file.is_none() && host.bearer_file.is_none() {
                out.push(format!(
                    "oidc.hosts[{at}]: set private, ca_file or bearer_file; a host without them needs no entry"
                ));
            }
        }
        let limits = [
            ("jwks_refresh_s", self.jwks_refresh_s, 1, 86_400),
            ("jwks_stale_s", self.jwks_stale_s, self.jwks_refresh_s, 7 * 86_400),
            ("jwks_cooldown_s", self.jwks_cooldown_s, 1, self.jwks_refresh_s.clamp(1, 3600)),
            ("fetch_timeout_s", self.fetch_timeout_s, 1, 60),
        ];
        out.extend(
            limits.into_iter().filter(|(_, value, least, most)| !(least..=most).contains(&value)).map(
                |(name, value, least, most)| format!("oidc.{name}: {value} is not from {least} to {most} (seconds)"),
            ),
        );
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_all_named() {
        assert!(OidcConfig::default().wrong().is_empty());
        let host = |name: &str| OidcHost { name: name.to_owned(), private: true, ..OidcHost::default() };
        let good = OidcConfig {
            hosts: vec![host("kubernetes.default.svc"), host("10.0.0.1:6443"), host("[fd00::1]:6443")],
            ..OidcConfig::default()
        };
        assert!(good.wrong().is_empty(), "{:?}", good.wrong());
        let bad = OidcConfig {
            hosts: vec![host("https://x"), host("a b"), host("x"), host("x:443"), OidcHost::default()],
            jwks_refresh_s: 0,
            jwks_stale_s: 8 * 86_400,
            jwks_cooldown_s: 0,
            fetch_timeout_s: 61,
        };
        assert_eq!(bad.wrong().len(), 9, "{:#?}", bad.wrong());
    }
}
