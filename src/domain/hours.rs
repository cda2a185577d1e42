//! Allowed hours: on which days, and from when until when, by the clock on the wall of a named time zone.
//!
//! A moment lies within the hours where a clock in the zone shows an allowed time of an allowed day. The clock alone
//! decides: what it leaps over in spring is not open, and what it shows twice in autumn is open twice. Hours whose end
//! is at or before their start cross midnight, and belong to the day on which they start.
//!
//! The zones come from the database that is compiled in (RFC 9636), never from the machine's, so that all replicas of
//! one version agree. IANA keeps every name it ever gave, so a recorded zone can still be read by a later version.
//!
//! # Invariants
//! - `INV-HOURS-1`: every second from `now` until [`Hours::open_until`] lies within the hours.

use std::fmt;

use jiff::Timestamp;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::id::shown;

/// The days of the week, as they are written.
pub const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

const MINUTE_S: i64 = 60;
const DAY_S: i64 = 24 * 60 * MINUTE_S;
const DAY_MINUTES: u16 = 24 * 60;

/// Allowed hours in one time zone.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Hours {
    /// As the database spells it.
    time_zone: String,
    /// One bit a day, Monday the lowest.
    days: u8,
    /// Minute of the day of the first moment within.
    from: u16,
    /// Minute of the day of the first moment not within.
    until: u16,
    /// The rules of `time_zone`; a clone shares them.
    zone: TimeZone,
}

/// Hours as a record keeps them.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    time_zone: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    days: Option<Vec<String>>,
    from: String,
    until: String,
}

impl Hours {
    /// Takes hours as they are written: an IANA time zone, days (`mon` to `sun`, every day where there is none), and
    /// two times (`HH:MM`, `24:00` for the end of the day).
    ///
    /// # Errors
    /// With everything that is wrong, each with the name of its field.
    pub fn parse(
        time_zone: &str,
        days: &[String],
        from: &str,
        until: &str,
    ) -> Result<Self, Vec<(&'static str, String)>> {
        let mut wrong = Vec::new();
        let zone = parse_zone(time_zone).map_err(|message| wrong.push(("time_zone", message)));
        let days = parse_days(days).map_err(|message| wrong.push(("days", message)));
        let from = parse_time(from).and_then(before_midnight).map_err(|message| wrong.push(("from", message)));
        let until = parse_time(until).map_err(|message| wrong.push(("until", message)));
        if let (Ok(from), Ok(until)) = (from, until)
            && from == until
        {
            let message = "`until` is `from`: give two times, or 00:00 and 24:00 for the whole day".to_owned();
            wrong.push(("until", message));
        }
        match (zone, days, from, until) {
            (Ok((time_zone, zone)), Ok(days), Ok(from), Ok(until)) if wrong.is_empty() => {
                Ok(Self { time_zone, days, from, until, zone })
            }
            _ => Err(wrong),
        }
    }

    /// The IANA name of the time zone.
    pub fn time_zone(&self) -> &str {
        &self.time_zone
    }

    /// The days on which the hours start, Monday first.
    pub fn days(&self) -> impl Iterator<Item = &'static str> {
        DAYS.into_iter().enumerate().filter(|(at, _)| self.days & (1 << at) != 0).map(|(_, day)| day)
    }

    /// The time at which the hours start, such as `08:00`.
    pub fn from(&self) -> String {
        time_of_day(self.from)
    }

    /// The time at which the hours end, such as `18:00`, or `24:00`; of the next day where that is not after the start.
    pub fn until(&self) -> String {
        time_of_day(self.until)
    }

    /// The Unix second at which the hours that `now` lies within are over; `None` where it lies outside of them, and
    /// for a time beyond the calendar. Hours that follow at once, such as 00:00 after 24:00, are hours of their own:
    /// then this is that midnight.
    pub fn open_until(&self, now: UnixMillis) -> Option<i64> {
        let mut at = now.seconds();
        let (mut started, mut until) = (None, None);
        // INVARIANT (INV-HOURS-1): where the zone's clock is set within the hours, it is read again from there. No zone
        // does that twice in a day; were it to, the answer would only be too early.
        for _ in 0..4 {
            let (moment, local) = self.wall_clock(at)?;
            let Some((day, end)) = self.end_of_hours(local) else { return until };
            if started.is_some_and(|started| started != day) {
                return until;
            }
            started = Some(day);
            let end = end - (local - at);
            match self.next_setting(moment) {
                Some(set) if set <= end => {
                    until = Some(set);
                    at = set;
                }
                _ => return Some(end),
            }
        }
        until
    }

    /// The next Unix second after `now` at which hours start: the coming ones, or those after the present ones.
    pub fn next_opening(&self, now: UnixMillis) -> Option<i64> {
        let mut at = self.open_until(now).unwrap_or(now.seconds());
        // Each step reaches the next start, or the next setting of the zone's clock before it.
        for _ in 0..16 {
            let (moment, local) = self.wall_clock(at)?;
            if at > now.seconds() && self.end_of_hours(local).is_some() {
                return Some(at);
            }
            let start = self.next_start(local)? - (local - at);
            at = self.next_setting(moment).map_or(start, |set| set.min(start));
        }
        None
    }

    /// The moment, and what a clock in the zone shows then, in seconds as if it were UTC.
    fn wall_clock(&self, at: i64) -> Option<(Timestamp, i64)> {
        let moment = Timestamp::from_second(at).ok()?;
        Some((moment, at + i64::from(self.zone.to_offset(moment).seconds())))
    }

    /// When the zone's clock is next set forward or back.
    fn next_setting(&self, moment: Timestamp) -> Option<i64> {
        self.zone.following(moment).next().map(|setting| setting.timestamp().as_second())
    }

    /// The day on which the hours that this time lies within started, and what the clock will show when they are over.
    fn end_of_hours(&self, local: i64) -> Option<(i64, i64)> {
        let (day, second) = (local.div_euclid(DAY_S), local.rem_euclid(DAY_S));
        let (from, until) = (i64::from(self.from) * MINUTE_S, i64::from(self.until) * MINUTE_S);
        let crosses_midnight = until <= from;
        let midnight = day * DAY_S;
        if second >= from && (crosses_midnight || second < until) && self.starts_on(day) {
            return Some((day, midnight + until + if crosses_midnight { DAY_S } else { 0 }));
        }
        (crosses_midnight && second < until && self.starts_on(day - 1)).then_some((day - 1, midnight + until))
    }

    /// What the clock will show when hours next start.
    fn next_start(&self, local: i64) -> Option<i64> {
        let today = local.div_euclid(DAY_S);
        (today..=today + 7)
            .filter(|day| self.starts_on(*day))
            .map(|day| day * DAY_S + i64::from(self.from) * MINUTE_S)
            .find(|start| *start > local)
    }

    fn starts_on(&self, day: i64) -> bool {
        // Day 0, 1 January 1970, was a Thursday.
        self.days & (1 << (day + 3).rem_euclid(7)) != 0
    }
}

