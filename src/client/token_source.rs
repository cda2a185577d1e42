//! A token that is always at hand: taken from memory, refreshed in the background, dropped when it is revoked.
//!
//! Two tasks share one state. The keeper asks for tokens: the first one at once, the next one before half of its life is
//! over, one at a time for all callers. The listener hears the watch, from the revision of the first token on; it drops what
//! is revoked and wakes the keeper. A caller only reads the state, and waits for the keeper where no token is valid.
//!
//! # Invariants
//! - `INV-SOURCE-1`: a token that the watch told revoked is not handed out any more, also where the answer that brings it
//!   was on its way when the watch spoke. Ids are remembered for 20 minutes; no answer is on its way for longer than one
//!   request may take. Where too many are told to remember, every token is in doubt until the broker says that it is good.
//! - `INV-SOURCE-2`: a token's life is counted from before it was asked for, on the monotonic clock: a slow network only
//!   shortens it, and a wrong wall clock is not looked at. (A machine that sleeps may stop the monotonic one; what is left
//!   then is Apple's 401 and [`TokenSource::report_unauthorized`].)
//! - `INV-SOURCE-3`: a broker that is away takes no token away: what is unexpired and not revoked is served.
//! - `INV-SOURCE-4`: any number of reports of one token is one request.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, broadcast, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Status};

use super::held::{State, Token};
use super::watch::{Line, Pause, in_time, is_client_revoked, why};
use super::{ConnectError, Pace, Target, WatchEvent, Watcher, since};
use crate::clock::{Stopwatch, UnixMillis};
use crate::grpc::proto;
use crate::grpc::proto::{Role, TargetKind};
use crate::id::{KeyId, PolicyName, Revision, TokenId};

/// Events that wait for a slow reader.
const EVENTS: usize = 256;

/// What to ask for, as `IssueToken` takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The app group.
    pub app_group: String,
    /// The role.
    pub role: Role,
    /// Time to live; the policy's default where absent.
    pub ttl: Option<Duration>,
    /// Reads that Apple confines the token to; none where empty.
    pub scope: Vec<String>,
    /// Watch from this revision, or from that of the first token where it is older or this is absent.
    pub from_revision: Option<Revision>,
}

/// What happened to a source.
#[derive(Debug, Clone)]
pub enum Event {
    /// There is a new token.
    Refreshed {
        /// Its id.
        token_id: TokenId,
        /// When Apple stops taking it, by the broker's clock.
        expires_at: UnixMillis,
        /// The key that signed it.
        key_id: KeyId,
        /// The policy that granted it.
        policy: PolicyName,
        /// The revision that it was decided at.
        revision: Revision,
    },
    /// There is none, for now; the one held is served for as long as it is valid.
    NotRefreshed {
        /// Why.
        error: TokenSourceError,
    },
    /// What the watch tells.
    Watch(WatchEvent),
}

/// Why there is no token.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TokenSourceError {
    /// The broker refuses, and trying again soon would not help.
    #[error("no token is valid, and the broker refuses another: {}", why(.0))]
    Refused(Status),
    /// The broker is away, sealed or busy.
    #[error("no token is valid, and there is no other yet: {}; it is tried again in the background", why(.0))]
    Unavailable(Status),
}

/// Keeps one token at hand. Dropping it ends its tasks.
pub struct TokenSource {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// What happened before anybody asked.
    unheard: Mutex<Option<broadcast::Receiver<Event>>>,
}

struct Shared {
    line: Arc<Line>,
    ask: Ask,
    pace: Pace,
    state: Mutex<State>,
    /// For the keeper: something it acts on has changed.
    wake: Notify,
    /// For callers: a request for a token has ended.
    ended: watch::Sender<()>,
    events: broadcast::Sender<Event>,
}

impl TokenSource {
    /// Starts to keep a token; the first one is asked for at once. Needs a Tokio runtime.
    ///
    /// # Errors
    /// Where an address is none or a file can't be used; a broker that is away is no error.
    pub fn start(target: Target, ask: Ask) -> Result<Self, ConnectError> {
        Self::start_at(target, ask, Pace::default())
    }

