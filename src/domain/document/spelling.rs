//! How documents spell durations and times, both ways; and the same as regular expressions, for the JSON Schema.
//!
//! Durations are whole numbers of units whose length nobody argues about: a month is none of them. Times are RFC 3339.

use crate::clock::UnixMillis;

/// Units of durations, in seconds.
const UNITS: &[(&str, i64)] = &[
    ("s", 1),
    ("sec", 1),
    ("secs", 1),
    ("second", 1),
    ("seconds", 1),
    ("m", 60),
    ("min", 60),
    ("mins", 60),
    ("minute", 60),
    ("minutes", 60),
    ("h", 3600),
    ("hr", 3600),
    ("hrs", 3600),
    ("hour", 3600),
    ("hours", 3600),
    ("d", 86_400),
    ("day", 86_400),
    ("days", 86_400),
    ("w", 604_800),
    ("wk", 604_800),
    ("wks", 604_800),
    ("week", 604_800),
    ("weeks", 604_800),
];

/// The units that are written, longest first.
const WRITTEN: &[(&str, i64)] = &[("d", 86_400), ("h", 3600), ("m", 60)];

/// Times that [`millis`] may take: RFC 3339, with a `T`.
pub const TIME_PATTERN: &str =
    "^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$";

/// Durations that [`seconds`] takes, where the sum is not too large.
pub fn duration_pattern() -> String {
    let units = UNITS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join("|");
    format!("^[0-9]+ ?({units})( ?[0-9]+ ?({units}))*$")
}

/// Whole seconds of a text such as `90s`, `10m`, `1h 30m` or `30 days`.
pub fn seconds(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut sum = 0_i64;
    loop {
        let (digits, after) = split(rest, |b| b.is_ascii_digit())?;
        let (unit, after) = split(after.strip_prefix(' ').unwrap_or(after), |b| b.is_ascii_lowercase())?;
        let (_, length) = UNITS.iter().find(|(name, _)| *name == unit)?;
        sum = sum.checked_add(digits.parse::<i64>().ok()?.checked_mul(*length)?)?;
        if after.is_empty() {
            return Some(sum);
        }
        rest = after.strip_prefix(' ').unwrap_or(after);
    }
}

/// What a text begins with, and what comes after it.
fn split(text: &str, belongs: impl Fn(u8) -> bool) -> Option<(&str, &str)> {
    let end = text.bytes().position(|b| !belongs(b)).unwrap_or(text.len());
    text.split_at_checked(end).filter(|(first, _)| !first.is_empty())
}

/// Seconds in the longest unit that they are a whole number of.
pub fn duration(seconds: i64) -> String {
    let whole = |(_, length): &&(&str, i64)| seconds != 0 && seconds.rem_euclid(*length) == 0;
    match WRITTEN.iter().find(whole) {
        Some((unit, length)) => format!("{}{unit}", seconds.div_euclid(*length)),
        None => format!("{seconds}s"),
    }
}

/// A time such as `2026-12-31T00:00:00Z`, to the millisecond.
pub fn millis(text: &str) -> Option<UnixMillis> {
    let apart = text.as_bytes().get(10).is_some_and(|b| matches!(b, b'T' | b't'));
    UnixMillis::parse(text).filter(|at| apart && can_be_written(*at))
}

/// A time in UTC; with parts of a second only where it has some.
pub fn time(at: UnixMillis) -> String {
    let text = at.to_string();
    match at.0.rem_euclid(1000) {
        0 => text,
        part => format!("{}.{part:03}Z", text.trim_end_matches('Z')),
    }
}

/// Whether RFC 3339 has a spelling for it: years 0 to 9999.
pub fn can_be_written(at: UnixMillis) -> bool {
    UnixMillis::parse(&time(at)) == Some(at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_whole_numbers_of_units_that_nobody_argues_about() {
        for (text, wanted) in [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1h 30m", 5400), ("30 days", 2_592_000)] {
            assert_eq!(seconds(text), Some(wanted), "{text}");
        }
        for bad in [
            "",
            "10",
            "m",
            "1M",
            "1month",
            "1y",
            "1.5h",
            "10ms",
            "-5m",
            " 10m",
            "10m ",
            "10  m",
            "1 0m",
            "1h,30m",
            "10m\n",
            "١m",
            "9223372036854775807m",
            "99999999999999999999s",
            "0x10s",
            "10M",
            "1µs",
        ] {
            assert_eq!(seconds(bad), None, "{bad:?}");
        }
        assert_eq!([0, 59, 60, 5400, 7200, 86_400].map(duration), ["0s", "59s", "1m", "90m", "2h", "1d"]);
    }

    #[test]
    fn times_are_to_the_millisecond_and_in_years_that_have_a_spelling() {
        for text in ["2026-12-31T00:00:00Z", "2026-12-31T00:00:00.500Z", "0000-01-01T00:00:00Z"] {
            assert_eq!(millis(text).map(time).as_deref(), Some(text));
        }
        assert_eq!(millis("2026-12-31t01:00:00+01:00").map(time).as_deref(), Some("2026-12-31T00:00:00Z"));
        for bad in ["2026-12-31", "2026-12-31 00:00:00Z", "2026-13-01T00:00:00Z", "9999-12-31T23:59:59-01:00", ""] {
            assert_eq!(millis(bad), None, "{bad}");
        }
        assert!(!can_be_written(UnixMillis(i64::MAX)) && !can_be_written(UnixMillis(i64::MIN)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(s in 0..i64::MAX, at in -62_000_000_000_000..253_000_000_000_000_i64) {
            prop_assert_eq!(seconds(&duration(s)), Some(s));
            prop_assert_eq!(millis(&time(UnixMillis(at))), Some(UnixMillis(at)));
        }
    }
}
