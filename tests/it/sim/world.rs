//! What a simulated fleet serves: three teams of two accounts, their clients, policies and keys.

use p8broker::broker::{KeyImport, TokenAsk};
use p8broker::clock::UnixMillis;
use p8broker::domain::decide::TokenRequest;
use p8broker::domain::document::{AccountText, AppGroupText, ClientText, Document, PolicyText};
use p8broker::domain::operation::Operation;
use p8broker::domain::principal::Principal;
use p8broker::domain::role::Role;
use p8broker::domain::target::Target;
use p8broker::id::{AccountName, AppGroupName, ClientId, IssuerName, KeyId, PolicyName};
use p8broker::secret::P8Text;

use crate::chaos::Random;
use crate::harness::{ISSUER, new_p8};

pub const OPERATOR: &str = "spiffe://acme.internal/ns/ops/sa/admin";

/// When every simulation begins: 2027-01-15T08:00:00Z.
pub const BEGIN: UnixMillis = UnixMillis(1_800_000_000_000);

/// Teams, each with its account.
pub const TEAMS: [(&str, &str); 3] = [("games", "acme"), ("films", "acme"), ("books", "beta")];

/// The shortest and the longest life of a token, in seconds: many die while others are issued.
const LIVES: (i64, i64) = (30, 45);

/// What a key is for.
#[derive(Clone)]
pub struct KnownKey {
    pub id: KeyId,
    pub team: usize,
    pub role: Role,
}

pub fn key_id(nth: u64) -> KeyId {
    KeyId::parse(&format!("K{nth:09}")).unwrap()
}

/// Two keys for each team, which `first_keys` imports.
pub fn known_keys() -> Vec<KnownKey> {
    let roles = [Role::AppManager, Role::Developer];
    (0..TEAMS.len() * 2).map(|nth| KnownKey { id: key_id(nth as u64), team: nth / 2, role: roles[nth % 2] }).collect()
}

pub fn first_keys() -> Vec<KeyImport> {
    known_keys().iter().map(import).collect()
}

pub fn import(key: &KnownKey) -> KeyImport {
    let (team, account) = TEAMS[key.team];
    KeyImport {
        id: key.id.clone(),
        account: AccountName::parse(account).unwrap(),
        individual: None,
        roles: [key.role].into_iter().collect(),
        app_groups: [AppGroupName::parse(team).unwrap()].into_iter().collect(),
        p8: P8Text::new(new_p8().into_bytes()),
    }
}

/// A client of one team, or the one that every team knows.
pub fn client(team: usize, nth: u64) -> ClientId {
    let name = if nth == 0 { "anybody".to_owned() } else { format!("{}-{nth}", TEAMS[team].0) };
    ClientId::parse(&format!("spiffe://acme.internal/ns/ci/sa/{name}")).unwrap()
}

/// How many clients a team has, with the one that every team knows.
pub const CLIENTS: u64 = 4;

pub fn document() -> Document {
    let account = |name: &str| AccountText { name: name.to_owned(), issuer_id: ISSUER.to_owned() };
    let group = |(nth, (team, account)): (usize, &(&str, &str))| AppGroupText {
        name: (*team).to_owned(),
        account: (*account).to_owned(),
        apps: vec![format!("{}", 1_234_567_890 + nth)],
    };
    Document {
        accounts: vec![account("acme"), account("beta")],
        app_groups: TEAMS.iter().enumerate().map(group).collect(),
        policies: (0..TEAMS.len()).flat_map(|team| [wide(team, LIVES.0), narrow(team, LIVES.1)]).collect(),
        operators: Vec::new(),
        ..Document::default()
    }
}

/// One policy anew, with another lifetime.
pub fn changed_policy(random: &mut Random) -> Document {
    let team = team(random);
    let life = LIVES.0 + i64::try_from(random.below(u64::try_from(LIVES.1 - LIVES.0).unwrap() + 1)).unwrap();
    let policy = if random.below(2) == 0 { wide(team, life) } else { narrow(team, life) };
    Document { policies: vec![policy], ..Document::default() }
}

/// All clients of a team, both roles.
fn wide(team: usize, life_s: i64) -> PolicyText {
    let clients = ["anybody", &format!("{}-*", TEAMS[team].0)].map(spiffe);
    policy(team, "wide", clients.to_vec(), &["APP_MANAGER", "DEVELOPER"], life_s)
}

/// Some of them, one role: so that some requests are granted by either.
fn narrow(team: usize, life_s: i64) -> PolicyText {
    policy(team, "narrow", vec![spiffe("anybody"), spiffe(&format!("{}-1", TEAMS[team].0))], &["DEVELOPER"], life_s)
}

fn spiffe(name: &str) -> ClientText {
    ClientText { spiffe: Some(format!("spiffe://acme.internal/ns/ci/sa/{name}")), ..ClientText::default() }
}

fn policy(team: usize, kind: &str, clients: Vec<ClientText>, roles: &[&str], life_s: i64) -> PolicyText {
    PolicyText {
        name: format!("{}-{kind}", TEAMS[team].0),
        clients,
        app_group: TEAMS[team].0.to_owned(),
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        max_ttl: Some(life_s),
        ..PolicyText::default()
    }
}

/// A request of a random client; for a token of its own where `fresh`, else for one of a few that are asked for often.
pub fn ask(random: &mut Random, fresh: Option<u64>) -> TokenAsk {
    let team = team(random);
    let entry = fresh.map_or_else(|| random.below(2), |nth| 1000 + nth);
    TokenAsk {
        request: TokenRequest {
            principal: Principal::of_certificate(client(team, random.below(CLIENTS))),
            app_group: AppGroupName::parse(TEAMS[team].0).unwrap(),
            role: *random.pick(&[Role::AppManager, Role::Developer]),
            ttl_s: None,
            scope: vec![Operation::parse(&format!("GET /v1/builds/{entry}")).unwrap()],
        },
        fresh: fresh.is_some(),
    }
}

fn team(random: &mut Random) -> usize {
    usize::try_from(random.below(TEAMS.len() as u64)).unwrap()
}

/// Something to revoke, other than a token or a key.
pub fn target(random: &mut Random) -> Target {
    let nth = team(random);
    let (team, account) = TEAMS[nth];
    match random.below(20) {
        0..9 => Target::Client(client(nth, random.below(CLIENTS))),
        9..15 => {
            let kind = random.pick(&["wide", "narrow"]);
            Target::Policy(PolicyName::parse(&format!("{team}-{kind}")).unwrap())
        }
        15..18 => Target::AppGroup(AppGroupName::parse(team).unwrap()),
        18 => Target::Account(AccountName::parse(account).unwrap()),
        _ => Target::Issuer(IssuerName::parse("github").unwrap()),
    }
}
