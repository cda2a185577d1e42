//! Named days on which clocks are set, and a slow reading of the same hours, minute by minute.

use jiff::civil::Weekday;
use proptest::prelude::*;

use super::*;

fn hours(time_zone: &str, days: &[&str], from: &str, until: &str) -> Hours {
    let days: Vec<_> = days.iter().map(|day| (*day).to_owned()).collect();
    Hours::parse(time_zone, &days, from, until).unwrap()
}

fn at(text: &str) -> UnixMillis {
    UnixMillis::parse(text).unwrap()
}

fn open_until(hours: &Hours, now: &str) -> Option<String> {
    hours.open_until(at(now)).map(|end| UnixMillis::from_seconds(end).to_string())
}

fn next_opening(hours: &Hours, now: &str) -> String {
    UnixMillis::from_seconds(hours.next_opening(at(now)).unwrap()).to_string()
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn office_hours_are_those_of_the_zone_in_winter_and_in_summer() {
    let office = hours("Europe/Berlin", &["mon", "tue", "wed", "thu", "fri"], "08:00", "18:00");
    assert_eq!(open_until(&office, "2026-01-05T07:00:00Z"), some("2026-01-05T17:00:00Z"));
    assert_eq!(open_until(&office, "2026-07-06T06:00:00Z"), some("2026-07-06T16:00:00Z"));
    assert_eq!(open_until(&office, "2026-07-06T05:59:59.999Z"), None);
    assert_eq!(open_until(&office, "2026-07-06T15:59:59.999Z"), some("2026-07-06T16:00:00Z"));
    assert_eq!(open_until(&office, "2026-07-06T16:00:00Z"), None);
    // Saturday.
    assert_eq!(open_until(&office, "2026-07-04T10:00:00Z"), None);
    assert_eq!(next_opening(&office, "2026-07-04T10:00:00Z"), "2026-07-06T06:00:00Z");
    // Open now: the next start is tomorrow's; and over the weekend the clock is set.
    assert_eq!(next_opening(&office, "2026-07-06T06:00:00Z"), "2026-07-07T06:00:00Z");
    assert_eq!(next_opening(&office, "2026-03-27T17:00:00Z"), "2026-03-30T06:00:00Z");
    // A zone that is neither whole hours from UTC nor ever set.
    let kathmandu = hours("Asia/Kathmandu", &[], "09:00", "17:00");
    assert_eq!(open_until(&kathmandu, "2026-05-01T03:15:00Z"), some("2026-05-01T11:15:00Z"));
    assert_eq!(open_until(&kathmandu, "2026-05-01T03:14:59Z"), None);
}

#[test]
fn hours_that_cross_midnight_belong_to_the_day_on_which_they_start() {
    let night = hours("America/New_York", &["fri"], "22:00", "06:00");
    // Friday 22:00 to Saturday 06:00, in daylight saving time.
    assert_eq!(open_until(&night, "2026-07-04T01:59:59Z"), None);
    assert_eq!(open_until(&night, "2026-07-04T02:00:00Z"), some("2026-07-04T10:00:00Z"));
    assert_eq!(open_until(&night, "2026-07-04T09:59:59Z"), some("2026-07-04T10:00:00Z"));
    assert_eq!(open_until(&night, "2026-07-04T10:00:00Z"), None);
    // Friday before 06:00 would belong to Thursday.
    assert_eq!(open_until(&night, "2026-07-03T09:00:00Z"), None);
    assert_eq!(next_opening(&night, "2026-07-04T10:00:00Z"), "2026-07-11T02:00:00Z");
    let evening = hours("America/New_York", &["fri"], "22:00", "00:00");
    assert_eq!(open_until(&evening, "2026-07-04T02:00:00Z"), some("2026-07-04T04:00:00Z"));
    assert_eq!(open_until(&evening, "2026-07-04T04:00:00Z"), None);
}

#[test]
fn what_the_clock_leaps_over_in_spring_is_not_open() {
    // On 2026-03-29 Berlin goes from 02:00 to 03:00, at 01:00 UTC.
    let night = hours("Europe/Berlin", &["sat"], "22:00", "06:00");
    assert_eq!(open_until(&night, "2026-03-28T21:00:00Z"), some("2026-03-29T04:00:00Z"));
    let ends_in_the_gap = hours("Europe/Berlin", &[], "00:00", "02:30");
    assert_eq!(open_until(&ends_in_the_gap, "2026-03-29T00:59:59Z"), some("2026-03-29T01:00:00Z"));
    assert_eq!(open_until(&ends_in_the_gap, "2026-03-29T01:00:00Z"), None);
    let starts_in_the_gap = hours("Europe/Berlin", &[], "02:30", "04:00");
    assert_eq!(open_until(&starts_in_the_gap, "2026-03-29T00:59:59Z"), None);
    assert_eq!(next_opening(&starts_in_the_gap, "2026-03-28T12:00:00Z"), "2026-03-29T01:00:00Z");
    assert_eq!(open_until(&starts_in_the_gap, "2026-03-29T01:00:00Z"), some("2026-03-29T02:00:00Z"));
    let within_the_gap = hours("Europe/Berlin", &[], "02:15", "02:45");
    assert_eq!(next_opening(&within_the_gap, "2026-03-28T12:00:00Z"), "2026-03-30T00:15:00Z");
}

#[test]
fn hours_of_the_next_day_that_the_clock_leaps_into_are_hours_of_their_own() {
    // 02:00 ends those of Saturday; the clock shows 03:00 then, which is past 02:30 on Sunday.
    let nearly_always = hours("Europe/Berlin", &[], "02:30", "02:00");
    assert_eq!(open_until(&nearly_always, "2026-03-29T00:50:00Z"), some("2026-03-29T01:00:00Z"));
    assert_eq!(open_until(&nearly_always, "2026-03-29T01:00:00Z"), some("2026-03-30T00:00:00Z"));
}

#[test]
fn what_the_clock_shows_twice_in_autumn_is_open_twice() {
    // On 2026-10-25 Berlin goes from 03:00 back to 02:00, at 01:00 UTC.
    let night = hours("Europe/Berlin", &["sat"], "22:00", "06:00");
    assert_eq!(open_until(&night, "2026-10-24T20:00:00Z"), some("2026-10-25T05:00:00Z"));
    let ends_in_the_fold = hours("Europe/Berlin", &[], "00:00", "02:30");
    assert_eq!(open_until(&ends_in_the_fold, "2026-10-24T22:00:00Z"), some("2026-10-25T00:30:00Z"));
    assert_eq!(open_until(&ends_in_the_fold, "2026-10-25T00:30:00Z"), None);
    assert_eq!(next_opening(&ends_in_the_fold, "2026-10-25T00:30:00Z"), "2026-10-25T01:00:00Z");
    assert_eq!(open_until(&ends_in_the_fold, "2026-10-25T01:00:00Z"), some("2026-10-25T01:30:00Z"));
    let starts_in_the_fold = hours("Europe/Berlin", &[], "02:30", "05:00");
    assert_eq!(open_until(&starts_in_the_fold, "2026-10-25T00:30:00Z"), some("2026-10-25T01:00:00Z"));
    assert_eq!(open_until(&starts_in_the_fold, "2026-10-25T01:00:00Z"), None);
    assert_eq!(next_opening(&starts_in_the_fold, "2026-10-25T01:00:00Z"), "2026-10-25T01:30:00Z");
    // In Beirut the clock goes from midnight back to 23:00: the evening is an hour longer.
    let evening = hours("Asia/Beirut", &["sat"], "22:00", "24:00");
    assert_eq!(open_until(&evening, "2026-10-24T19:00:00Z"), some("2026-10-24T22:00:00Z"));
}

#[test]
fn a_whole_day_may_end_at_midnight_though_the_next_one_follows() {
    let always = hours("UTC", &[], "00:00", "24:00");
    assert_eq!(open_until(&always, "2026-05-01T12:00:00Z"), some("2026-05-02T00:00:00Z"));
    assert_eq!(open_until(&always, "2026-05-02T00:00:00Z"), some("2026-05-03T00:00:00Z"));
    assert_eq!(next_opening(&always, "2026-05-01T12:00:00Z"), "2026-05-02T00:00:00Z");
}

#[test]
fn a_time_beyond_the_calendar_is_outside() {
    let always = hours("Europe/Berlin", &[], "00:00", "24:00");
    for now in [i64::MIN, i64::MAX] {
        assert_eq!(always.open_until(UnixMillis(now)), None);
        assert_eq!(always.next_opening(UnixMillis(now)), None);
    }
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let days = ["mon".to_owned(), "monday".to_owned()];
    let wrong = Hours::parse("Europe/Berln", &days, "8:00", "24:01").unwrap_err();
    let fields: Vec<_> = wrong.iter().map(|(field, _)| *field).collect();
    assert_eq!(fields, ["time_zone", "days", "from", "until"]);
    let text = format!("{wrong:?}");
    assert!(text.contains("did you mean `Europe/Berlin`?") && text.contains("`monday` is no day"), "{text}");
    for zone in ["", "Etc/Unknown", "CEST", "+02:00", "Europe/Berlin\n", &"x".repeat(10_000)] {
        let wrong = Hours::parse(zone, &[], "00:00", "24:00").unwrap_err();
        assert_eq!(wrong.iter().map(|(field, _)| *field).collect::<Vec<_>>(), ["time_zone"], "{zone:?}");
    }
    for time in ["", ":", "0800", "08:00:00", "8:0", "+8:00", "08:60", "24:01", "25:00", "٠٨:٠٠"] {
        assert!(Hours::parse("UTC", &[], time, "07:59").is_err(), "{time}");
        assert!(Hours::parse("UTC", &[], "07:59", time).is_err(), "{time}");
    }
    assert!(Hours::parse("UTC", &[], "24:00", "08:00").is_err());
    assert_eq!(Hours::parse("UTC", &[], "08:00", "08:00").unwrap_err().len(), 1);
}

#[test]
fn a_record_of_hours_is_plain_and_stays_readable() {
    let office = hours("europe/berlin", &["tue", "mon", "tue"], "08:00", "24:00");
    let text = r#"{"time_zone":"Europe/Berlin","days":["mon","tue"],"from":"08:00","until":"24:00"}"#;
    assert_eq!(serde_json::to_string(&office).unwrap(), text);
    assert_eq!(serde_json::from_str::<Hours>(text).unwrap(), office);
    assert_eq!(office.to_string(), "08:00 to 24:00 in Europe/Berlin, mon tue");
    let every_day: Hours = serde_json::from_str(r#"{"time_zone":"UTC","from":"22:00","until":"06:00"}"#).unwrap();
    assert_eq!(every_day, hours("UTC", &DAYS, "22:00", "06:00"));
    for bad in [
        r#"{"time_zone":"UTC","days":[],"from":"22:00","until":"06:00"}"#,
        r#"{"time_zone":"Mars/Base","from":"22:00","until":"06:00"}"#,
        r#"{"time_zone":"UTC","from":"22:00","until":"06:00","more":1}"#,
    ] {
        assert!(serde_json::from_str::<Hours>(bad).is_err(), "{bad}");
    }
}

/// The day on which the hours that this second lies within started, read from the calendar.
fn day_of_hours(hours: &Hours, second: i64) -> Option<jiff::civil::Date> {
    let shown = hours.zone.to_datetime(Timestamp::from_second(second).unwrap());
    let minute = u16::try_from(i32::from(shown.hour()) * 60 + i32::from(shown.minute())).unwrap();
    let allowed = |day: jiff::civil::Date| {
        let name = match day.weekday() {
            Weekday::Monday => "mon",
            Weekday::Tuesday => "tue",
            Weekday::Wednesday => "wed",
            Weekday::Thursday => "thu",
            Weekday::Friday => "fri",
            Weekday::Saturday => "sat",
            Weekday::Sunday => "sun",
        };
        hours.days().any(|day| day == name)
    };
    let (today, yesterday) = (shown.date(), shown.date().yesterday().unwrap());
    let (from, until) = (hours.from, hours.until);
    if from < until {
        (from <= minute && minute < until && allowed(today)).then_some(today)
    } else if minute >= from {
        allowed(today).then_some(today)
    } else {
        (minute < until && allowed(yesterday)).then_some(yesterday)
    }
}

/// Zones that set their clocks: at 01:00 UTC, at 02:00, at midnight, by half an hour, around Ramadan; and two that do not.
const ZONES: &[&str] = &[
    "Europe/Berlin",
    "America/New_York",
    "Asia/Beirut",
    "America/Havana",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "Asia/Kathmandu",
    "UTC",
];

fn some_hours() -> impl Strategy<Value = Hours> {
    (prop::sample::select(ZONES), 1_u8..128, 0_u16..1440, 0_u16..=1440)
        .prop_filter("`until` is `from`", |(_, _, from, until)| from != until)
        .prop_map(|(zone, days, from, until)| Hours { days, from, until, ..hours(zone, &[], "00:00", "24:00") })
}

/// Any second of five years, or one within two days of a moment at which the zone's clock is set.
fn some_time(hours: Hours) -> impl Strategy<Value = (Hours, i64)> {
    let years = 1_735_689_600..1_893_456_000_i64;
    let first = Timestamp::from_second(years.start).unwrap();
    let mut settings: Vec<_> = hours.zone.following(first).take(10).map(|at| at.timestamp().as_second()).collect();
    settings.push(years.start);
    let near = (prop::sample::select(settings), -172_800..172_800_i64).prop_map(|(at, by)| at + by);
    prop_oneof![years, near].prop_map(move |now| (hours.clone(), now))
}

proptest! {
    #[test]
    fn every_second_until_the_end_is_open_and_every_second_until_the_next_opening_is_not(
        (hours, now) in some_hours().prop_flat_map(some_time)
    ) {
        let from_now = |second| hours.open_until(UnixMillis::from_seconds(second));
        let minutes = |start: i64, end: i64| (start..end).step_by(60).chain([end - 1]);
        let mut closed_from = now;
        match from_now(now) {
            None => prop_assert_eq!(day_of_hours(&hours, now), None),
            Some(end) => {
                prop_assert!(end > now && from_now(end - 1).is_some());
                // INVARIANT (INV-HOURS-1): by the slow reading as well; and what ends there are these hours.
                let started = day_of_hours(&hours, now);
                prop_assert!(started.is_some());
                prop_assert!(minutes(now, end).all(|second| day_of_hours(&hours, second) == started));
                prop_assert_ne!(day_of_hours(&hours, end), started);
                prop_assert!(end - now <= 25 * 3600);
                closed_from = end;
            }
        }
        let opening = hours.next_opening(UnixMillis::from_seconds(now)).unwrap();
        prop_assert!(opening > now && day_of_hours(&hours, opening).is_some());
        if opening > closed_from {
            prop_assert!(minutes(closed_from, opening).all(|second| day_of_hours(&hours, second).is_none()));
        }
    }
}
