//! The decision a second time, straight from `docs/policies.md`, "How a request is decided": one linear walk over documents
//! as they were written, with matching, hours, keys and lifetimes of its own. It shares nothing with the broker's but the
//! texts that go in, and agrees with it on generated worlds.
//!
//! `DIFF_OPS` says how many requests (default 60,000), `DIFF_SEED` which; `make differential` asks for a million.

mod worlds;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use p8broker::clock::{Clock, SystemClock, UnixMillis};
use p8broker::domain::change::{Actor, AuditPosition, Change, Object, Record};
use p8broker::domain::claims::Claims;
use p8broker::domain::decide::{TokenRequest, decide};
use p8broker::domain::document::{
    AccountText, AppGroupText, CeilingText, ClientText, Document, HoursText, IssuerText, OidcText, PolicyText,
};
use p8broker::domain::key::{AppAccess, Key, KeyKind, KeyState, Profile, Stamp};
use p8broker::domain::operation::Operation;
use p8broker::domain::principal::{Facts, Principal};
use p8broker::domain::role::Role;
use p8broker::domain::state::State;
use p8broker::domain::target::Target;
use p8broker::id::{
    AccountName, AppGroupName, AppId, AppleUser, Chain, ClientId, IssuerName, KeyId, PolicyName, Revision, WriterId,
};

use crate::chaos::Random;
use worlds::{asked, state, world};

/// Monday, 2027-01-18, 08:00 UTC.
const START: i64 = 1_800_259_200;

/// The reasons, in the order of the document.
const REASONS: &[&str] = &[
    "NO_POLICY",
    "ACCOUNT_REVOKED",
    "APP_GROUP_REVOKED",
    "POLICY_REVOKED",
    "OUTSIDE_VALIDITY",
    "OUTSIDE_HOURS",
    "BREAK_GLASS_CLOSED",
    "CERTIFICATE_REQUIRED",
    "CALLER_OVER_CEILING",
    "ROLE_NOT_GRANTED",
    "ROLE_OVER_CEILING",
    "SCOPE_REQUIRED",
    "SCOPE_NOT_GRANTED",
    "NO_ACTIVE_KEY",
    "KEY_EXCEEDS_POLICY",
    "TEAM_KEY_OVER_CEILING",
];

const ROLES: &[&str] = &["ADMIN", "FINANCE", "APP_MANAGER", "DEVELOPER", "CUSTOMER_SUPPORT"];

/// Reads, the feature that each is of, and the app that it names; labelled by hand.
const READS: &[(&str, &str, &str)] = &[
    ("GET /v1/apps/111/customerReviews", "reviews", "111"),
    ("GET /v1/apps/999/customerReviews", "reviews", "999"),
    ("GET /v1/customerReviews/7", "reviews", ""),
    ("GET /v1/apps/222/customerReviews?include=response", "", "222"),
    ("GET /v1/builds?filter[app]=111", "builds", "111"),
    ("GET /v1/apps/222/builds", "builds", "222"),
    ("GET /v1/ciBuildRuns/5", "xcode-cloud", ""),
];

#[derive(Debug, Clone)]
struct KeyText {
    id: String,
    account: &'static str,
    /// The apps of an individual key's user; `None` for a team key, empty for all apps.
    individual: Option<Vec<&'static str>>,
    roles: BTreeSet<&'static str>,
    groups: BTreeSet<&'static str>,
    state: KeyState,
}

/// Everything that a decision rests on, as somebody wrote it.
struct World {
    document: Document,
    keys: Vec<KeyText>,
    revoked: BTreeSet<(&'static str, String)>,
    /// Policies that are open, with the moment at which they close.
    opened: BTreeMap<String, i64>,
}

#[derive(Debug, Clone)]
struct Asked {
    client: String,
    certificate: Option<String>,
    claims: BTreeMap<&'static str, String>,
    group: &'static str,
    role: &'static str,
    ttl: Option<i64>,
    scope: Vec<usize>,
    now: i64,
}

type Answer = Result<(String, String, i64), (&'static str, Option<String>)>;

/// Parts between separators must be as many, and each `*` stands for any characters of its part.
fn fits(pattern: &str, text: &str, separators: &[char]) -> bool {
    fn part(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|taken| part(rest, &text[taken..])),
            Some((c, rest)) => text.first() == Some(c) && part(rest, &text[1..]),
        }
    }
    let between = |text: &str| text.chars().filter(|c| separators.contains(c)).collect::<Vec<_>>();
    let parts = |text: &str| text.split(separators).map(|it| it.chars().collect::<Vec<_>>()).collect::<Vec<_>>();
    let (patterns, texts) = (parts(pattern), parts(text));
    between(pattern) == between(text) && patterns.iter().zip(&texts).all(|(pattern, text)| part(pattern, text))
}