    /// The same, with patience of one's own.
    ///
    /// # Errors
    /// As [`TokenSource::start`].
    pub fn start_at(target: Target, ask: Ask, pace: Pace) -> Result<Self, ConnectError> {
        let (events, unheard) = broadcast::channel(EVENTS);
        let shared = Arc::new(Shared {
            line: Arc::new(Line::new(target)?),
            ask,
            pace,
            state: Mutex::default(),
            wake: Notify::new(),
            ended: watch::Sender::new(()),
            events,
        });
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (keeper, listener) = (Arc::clone(&shared), Arc::clone(&shared));
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move { keeper.keep().await }));
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move { listener.listen().await }));
        tasks.close();
        Ok(Self { shared, tasks, stop, unheard: Mutex::new(Some(unheard)) })
    }

    /// A valid token: at once where there is one in memory. Where there is none, waits for the one request that is on its
    /// way for all callers, at most [`Pace::patience`].
    ///
    /// # Errors
    /// Where no token is valid and the broker refuses one or does not answer.
    pub async fn token(&self) -> Result<Arc<Token>, TokenSourceError> {
        let waited = Stopwatch::start();
        // Before the look at the state, so that no end in between is missed.
        let mut ended = self.shared.ended.subscribe();
        loop {
            let failure = {
                let state = self.shared.state();
                match (state.valid(), &state.failure) {
                    (Some(token), _) => return Ok(Arc::clone(token)),
                    (None, failure) => failure.clone(),
                }
            };
            if let Some(refused @ TokenSourceError::Refused(_)) = failure {
                return Err(refused);
            }
            let left = self.shared.pace.patience.saturating_sub(since(waited));
            if timeout(left, ended.changed()).await.is_err() {
                let unanswered = || TokenSourceError::Unavailable(Status::deadline_exceeded("no answer yet"));
                return Err(failure.unwrap_or_else(unanswered));
            }
        }
    }

    /// Apple answered 401 to a request with this token: asks for a new one, once for each token. The old one is served
    /// until the new one is there.
    pub fn report_unauthorized(&self, token_id: &TokenId) {
        let mut state = self.shared.state();
        // INVARIANT (INV-SOURCE-4)
        let held = state.held.as_ref().is_some_and(|held| held.token.id == *token_id);
        if held && state.reported.as_ref() != Some(token_id) {
            state.reported = Some(token_id.clone());
            state.fresh = true;
            drop(state);
            self.shared.wake.notify_one();
        }
    }

    /// What happens: to the first caller from the start on, to further ones from now on. A reader that falls behind by more
    /// than 256 events is told how many it missed.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        let unheard = self.unheard.lock().unwrap_or_else(PoisonError::into_inner).take();
        unheard.unwrap_or_else(|| self.shared.events.subscribe())
    }

    /// Ends its tasks and waits for them.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for TokenSource {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: Event) {
        // Nobody listening is no failure.
        let _ = self.events.send(event);
    }

    /// Asks whenever it is time to, and never twice at a time.
    async fn keep(&self) {
        let (mut asking, mut checking) = (Pause::default(), Pause::default());
        loop {
            let (due, fresh, doubted) = {
                let state = self.state();
                (state.due(), state.held.is_some() || state.fresh, state.doubted())
            };
            let ask_in = due.max(asking.left());
            let check_in = doubted.as_ref().map(|_| checking.left());
            match doubted {
                _ if ask_in.is_zero() => self.ask(fresh, &mut asking).await,
                Some(id) if check_in == Some(Duration::ZERO) => self.check(&id, &mut checking).await,
                _ => {
                    let soonest = check_in.map_or(ask_in, |check_in| check_in.min(ask_in));
                    // Either way the state is looked at again.
                    let _ = timeout(soonest, self.wake.notified()).await;
                }
            }
        }
    }

    async fn ask(&self, fresh: bool, pause: &mut Pause) {
        // INVARIANT (INV-SOURCE-2): both are taken before the request is sent.
        let (asked, doubts) = (Stopwatch::start(), self.state().doubts);
        let mut request = Request::new(proto::IssueTokenRequest {
            app_group: self.ask.app_group.clone(),
            role: self.ask.role.into(),
            ttl: self.ask.ttl.map(proto_duration),
            scope: self.ask.scope.clone(),
            fresh,
        });
        request.set_timeout(self.pace.request);
        let answer = in_time(self.pace.request, self.line.client().issue_token(request)).await;
        match answer.and_then(|answer| self.state().accept(Token::take(answer, asked)?, doubts)) {
            Ok(event) => {
                *pause = Pause::default();
                self.tell(event);
            }
            Err(status) => {
                self.line.lost(&status);
                pause.after(&status, &self.pace);
                let error = match status.code() {
                    Code::PermissionDenied | Code::InvalidArgument | Code::NotFound | Code::Unauthenticated => {
                        TokenSourceError::Refused(status)
                    }
                    _ => TokenSourceError::Unavailable(status),
                };
                self.state().failure = Some(error.clone());
                self.tell(Event::NotRefreshed { error });
            }
        }
        self.ended.send_replace(());
    }

    /// Asks whether the token in doubt is good.
    async fn check(&self, id: &TokenId, pause: &mut Pause) {
        let doubts = self.state().doubts;
        let mut request = Request::new(proto::IntrospectTokenRequest { token_id: id.to_string() });
        request.set_timeout(self.pace.request);
        let answer = in_time(self.pace.request, self.line.client().introspect_token(request)).await;
        let (kind, revision) = match answer {
            Ok(answer) if !answer.revoked => {
                *pause = Pause::default();
                return self.state().clear(id, doubts);
            }
            Ok(answer) => (answer.revoked_by.map(|by| by.kind()), Some(Revision(answer.revision))),
            Err(status) if status.code() == Code::NotFound => (None, None),
            Err(status) => {
                self.line.lost(&status);
                pause.after(&status, &self.pace);
                if is_client_revoked(&status) {
                    self.state().drop_held();
                } else if matches!(status.code(), Code::Unimplemented | Code::PermissionDenied) {
                    // Nobody will say: a new token is beyond the doubt, too.
                    let mut state = self.state();
                    state.clear(id, doubts);
                    state.fresh = true;
                }
                return;
            }
        };
        *pause = Pause::default();
        let revision = {
            let mut state = self.state();
            let revision = revision.or_else(|| state.held.as_ref().map(|held| held.token.revision));
            state.revoke(std::slice::from_ref(id));
            revision.unwrap_or_default()
        };
        let (kind, token_ids) = (kind.unwrap_or(TargetKind::Token), vec![id.clone()]);
        self.tell(Event::Watch(WatchEvent::Revoked { kind, token_ids, revision }));
    }

    /// Hears the watch, once there is a token whose revision it can start from.
    async fn listen(&self) {
        let mut ended = self.ended.subscribe();
        let first = loop {
            if let Some(held) = &self.state().held {
                break held.token.revision;
            }
            if ended.changed().await.is_err() {
                return;
            }
        };
        let from = watch_from(self.ask.from_revision, first);
        let mut watcher = Watcher::over(Arc::clone(&self.line), from, self.pace.clone());
        loop {
            let event = watcher.next().await;
            match &event {
                WatchEvent::Revoked { token_ids, .. } => self.state().revoke(token_ids),
                WatchEvent::Resynchronise { .. } => self.state().doubt(),
                WatchEvent::ClientRevoked => self.state().drop_held(),
                WatchEvent::Connected { .. } | WatchEvent::Disconnected { .. } => {}
            }
            self.wake.notify_one();
            self.tell(Event::Watch(event));
        }
    }
}

impl TokenSourceError {
    /// What the broker, or the connection to it, said.
    pub fn status(&self) -> &Status {
        match self {
            Self::Refused(status) | Self::Unavailable(status) => status,
        }
    }
}

/// Where the watch of a source starts. For a broker 0 means from now, which would leave out what befell the first token.
fn watch_from(asked: Option<Revision>, first: Revision) -> Revision {
    asked.filter(|from| *from > Revision(0)).map_or(first, |from| from.min(first))
}

/// A lifetime that is too long to be written down becomes one that the broker refuses.
fn proto_duration(duration: Duration) -> prost_types::Duration {
    duration.try_into().unwrap_or(prost_types::Duration { seconds: i64::MAX, nanos: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_never_starts_after_the_first_token() {
        let first = Revision(7);
        for (asked, from) in [(None, 7), (Some(5), 5), (Some(9), 7), (Some(0), 7)] {
            assert_eq!(watch_from(asked.map(Revision), first), Revision(from), "{asked:?}");
        }
    }
}
