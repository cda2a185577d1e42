//! The rules of what administrators write: trusted issuers and ceilings.

use std::collections::BTreeSet;

use super::{AtLeast, Check};
use crate::domain::apple;
use crate::domain::ceiling::{Callers, Ceiling};
use crate::domain::document::{CeilingText, IssuerText};
use crate::domain::glob::ClaimGlob;
use crate::domain::issuer::{Algorithm, Issuer, IssuerKeys, IssuerKind, LONGEST_LEEWAY_S, LONGEST_MAX_AGE_S};
use crate::domain::role::RoleSet;
use crate::id::{CeilingName, IssuerName, is_trust_domain, shown};

/// How far clocks may be apart where that is not given, in seconds.
const DEFAULT_LEEWAY_S: i64 = 30;

/// Longest pinned key set, in bytes.
const MOST_JWKS_BYTES: usize = 64 * 1024;

impl Check {
    pub(super) fn issuer(&mut self, path: &str, text: &IssuerText) -> Option<Issuer> {
        let field = |name: &str| format!("{path}.{name}");
        let name = self.id(&field("name"), IssuerName::parse(&text.name));
        let kind = IssuerKind::parse(&text.kind).or_else(|| {
            let known = IssuerKind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ");
            self.refuse(&field("kind"), format!("`{}` is not a kind of issuer: {known}", shown(&text.kind)))
        });
        let default_url = kind.and_then(IssuerKind::default_url).map(ToOwned::to_owned);
        let url = match text.url.clone().or(default_url) {
            Some(url) => self.https(&field("url"), &url).and_then(|url| self.of_its_kind(&field("url"), kind, url)),
            // Of a kind that is not known, it is not known whether it has one of its own.
            None if kind.is_none() => None,
            None => self.refuse(&field("url"), "is missing: the `iss` of its tokens, such as https://issuer.example"),
        };
        let keys = match (&text.jwks_url, &text.jwks) {
            (None, None) => Some(IssuerKeys::Discovery),
            (Some(url), None) => self.https(&field("jwks_url"), url).map(IssuerKeys::JwksUrl),
            (None, Some(keys)) => self.pinned(&field("jwks"), keys).map(IssuerKeys::Pinned),
            (Some(_), Some(_)) => self.refuse(&field("jwks"), "and jwks_url exclude each other"),
        };
        // An issuer that signs for others, too, is told apart by the audience alone.
        let audiences = self.list(&field("audiences"), &text.audiences, AtLeast::One, |check, path, audience| {
            let fits = (1..=512).contains(&audience.len()) && audience.bytes().all(|b| b.is_ascii_graphic());
            if fits {
                Some(audience.clone())
            } else {
                check.refuse(path, "is not an audience: 1 to 512 printable ASCII characters without spaces")
            }
        });
        let algorithms = self.list(&field("algorithms"), &text.algorithms, AtLeast::None, |check, path, text| {
            let known = || Algorithm::ALL.iter().map(|it| it.as_str()).collect::<Vec<_>>().join(", ");
            Algorithm::parse(text).or_else(|| {
                check.refuse(path, format!("`{}` is not accepted: only signatures of {}", shown(text), known()))
            })
        });
        let leeway_s = self.seconds(&field("leeway"), text.leeway.unwrap_or(DEFAULT_LEEWAY_S), 0, LONGEST_LEEWAY_S);
        let max_age = text.max_age.or(kind.map(IssuerKind::default_max_age_s)).unwrap_or(60);
        let max_age_s = self.seconds(&field("max_age"), max_age, 60, LONGEST_MAX_AGE_S);
        let subject = text.subject.as_ref().map(|glob| self.parsed(&field("subject"), ClaimGlob::parse(glob)));
        let claims = self.conditions(&field("claims"), &text.claims);
        let mut algorithms: BTreeSet<Algorithm> = algorithms?.into_iter().collect();
        let kind = kind?;
        if algorithms.is_empty() {
            algorithms = kind.default_algorithms().iter().copied().collect();
        }
        Some(Issuer {
            name: name?,
            kind,
            url: url?,
            keys: keys?,
            audiences: audiences?.into_iter().collect(),
            algorithms,
            leeway_s: leeway_s?,
            max_age_s: max_age_s?,
            subject: subject.map_or(Some(None), |glob| glob.map(Some))?,
            claims: claims?,
        })
    }

