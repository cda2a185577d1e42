//! Makes worlds and requests, by a seed: small pools and small alphabets, so that patterns meet callers, keys meet roles and
//! times meet ends.

use std::collections::{BTreeMap, BTreeSet};

use p8broker::clock::UnixMillis;

use super::pieces::{any_caller, any_hours, any_key, glob, name_pattern, owned};
use super::rules::is_meant;
use super::world::{Ask, Caller, Ceiling, Group, Pattern, Policy, Role, World};
use crate::chaos::Random;

pub const ROLES: [Role; 5] = ["APP_MANAGER", "DEVELOPER", "CUSTOMER_SUPPORT", "ADMIN", "ACCOUNT_HOLDER"];
pub const ISSUERS: [&str; 2] = ["github", "corp"];
const TTLS: [i64; 8] = [30, 60, 299, 600, 1079, 1080, 1081, 1200];
pub const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Ordinary days, and ten minutes before a clock is set, in Berlin and in New York.
const BASES: [i64; 6] = [1_800_000_000, 1_785_000_000, 1_774_745_400, 1_792_889_400, 1_793_512_200, 1_805_007_000];

const OPERATIONS: [&str; 9] = [
    "GET /v1/apps",
    "GET /v1/apps/{app}/customerReviews",
    "GET /v1/builds?filter[app]={app}&filter[version]=7",
    "GET /v1/builds?filter[version]=7&filter[app]={app}&limit=9",
    "GET /v1/ciProducts",
    "GET /v1/ciBuildRuns/5",
    "GET /v1/ciBuildRuns/5/actions",
    "GET /v1/apps/{app}/ciProduct",
    "GET /v1/ciProducts?include=app",
];

const FEATURES: [&str; 9] = [
    "reviews:read",
    "metadata:read",
    "metadata:write",
    "builds:read",
    "testflight:write",
    "xcode-cloud:read",
    "users:read",
    "sales-and-finance:read",
    "builds:write",
];

const SCOPES: [&str; 32] = [
    "GET /v1/apps",
    "GET /v1/apps?limit=5&sort=name",
    "GET /v1/apps?fields[apps]=name&filter[bundleId]=a",
    "GET /v1/apps?include=builds",
    "GET /v1/apps/111",
    "GET /v1/apps/999",
    "GET /v1/apps/111/customerReviews",
    "GET /v1/apps/999/customerReviews",
    "GET /v1/apps/222/relationships/builds",
    "GET /v1/apps/111/builds?exists[expired]=true",
    "GET /v1/builds?filter[app]=111",
    "GET /v1/builds?filter[app]=999",
    "GET /v1/builds?filter[app]=111,999",
    "GET /v1/betaTesters?filter[apps]=111",
    "GET /v1/betaTesters?filter[apps]=999",
    "GET /v1/users?filter[visibleApps]=111,999",
    "GET /v1/apps?filter[id]=111",
    "GET /v1/apps?filter[id]=999",
    "GET /v1/builds/5/betaGroups",
    "GET /v1/betaGroups/7/betaTesters",
    "GET /v1/betaGroups/7/builds",
    "GET /v1/users/5/visibleApps",
    "GET /v1/users",
    "GET /v1/salesReports?filter[frequency]=DAILY",
    "GET /v1/ciProducts",
    "GET /v2/ciProducts",
    "GET /v1/ciProducts?include=app",
    "GET /v1/ciBuildRuns/5",
    "GET /v1/apps/111/ciProduct",
    "GET /v1/ciProducts?cursor=x",
    "GET /v1/appStoreReviewDetails/5",
    "GET /v1/unheardOf/5",
];

impl Random {
    pub fn chance(&mut self, of_a_hundred: u64) -> bool {
        self.below(100) < of_a_hundred
    }

    /// Some of these, at least `least`.
    pub fn some<T: Clone>(&mut self, from: &[T], least: usize, most: usize) -> Vec<T> {
        let count = least + self.index(most - least + 1);
        let mut out = BTreeMap::new();
        for _ in 0..count {
            let at = self.index(from.len());
            out.insert(at, from[at].clone());
        }
        out.into_values().collect()
    }

    pub fn index(&mut self, most: usize) -> usize {
        usize::try_from(self.below(u64::try_from(most).unwrap())).unwrap()
    }
}

