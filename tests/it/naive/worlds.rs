//! Worlds and requests, as texts; and the state that the broker would have of one.

use super::*;

fn some<T: Clone>(random: &mut Random, all: &[T], most: u64) -> Vec<T> {
    (0..=random.below(most)).map(|_| random.pick(all).clone()).collect()
}

fn one_in(random: &mut Random, n: u64) -> bool {
    random.below(n) == 0
}

fn texts(list: Vec<&'static str>) -> Vec<String> {
    list.into_iter().collect::<BTreeSet<_>>().into_iter().map(ToOwned::to_owned).collect()
}

const NAMES: &[&str] =
    &["spiffe://acme/ci/a", "spiffe://acme/ci/ab", "spiffe://beta/ci/a", "dns:a.ci.acme", "dns:ab.ci.acme"];

fn client(random: &mut Random) -> ClientText {
    let text = |text: &&str| Some((*text).to_owned());
    match random.below(4) {
        0 => ClientText {
            spiffe: text(random.pick(&[
                "spiffe://acme/ci/a",
                "spiffe://acme/ci/*",
                "spiffe://beta/*/a",
                "spiffe://acme/*/*b",
            ])),
            ..ClientText::default()
        },
        1 => ClientText { dns: text(random.pick(&["a.ci.acme", "*.ci.acme", "a*.ci.acme"])), ..ClientText::default() },
        _ => {
            let mut claims = BTreeMap::new();
            if !one_in(random, 3) {
                let values = texts(some(random, &["refs/heads/main", "refs/tags/v*", "refs/*/main"], 2));
                claims.insert("ref".to_owned(), values);
            }
            if one_in(random, 2) || claims.is_empty() {
                claims.insert("repository_id".to_owned(), texts(some(random, &["1", "2"], 1)));
            }
            let subject = one_in(random, 3).then(|| random.pick(&["repo:acme/x:1", "repo:acme/*:*"]).to_string());
            let issuer = random.pick(&["github", "corp"]).to_string();
            ClientText { oidc: Some(OidcText { issuer, subject, claims }), ..ClientText::default() }
        }
    }
}

fn clients(random: &mut Random) -> Vec<ClientText> {
    (0..=random.below(5)).map(|_| client(random)).collect()
}

fn at(random: &mut Random) -> Option<UnixMillis> {
    let offset = i64::try_from(random.below(400)).unwrap() * 600 - 100_000;
    one_in(random, 8).then(|| UnixMillis::from_seconds(START + offset))
}

fn policy(random: &mut Random, nth: usize) -> PolicyText {
    let features = if one_in(random, 3) {
        texts(some(random, &["reviews:read", "builds:read", "builds:write", "xcode-cloud:read"], 1))
    } else {
        Vec::new()
    };
    let writes = features.iter().any(|it| it.ends_with(":write"));
    let operations = ["GET /v1/apps/{app}/customerReviews", "GET /v1/builds?filter[app]=111", "GET /v1/ciBuildRuns/5"];
    let max_ttl = one_in(random, 2).then(|| 60 + i64::try_from(random.below(1000)).unwrap());
    PolicyText {
        name: format!("p{nth}"),
        clients: clients(random),
        app_group: random.pick(&["games", "games", "games", "tools", "other"]).to_string(),
        roles: texts(some(random, ROLES, 8)),
        max_ttl,
        default_ttl: max_ttl.filter(|_| one_in(random, 2)).map(|max| max.min(90)),
        operations: if !writes && one_in(random, 4) { texts(some(random, &operations, 1)) } else { Vec::new() },
        features,
        require_scope: !writes && one_in(random, 6),
        require_mtls: if one_in(random, 10) {
            vec![ClientText { spiffe: Some("spiffe://acme/ci/*".to_owned()), ..ClientText::default() }]
        } else {
            Vec::new()
        },
        quota: None,
        not_before: at(random),
        // Far enough from not_before to be a document that is accepted.
        not_after: at(random).map(|at| UnixMillis::from_seconds(at.seconds() + 400_000)).filter(|_| one_in(random, 2)),
        hours: one_in(random, 8).then(|| HoursText {
            time_zone: random.pick(&["UTC", "Etc/GMT-2"]).to_string(),
            days: if one_in(random, 2) { Vec::new() } else { texts(some(random, &["mon", "tue", "sun", "sat"], 2)) },
            from: random.pick(&["08:00", "20:30"]).to_string(),
            until: random.pick(&["18:00", "06:15", "24:00"]).to_string(),
        }),
        break_glass: one_in(random, 10),
        shadow: one_in(random, 8),
    }
}

