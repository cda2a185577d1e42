//! Makes the pieces of a world: callers, patterns that may mean them, hours, keys.

use std::collections::BTreeSet;

use super::any::{DAYS, ISSUERS, ROLES};
use super::world::{Apps, Caller, Hours, Key, KeyState, Pattern, Zone};
use crate::chaos::Random;

pub fn owned(list: &[&str]) -> Vec<String> {
    list.iter().map(|it| (*it).to_owned()).collect()
}

pub fn any_caller(random: &mut Random) -> Caller {
    let spiffe = |random: &mut Random| {
        let segments = ["a", "b", "ab", "aab", "abb", "ci"];
        let path = (0..=random.below(2)).map(|_| *random.pick(&segments)).collect::<Vec<_>>().join("/");
        format!("spiffe://{}/{path}", random.pick(&["acme", "acme", "beta"]))
    };
    let dns = |random: &mut Random| format!("dns:{}.acme.internal", random.pick(&["ci", "ci-1", "a.ci", "cici"]));
    let by_name = |random: &mut Random| if random.chance(70) { spiffe(random) } else { dns(random) };
    if random.chance(55) {
        let name = by_name(random);
        return Caller {
            certificate: Some(name.clone()),
            name,
            issuer: None,
            subject: String::new(),
            claims: vec![],
            stale: false,
        };
    }
    let issuer = (*random.pick(&ISSUERS)).to_owned();
    let subject = (*random.pick(&["repo:acme/a", "repo:acme/ab:ref:main", "bot", "robot", "a@b"])).to_owned();
    let mut claims = vec![("sub".to_owned(), vec![subject.clone()])];
    for (name, values) in [
        ("ref", &["refs/heads/main", "refs/tags/v1", "main"][..]),
        ("id", &["1", "2", "12"]),
        ("groups", &["ops", "dev", "ops-dev"]),
        ("/k/ns", &["ci", "prod"]),
    ] {
        if random.chance(60) {
            claims.push((name.to_owned(), owned(&random.some(values, 1, 2))));
        }
    }
    let certificate = random.chance(40).then(|| by_name(random));
    Caller {
        name: format!("oidc:{issuer}:{subject}"),
        certificate,
        issuer: Some(issuer),
        subject,
        claims,
        stale: false,
    }
}

/// Puts a `*` for some of the characters between separators, sometimes.
pub fn glob(text: &str, separators: &str, random: &mut Random) -> String {
    let mut out = text.to_owned();
    // Sometimes over separators, too: then it means others.
    let kept = if random.chance(15) { "" } else { separators };
    for _ in 0..2 {
        if !random.chance(30) {
            continue;
        }
        let start = random.index(out.len() + 1);
        let most = out[start..].find(|c| kept.contains(c)).unwrap_or(out.len() - start);
        out.replace_range(start..start + random.index(most + 1), "*");
    }
    let wild = |part: &str| !part.is_empty() && part.chars().all(|c| c == '*');
    if out.split(|c| separators.contains(c)).all(wild) { text.to_owned() } else { out }
}

pub fn name_pattern(name: &str, random: &mut Random) -> Pattern {
    match name.strip_prefix("dns:") {
        Some(host) => {
            // The last two labels are exact.
            let free = host.strip_suffix(".acme.internal").unwrap();
            let label =
                |glob: &String| glob.split('.').all(|it| !it.is_empty() && !it.starts_with('-') && !it.ends_with('-'));
            let glob = Some(glob(free, ".", random)).filter(label).unwrap_or(free.to_owned());
            Pattern::Dns(format!("{glob}.acme.internal"))
        }
        None => {
            let (domain, path) = name.strip_prefix("spiffe://").unwrap().split_once('/').unwrap();
            let glob = Some(glob(path, "/", random)).filter(|glob| glob.split('/').all(|it| !it.is_empty()));
            Pattern::Spiffe(format!("spiffe://{domain}/{}", glob.as_deref().unwrap_or(path)))
        }
    }
}

pub fn any_hours(random: &mut Random) -> Hours {
    let from = i64::try_from(random.below(48)).unwrap() * 30;
    // Often at a time that comes twice, or never, where a clock is set.
    let night = random.chance(40).then(|| *random.pick(&[60, 90, 120, 150, 180]));
    let mut until = night.unwrap_or(i64::try_from(random.below(49)).unwrap() * 30);
    if until == from {
        (until, _) = (1440, ());
    }
    Hours { zone: *random.pick(&[Zone::Berlin, Zone::NewYork]), days: random.some(&DAYS, 3, 7), from, until }
}

pub fn any_key(nth: u64, home: &str, random: &mut Random) -> Key {
    let of_other = home == "lab";
    let mut groups: BTreeSet<&str> = [if random.chance(85) {
        home
    } else if of_other {
        "lab"
    } else {
        "games"
    }]
    .into();
    if !of_other && random.chance(40) {
        groups.extend(["games", "tools"]);
    }
    let mut roles = if random.chance(60) { vec![*random.pick(&ROLES[..3])] } else { random.some(&ROLES[..3], 1, 3) };
    if random.chance(15) {
        roles.extend(random.some(&ROLES[3..], 1, 2));
    }
    let individual = match random.below(10) {
        0 | 1 => Some(Apps::Only(vec!["222".to_owned()])),
        2 => Some(Apps::Only(owned(&["111", "333"]))),
        3 => Some(Apps::All),
        _ => None,
    };
    Key {
        id: format!("KEY000000{nth}"),
        account: if of_other { "other" } else { "acme" }.to_owned(),
        individual,
        roles,
        groups: groups.into_iter().map(ToOwned::to_owned).collect(),
        state: *random.pick(&[
            KeyState::Active,
            KeyState::Active,
            KeyState::Active,
            KeyState::Active,
            KeyState::Suspended,
            KeyState::Revoked,
        ]),
        imported: i64::try_from(nth).unwrap(),
    }
}
