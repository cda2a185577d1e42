//! Documents that must be refused, each made from an honest one by what it changes. Also read by the test of the JSON Schema.

mod identities;
mod limits;
mod shapes;

/// A document that is taken.
pub(crate) const HONEST: &str = include_str!("honest.yaml");

/// Whoever tells what is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// The parser, without a broker.
    Offline,
    /// The broker, whose vault holds the honest document and a key of its app group.
    ByTheBroker,
    /// The same, where what is not named goes.
    ByTheBrokerWhenPruning,
}

/// One document, and what is wrong with it.
#[derive(Debug, Clone)]
pub(crate) struct Hostile {
    pub(crate) name: String,
    pub(crate) text: String,
    /// The paths of the violations, with `|` between them and `[*]` for any entry, and a part of the first one's message.
    pub(crate) path: String,
    pub(crate) says: String,
    pub(crate) told: Told,
}

/// What, what is replaced, by what, the path, and what is said of it.
type Row = (&'static str, &'static str, &'static str, &'static str, &'static str);

/// Every hostile document.
pub(crate) fn hostile() -> Vec<Hostile> {
    let tables = [
        (identities::OFFLINE, Told::Offline),
        (identities::OF_STATE, Told::ByTheBroker),
        (limits::OFFLINE, Told::Offline),
        (limits::OF_STATE, Told::ByTheBroker),
        (limits::OF_PRUNING, Told::ByTheBrokerWhenPruning),
        (shapes::OFFLINE, Told::Offline),
    ];
    let of_table = |(rows, told): (&[Row], Told)| rows.iter().map(|row| edited(row, told)).collect::<Vec<_>>();
    let mut out: Vec<Hostile> = tables.into_iter().flat_map(of_table).collect();
    out.extend(identities::whole());
    out.extend(shapes::whole());
    out.extend(limits::whole());
    out
}

/// Documents a step away from hostile ones, and taken.
pub(crate) fn honest() -> Vec<String> {
    identities::honest()
}

fn edited((name, from, to, path, says): &Row, told: Told) -> Hostile {
    assert_eq!(HONEST.matches(from).count(), 1, "{name}: `{from}` must stand in the honest document once");
    let text = HONEST.replace(from, to);
    Hostile { name: (*name).to_owned(), text, path: (*path).to_owned(), says: (*says).to_owned(), told }
}

fn whole(name: &str, text: String, path: &str, says: &str, told: Told) -> Hostile {
    Hostile { name: name.to_owned(), text, path: path.to_owned(), says: says.to_owned(), told }
}
