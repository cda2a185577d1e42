//! Trusted issuers: who, beside the client CAs, may vouch for callers, and how far.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::claims::{ClaimConditions, Claims};
use super::glob::ClaimGlob;
use crate::id::IssuerName;

/// Longest leeway for clocks that are apart, in seconds.
pub const LONGEST_LEEWAY_S: i64 = 300;

/// Longest age of a token that is accepted, in seconds: a day.
pub const LONGEST_MAX_AGE_S: i64 = 86_400;

/// What kind of issuer it is: where defaults come from, and what a pattern must name to be narrow enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IssuerKind {
    /// Any OpenID provider.
    Oidc,
    /// A Kubernetes cluster: projected service account tokens.
    Kubernetes,
    /// GitHub Actions.
    GithubActions,
    /// GitLab CI: id tokens.
    GitlabCi,
}

impl IssuerKind {
    /// Every kind.
    pub const ALL: &[Self] = &[Self::Oidc, Self::Kubernetes, Self::GithubActions, Self::GitlabCi];

    /// The spelling in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Oidc => "oidc",
            Self::Kubernetes => "kubernetes",
            Self::GithubActions => "github_actions",
            Self::GitlabCi => "gitlab_ci",
        }
    }

    /// Takes the spelling in documents.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == text)
    }

    /// The issuer's URL where none is given.
    pub fn default_url(self) -> Option<&'static str> {
        match self {
            Self::GithubActions => Some("https://token.actions.githubusercontent.com"),
            Self::GitlabCi => Some("https://gitlab.com"),
            Self::Oidc | Self::Kubernetes => None,
        }
    }

    /// The algorithms that are accepted where none are given.
    pub fn default_algorithms(self) -> &'static [Algorithm] {
        match self {
            Self::GithubActions | Self::GitlabCi => &[Algorithm::Rs256],
            Self::Oidc | Self::Kubernetes => &[Algorithm::Rs256, Algorithm::Es256],
        }
    }

    /// The kind whose issuer this url is, where it is one that signs for everyone.
    pub fn of_url(url: &str) -> Option<Self> {
        let plain = |url: &str| url.trim_end_matches('/').to_ascii_lowercase();
        Self::ALL.iter().copied().find(|kind| kind.default_url().is_some_and(|known| plain(known) == plain(url)))
    }

    /// How old a token may be where that is not given, in seconds. GitHub's live some minutes; GitLab's as long as a job;
    /// a projected token of Kubernetes is renewed within the hour.
    pub fn default_max_age_s(self) -> i64 {
        if self == Self::GithubActions { 900 } else { 3600 }
    }

    /// Claims that name something for ever, where names can be taken over by somebody else; they go into the audit.
    pub fn immutable_claims(self) -> &'static [&'static str] {
        match self {
            Self::GithubActions => &["repository_id", "repository_owner_id", "run_id", "actor_id", "job_workflow_sha"],
            Self::GitlabCi => &["project_id", "namespace_id", "pipeline_id", "job_id", "user_id"],
            Self::Kubernetes => &["/kubernetes.io/serviceaccount/uid", "/kubernetes.io/pod/uid"],
            Self::Oidc => &["azp", "client_id"],
        }
    }

    /// Claims whose exact value says whose token it is: one must be named where the issuer serves more than one company.
    fn anchors(self) -> &'static [&'static str] {
        match self {
            Self::GithubActions => &["repository_id", "repository_owner_id", "repository_owner", "enterprise_id"],
            Self::GitlabCi => &["project_id", "namespace_id"],
            Self::Kubernetes => &["/kubernetes.io/namespace", "/kubernetes.io/serviceaccount/uid"],
            Self::Oidc => &[],
        }
    }

    /// Claims, and the parts their value begins with, after which one written-out part says whose token it is.
    fn anchored_parts(self) -> &'static [(&'static str, &'static [&'static str])] {
        match self {
            Self::GithubActions => &[("sub", &["repo"]), ("repository", &[])],
            Self::GitlabCi => &[("sub", &["project_path"]), ("project_path", &[]), ("namespace_path", &[])],
            Self::Kubernetes => &[("sub", &["system", "serviceaccount"])],
            Self::Oidc => &[],
        }
    }

    /// Whether these conditions say whose token it is.
    pub fn is_anchored(self, subject: Option<&ClaimGlob>, claims: &ClaimConditions) -> bool {
        let all = || claims.iter().map(|(name, globs)| (name.as_str(), globs.as_slice()));
        let all = || all().chain(subject.map(|glob| ("sub", std::slice::from_ref(glob))));
        if self == Self::Oidc {
            return all().any(|(_, globs)| globs.iter().all(ClaimGlob::is_anchored));
        }
        let exact =
            |name: &str, globs: &[ClaimGlob]| self.anchors().contains(&name) && globs.iter().all(ClaimGlob::is_exact);
        let parts = |name: &str, globs: &[ClaimGlob]| {
            let mut known = self.anchored_parts().iter().filter(|(claim, _)| *claim == name);
            known.any(|(_, prefix)| globs.iter().all(|glob| glob.names_after(prefix)))
        };
        all().any(|(name, globs)| exact(name, globs) || parts(name, globs))
    }

    /// What to name, for whoever is told that a pattern is too wide.
    pub fn anchor_advice(self) -> &'static str {
        match self {
            Self::GithubActions => {
                "GitHub signs for everyone: name repository_id or repository_owner_id (or, by name, repository: OWNER/NAME)"
            }
            Self::GitlabCi => {
                "GitLab signs for everyone: name project_id or namespace_id (or project_path: GROUP/PROJECT)"
            }
            Self::Kubernetes => "name the namespace: subject system:serviceaccount:NAMESPACE:NAME",
            Self::Oidc => {
                "name a subject or claim of which more than the first part is written out, and that is not true or false"
            }
        }
    }
}