impl World {
    pub fn any(random: &mut Random) -> Self {
        let group = |name: &str, account: &str, apps: &[&str]| Group {
            name: name.to_owned(),
            account: account.to_owned(),
            apps: apps.iter().map(|it| (*it).to_owned()).collect(),
        };
        let base_s = *random.pick(&BASES);
        let mut world = Self {
            base_s,
            groups: vec![
                group("games", "acme", &["111", "222"]),
                group("tools", "acme", &["222", "333"]),
                group("lab", "other", &["444"]),
            ],
            issuers: if random.chance(90) { owned(&ISSUERS) } else { vec!["corp".to_owned()] },
            ceilings: vec![],
            policies: vec![],
            keys: vec![],
            revoked: vec![],
            opened: vec![],
            sealed: random.chance(1),
            callers: (0..4).map(|_| any_caller(random)).collect(),
        };
        // Most of what is in a world is about one group, so that there is something to choose from.
        let home = world.groups[random.index(3)].name.clone();
        for nth in 0..random.below(9) {
            let policy = world.any_policy(format!("p{nth}"), &home, random);
            if policy.break_glass && random.chance(60) {
                let until = base_s + *random.pick(&[-60, 1, 300, 7200, 90_000]);
                world.opened.push((policy.name.clone(), until));
            }
            world.policies.push(policy);
        }
        for nth in 0..random.below(4) {
            let ceiling = world.any_ceiling(format!("c{nth}"), &home, random);
            world.ceilings.push(ceiling);
        }
        for nth in 0..2 + random.below(8) {
            let key = any_key(nth, &home, random);
            world.keys.push(key);
        }
        if random.chance(15) {
            for _ in 0..=random.below(2) {
                let kind = *random.pick(&["client", "client", "policy", "policy", "app-group", "account", "issuer"]);
                let name = match kind {
                    "client" => {
                        let caller = random.pick(&world.callers).clone();
                        caller.certificate.filter(|_| random.chance(30)).unwrap_or(caller.name)
                    }
                    "policy" => format!("p{}", random.below(6)),
                    "app-group" => home.clone(),
                    "account" => (*random.pick(&["acme", "other"])).to_owned(),
                    _ => (*random.pick(&ISSUERS)).to_owned(),
                };
                world.revoked.push((kind, name));
            }
        }
        world
    }

    fn any_policy(&self, name: String, home: &str, random: &mut Random) -> Policy {
        let group = if random.chance(85) { home } else { &random.pick(&self.groups).name };
        let mut roles = random.some(&ROLES[..3], 1, 5);
        if random.chance(25) {
            roles.extend(random.some(&ROLES[3..], 1, 2));
        }
        let features = if random.chance(35) { random.some(&FEATURES, 1, 3) } else { vec![] };
        let writes = features.iter().any(|it| it.ends_with(":write"));
        let operations = if !writes && random.chance(35) { random.some(&OPERATIONS, 1, 3) } else { vec![] };
        let long =
            |it: &&str| ["/ciP", "/ciB", "}/ciP"].iter().any(|part| it.contains(part)) && !it.contains("include");
        let max_ttl_s =
            if features.is_empty() && !operations.is_empty() && operations.iter().all(long) && random.chance(60) {
                *random.pick(&[1201, 86_400, 15_551_880, 15_552_000])
            } else {
                *random.pick(&TTLS)
            };
        let time = |random: &mut Random| {
            let half_hours = self.base_s * 1000 + (i64::try_from(random.below(60)).unwrap() - 30) * 1_800_000;
            if random.chance(30) { self.base_s * 1000 + *random.pick(&[-1, 0, 1, 500, 999, 1000]) } else { half_hours }
        };
        let not_before = random.chance(8).then(|| time(random));
        let not_after = random.chance(15).then(|| time(random));
        let count = 1 + random.index(4);
        let names: Vec<&Caller> = self.callers.iter().filter(|it| it.certificate.is_some()).collect();
        let require_mtls = if !names.is_empty() && random.chance(8) {
            let name = random.pick(&names).certificate.clone().unwrap();
            vec![name_pattern(&name, random)]
        } else {
            vec![]
        };
        Policy {
            name,
            clients: (0..count).map(|_| self.any_pattern(random)).collect(),
            group: group.to_owned(),
            roles,
            max_ttl_s,
            default_ttl_s: (*random.pick(&[30, 60, 600])).min(max_ttl_s),
            operations: owned(&operations),
            features: owned(&features),
            require_scope: !writes && random.chance(8),
            require_mtls,
            not_before,
            not_after: not_after.filter(|end| not_before.is_none_or(|start| start < *end)),
            hours: random.chance(12).then(|| any_hours(random)),
            break_glass: random.chance(8),
            shadow: random.chance(8),
        }
    }