    pub(super) fn ceiling(&mut self, path: &str, text: &CeilingText) -> Option<Ceiling> {
        let field = |name: &str| format!("{path}.{name}");
        let name = self.id(&field("name"), CeilingName::parse(&text.name));
        let app_groups = match (&text.app_groups, text.every_app_group) {
            (None, true) => Some(None),
            (Some(groups), false) => self.groups(&field("app_groups"), groups, AtLeast::One).map(Some),
            (Some(_), true) => self.refuse(&field("app_groups"), "and every_app_group exclude each other"),
            (None, false) => self.refuse(
                &field("app_groups"),
                "is missing: name the groups it holds for, or write `every_app_group: true`",
            ),
        };
        let max_ttl_s = text
            .max_ttl
            .map(|max| self.seconds(&field("max_ttl"), max, apple::SHORTEST_TTL_S, apple::LONGEST_SCOPED_LIFETIME_S));
        let never_roles = text.never_roles.as_ref().map(|roles| self.roles(&field("never_roles"), roles));
        let clients =
            text.clients.as_ref().map(|clients| self.list(&field("clients"), clients, AtLeast::One, Self::client));
        let issuers = text.issuers.as_ref().map(|issuers| {
            self.list(&field("issuers"), issuers, AtLeast::One, |check, path, name| {
                check.id(path, IssuerName::parse(name))
            })
        });
        let trust_domains = text.trust_domains.as_ref().map(|domains| {
            self.list(&field("trust_domains"), domains, AtLeast::One, |check, path, domain| {
                if is_trust_domain(domain) {
                    Some(domain.clone())
                } else {
                    check.refuse(path, format!("`{}` is not a trust domain, such as acme.internal", shown(domain)))
                }
            })
        });
        let callers = Callers {
            clients: clients.unwrap_or(Some(Vec::new()))?,
            issuers: issuers.unwrap_or(Some(Vec::new()))?.into_iter().collect(),
            trust_domains: trust_domains.unwrap_or(Some(Vec::new()))?.into_iter().collect(),
        };
        let ceiling = Ceiling {
            name: name?,
            app_groups: app_groups?,
            max_ttl_s: max_ttl_s.map_or(Some(None), |max| max.map(Some))?,
            never_roles: never_roles.unwrap_or(Some(RoleSet::default()))?,
            callers,
            require_scope: text.require_scope,
            no_team_keys: text.no_team_keys,
            require_approval: text.require_approval,
            shadow: text.shadow,
        };
        let bounds = ceiling.max_ttl_s.is_some()
            || !ceiling.never_roles.is_empty()
            || !ceiling.callers.is_empty()
            || ceiling.require_scope
            || ceiling.no_team_keys
            || ceiling.require_approval;
        if !bounds {
            return self.refuse(path, "bounds nothing: name max_ttl, never_roles, clients or another bound");
        }
        if ceiling.shadow && ceiling.require_approval {
            let message =
                "counts what it would refuse of tokens, and an approval is of changes: leave one of the two out";
            return self.refuse(&field("shadow"), message);
        }
        Some(ceiling)
    }

    fn seconds(&mut self, path: &str, value: i64, least: i64, most: i64) -> Option<i64> {
        if (least..=most).contains(&value) {
            Some(value)
        } else {
            self.refuse(path, format!("must lie between {least}s and {most}s"))
        }
    }

    fn https(&mut self, path: &str, url: &str) -> Option<String> {
        let rest = url.strip_prefix("https://").unwrap_or_default();
        let host = rest.split('/').next().unwrap_or_default();
        let plain =
            url.len() <= 512 && url.bytes().all(|b| b.is_ascii_graphic()) && !url.contains(['?', '#', '\\', '@']);
        if plain && !host.is_empty() {
            return Some(url.to_owned());
        }
        let message = "is not an address such as https://issuer.example/path: https, without user, query and fragment";
        self.refuse(path, format!("`{}` {message}", shown(url)))
    }

    /// What a pattern must name follows from the kind: an issuer that signs for everyone can't be taken for another kind.
    fn of_its_kind(&mut self, path: &str, kind: Option<IssuerKind>, url: String) -> Option<String> {
        match IssuerKind::of_url(&url).filter(|known| kind.is_some_and(|kind| kind != *known)) {
            Some(known) => {
                let known = known.as_str();
                self.refuse(path, format!("`{}` is the issuer of kind {known}: write `kind: {known}`", shown(&url)))
            }
            None => Some(url),
        }
    }

    fn pinned(&mut self, path: &str, keys: &str) -> Option<String> {
        let set = serde_json::from_str::<serde_json::Value>(keys).ok().filter(|_| keys.len() <= MOST_JWKS_BYTES);
        let list = set.as_ref().and_then(|set| set.get("keys")).and_then(serde_json::Value::as_array);
        let Some(list) = list.filter(|list| !list.is_empty()) else {
            return self.refuse(path, "is not a JWK Set in JSON (RFC 7517) with at least one key: {\"keys\": [...]}");
        };
        // A private or symmetric key in a document would be known to everyone who reads it.
        let secret = |key: &serde_json::Value| ["d", "p", "q", "k"].iter().any(|member| key.get(member).is_some());
        if list.iter().any(secret) {
            return self.refuse(path, "holds a private or symmetric key: give public keys only, and replace that one");
        }
        let public = |key: &serde_json::Value| {
            let kind = key.get("kty").and_then(serde_json::Value::as_str);
            kind.is_some_and(|kind| matches!(kind, "RSA" | "EC" | "OKP"))
        };
        if !list.iter().all(public) {
            return self.refuse(path, "holds something that is no public key: each has a `kty` of RSA, EC or OKP");
        }
        Some(keys.to_owned())
    }
}