/// The zone's name says all of its rules.
impl PartialEq for Hours {
    fn eq(&self, other: &Self) -> bool {
        (&self.time_zone, self.days, self.from, self.until) == (&other.time_zone, other.days, other.from, other.until)
    }
}

impl Eq for Hours {}

/// For a person: `08:00 to 18:00 in Europe/Berlin, mon tue wed`.
impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {} in {},", self.from(), self.until(), self.time_zone)?;
        self.days().try_for_each(|day| write!(f, " {day}"))
    }
}

impl TryFrom<Written> for Hours {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        // Absent is every day; an empty list never is.
        if written.days.as_ref().is_some_and(Vec::is_empty) {
            return Err("days: an empty list names no day: leave it out for every day".to_owned());
        }
        let days = written.days.unwrap_or_default();
        Self::parse(&written.time_zone, &days, &written.from, &written.until).map_err(|wrong| {
            wrong.iter().map(|(field, message)| format!("{field}: {message}")).collect::<Vec<_>>().join("; ")
        })
    }
}

impl From<Hours> for Written {
    fn from(hours: Hours) -> Self {
        Self {
            days: Some(hours.days().map(str::to_owned).collect()),
            from: hours.from(),
            until: hours.until(),
            time_zone: hours.time_zone,
        }
    }
}

/// The zone, and its name as the database spells it.
fn parse_zone(text: &str) -> Result<(String, TimeZone), String> {
    let zones = TimeZoneDatabase::bundled();
    let found = zones.get(text).ok().and_then(|zone| Some((zone.iana_name()?.to_owned(), zone)));
    found.ok_or_else(|| match nearest_zone(&zones, text) {
        Some(name) => format!("`{}` is no IANA time zone; did you mean `{name}`?", shown(text)),
        None => format!("`{}` is no IANA time zone such as Europe/Berlin", shown(text)),
    })
}

fn nearest_zone(zones: &TimeZoneDatabase, text: &str) -> Option<String> {
    // No name is that long, and comparing costs more the longer the text is.
    if text.len() > 40 {
        return None;
    }
    let text = text.to_lowercase();
    let likeness = |name: &str| strsim::normalized_damerau_levenshtein(&name.to_lowercase(), &text);
    let named = zones.available().map(|name| (likeness(name.as_str()), name));
    let nearest = named.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(likeness, _)| *likeness > 0.6);
    nearest.map(|(_, name)| name.as_str().to_owned())
}

fn parse_days(days: &[String]) -> Result<u8, String> {
    let mut bits = 0;
    let mut unknown = Vec::new();
    for day in days {
        match DAYS.iter().position(|known| known == day) {
            Some(at) => bits |= 1 << at,
            None => unknown.push(format!("`{}`", shown(day))),
        }
    }
    if !unknown.is_empty() {
        return Err(format!("{} is no day: the days are {}", unknown.join(", "), DAYS.join(", ")));
    }
    Ok(if days.is_empty() { (1 << DAYS.len()) - 1 } else { bits })
}

/// `HH:MM` as the minute of the day.
fn parse_time(text: &str) -> Result<u16, String> {
    let two_digits = |text: &str| {
        let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u16>().ok()).flatten()
    };
    text.split_once(':')
        .and_then(|(hours, minutes)| Some((two_digits(hours)?, two_digits(minutes)?)))
        .filter(|(hours, minutes)| *hours < 24 && *minutes < 60 || (*hours, *minutes) == (24, 0))
        .map(|(hours, minutes)| hours * 60 + minutes)
        .ok_or_else(|| format!("`{}` is no time of day: HH:MM, 00:00 to 24:00", shown(text)))
}

fn before_midnight(minute: u16) -> Result<u16, String> {
    if minute < DAY_MINUTES {
        Ok(minute)
    } else {
        Err("no hours start at 24:00: write 00:00 of the next day".to_owned())
    }
}

fn time_of_day(minute: u16) -> String {
    format!("{:02}:{:02}", minute / 60, minute % 60)
}

#[cfg(test)]
mod tests;
