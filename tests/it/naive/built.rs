//! A world as the domain has it: its document checked and folded, its keys imported, its revocations made.

use std::collections::BTreeMap;
use std::sync::Arc;

use p8broker::clock::UnixMillis;
use p8broker::domain::change::{Actor, AuditPosition, Change, Object, Record};
use p8broker::domain::claims::Claims;
use p8broker::domain::decide::TokenRequest;
use p8broker::domain::document::{
    AccountText, AppGroupText, CeilingText, ClientText, Document, HoursText, IssuerText, OidcText, PolicyText,
};
use p8broker::domain::issuer::Issuer;
use p8broker::domain::key::{self, AppAccess, KeyKind, Profile, Stamp};
use p8broker::domain::operation::Operation;
use p8broker::domain::principal::{Facts, Principal};
use p8broker::domain::role;
use p8broker::domain::state::State;
use p8broker::domain::target::Target;
use p8broker::id::{
    AccountName, AppGroupName, AppId, AppleUser, Chain, ClientId, KeyId, PolicyName, Revision, WriterId,
};

use super::world::{Apps, Ask, Ceiling, Hours, Key, KeyState, Pattern, Policy, World, Zone};

pub struct Built {
    pub state: State,
    /// All issuers that vouch for somebody, trusted or not.
    issuers: BTreeMap<String, Arc<Issuer>>,
}

impl Built {
    pub fn of(world: &World) -> Self {
        let all = document(world, &["github", "corp"]).check().unwrap_or_else(|wrong| panic!("{wrong:?}\n{world:#?}"));
        let issuers: BTreeMap<String, Arc<Issuer>> =
            all.issuers.into_iter().map(|it| (it.name.to_string(), Arc::new(it))).collect();
        let mut put: Vec<Object> = all.accounts.into_iter().map(Object::Account).collect();
        put.extend(all.app_groups.into_iter().map(Object::AppGroup));
        let trusted = issuers.iter().filter(|(name, _)| world.issuers.contains(name));
        put.extend(trusted.map(|(_, it)| Object::Issuer(Arc::clone(it))));
        put.extend(all.ceilings.into_iter().map(|it| Object::Ceiling(Arc::new(it))));
        put.extend(all.policies.into_iter().map(|it| Object::Policy(Arc::new(it))));
        let mut state = State::default();
        fold(&mut state, Change::DocumentApplied { put, removed: vec![] });
        for key in &world.keys {
            fold(&mut state, Change::KeyImported { key: Box::new(imported(key)) });
        }
        for (policy, until) in &world.opened {
            let policy = PolicyName::parse(policy).unwrap();
            fold(&mut state, Change::BreakGlassOpened { policy, until: *until, reason: String::new() });
        }
        for (kind, name) in &world.revoked {
            let target = Target::parse(kind, name).unwrap().unwrap();
            fold(&mut state, Change::Revoked { target, reason: String::new(), dies_at: None });
        }
        if world.sealed {
            fold(&mut state, Change::VaultSealed { reason: String::new() });
        }
        Self { state, issuers }
    }

    pub fn request(&self, ask: &Ask) -> TokenRequest {
        let caller = &ask.caller;
        let client = ClientId::parse(&caller.name).unwrap();
        let principal = match &caller.issuer {
            None => Principal::of_certificate(client),
            Some(name) => {
                let mut issuer = Arc::clone(&self.issuers[name]);
                if caller.stale {
                    Arc::make_mut(&mut issuer).leeway_s += 1;
                }
                let pairs = caller
                    .claims
                    .iter()
                    .flat_map(|(name, values)| values.iter().map(move |it| (name.as_str(), it.as_str())));
                let certificate = caller.certificate.as_ref().map(|name| ClientId::parse(name).unwrap());
                Principal::of_issuer(client, issuer, Facts { certificate, claims: Claims::from_pairs(pairs) }, i64::MAX)
            }
        };
        TokenRequest {
            principal,
            app_group: AppGroupName::parse(&ask.group).unwrap(),
            role: role::Role::parse(ask.role).unwrap(),
            ttl_s: ask.ttl_s,
            scope: ask.scope.iter().map(|entry| Operation::parse(entry).unwrap()).collect(),
        }
    }
}

fn fold(state: &mut State, change: Change) {
    let record = Record {
        revision: state.head().revision.next(),
        at: UnixMillis(0),
        actor: Actor::broker(),
        audit: AuditPosition { writer: WriterId::from_random(1), sequence: 1 },
        change,
    };
    state.fold(&record, Chain([7; 32])).unwrap();
}