    fn any_ceiling(&self, name: String, home: &str, random: &mut Random) -> Ceiling {
        let mut ceiling = Ceiling {
            name,
            groups: random.chance(60).then(|| {
                let mut groups: BTreeSet<String> = [home.to_owned()].into();
                if random.chance(30) {
                    groups.insert(random.pick(&self.groups).name.clone());
                }
                groups.into_iter().collect()
            }),
            max_ttl_s: random.chance(40).then(|| *random.pick(&[30, 45, 600, 1100, 5000, 15_552_000])),
            never_roles: if random.chance(25) { random.some(&ROLES, 1, 2) } else { vec![] },
            clients: vec![],
            issuers: vec![],
            trust_domains: vec![],
            require_scope: random.chance(10),
            no_team_keys: random.chance(20),
            shadow: random.chance(25),
        };
        if random.chance(15) {
            ceiling.clients = (0..=random.below(6)).map(|_| self.any_pattern(random)).collect();
        }
        if random.chance(6) {
            ceiling.issuers = owned(&random.some(&ISSUERS, 1, 2));
        }
        if random.chance(8) {
            ceiling.trust_domains = owned(&random.some(&["acme", "beta"], 1, 2));
        }
        // One that bounds nothing is no ceiling.
        ceiling.no_team_keys |= ceiling.max_ttl_s.is_none()
            && ceiling.never_roles.is_empty()
            && ceiling.clients.is_empty()
            && ceiling.issuers.is_empty()
            && ceiling.trust_domains.is_empty()
            && !ceiling.require_scope;
        ceiling
    }

    /// A pattern that some caller of this world is likely to be meant by.
    fn any_pattern(&self, random: &mut Random) -> Pattern {
        let caller = random.pick(&self.callers).clone();
        let Some(issuer) = caller.issuer else { return name_pattern(&caller.name, random) };
        let subject = random.chance(50).then(|| glob(&caller.subject, "/:@#", random));
        let mut claims = Vec::new();
        for (name, values) in &caller.claims {
            if random.chance(if name == "sub" { 10 } else { 40 }) {
                let value = random.pick(values).clone();
                let mut globs = vec![glob(&value, "/:@#", random)];
                if random.chance(30) {
                    let other = *random.pick(&["main", "v1", "refs/tags/v9"]);
                    globs.push(glob(other, "/:@#", random));
                }
                claims.push((name.clone(), globs));
            }
        }
        if random.chance(8) {
            claims.push(("absent".to_owned(), vec!["x".to_owned()]));
        }
        let subject = if claims.is_empty() { subject.or(Some(caller.subject)) } else { subject };
        Pattern::Oidc { issuer, subject, claims }
    }

    /// A request, likely one that something is granted to.
    pub fn ask(&self, random: &mut Random) -> Ask {
        let policy = (!self.policies.is_empty() && random.chance(90)).then(|| random.pick(&self.policies));
        let group = match policy {
            Some(policy) => policy.group.clone(),
            None => (*random.pick(&["games", "lab", "nowhere"])).to_owned(),
        };
        let role = match policy {
            Some(policy) if random.chance(85) => *random.pick(&policy.roles),
            _ => *random.pick(&ROLES),
        };
        let app = (*random.pick(&["111", "222", "333", "444", "999"])).to_owned();
        let mut scope = BTreeSet::new();
        let asks = policy.is_some_and(|it| it.require_scope || !it.operations.is_empty() || !it.features.is_empty());
        if random.chance(if asks { 80 } else { 25 }) {
            for _ in 0..=random.below(2) {
                let of_policy = policy.filter(|it| !it.operations.is_empty() && random.chance(85));
                scope.insert(match of_policy {
                    Some(policy) => {
                        let apps = self.group(&policy.group).map(|it| it.apps.as_slice()).unwrap_or_default();
                        let of_group = if random.chance(85) { random.pick(apps) } else { &app };
                        random.pick(&policy.operations).replace("{app}", of_group)
                    }
                    None => (*random.pick(&SCOPES)).to_owned(),
                });
            }
        }
        let minutes = (i64::try_from(random.below(240)).unwrap() - 120) * 60_000;
        let close = *random.pick(&[-1000, -1, 0, 1, 499, 500, 999, 1000, 59_000]);
        let by = if random.chance(50) { minutes } else { 0 } + if random.chance(50) { close } else { 0 };
        let mut caller = random.pick(&self.callers).clone();
        // Mostly somebody whom the policy names.
        if let Some(policy) = policy.filter(|_| random.chance(85)) {
            let named: Vec<_> =
                self.callers.iter().filter(|it| policy.clients.iter().any(|pattern| is_meant(pattern, it))).collect();
            if !named.is_empty() {
                caller = (*random.pick(&named)).clone();
            }
        }
        caller.stale = caller.issuer.is_some() && random.chance(2);
        Ask {
            caller,
            group,
            role,
            ttl_s: random.chance(60).then(|| *random.pick(&[30, 31, 299, 600, 1080, 1200, 90_000, 20_000_000])),
            scope: scope.into_iter().collect(),
            now: UnixMillis(self.base_s * 1000 + by),
        }
    }
}