fn is_named(client: &ClientText, name: &str, claims: Option<&BTreeMap<&'static str, String>>) -> bool {
    if let Some(pattern) = &client.spiffe {
        return fits(pattern, name, &['/']);
    }
    if let Some(pattern) = &client.dns {
        return name.strip_prefix("dns:").is_some_and(|name| fits(pattern, name, &['.']));
    }
    let (Some(oidc), Some(claims)) = (&client.oidc, claims) else { return false };
    let Some(subject) = name.strip_prefix(&format!("oidc:{}:", oidc.issuer)) else { return false };
    let claim = |glob: &String, value: &str| fits(glob, value, &['/', ':', '@', '#']);
    oidc.subject.as_ref().is_none_or(|glob| claim(glob, subject))
        && oidc.claims.iter().all(|(name, globs)| {
            claims.get(name.as_str()).is_some_and(|value| globs.iter().any(|glob| claim(glob, value)))
        })
}

/// The end of the present window, where there is one. The zones are ones without summer time.
fn open_until(hours: &HoursText, now: i64) -> Option<i64> {
    let offset = if hours.time_zone == "UTC" { 0 } else { 2 * 3600 };
    let seconds = |text: &str| {
        let (h, m) = text.split_once(':').unwrap();
        h.parse::<i64>().unwrap() * 3600 + m.parse::<i64>().unwrap() * 60
    };
    let (from, mut until) = (seconds(&hours.from), seconds(&hours.until));
    if until <= from {
        until += 86_400;
    }
    let today = (now + offset).div_euclid(86_400);
    // A window that began yesterday may go on; of several, each is closed at its own end.
    [today, today - 1].into_iter().find_map(|day| {
        // 1970-01-01 was a Thursday.
        let name = ["thu", "fri", "sat", "sun", "mon", "tue", "wed"][usize::try_from(day.rem_euclid(7)).unwrap()];
        let (start, end) = (day * 86_400 + from - offset, day * 86_400 + until - offset);
        let allowed = hours.days.is_empty() || hours.days.iter().any(|day| day == name);
        (allowed && start <= now && now < end).then_some(end)
    })
}

fn naive(world: &World, asked: &Asked) -> Answer {
    let revoked = |kind: &'static str, name: &str| world.revoked.contains(&(kind, name.to_owned()));
    let issuer = asked.client.strip_prefix("oidc:").and_then(|rest| rest.split(':').next());
    // 1
    if revoked("client", &asked.client) || asked.certificate.as_ref().is_some_and(|name| revoked("client", name)) {
        return Err(("CLIENT_REVOKED", None));
    }
    if issuer.is_some_and(|issuer| revoked("issuer", issuer)) {
        return Err(("ISSUER_REVOKED", None));
    }
    let claims = issuer.is_some().then_some(&asked.claims);
    let certificate = if issuer.is_some() { asked.certificate.clone() } else { Some(asked.client.clone()) };
    let mut best: Option<(_, String, String, i64)> = None;
    let mut miss = (0, None);
    let mut policies: Vec<&PolicyText> = world.document.policies.iter().collect();
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    for policy in policies {
        // 2
        let named = policy.clients.iter().any(|client| is_named(client, &asked.client, claims));
        if policy.shadow || policy.app_group != asked.group || !named {
            continue;
        }
        match granted(world, asked, policy, certificate.as_deref(), claims) {
            Ok((strength, key, end)) => {
                // 4: the weakest key, then the longest life, then the first name.
                let rank = (strength, -end);
                if best.as_ref().is_none_or(|(known, ..)| rank < *known) {
                    best = Some((rank, policy.name.clone(), key, end));
                }
            }
            Err(reason) => {
                let rank = REASONS.iter().position(|known| *known == reason).unwrap();
                if rank > miss.0 || miss.1.is_none() {
                    miss = (rank, Some(policy.name.clone()));
                }
            }
        }
    }
    match best {
        Some((_, policy, key, end)) => Ok((policy, key, end)),
        None => Err((REASONS[miss.0], miss.1)),
    }
}

type Strength = (bool, bool, usize, usize, i64);