fn ceiling(random: &mut Random, nth: usize) -> CeilingText {
    let every = one_in(random, 2);
    CeilingText {
        name: format!("c{nth}"),
        every_app_group: every,
        app_groups: (!every).then(|| texts(some(random, &["games", "tools", "other"], 1))),
        max_ttl: Some(120 + i64::try_from(random.below(2000)).unwrap()),
        never_roles: one_in(random, 3).then(|| texts(some(random, ROLES, 1))),
        clients: one_in(random, 8).then(|| clients(random)),
        issuers: one_in(random, 8).then(|| texts(some(random, &["github", "corp"], 1))),
        trust_domains: one_in(random, 8).then(|| texts(some(random, &["acme", "beta"], 1))),
        require_scope: one_in(random, 6),
        no_team_keys: one_in(random, 5),
        require_approval: false,
        shadow: one_in(random, 6),
    }
}

fn key(random: &mut Random, nth: usize) -> KeyText {
    KeyText {
        id: format!("KEY{nth:07}"),
        account: random.pick::<&str>(&["acme", "acme", "acme", "beta"]),
        individual: one_in(random, 2)
            .then(|| if one_in(random, 3) { vec![] } else { some(random, &["111", "222"], 1) }),
        roles: some(random, ROLES, 2).into_iter().collect(),
        groups: some(random, &["games", "tools", "other"], 1).into_iter().collect(),
        state: random
            .pick(&[KeyState::Active, KeyState::Active, KeyState::Active, KeyState::Suspended, KeyState::Revoked])
            .to_owned(),
    }
}

pub(super) fn world(random: &mut Random) -> World {
    let account = |name: &str, nth: usize| AccountText {
        name: name.to_owned(),
        issuer_id: format!("57246542-96fe-1a63-e053-0824d011072{nth}"),
    };
    let group = |name: &str, account: &str, apps: &[&str]| AppGroupText {
        name: name.to_owned(),
        account: account.to_owned(),
        apps: apps.iter().map(|app| (*app).to_owned()).collect(),
    };
    let issuer = |name: &str, url: &str| IssuerText {
        name: name.to_owned(),
        kind: "oidc".to_owned(),
        url: Some(url.to_owned()),
        audiences: vec!["x".to_owned()],
        ..IssuerText::default()
    };
    let count = 1 + random.below(9);
    let policies: Vec<_> = (0..count).map(|nth| policy(random, usize::try_from(nth).unwrap())).collect();
    let ceilings = (0..random.below(4)).map(|nth| ceiling(random, usize::try_from(nth).unwrap())).collect();
    let keys = (0..2 + random.below(10)).map(|nth| key(random, usize::try_from(nth).unwrap())).collect();
    let mut revoked = BTreeSet::new();
    for _ in 0..random.below(3) {
        revoked.insert(match random.below(10) {
            0 => ("client", random.pick(NAMES).to_string()),
            1 => ("issuer", "corp".to_owned()),
            2 => ("account", "beta".to_owned()),
            3 => ("app-group", "other".to_owned()),
            _ => ("policy", format!("p{}", random.below(9))),
        });
    }
    let opened = policies
        .iter()
        .filter(|policy| policy.break_glass && one_in(random, 2))
        .map(|policy| (policy.name.clone(), START + 60))
        .collect();
    let document = Document {
        accounts: vec![account("acme", 0), account("beta", 1)],
        app_groups: vec![
            group("games", "acme", &["111", "222"]),
            group("tools", "acme", &["222"]),
            group("other", "beta", &["111"]),
        ],
        issuers: vec![issuer("github", "https://github.example"), issuer("corp", "https://corp.example")],
        ceilings,
        policies,
        ..Document::default()
    };
    World { document, keys, revoked, opened }
}