fn document(world: &World, issuers: &[&str]) -> Document {
    let issuer_id = "57246542-96fe-1a63-e053-0824d011072a".to_owned();
    Document {
        accounts: ["acme", "other"]
            .map(|name| AccountText { name: name.to_owned(), issuer_id: issuer_id.clone() })
            .to_vec(),
        app_groups: world
            .groups
            .iter()
            .map(|it| AppGroupText { name: it.name.clone(), account: it.account.clone(), apps: it.apps.clone() })
            .collect(),
        issuers: issuers
            .iter()
            .map(|name| IssuerText {
                name: (*name).to_owned(),
                kind: "oidc".to_owned(),
                url: Some(format!("https://{name}.example")),
                audiences: vec!["p8broker".to_owned()],
                ..IssuerText::default()
            })
            .collect(),
        ceilings: world.ceilings.iter().map(ceiling).collect(),
        policies: world.policies.iter().map(policy).collect(),
        operators: vec![],
    }
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|it| (*it).to_owned()).collect()
}

fn policy(it: &Policy) -> PolicyText {
    PolicyText {
        name: it.name.clone(),
        clients: it.clients.iter().map(client).collect(),
        app_group: it.group.clone(),
        roles: texts(&it.roles),
        max_ttl: Some(it.max_ttl_s),
        default_ttl: Some(it.default_ttl_s),
        operations: it.operations.clone(),
        features: it.features.clone(),
        require_scope: it.require_scope,
        require_mtls: it.require_mtls.iter().map(client).collect(),
        quota: None,
        not_before: it.not_before.map(UnixMillis),
        not_after: it.not_after.map(UnixMillis),
        hours: it.hours.as_ref().map(hours),
        break_glass: it.break_glass,
        shadow: it.shadow,
    }
}

fn hours(it: &Hours) -> HoursText {
    let time = |minutes: i64| format!("{:02}:{:02}", minutes / 60, minutes % 60);
    let zone = match it.zone {
        Zone::Berlin => "Europe/Berlin",
        Zone::NewYork => "America/New_York",
    };
    HoursText { time_zone: zone.to_owned(), days: texts(&it.days), from: time(it.from), until: time(it.until) }
}

fn ceiling(it: &Ceiling) -> CeilingText {
    let some = |list: Vec<String>| Some(list).filter(|list| !list.is_empty());
    let clients: Vec<ClientText> = it.clients.iter().map(client).collect();
    CeilingText {
        name: it.name.clone(),
        app_groups: it.groups.clone(),
        every_app_group: it.groups.is_none(),
        max_ttl: it.max_ttl_s,
        never_roles: some(texts(&it.never_roles)),
        clients: Some(clients).filter(|list| !list.is_empty()),
        issuers: some(it.issuers.clone()),
        trust_domains: some(it.trust_domains.clone()),
        require_scope: it.require_scope,
        no_team_keys: it.no_team_keys,
        require_approval: false,
        shadow: it.shadow,
    }
}

fn client(pattern: &Pattern) -> ClientText {
    match pattern.clone() {
        Pattern::Spiffe(text) => ClientText { spiffe: Some(text), ..ClientText::default() },
        Pattern::Dns(text) => ClientText { dns: Some(text), ..ClientText::default() },
        Pattern::Oidc { issuer, subject, claims } => {
            let oidc = OidcText { issuer, subject, claims: claims.into_iter().collect() };
            ClientText { oidc: Some(oidc), ..ClientText::default() }
        }
    }
}

fn imported(it: &Key) -> key::Key {
    let app = |id: &String| AppId::parse(id).unwrap();
    let individual = |app_access| KeyKind::Individual {
        user: AppleUser::parse("a@b").unwrap(),
        app_access,
        declared_at: UnixMillis(0),
    };
    key::Key {
        id: KeyId::parse(&it.id).unwrap(),
        account: AccountName::parse(&it.account).unwrap(),
        profile: Profile::AppStoreConnect,
        kind: match &it.individual {
            None => KeyKind::Team,
            Some(Apps::All) => individual(AppAccess::All),
            Some(Apps::Only(apps)) => individual(AppAccess::Only(apps.iter().map(app).collect())),
        },
        roles: it.roles.iter().map(|it| role::Role::parse(it).unwrap()).collect(),
        app_groups: it.groups.iter().map(|it| AppGroupName::parse(it).unwrap()).collect(),
        fingerprint: String::new(),
        public_key: String::new(),
        state: match it.state {
            KeyState::Active => key::KeyState::Active,
            KeyState::Suspended => key::KeyState::Suspended,
            KeyState::Revoked => key::KeyState::Revoked,
        },
        imported: Stamp { by: "x".to_owned(), at: UnixMillis(0) },
        imported_revision: Revision(0),
        revoked: None,
        confirmed_at_apple: None,
    }
}