/// 3, 5
fn granted(
    world: &World,
    asked: &Asked,
    policy: &PolicyText,
    certificate: Option<&str>,
    claims: Option<&BTreeMap<&'static str, String>>,
) -> Result<(Strength, String, i64), &'static str> {
    let revoked = |kind: &'static str, name: &str| world.revoked.contains(&(kind, name.to_owned()));
    let group = world.document.app_groups.iter().find(|group| group.name == asked.group).ok_or("NO_POLICY")?;
    if revoked("account", &group.account) {
        return Err("ACCOUNT_REVOKED");
    }
    if revoked("app-group", &group.name) {
        return Err("APP_GROUP_REVOKED");
    }
    if revoked("policy", &policy.name) {
        return Err("POLICY_REVOKED");
    }
    let mut end = i64::MAX;
    if policy.not_before.is_some_and(|at| asked.now < at.seconds()) {
        return Err("OUTSIDE_VALIDITY");
    }
    if let Some(after) = policy.not_after {
        if asked.now >= after.seconds() {
            return Err("OUTSIDE_VALIDITY");
        }
        end = end.min(after.seconds());
    }
    if let Some(hours) = &policy.hours {
        end = end.min(open_until(hours, asked.now).ok_or("OUTSIDE_HOURS")?);
    }
    if policy.break_glass {
        let closes = world.opened.get(&policy.name).filter(|closes| asked.now < **closes);
        end = end.min(*closes.ok_or("BREAK_GLASS_CLOSED")?);
    }
    let presents = |client: &ClientText| certificate.is_some_and(|name| is_named(client, name, None));
    if !policy.require_mtls.is_empty() && !policy.require_mtls.iter().any(presents) {
        return Err("CERTIFICATE_REQUIRED");
    }
    let ceilings: Vec<&CeilingText> = world
        .document
        .ceilings
        .iter()
        .filter(|it| !it.shadow)
        .filter(|it| it.every_app_group || it.app_groups.iter().flatten().any(|name| name == asked.group))
        .collect();
    let issuer = asked.client.strip_prefix("oidc:").and_then(|rest| rest.split(':').next());
    for ceiling in &ceilings {
        if ceiling.clients.is_none() && ceiling.issuers.is_none() && ceiling.trust_domains.is_none() {
            continue;
        }
        let by_client = ceiling.clients.iter().flatten().any(|client| is_named(client, &asked.client, claims));
        let by_issuer = ceiling.issuers.iter().flatten().any(|name| issuer == Some(name));
        let by_domain =
            ceiling.trust_domains.iter().flatten().any(|it| asked.client.starts_with(&format!("spiffe://{it}/")));
        if !by_client && !by_issuer && !by_domain {
            return Err("CALLER_OVER_CEILING");
        }
    }
    if !policy.roles.iter().any(|role| role == asked.role) {
        return Err("ROLE_NOT_GRANTED");
    }
    let forbidden = |role: &str| ceilings.iter().any(|it| it.never_roles.iter().flatten().any(|never| never == role));
    if forbidden(asked.role) {
        return Err("ROLE_OVER_CEILING");
    }
    let writes = policy.features.iter().any(|feature| feature.ends_with(":write"));
    let needs_scope = policy.require_scope
        || !policy.operations.is_empty()
        || (!policy.features.is_empty() && !writes)
        || ceilings.iter().any(|it| it.require_scope);
    if needs_scope && asked.scope.is_empty() {
        return Err("SCOPE_REQUIRED");
    }
    let entry_granted = |read: &usize| {
        let (text, feature, app) = READS[*read];
        let by_operation = policy
            .operations
            .iter()
            .any(|operation| group.apps.iter().any(|app| operation.replace("{app}", app) == text));
        let by_feature = !feature.is_empty()
            && (app.is_empty() || group.apps.iter().any(|it| it == app))
            && policy.features.iter().any(|it| it.split(':').next() == Some(feature));
        by_operation || by_feature
    };
    let limited = !policy.operations.is_empty() || !policy.features.is_empty();
    if limited && !asked.scope.iter().all(entry_granted) {
        return Err("SCOPE_NOT_GRANTED");
    }
    // Keys
    let of_group: Vec<(usize, &KeyText)> =
        world.keys.iter().enumerate().filter(|(_, key)| key.groups.contains(asked.group)).collect();
    let no_team = ceilings.iter().any(|it| it.no_team_keys) && of_group.iter().any(|(_, key)| key.individual.is_some());
    let mut why = "NO_ACTIVE_KEY";
    let mut weakest: Option<(Strength, &KeyText)> = None;
    for (nth, key) in of_group {
        if key.state != KeyState::Active || key.account != group.account || !key.roles.contains(asked.role) {
            continue;
        }
        if !key.roles.iter().all(|role| policy.roles.iter().any(|it| it == role) && !forbidden(role)) {
            why = if why == "NO_ACTIVE_KEY" { "KEY_EXCEEDS_POLICY" } else { why };
            continue;
        }
        if no_team && key.individual.is_none() {
            why = "TEAM_KEY_OVER_CEILING";
            continue;
        }
        let apps = key.individual.as_ref().filter(|apps| !apps.is_empty());
        let confined = apps.is_some_and(|apps| apps.iter().all(|app| group.apps.iter().any(|it| it == app)));
        let administrative = key.roles.contains("ADMIN");
        let strength = (!confined, administrative, key.roles.len(), key.groups.len(), -i64::try_from(nth).unwrap());
        if weakest.as_ref().is_none_or(|(known, _)| strength < *known) {
            weakest = Some((strength, key));
        }
    }
    let (strength, key) = weakest.ok_or(why)?;
    // 5
    let max = policy.max_ttl.unwrap_or(1080);
    let default = policy.default_ttl.unwrap_or(max.min(600));
    let mut life = asked.ttl.unwrap_or(default).min(max);
    for ceiling in &ceilings {
        life = life.min(ceiling.max_ttl.unwrap_or(i64::MAX));
    }
    let all_long = !asked.scope.is_empty() && asked.scope.iter().all(|read| READS[*read].0.contains("/ciBuildRuns/"));
    if !all_long {
        life = life.min(1080);
    }
    Ok((strength, key.id.clone(), end.min(asked.now + life)))
}

