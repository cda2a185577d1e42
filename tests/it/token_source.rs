//! The token source, against a token service that does what a test says.
//!
//! Invariants are those of `src/client/token_source.rs`. Lives and pauses are short; nothing here waits for a time to pass
//! but for what happens then.
//!
//! Over 400 lines, as every promise of the source is told over the same service.

use std::sync::Arc;
use std::time::Duration;

use p8broker::client::{Ask, Event, Pace, Token, TokenSource, TokenSourceError, WatchEvent};
use p8broker::clock::Stopwatch;
use p8broker::grpc::proto;
use p8broker::grpc::proto::watch_response::Event as Said;
use p8broker::id::Revision;
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::fake::{Fake, Place, Running, Script, Turn, id, pace};
use crate::harness::{CLIENT, KEY_ID, Pki, eventually};

fn ask() -> Ask {
    Ask {
        app_group: "games".to_owned(),
        role: proto::Role::AppManager,
        ttl: None,
        scope: Vec::new(),
        from_revision: None,
    }
}

fn keep(place: &Place, addr: impl ToString) -> TokenSource {
    TokenSource::start_at(place.target(addr), ask(), pace()).unwrap()
}

/// A source that holds token 1 and whose watch stands.
async fn settled(place: &Place, running: &Running) -> (TokenSource, broadcast::Receiver<Event>) {
    let source = keep(place, running.addr);
    let mut events = source.events();
    assert_eq!(source.token().await.unwrap().id(), &id(1));
    until(&mut events, |event| matches!(event, Event::Watch(WatchEvent::Connected { .. }))).await;
    (source, events)
}

