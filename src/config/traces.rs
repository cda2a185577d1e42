//! `[traces]`: where traces go, if anywhere.

use std::path::PathBuf;

use http::Uri;
use serde::Deserialize;

/// `[traces]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct TracesConfig {
    /// A collector that takes OTLP over gRPC: `http://127.0.0.1:4317`, or `https://…`. Absent: nothing is traced.
    pub endpoint: Option<String>,
    /// Of the RPCs whose caller sent no span of its own, the share that is traced.
    pub sample_ratio: f64,
    /// The CAs of the collector's certificate, PEM; the web's where absent. Read at every connection.
    pub ca_file: Option<PathBuf>,
    /// A file of `name: value` lines that are sent with every export, such as an API key. Read at every export.
    pub headers_file: Option<PathBuf>,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self { endpoint: None, sample_ratio: 0.1, ca_file: None, headers_file: None }
    }
}

impl TracesConfig {
    /// Everything that is wrong with these settings, one a sentence.
    pub(super) fn wrong(&self) -> Vec<String> {
        let mut out = Vec::new();
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            out.push(format!("traces.sample_ratio: {} is not from 0 to 1", self.sample_ratio));
        }
        let Some(endpoint) = &self.endpoint else {
            if self.ca_file.is_some() || self.headers_file.is_some() {
                out.push("traces.endpoint: without it nothing is traced; name one, or leave out the rest".to_owned());
            }
            return out;
        };
        let is_only_an_address =
            |uri: &Uri| matches!(uri.path(), "" | "/") && uri.query().is_none() && !endpoint.contains('@');
        let uri = endpoint.parse::<Uri>().ok().filter(is_only_an_address).filter(|uri| uri.host().is_some());
        match uri.as_ref().and_then(|uri| Some((uri.scheme_str()?, uri.host()?))) {
            Some(("https", _)) => {}
            Some(("http", host)) => {
                if self.ca_file.is_some() {
                    out.push("traces.ca_file: is of no use with http://".to_owned());
                }
                if self.headers_file.is_some() && !is_loopback(host) {
                    out.push("traces.headers_file: would be sent in the clear; use https://".to_owned());
                }
            }
            _ => out.push(format!(
                "traces.endpoint: `{endpoint}` is not http://HOST:PORT or https://HOST:PORT of a collector's gRPC port"
            )),
        }
        out
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(endpoint: &str) -> TracesConfig {
        TracesConfig { endpoint: Some(endpoint.to_owned()), ..TracesConfig::default() }
    }

    #[test]
    fn an_endpoint_is_an_address_and_nothing_else() {
        assert!(TracesConfig::default().wrong().is_empty());
        for good in
            ["http://127.0.0.1:4317", "https://otel.acme.internal", "http://collector:4317/", "http://[::1]:4317"]
        {
            assert_eq!(at(good).wrong(), Vec::<String>::new(), "{good}");
        }
        for bad in [
            "",
            "127.0.0.1:4317",
            "collector",
            "grpc://x:1",
            "http://x:1/v1/traces",
            "http://x:1/?a=b",
            "http://u:p@x:1",
        ] {
            assert_eq!(at(bad).wrong().len(), 1, "{bad}");
        }
    }

    #[test]
    fn settings_that_cannot_work_are_all_named() {
        for ratio in [-0.1, 1.1, f64::NAN] {
            assert_eq!(TracesConfig { sample_ratio: ratio, ..TracesConfig::default() }.wrong().len(), 1, "{ratio}");
        }
        let headers_file = Some(PathBuf::from("headers"));
        let ca_file = Some(PathBuf::from("ca.pem"));
        let nowhere = TracesConfig { headers_file: headers_file.clone(), ..TracesConfig::default() };
        assert_eq!(nowhere.wrong().len(), 1);
        let with =
            |endpoint| TracesConfig { headers_file: headers_file.clone(), ca_file: ca_file.clone(), ..at(endpoint) };
        assert_eq!(with("http://collector:4317").wrong().len(), 2, "in the clear, and a CA for nothing");
        assert_eq!(with("http://localhost:4317").wrong().len(), 1);
        assert!(with("https://collector:4317").wrong().is_empty());
    }
}