/// Signature algorithms of JWTs (RFC 7518, RFC 8037). There is no `none` and nothing symmetric to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "each is named as the RFC names it")]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: &[Self] = &[
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::EdDsa,
    ];

    /// The spelling of the `alg` header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
        }
    }

    /// Takes the spelling of the `alg` header, exactly.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|algorithm| algorithm.as_str() == text)
    }
}

/// Where an issuer's public keys come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IssuerKeys {
    /// From the address that its discovery document names (OpenID Connect Discovery 1.0, section 4).
    Discovery,
    /// From this address.
    JwksUrl(String),
    /// These, as a JWK Set (RFC 7517), in JSON.
    Pinned(String),
}

/// An issuer of JWTs that is trusted to vouch for callers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// The broker's name for it: callers are called `oidc:NAME:SUBJECT`.
    pub name: IssuerName,
    /// Its kind.
    pub kind: IssuerKind,
    /// What the `iss` claim must be, to the letter.
    pub url: String,
    /// Where its keys come from.
    pub keys: IssuerKeys,
    /// The `aud` claim must name one of these.
    pub audiences: BTreeSet<String>,
    /// The algorithms that are accepted.
    pub algorithms: BTreeSet<Algorithm>,
    /// How far clocks may be apart, in seconds.
    pub leeway_s: i64,
    /// How old a token may be, by its `iat`, in seconds.
    pub max_age_s: i64,
    /// What the subject of every token must be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<ClaimGlob>,
    /// What claims of every token must be.
    #[serde(default, skip_serializing_if = "ClaimConditions::is_empty")]
    pub claims: ClaimConditions,
}

impl Issuer {
    /// Whether a token of this subject and with these claims is one that this issuer is trusted for.
    pub fn covers(&self, subject: &str, claims: &Claims) -> bool {
        self.subject.as_ref().is_none_or(|glob| glob.matches(subject)) && claims.meet(&self.claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchored(kind: IssuerKind, subject: Option<&str>, claims: &[(&str, &str)]) -> bool {
        let glob = |text: &str| ClaimGlob::parse(text).unwrap();
        let claims = claims.iter().map(|(name, text)| ((*name).to_owned(), vec![glob(text)])).collect();
        kind.is_anchored(subject.map(glob).as_ref(), &claims)
    }

    #[test]
    fn a_pattern_must_say_whose_token_it_is() {
        use IssuerKind::{GithubActions, GitlabCi, Kubernetes, Oidc};
        assert!(anchored(GithubActions, None, &[("repository_id", "42")]));
        assert!(anchored(GithubActions, None, &[("repository", "acme/*")]));
        assert!(anchored(GithubActions, Some("repo:acme/bot:ref:refs/heads/*"), &[]));
        assert!(!anchored(GithubActions, Some("repo:*"), &[]));
        assert!(!anchored(GithubActions, None, &[("ref", "refs/heads/main")]));
        assert!(!anchored(GithubActions, None, &[("repository", "*/bot"), ("environment", "production")]));
        assert!(anchored(GitlabCi, None, &[("project_path", "acme/bot")]));
        assert!(!anchored(GitlabCi, None, &[("ref_protected", "true")]));
        assert!(anchored(Kubernetes, Some("system:serviceaccount:ci:*"), &[]));
        assert!(!anchored(Kubernetes, Some("system:serviceaccount:*:default"), &[]));
        assert!(anchored(Oidc, Some("release-bot"), &[]));
        assert!(anchored(Oidc, None, &[("hd", "acme.internal"), ("email_verified", "true")]));
        assert!(!anchored(Oidc, Some("user:*"), &[]));
        assert!(!anchored(Oidc, Some("https://*/*"), &[("email_verified", "true")]));
        assert!(!anchored(Oidc, None, &[]));
    }

    #[test]
    fn the_url_of_a_ready_made_kind_is_known_however_it_ends() {
        assert_eq!(IssuerKind::of_url("https://gitlab.com//"), Some(IssuerKind::GitlabCi));
        assert_eq!(IssuerKind::of_url("https://Token.actions.githubusercontent.com"), Some(IssuerKind::GithubActions));
        for other in ["https://gitlab.acme.internal", "https://gitlab.com/acme", "https://gitlab.com.test", ""] {
            assert_eq!(IssuerKind::of_url(other), None, "{other}");
        }
    }
}