fn fold(state: &mut State, change: Change) {
    let record = Record {
        revision: state.head().revision.next(),
        at: UnixMillis::from_seconds(START),
        actor: Actor::broker(),
        audit: AuditPosition { writer: WriterId::from_random(1), sequence: 1 },
        change,
    };
    state.fold(&record, Chain([7; 32])).unwrap();
}

/// The world as the broker has it.
pub(super) fn state(world: &World) -> State {
    let desired = world.document.check().unwrap_or_else(|violations| panic!("{violations:#?}"));
    let mut put: Vec<Object> = desired.accounts.into_iter().map(Object::Account).collect();
    put.extend(desired.app_groups.into_iter().map(Object::AppGroup));
    put.extend(desired.issuers.into_iter().map(Arc::new).map(Object::Issuer));
    put.extend(desired.policies.into_iter().map(Arc::new).map(Object::Policy));
    put.extend(desired.ceilings.into_iter().map(Arc::new).map(Object::Ceiling));
    let mut state = State::default();
    fold(&mut state, Change::DocumentApplied { put, removed: vec![] });
    for text in &world.keys {
        let apps = |ids: &Vec<&str>| ids.iter().map(|id| AppId::parse(id).unwrap()).collect();
        let kind = match &text.individual {
            None => KeyKind::Team,
            Some(ids) => KeyKind::Individual {
                user: AppleUser::parse("a@b").unwrap(),
                app_access: if ids.is_empty() { AppAccess::All } else { AppAccess::Only(apps(ids)) },
                declared_at: UnixMillis(0),
            },
        };
        let key = Key {
            id: KeyId::parse(&text.id).unwrap(),
            account: AccountName::parse(text.account).unwrap(),
            profile: Profile::AppStoreConnect,
            kind,
            roles: text.roles.iter().map(|role| Role::parse(role).unwrap()).collect(),
            app_groups: text.groups.iter().map(|name| AppGroupName::parse(name).unwrap()).collect(),
            fingerprint: text.id.clone(),
            public_key: String::new(),
            state: text.state,
            imported: Stamp { by: "x".to_owned(), at: UnixMillis(0) },
            imported_revision: Revision(0),
            revoked: None,
            confirmed_at_apple: None,
        };
        fold(&mut state, Change::KeyImported { key: Box::new(key) });
    }
    for (kind, name) in &world.revoked {
        let target = Target::parse(kind, name).unwrap().unwrap();
        fold(&mut state, Change::Revoked { target, reason: String::new(), dies_at: None });
    }
    for (policy, until) in &world.opened {
        let policy = PolicyName::parse(policy).unwrap();
        fold(&mut state, Change::BreakGlassOpened { policy, until: *until, reason: String::new() });
    }
    state
}

pub(super) fn asked(random: &mut Random) -> Asked {
    let vouched = one_in(random, 2);
    let issuer = random.pick(&["github", "github", "corp"]);
    let subject = random.pick(&["repo:acme/x:1", "repo:acme/y:2", "repo:other/x:1"]);
    let mut scope: Vec<usize> = Vec::new();
    if one_in(random, 2) {
        scope = (0..=random.below(2)).map(|_| usize::try_from(random.below(7)).unwrap()).collect();
        scope.sort_unstable();
        scope.dedup();
    }
    let mut claims = BTreeMap::new();
    for (name, values) in [("ref", ["refs/heads/main", "refs/tags/v1"]), ("repository_id", ["1", "2"])] {
        if !one_in(random, 5) {
            claims.insert(name, random.pick(&values).to_string());
        }
    }
    Asked {
        client: if vouched { format!("oidc:{issuer}:{subject}") } else { random.pick(NAMES).to_string() },
        certificate: (vouched && one_in(random, 2)).then(|| random.pick(NAMES).to_string()),
        claims,
        group: random.pick::<&str>(&["games", "games", "games", "games", "games", "tools", "other", "absent"]),
        role: random.pick::<&str>(ROLES),
        ttl: one_in(random, 3).then(|| 30 + i64::try_from(random.below(3000)).unwrap()),
        scope,
        now: START + i64::try_from(random.below(14 * 24)).unwrap() * 1800 - 3 * 86_400,
    }
}
