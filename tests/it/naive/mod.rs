//! A second, naive decision, written from `docs/policies.md` alone, against the one that the broker decides with.
//!
//! [`any`] and [`pieces`] make worlds as plain records ([`world`]), and both get them: the domain as a document, keys and
//! revocations ([`built`]), the model as they are. The model ([`model`], [`rules`]) shares no logic with the domain. It looks
//! at everything one by one, and takes what the documentation lists (reasons in their order, families of features,
//! long-lived reads) from the pages themselves ([`book`]), so that a page that says otherwise is found, too.
//!
//! Compared are allow or deny; of a grant the policy, the key, the second at which the token dies and what only counts;
//! of a denial the reason, the policy that came nearest and the ceiling. `DIFF_OPS` says how many requests,
//! `DIFF_SEED` repeats a run, `DIFF_REPORT` names a file for the last line.

mod any;
mod book;
mod built;
mod model;
mod pieces;
mod rules;
mod world;

use std::collections::BTreeMap;
use std::time::Instant;

use p8broker::clock::{Clock, SystemClock};
use p8broker::domain::decide::decide;

use crate::chaos::{Random, number};
use book::Book;
use built::Built;
use model::Answer;
use world::World;

/// What CI has time for: some seconds.
const CI_OPERATIONS: u64 = 60_000;

/// Requests to one world.
const PER_WORLD: u64 = 40;

/// How often each answer was given.
type Counts = BTreeMap<String, u64>;

#[test]
fn the_decision_agrees_with_the_naive_one_of_the_document() {
    let seed = number("DIFF_SEED").unwrap_or_else(|| u64::try_from(SystemClock.now().0).unwrap());
    let operations = number("DIFF_OPS").unwrap_or(CI_OPERATIONS);
    println!("DIFF_SEED={seed}");
    let book = Book::read();
    let started = started();
    let mut counts = Counts::new();
    let threads = std::thread::available_parallelism().map_or(1, |it| it.get().min(8)) as u64;
    let worlds = operations.div_ceil(PER_WORLD);
    std::thread::scope(|scope| {
        let book = &book;
        let of_thread = |nth| {
            scope.spawn(move || {
                (nth..worlds).step_by(threads as usize).map(|it| world(seed, it, book)).collect::<Vec<_>>()
            })
        };
        let all: Vec<_> = (0..threads).map(of_thread).collect();
        for answers in all.into_iter().flat_map(|it| it.join().expect("they agree")) {
            answers.into_iter().for_each(|(answer, count)| *counts.entry(answer).or_default() += count);
        }
    });
    let all = worlds * PER_WORLD;
    let last = format!(
        "requests {all} worlds {worlds} disagreements 0 seed {seed} seconds {:.1}",
        started.elapsed().as_secs_f64()
    );
    counts.iter().for_each(|(answer, count)| println!("{count:>9} {answer}"));
    println!("{last}");
    if let Some(file) = std::env::var_os("DIFF_REPORT") {
        std::fs::write(file, format!("{last}\n")).unwrap();
    }
    // Agreement on nothing would be no agreement.
    if all >= CI_OPERATIONS {
        assert!(counts["ALLOW"] * 8 > all, "too few are allowed: {counts:?}");
        for answer in book.reasons.iter().map(String::as_str).chain([
            "several policies",
            "several keys",
            "SHADOW policy",
            "SHADOW ceiling",
        ]) {
            assert!(counts.contains_key(answer), "{answer} never came: {counts:?}");
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "how long it takes is for a person to read")]
fn started() -> Instant {
    Instant::now()
}

/// Asks one world.
fn world(seed: u64, nth: u64, book: &Book) -> Counts {
    let mut random = Random::new(seed ^ nth.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let world = World::any(&mut random);
    let built = Built::of(&world);
    let mut counts = Counts::new();
    for _ in 0..PER_WORLD {
        let ask = world.ask(&mut random);
        let naive = model::decide(&world, &ask, book, &mut |what| *counts.entry(what.to_owned()).or_default() += 1);
        let decided = answer(decide(&built.request(&ask), &built.state, ask.now));
        assert!(
            naive == decided,
            "DIFF_SEED={seed}, world {nth}: they disagree\nnaive   {naive:?}\ndecided {decided:?}\n{ask:#?}\n{world:#?}"
        );
        let known = match &decided {
            Answer::Allow { shadows, .. } => {
                shadows.iter().for_each(|(kind, ..)| *counts.entry(format!("SHADOW {kind}")).or_default() += 1);
                "ALLOW"
            }
            Answer::Deny { reason, .. } => reason,
        };
        *counts.entry(known.to_owned()).or_default() += 1;
    }
    counts
}

fn answer(decided: Result<p8broker::domain::decide::Permit, p8broker::domain::decide::Denial>) -> Answer {
    match decided {
        Ok(permit) => {
            let mut shadows: Vec<_> = permit
                .shadows()
                .iter()
                .map(|it| (it.kind.to_owned(), it.name.clone(), it.reason.as_str().to_owned()))
                .collect();
            shadows.sort();
            Answer::Allow {
                policy: permit.policy().name.to_string(),
                key: permit.key().id.to_string(),
                expires_at: permit.expires_at(),
                shadows,
            }
        }
        Err(denial) => Answer::Deny {
            reason: denial.reason.as_str().to_owned(),
            policy: denial.policy.map(|name| name.to_string()),
            ceiling: denial.ceiling.map(|name| name.to_string()),
        },
    }
}
