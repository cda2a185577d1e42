//! Worlds as plain records: what is there, and where the clocks stand. [`super::any`] makes them.

use p8broker::clock::UnixMillis;

pub type Role = &'static str;

#[derive(Debug)]
pub struct World {
    /// What times lie around, in Unix seconds.
    pub base_s: i64,
    pub groups: Vec<Group>,
    /// Those that are trusted.
    pub issuers: Vec<String>,
    pub ceilings: Vec<Ceiling>,
    pub policies: Vec<Policy>,
    pub keys: Vec<Key>,
    pub revoked: Vec<(&'static str, String)>,
    /// Open break-glass policies, and until when, in Unix seconds.
    pub opened: Vec<(String, i64)>,
    pub sealed: bool,
    /// Those who ask.
    pub callers: Vec<Caller>,
}

#[derive(Debug)]
pub struct Group {
    pub name: String,
    pub account: String,
    pub apps: Vec<String>,
}

#[derive(Debug)]
pub struct Policy {
    pub name: String,
    pub clients: Vec<Pattern>,
    pub group: String,
    pub roles: Vec<Role>,
    pub max_ttl_s: i64,
    pub default_ttl_s: i64,
    pub operations: Vec<String>,
    pub features: Vec<String>,
    pub require_scope: bool,
    pub require_mtls: Vec<Pattern>,
    /// In milliseconds, as the next.
    pub not_before: Option<i64>,
    pub not_after: Option<i64>,
    pub hours: Option<Hours>,
    pub break_glass: bool,
    pub shadow: bool,
}

#[derive(Debug, Clone)]
pub enum Pattern {
    Spiffe(String),
    Dns(String),
    Oidc { issuer: String, subject: Option<String>, claims: Vec<(String, Vec<String>)> },
}

#[derive(Debug)]
pub struct Hours {
    pub zone: Zone,
    pub days: Vec<&'static str>,
    /// Minutes of the day.
    pub from: i64,
    pub until: i64,
}

#[derive(Debug, Clone, Copy)]
pub enum Zone {
    Berlin,
    NewYork,
}

#[derive(Debug)]
pub struct Ceiling {
    pub name: String,
    /// `None` is everywhere.
    pub groups: Option<Vec<String>>,
    pub max_ttl_s: Option<i64>,
    pub never_roles: Vec<Role>,
    pub clients: Vec<Pattern>,
    pub issuers: Vec<String>,
    pub trust_domains: Vec<String>,
    pub require_scope: bool,
    pub no_team_keys: bool,
    pub shadow: bool,
}

#[derive(Debug)]
pub struct Key {
    pub id: String,
    pub account: String,
    /// The declared apps of an individual key.
    pub individual: Option<Apps>,
    pub roles: Vec<Role>,
    pub groups: Vec<String>,
    pub state: KeyState,
    /// Later imports have larger numbers.
    pub imported: i64,
}

#[derive(Debug)]
pub enum Apps {
    All,
    Only(Vec<String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    Active,
    Suspended,
    Revoked,
}

#[derive(Debug, Clone)]
pub struct Caller {
    pub name: String,
    /// The name in the certificate of the connection.
    pub certificate: Option<String>,
    pub issuer: Option<String>,
    pub subject: String,
    pub claims: Vec<(String, Vec<String>)>,
    /// Whether the issuer's record is not as it was when the token was verified.
    pub stale: bool,
}

#[derive(Debug)]
pub struct Ask {
    pub caller: Caller,
    pub group: String,
    pub role: Role,
    pub ttl_s: Option<i64>,
    pub scope: Vec<String>,
    pub now: UnixMillis,
}

impl Zone {
    /// Seconds east of UTC, as the law had them when this was written: summer time in 2026 and 2027.
    pub fn offset(self, at: i64) -> i64 {
        let (winter, summers) = match self {
            // 29 March to 25 October 2026 and 28 March to 31 October 2027, each at 01:00 UTC.
            Self::Berlin => (3600, [(1_774_746_000, 1_792_890_000), (1_806_195_600, 1_824_944_400)]),
            // 8 March to 1 November 2026 and 14 March to 7 November 2027, each at 02:00 of the wall.
            Self::NewYork => (-18_000, [(1_772_953_200, 1_793_512_800), (1_805_007_600, 1_825_567_200)]),
        };
        if summers.iter().any(|(from, until)| (*from..*until).contains(&at)) { winter + 3600 } else { winter }
    }
}

impl World {
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|it| it.name == name)
    }

    pub fn is_revoked(&self, kind: &str, name: &str) -> bool {
        self.revoked.iter().any(|(known, it)| *known == kind && it == name)
    }

    /// Those that hold everywhere, by name, then the group's own, by name.
    pub fn ceilings_over(&self, group: &str) -> Vec<&Ceiling> {
        let mut all: Vec<&Ceiling> = self
            .ceilings
            .iter()
            .filter(|it| it.groups.as_ref().is_none_or(|groups| groups.iter().any(|it| it == group)))
            .collect();
        all.sort_by_key(|it| (it.groups.is_some(), it.name.clone()));
        all
    }
}
