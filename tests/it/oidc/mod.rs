//! Bearer tokens of trusted issuers: real shapes, rotation and outages of keys, what a fetch may do, and hostile tokens.

mod fetching;
pub mod forge;
mod hostile;
mod provider;
mod rotation;
mod shapes;
mod verdicts;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use p8broker::clock::{Clock, ManualClock, UnixMillis};
use p8broker::domain::claims::ClaimConditions;
use p8broker::domain::issuer::{Algorithm, Issuer, IssuerKeys, IssuerKind};
use p8broker::id::IssuerName;
use p8broker::identity::oidc::{Bearer, BearerError, OidcConfig, OidcHost, Verifier};
use p8broker::metrics::Metrics;
use serde_json::{Value, json};

use forge::IssuerKey;
use provider::Provider;

/// When every test starts, in Unix seconds.
const NOW: i64 = 1_790_000_000;

const AUDIENCE: &str = "p8broker.acme.internal";

/// A verifier that trusts one issuer.
struct World {
    clock: Arc<ManualClock>,
    metrics: Metrics,
    verifier: Verifier,
    issuer: Mutex<Option<Arc<Issuer>>>,
}

impl World {
    /// Trusts this provider, by discovery.
    fn of(provider: &Provider) -> Self {
        Self::with(settings(provider), issuer_of(provider))
    }

    fn with(config: OidcConfig, issuer: Issuer) -> Self {
        assert_eq!(config.wrong(), Vec::<String>::new());
        let clock = Arc::new(ManualClock::at(UnixMillis::from_seconds(NOW)));
        let metrics = Metrics::new().unwrap();
        let verifier = Verifier::new(&config, Arc::clone(&clock) as Arc<dyn Clock>, metrics.clone()).unwrap();
        Self { clock, metrics, verifier, issuer: Mutex::new(Some(Arc::new(issuer))) }
    }

    async fn verify(&self, token: &str) -> Result<Bearer, BearerError> {
        self.verify_from(token, None).await
    }

    async fn verify_from(&self, token: &str, certificate: Option<&[u8]>) -> Result<Bearer, BearerError> {
        let issuer_of = |url: &str| self.trusted().filter(|issuer| issuer.url == url);
        self.verifier.verify(token, issuer_of, certificate).await
    }

    /// The reason of a refusal; nothing where the token is accepted.
    async fn reason(&self, token: &str) -> &'static str {
        self.verify(token).await.err().map_or("", BearerError::reason)
    }

    fn trusted(&self) -> Option<Arc<Issuer>> {
        self.issuer.lock().unwrap().clone()
    }

    fn change(&self, change: impl FnOnce(&mut Issuer)) {
        let mut issuer = (*self.trusted().unwrap()).clone();
        change(&mut issuer);
        *self.issuer.lock().unwrap() = Some(Arc::new(issuer));
    }

    fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    fn now(&self) -> i64 {
        self.clock.now().seconds()
    }

    fn fetches(&self, outcome: &str) -> u64 {
        self.metrics.jwks_fetches.with_label_values(&["acme", outcome]).get()
    }

    fn is_stale(&self) -> bool {
        self.metrics.jwks_stale.with_label_values(&["acme"]).get() == 1
    }

    /// A token of now that is honest in everything.
    fn payload(&self) -> Value {
        let issuer = self.trusted().unwrap();
        json!({
            "iss": issuer.url, "aud": AUDIENCE, "sub": "release-bot", "team": "release",
            "iat": self.now(), "nbf": self.now(), "exp": self.now() + 600, "jti": "6f1c2d1e",
        })
    }

    fn token(&self, key: &IssuerKey) -> String {
        key.token(&self.payload())
    }
}

/// Settings with which a provider on loopback is reached.
fn settings(provider: &Provider) -> OidcConfig {
    let host = OidcHost {
        name: format!("127.0.0.1:{}", provider.port),
        private: true,
        ca_file: Some(provider.ca()),
        bearer_file: None,
    };
    OidcConfig { hosts: vec![host], ..OidcConfig::default() }
}

fn issuer_of(provider: &Provider) -> Issuer {
    issuer(IssuerKind::Oidc, &provider.url, IssuerKeys::Discovery)
}

fn issuer(kind: IssuerKind, url: &str, keys: IssuerKeys) -> Issuer {
    Issuer {
        name: IssuerName::parse("acme").unwrap(),
        kind,
        url: url.to_owned(),
        keys,
        audiences: [AUDIENCE.to_owned()].into(),
        algorithms: kind.default_algorithms().iter().copied().collect(),
        leeway_s: 60,
        max_age_s: kind.default_max_age_s(),
        subject: None,
        claims: ClaimConditions::new(),
    }
}

fn all_algorithms(issuer: &mut Issuer) {
    issuer.algorithms = Algorithm::ALL.iter().copied().collect();
}