fn theirs(state: &State, asked: &Asked) -> Answer {
    let client = ClientId::parse(&asked.client).unwrap();
    let principal = match client.issuer() {
        None => Principal::of_certificate(client),
        Some(name) => {
            let issuer = Arc::clone(&state.issuers()[&IssuerName::parse(name.as_str()).unwrap()]);
            let certificate = asked.certificate.as_ref().map(|name| ClientId::parse(name).unwrap());
            let claims = Claims::from_pairs(asked.claims.iter().map(|(name, value)| (*name, value.as_str())));
            Principal::of_issuer(client, issuer, Facts { certificate, claims }, i64::MAX)
        }
    };
    let request = TokenRequest {
        principal,
        app_group: AppGroupName::parse(asked.group).unwrap(),
        role: Role::parse(asked.role).unwrap(),
        ttl_s: asked.ttl,
        scope: asked.scope.iter().map(|read| Operation::parse(READS[*read].0).unwrap()).collect(),
    };
    decide(&request, state, UnixMillis::from_seconds(asked.now))
        .map(|permit| (permit.policy().name.to_string(), permit.key().id.to_string(), permit.expires_at()))
        .map_err(|denial| (denial.reason.as_str(), denial.policy.map(|name| name.to_string())))
}

#[test]
fn the_decision_agrees_with_the_naive_one_of_the_document() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let ops = number("DIFF_OPS").unwrap_or(60_000);
    let seed = number("DIFF_SEED").unwrap_or_else(|| SystemClock.now().0.unsigned_abs());
    let mut random = Random::new(seed);
    let (mut done, mut seen) = (0, BTreeMap::<String, u64>::new());
    while done < ops {
        let world = world(&mut random);
        let state = state(&world);
        for _ in 0..40 {
            let asked = asked(&mut random);
            let (ours, theirs) = (naive(&world, &asked), theirs(&state, &asked));
            assert_eq!(theirs, ours, "seed {seed}, after {done}: {asked:#?}\n{:#?}\n{:#?}", world.document, world.keys);
            let kind = ours.map_or_else(|(reason, _)| reason.to_owned(), |_| "allow".to_owned());
            *seen.entry(kind).or_default() += 1;
            done += 1;
        }
    }
    println!("requests {done} disagreements 0 seed {seed}: {seen:?}");
    // Every answer that there is must have come up, or the worlds are too tame.
    for kind in REASONS.iter().chain(&["allow", "CLIENT_REVOKED", "ISSUER_REVOKED"]) {
        assert!(seen.contains_key(*kind), "{kind} never came up: {seen:?}");
    }
}