/// The first event from here on that is meant.
async fn until(events: &mut broadcast::Receiver<Event>, meant: impl Fn(&Event) -> bool) -> Event {
    let waiting = async {
        loop {
            let event = events.recv().await.expect("the source runs");
            if meant(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("it happens in time")
}

/// The token at once, or not at all: a poll without any waiting.
async fn at_once(source: &TokenSource) -> Arc<Token> {
    let polled = tokio::time::timeout(Duration::ZERO, source.token()).await;
    polled.expect("from memory").expect("a valid token")
}

/// Has the source look at its state once more; answers how often it asked for a token, and which it introspected. Where a
/// report had asked for a token, that would come first, and the token held before would not be looked at.
async fn not_asked(fake: &Fake) -> (usize, Vec<String>) {
    fake.say(9, &Said::Resynchronise(proto::Resynchronise {}));
    eventually("it looks", async || fake.with(|it| !it.introspected.is_empty())).await;
    (fake.asked(), fake.with(|it| it.introspected.clone()))
}

#[tokio::test]
async fn first_callers_share_one_request_and_later_ones_are_answered_from_memory() {
    let place = Place::new();
    let running = place.serve(Fake::new()).await;
    let go = Arc::new(Semaphore::new(0));
    running.fake.with(|it| it.turns.push_back(Turn::Late(1, Arc::clone(&go))));
    let source = Arc::new(keep(&place, running.addr));
    let mut callers = JoinSet::new();
    for _ in 0..64 {
        let source = Arc::clone(&source);
        callers.spawn(async move { source.token().await.unwrap() });
    }
    eventually("somebody asks", async || running.fake.asked() == 1).await;
    go.add_permits(1);
    for token in callers.join_all().await {
        assert_eq!(token.expose_jwt(), "header.payload-1.signature");
        assert_eq!((token.id(), token.key_id().as_str(), token.revision().0), (&id(1), KEY_ID, 7));
        assert_eq!(format!("{token:?}"), format!("Token {{ id: \"{}\", .. }}", id(1)), "P1: not the JWT");
    }
    for _ in 0..1000 {
        assert_eq!(at_once(&source).await.id(), &id(1));
    }
    assert_eq!(running.fake.with(|it| it.asked.iter().map(|it| it.0).collect::<Vec<_>>()), [false]);
    running.stop().await;
}

#[tokio::test]
async fn a_token_is_replaced_in_the_background_before_half_of_its_life_is_over() {
    let place = Place::new();
    let running = place.serve(Fake::new()).await;
    running.fake.with(|it| it.life = Duration::from_secs(4));
    let source = keep(&place, running.addr);
    let first = source.token().await.unwrap();
    // Nobody asks the source meanwhile.
    eventually("there is a second request", async || running.fake.asked() == 2).await;
    assert!(!first.valid_for().is_zero(), "the first one has life left");
    let (first_at, second) = running.fake.with(|it| (it.asked[0].1, it.asked[1]));
    assert!(second.0, "the broker would hand out the first one again until half of its life");
    let age = second.1 - first_at;
    // Roomy, for a machine that is busy: the exact range has a test of its own.
    assert!((1.2..3.0).contains(&age), "{age}");
    eventually("the second one is handed out", async || at_once(&source).await.id() == &id(2)).await;
    source.stop().await;
    running.stop().await;
}

/// INV-SOURCE-2.
#[tokio::test]
async fn the_time_that_an_answer_takes_is_taken_off_the_life_of_its_token() {
    let place = Place::new();
    let running = place.serve(Fake::new()).await;
    let go = Arc::new(Semaphore::new(0));
    running.fake.with(|it| {
        it.turns.push_back(Turn::Late(1, Arc::clone(&go)));
        it.life = Duration::from_secs(30);
    });
    let source = keep(&place, running.addr);
    eventually("it asks", async || running.fake.asked() == 1).await;
    let asked = Stopwatch::start();
    eventually("the answer takes its time", async || asked.seconds() > 0.5).await;
    go.add_permits(1);
    let left = source.token().await.unwrap().valid_for();
    assert!(left < Duration::from_millis(26_500), "of 30 s, 3 s are the margin: {left:?}");
    source.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn a_request_that_is_never_answered_is_given_up_and_made_again() {
    let place = Place::new();
    let running = place.serve(Fake::new()).await;
    let never = Arc::new(Semaphore::new(0));
    running.fake.with(|it| it.turns.push_back(Turn::Late(1, Arc::clone(&never))));
    let pace = Pace { request: Duration::from_secs(1), ..pace() };
    let source = TokenSource::start_at(place.target(running.addr), ask(), pace).unwrap();
    assert_eq!(source.token().await.unwrap().id(), &id(2));
    source.stop().await;
    running.stop().await;
}

/// INV-SOURCE-4.
#[tokio::test]
async fn a_storm_of_401s_is_one_fresh_request_and_the_old_token_is_served_meanwhile() {
    let place = Place::new();
    let running = place.serve(Fake::new()).await;
    let (source, _events) = settled(&place, &running).await;
    let go = Arc::new(Semaphore::new(0));
    running.fake.with(|it| it.turns.push_back(Turn::Late(2, Arc::clone(&go))));
    let storm = || (0..1000).for_each(|_| source.report_unauthorized(&id(1)));
    storm();
    eventually("somebody asks", async || running.fake.asked() == 2).await;
    storm();
    assert_eq!(at_once(&source).await.id(), &id(1));
    go.add_permits(1);
    eventually("the new one is there", async || at_once(&source).await.id() == &id(2)).await;
    storm();
    source.report_unauthorized(&id(99));
    assert_eq!(not_asked(&running.fake).await, (2, vec![id(2).to_string()]));
    source.report_unauthorized(&id(2));
    eventually("the next one is there", async || at_once(&source).await.id() == &id(3)).await;
    let fresh: Vec<bool> = running.fake.with(|it| it.asked.iter().map(|it| it.0).collect());
    assert_eq!(fresh, [false, true, true]);
    source.stop().await;
    running.stop().await;
}

/// INV-SOURCE-4, where the broker hands the same token again.
#[tokio::test]
async fn a_token_that_comes_again_is_not_asked_for_a_second_time() {
    let place = Place::new();
    let running = place.serve(Fake::new()).await;
    let (source, mut events) = settled(&place, &running).await;
    let go = Arc::new(Semaphore::new(1));
    running.fake.with(|it| it.turns.push_back(Turn::Late(1, go)));
    source.report_unauthorized(&id(1));
    until(&mut events, |event| matches!(event, Event::Refreshed { .. })).await;
    for _ in 0..100 {
        source.report_unauthorized(&id(1));
        tokio::task::yield_now().await;
    }
    assert_eq!(not_asked(&running.fake).await, (2, vec![id(1).to_string()]));
    source.stop().await;
    running.stop().await;
}

/// INV-SOURCE-1.
#[tokio::test]
async fn a_revoked_token_is_dropped_the_moment_the_watch_says_so() {
    let place = Place::new();
    let running = place.serve(Fake::new()).await;
    let (source, mut events) = settled(&place, &running).await;
    assert_eq!(running.fake.with(|it| it.watched_from.clone()), [7], "from the token's revision on");
    let go = Arc::new(Semaphore::new(0));
    running.fake.with(|it| it.turns.push_back(Turn::Late(2, Arc::clone(&go))));
    running.fake.say_revoked(8, &[id(50)]);
    until(&mut events, |event| matches!(event, Event::Watch(WatchEvent::Revoked { .. }))).await;
    assert_eq!(at_once(&source).await.id(), &id(1), "somebody else's");
    running.fake.say_revoked(9, &[id(51), id(1)]);
    let told = until(&mut events, |event| matches!(event, Event::Watch(WatchEvent::Revoked { .. }))).await;
    let Event::Watch(WatchEvent::Revoked { kind, token_ids, revision }) = told else { panic!("{told:?}") };
    assert_eq!((kind, token_ids, revision), (proto::TargetKind::Key, vec![id(51), id(1)], Revision(9)));
    // The broker has not answered yet, and the revoked one is gone.
    assert!(tokio::time::timeout(Duration::ZERO, source.token()).await.is_err());
    go.add_permits(1);
    assert_eq!(source.token().await.unwrap().id(), &id(2));
    source.stop().await;
    running.stop().await;
}

/// INV-SOURCE-1.
#[tokio::test]
async fn an_answer_on_its_way_that_brings_a_revoked_token_is_dropped_and_asked_again() {
    let place = Place::new();
    let running = place.serve(Fake::new()).await;
    let (source, mut events) = settled(&place, &running).await;
    let go = Arc::new(Semaphore::new(0));
    running.fake.with(|it| it.turns.push_back(Turn::Late(2, Arc::clone(&go))));
    running.fake.say_revoked(8, &[id(1)]);
    until(&mut events, |event| matches!(event, Event::Watch(WatchEvent::Revoked { .. }))).await;
    eventually("the answer is on its way", async || running.fake.asked() == 2).await;
    running.fake.say_revoked(9, &[id(2)]);
    until(&mut events, |event| matches!(event, Event::Watch(WatchEvent::Revoked { .. }))).await;
    go.add_permits(1);
    assert_eq!(source.token().await.unwrap().id(), &id(3));
    let mut refreshed = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let Event::Refreshed { token_id, .. } = event {
            refreshed.push(token_id);
        }
    }
    assert_eq!(refreshed, [id(3)]);
    let fresh: Vec<bool> = running.fake.with(|it| it.asked.iter().map(|it| it.0).collect());
    assert_eq!(fresh, [false, false, true], "a new one, not that one again");
    source.stop().await;
    running.stop().await;
}

/// INV-SOURCE-3.
#[tokio::test]
async fn an_unexpired_token_is_served_while_the_broker_is_away_and_replaced_when_it_is_back() {
    let place = Place::new();
    let running = place.serve(Fake::new()).await;
    let (source, mut events) = settled(&place, &running).await;
    let fake = running.fake.clone();
    let addr = running.stop().await;
    until(&mut events, |event| matches!(event, Event::Watch(WatchEvent::Disconnected { .. }))).await;
    source.report_unauthorized(&id(1));
    for _ in 0..3 {
        let failed = until(&mut events, |event| matches!(event, Event::NotRefreshed { .. })).await;
        assert!(matches!(failed, Event::NotRefreshed { error: TokenSourceError::Unavailable(_) }), "{failed:?}");
        assert_eq!(at_once(&source).await.id(), &id(1));
    }
    let running = place.serve_at(fake, addr).await;
    until(&mut events, |event| matches!(event, Event::Refreshed { .. })).await;
    assert_eq!(at_once(&source).await.id(), &id(2));
    eventually("it is watched again", async || running.fake.with(|it| it.watched_from == [7, 7])).await;
    source.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn without_a_broker_a_caller_is_told_why_after_its_patience_and_is_served_once_there_is_one() {
    let place = Place::new();
    let addr = place.serve(Fake::new()).await.stop().await;
    let impatient = Pace { patience: Duration::from_millis(200), ..pace() };
    let source = TokenSource::start_at(place.target(addr), ask(), impatient).unwrap();
    let error = source.token().await.unwrap_err();
    assert!(matches!(&error, TokenSourceError::Unavailable(_)), "{error:?}");
    assert!(error.to_string().contains("refused"), "the connection is: {error}");
    let running = place.serve_at(Fake::new(), addr).await;
    eventually("there is a token", async || source.token().await.is_ok()).await;
    source.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn a_refusal_is_told_to_callers_once_no_token_is_valid_and_is_tried_slowly() {
    let place = Place::new();
    let running = place.serve(Fake::new()).await;
    running.fake.with(|it| it.life = Duration::from_secs(3));
    let (source, mut events) = settled(&place, &running).await;
    running.fake.with(|it| it.refuse = Some(Status::permission_denied("no policy grants this")));
    let refused = until(&mut events, |event| matches!(event, Event::NotRefreshed { .. })).await;
    assert!(matches!(refused, Event::NotRefreshed { error: TokenSourceError::Refused(_) }), "{refused:?}");
    assert_eq!(at_once(&source).await.id(), &id(1), "it is still valid");
    let mut last = None;
    eventually("it is not valid any more", async || match source.token().await {
        Ok(token) => token.id() != &id(1),
        Err(error) => {
            last = Some(error);
            true
        }
    })
    .await;
    let error = last.expect("no other token came");
    assert_eq!((error.status().code(), error.status().message()), (Code::PermissionDenied, "no policy grants this"));
    let between =
        running.fake.with(|it| it.asked.windows(2).skip(1).map(|two| two[1].1 - two[0].1).collect::<Vec<_>>());
    assert!(!between.is_empty() && between.iter().all(|gap| *gap >= 0.1), "half of the pause at least: {between:?}");
    let told = tokio::time::timeout(Duration::ZERO, source.token()).await.expect("without waiting");
    assert!(matches!(told, Err(TokenSourceError::Refused(_))), "{told:?}");
    // Granted again: the next try finds out.
    running.fake.with(|it| it.refuse = None);
    eventually("there is a token", async || source.token().await.is_ok()).await;
    source.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn a_broker_that_says_when_to_come_back_is_not_asked_before() {
    let place = Place::new();
    let running = place.serve(Fake::new()).await;
    let busy = || {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(300)));
        Turn::Fail(Status::with_error_details(Code::Unavailable, "busy", details))
    };
    running.fake.with(|it| it.turns.extend([busy(), busy()]));
    let source = keep(&place, running.addr);
    assert_eq!(source.token().await.unwrap().id(), &id(3));
    let times: Vec<f64> = running.fake.with(|it| it.asked.iter().map(|it| it.1).collect());
    assert!(times.windows(2).all(|two| two[1] - two[0] >= 0.299), "{times:?}");
    source.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn after_a_gap_in_the_watch_the_token_held_is_kept_only_where_the_broker_says_it_is_good() {
    for (alive, kept) in [(Some(true), true), (Some(false), false), (None, false)] {
        let place = Place::new();
        let running = place.serve(Fake::new()).await;
        let (source, _events) = settled(&place, &running).await;
        running.fake.with(|it| it.alive = alive);
        running.fake.say(9, &Said::Resynchronise(proto::Resynchronise {}));
        eventually("the broker is asked", async || !running.fake.with(|it| it.introspected.is_empty())).await;
        if kept {
            // A second gap is a second question; that it comes shows that the first answer was taken.
            running.fake.say(10, &Said::Resynchronise(proto::Resynchronise {}));
            eventually("it is asked again", async || running.fake.with(|it| it.introspected.len() == 2)).await;
            assert_eq!((at_once(&source).await.id(), running.fake.asked()), (&id(1), 1));
        } else {
            eventually("it is dropped", async || source.token().await.unwrap().id() == &id(2)).await;
        }
        assert!(running.fake.with(|it| it.introspected.iter().all(|asked| *asked == id(1).to_string())));
        source.stop().await;
        running.stop().await;
    }
}

#[tokio::test]
async fn a_token_that_was_asked_for_before_a_gap_in_the_watch_is_in_doubt_as_well() {
    let place = Place::new();
    let running = place.serve(Fake::new()).await;
    let (source, mut events) = settled(&place, &running).await;
    let go = Arc::new(Semaphore::new(0));
    running.fake.with(|it| {
        it.turns.push_back(Turn::Late(2, Arc::clone(&go)));
        it.alive = Some(false);
    });
    source.report_unauthorized(&id(1));
    eventually("the answer is on its way", async || running.fake.asked() == 2).await;
    running.fake.say(9, &Said::Resynchronise(proto::Resynchronise {}));
    until(&mut events, |event| matches!(event, Event::Watch(WatchEvent::Resynchronise { .. }))).await;
    go.add_permits(1);
    eventually("it is dropped", async || source.token().await.unwrap().id() == &id(3)).await;
    assert_eq!(running.fake.with(|it| it.introspected.clone()), [id(2).to_string()]);
    source.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn a_watch_that_is_refused_or_unknown_does_not_stop_the_issuing() {
    for status in [Status::unimplemented("an old broker"), Status::permission_denied("no")] {
        let place = Place::new();
        let running = place.serve(Fake::new()).await;
        running.fake.with(|it| it.watch_refused = Some(status.clone()));
        let source = keep(&place, running.addr);
        source.token().await.unwrap();
        eventually("the watch is refused twice", async || running.fake.with(|it| it.watched_from.len() >= 2)).await;
        source.report_unauthorized(&id(1));
        eventually("a new one is there", async || at_once(&source).await.id() == &id(2)).await;
        source.stop().await;
        running.stop().await;
    }
}

#[tokio::test]
async fn a_source_moves_on_to_the_second_of_two_addresses_and_back() {
    let place = Place::new();
    let fake = Fake::new();
    let (one, two) = (place.serve(fake.clone()).await, place.serve(fake.clone()).await);
    let source = keep(&place, format!("{},{}", one.addr, two.addr));
    let mut events = source.events();
    source.token().await.unwrap();
    until(&mut events, |event| matches!(event, Event::Watch(WatchEvent::Connected { .. }))).await;
    let addr = one.stop().await;
    moves_on(&source, &fake).await;
    let one = place.serve_at(fake.clone(), addr).await;
    two.stop().await;
    moves_on(&source, &fake).await;
    source.stop().await;
    one.stop().await;
}

/// A new token, and a watch that stands.
async fn moves_on(source: &TokenSource, fake: &Fake) {
    let old = at_once(source).await;
    source.report_unauthorized(old.id());
    eventually("there is a new token", async || at_once(source).await.id() != old.id()).await;
    let stands = |it: &mut Script| it.watchers.iter().any(|watcher| !watcher.is_closed());
    eventually("the watch stands", async || fake.with(stands)).await;
}

/// A replica that answers, but not with a token: only another connection can find another replica.
#[tokio::test]
async fn a_source_leaves_a_replica_that_is_sealed_for_one_that_is_not() {
    let place = Place::new();
    let (sealed, open) = (place.serve(Fake::new()).await, place.serve(Fake::new()).await);
    sealed.fake.with(|it| it.refuse = Some(Status::unavailable("the vault is sealed")));
    for _ in 0..20 {
        let source = keep(&place, format!("{},{}", sealed.addr, open.addr));
        source.token().await.unwrap();
        source.stop().await;
    }
    assert!(sealed.fake.asked() > 0, "a chance of one in a million");
    sealed.stop().await;
    open.stop().await;
}

/// A certificate that was replaced while the process runs is used by the next connection.
#[tokio::test]
async fn a_replaced_certificate_is_read_by_the_next_connection() {
    let place = Place::new();
    let running = place.serve(Fake::new()).await;
    let (source, mut events) = settled(&place, &running).await;
    let target = place.target(running.addr);
    let files = target.certificate.clone().unwrap();
    let (cert, key) = (std::fs::read(&files.cert).unwrap(), std::fs::read(&files.key).unwrap());
    // One that no CA of the broker's signed.
    let other = Pki::new(&place.0.dir.path().join("other"));
    let (other_cert, other_key) = other.client(CLIENT);
    std::fs::copy(other_cert, &files.cert).unwrap();
    std::fs::copy(other_key, &files.key).unwrap();
    let fake = running.fake.clone();
    fake.with(|it| it.turns.push_back(Turn::Fail(Status::unauthenticated("the certificate has expired"))));
    source.report_unauthorized(&id(1));
    // The first failure is the broker's word; those after it are connections with the wrong certificate.
    for _ in 0..3 {
        until(&mut events, |event| matches!(event, Event::NotRefreshed { .. })).await;
    }
    assert_eq!(fake.asked(), 2);
    std::fs::write(&files.cert, cert).unwrap();
    std::fs::write(&files.key, key).unwrap();
    until(&mut events, |event| matches!(event, Event::Refreshed { .. })).await;
    source.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn dropping_a_source_ends_its_watch() {
    let place = Place::new();
    let running = place.serve(Fake::new()).await;
    let (source, _events) = settled(&place, &running).await;
    drop(source);
    eventually("nobody watches", async || running.fake.with(|it| it.watchers.iter().all(mpsc::Sender::is_closed)))
        .await;
    running.stop().await;
}
