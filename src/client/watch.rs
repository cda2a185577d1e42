//! The watch: what of this client's was revoked, as it happens, for as long as anybody asks.
//!
//! Steps of [`Watcher::next`]: wait out the pause after a failure; open a `TokenService.Watch` stream where the last message
//! left off; hand out what the next message says. A stream that ends, fails or falls silent is told once, and opened anew.
//!
//! # Invariants
//! - `INV-WATCH-1`: a stream starts at the revision of the last message of the one before, so that nothing between two
//!   streams is lost. The revision is taken as it comes, also a lower one: a restored database has a history of its own.
//! - `INV-WATCH-2`: a future of [`Watcher::next`] that is dropped loses nothing and restarts no clock.
//!
//! Non-goal: holding tokens. That is [`TokenSource`](super::TokenSource), which is built on this.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::timeout;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use super::{ConnectError, Target, Wire, innermost, random_part, since};
use crate::clock::Stopwatch;
use crate::grpc::proto;
use crate::grpc::proto::TargetKind;
use crate::grpc::proto::token_service_client::TokenServiceClient;
use crate::grpc::proto::watch_response::Event;
use crate::id::{Revision, TokenId};

/// The longest wait that a broker may ask for: a mistaken one must not silence a client for a day.
const LONGEST_TOLD: Duration = Duration::from_secs(300);

/// How patient a client is. The defaults suit brokers as they are; a test is less patient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    /// How long one request may take: 10 s.
    pub request: Duration,
    /// How long a caller waits for a token where none is valid: 10 s.
    pub patience: Duration,
    /// The longest wait after the first failure: 100 ms. It doubles with each further one; the wait is a random part of it.
    pub retry_first: Duration,
    /// Where the doubling ends: 10 s.
    pub retry_most: Duration,
    /// The longest wait after a refusal that will not pass by itself: 30 s. The wait lies between half of it and all of it.
    pub refused: Duration,
    /// A watch without any message for this long is dead: 40 s, as the broker sends one at least every 15 s.
    pub silence: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(10),
            patience: Duration::from_secs(10),
            retry_first: Duration::from_millis(100),
            retry_most: Duration::from_secs(10),
            refused: Duration::from_secs(30),
            silence: Duration::from_secs(40),
        }
    }
}

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// The watch stands: from here on nothing is missed.
    Connected {
        /// Everything up to here has been told.
        revision: Revision,
    },
    /// Tokens of this client were revoked: stop using them.
    Revoked {
        /// What was revoked, and they with it.
        kind: TargetKind,
        /// The tokens that are still alive.
        token_ids: Vec<TokenId>,
        /// The revision of the message.
        revision: Revision,
    },
    /// Something may be missing: every token held is unknown until somebody asks.
    Resynchronise {
        /// From here on nothing is missed.
        revision: Revision,
    },
    /// This client itself is revoked: nothing that it holds is to be used. It is tried again without end, as an administrator
    /// can lift that.
    ClientRevoked,
    /// The watch does not stand. Told once; it is tried again without end.
    Disconnected {
        /// Why.
        why: String,
    },
}

/// Hears what of this client's is revoked.
pub struct Watcher {
    line: Arc<Line>,
    pace: Pace,
    from: Revision,
    stream: Option<Stream>,
    pause: Pause,
    /// What comes after the news that the watch stands.
    pending: Option<WatchEvent>,
    /// Whether somebody knows that it does not stand.
    away: bool,
    /// Whether it was told that this client is revoked.
    revoked: bool,
}

struct Stream {
    messages: Streaming<proto::WatchResponse>,
    opened: Stopwatch,
    heard: Stopwatch,
    stands: bool,
}

impl Watcher {
    /// A watch that tells everything after a revision first; 0 starts from now. Nothing is sent before the first
    /// [`Watcher::next`]. Needs a Tokio runtime.
    ///
    /// # Errors
    /// Where an address is none or a file can't be used; a broker that is away is no error.
    pub fn new(target: Target, from: Revision, pace: Pace) -> Result<Self, ConnectError> {
        Ok(Self::over(Arc::new(Line::new(target)?), from, pace))
    }

    pub(super) fn over(line: Arc<Line>, from: Revision, pace: Pace) -> Self {
        Self { line, pace, from, stream: None, pause: Pause::default(), pending: None, away: false, revoked: false }
    }

    /// Waits for the next event. There always is one: a watch that can't stand is tried again without end.
    pub async fn next(&mut self) -> WatchEvent {
        loop {
            if let Some(event) = self.pending.take() {
                return event;
            }
            let event = match self.message().await {
                Ok(message) => self.told(message),
                Err(status) => self.lost(&status),
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    async fn message(&mut self) -> Result<proto::WatchResponse, Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                tokio::time::sleep(self.pause.left()).await;
                let opened = self.open().await?;
                self.stream.insert(opened)
            }
        };
        // INVARIANT (INV-WATCH-2): counted from the last message, not from this call.
        let silence = self.pace.silence.saturating_sub(since(stream.heard));
        match timeout(silence, stream.messages.message()).await {
            Ok(Ok(Some(message))) => {
                stream.heard = Stopwatch::start();
                Ok(message)
            }
            Ok(Ok(None)) => Err(Status::unavailable("the broker ended the watch")),
            Ok(Err(status)) => Err(status),
            Err(_) => Err(Status::deadline_exceeded(format!("the watch was silent for {:?}", self.pace.silence))),
        }
    }

    async fn open(&self) -> Result<Stream, Status> {
        // INVARIANT (INV-WATCH-1)
        let request = proto::WatchRequest { from_revision: self.from.0 };
        let messages = in_time(self.pace.request, self.line.client().watch(request)).await?;
        Ok(Stream { messages, opened: Stopwatch::start(), heard: Stopwatch::start(), stands: false })
    }

    /// Takes a message in; answers the event to tell now, if any.
    fn told(&mut self, message: proto::WatchResponse) -> Option<WatchEvent> {
        let revision = Revision(message.revision);
        let event = match message.event {
            // INVARIANT (INV-WATCH-1): only a heartbeat says that nothing before it is still on its way.
            Some(Event::Heartbeat(_)) => {
                self.from = revision;
                None
            }
            // An event of a later version of the broker is at least a sign of life.
            None => None,
            Some(Event::Resynchronise(_)) => Some(WatchEvent::Resynchronise { revision }),
            Some(Event::Revoked(revoked)) => {
                let token_ids = revoked.token_ids.iter().filter_map(|id| TokenId::parse(id).ok()).collect();
                Some(WatchEvent::Revoked { kind: revoked.kind(), token_ids, revision })
            }
        };
        match self.stream.as_mut().filter(|stream| !stream.stands) {
            None => event,
            Some(stream) => {
                stream.stands = true;
                (self.away, self.revoked) = (false, false);
                self.pending = event;
                Some(WatchEvent::Connected { revision })
            }
        }
    }

    /// Takes a failure in; answers the event to tell now, if any.
    fn lost(&mut self, status: &Status) -> Option<WatchEvent> {
        // A stream that ends as soon as it is opened is a failure like those before it; one that held is not.
        if self.stream.take().is_some_and(|stream| since(stream.opened) > self.pace.retry_most) {
            self.pause = Pause::default();
        }
        self.line.lost(status);
        self.pause.after(status, &self.pace);
        let told = std::mem::replace(&mut self.away, true);
        if is_client_revoked(status) {
            return (!std::mem::replace(&mut self.revoked, true)).then_some(WatchEvent::ClientRevoked);
        }
        (!told).then(|| WatchEvent::Disconnected { why: why(status) })
    }
}

/// The channel that everything of one client shares. It is replaced where an answer belongs to the connection and another
/// one may do better: a replica that hangs, stops or is sealed, a certificate that has expired since.
pub(super) struct Line {
    target: Target,
    channel: Mutex<Wire>,
}

impl Line {
    pub(super) fn new(target: Target) -> Result<Self, ConnectError> {
        let channel = Mutex::new(target.connect_lazily()?);
        Ok(Self { target, channel })
    }

    pub(super) fn client(&self) -> TokenServiceClient<Wire> {
        TokenServiceClient::new(self.channel.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Takes a failure in: where another connection may do better, the next request makes one.
    pub(super) fn lost(&self, status: &Status) {
        // A broker that says when to come back means itself.
        let elsewhere = told_wait(status).is_none()
            && matches!(
                status.code(),
                Code::Unavailable
                    | Code::DeadlineExceeded
                    | Code::Unauthenticated
                    | Code::Unknown
                    | Code::Cancelled
                    | Code::Internal
            );
        // Files that are being replaced right now can't be used: the old channel reads them again, too.
        if elsewhere && let Ok(channel) = self.target.connect_lazily() {
            *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = channel;
        }
    }
}

/// The wait before the next try: exponential with full jitter, longer where the broker says so or where waiting is idle.
pub(super) struct Pause {
    failures: u32,
    started: Stopwatch,
    wait: Duration,
}

impl Default for Pause {
    fn default() -> Self {
        Self { failures: 0, started: Stopwatch::start(), wait: Duration::ZERO }
    }
}

impl Pause {
    /// How long it still takes.
    pub(super) fn left(&self) -> Duration {
        self.wait.saturating_sub(since(self.started))
    }

    /// Waits after a failure.
    pub(super) fn after(&mut self, status: &Status, pace: &Pace) {
        let lasting = match status.code() {
            Code::PermissionDenied | Code::InvalidArgument | Code::NotFound | Code::Unimplemented => true,
            Code::ResourceExhausted => told_wait(status).is_none(),
            // A certificate may have been replaced: the next connection reads it.
            Code::Unauthenticated => self.failures > 0,
            _ => false,
        };
        self.wait = if lasting {
            pace.refused.mul_f64(0.5 + 0.5 * random_part())
        } else {
            let most = pace.retry_first.saturating_mul(2_u32.saturating_pow(self.failures)).min(pace.retry_most);
            // Never earlier than the broker says, and not all clients in the same moment.
            told_wait(status).unwrap_or_default().saturating_add(most.mul_f64(random_part()))
        };
        self.failures = self.failures.saturating_add(1);
        self.started = Stopwatch::start();
    }
}

/// When the broker says to come back (`google.rpc.RetryInfo`).
fn told_wait(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay.map(|wait| wait.min(LONGEST_TOLD))
}

/// What a person can act on.
/// Whether the broker says that this client is revoked.
pub(super) fn is_client_revoked(status: &Status) -> bool {
    status.get_error_details().error_info().is_some_and(|info| info.reason == "CLIENT_REVOKED")
}

pub(super) fn why(status: &Status) -> String {
    std::error::Error::source(status).map_or_else(|| status.message().to_owned(), innermost)
}

/// The answer, or that there was none in time.
pub(super) async fn in_time<T>(
    most: Duration,
    request: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    let answer = timeout(most, request).await;
    let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("no answer within {most:?}"))));
    answer.map(tonic::Response::into_inner)
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    const PACE: Pace = Pace {
        request: Duration::from_secs(1),
        patience: Duration::from_secs(1),
        retry_first: Duration::from_millis(100),
        retry_most: Duration::from_secs(10),
        refused: Duration::from_secs(30),
        silence: Duration::from_secs(40),
    };

    /// The waits after a row of the same failure.
    fn waits(status: &Status, count: usize) -> Vec<Duration> {
        let mut pause = Pause::default();
        let mut wait = || {
            pause.after(status, &PACE);
            pause.wait
        };
        (0..count).map(|_| wait()).collect()
    }

    #[test]
    fn waits_double_with_full_jitter_up_to_the_most() {
        let rows: Vec<_> = (0..200).map(|_| waits(&Status::unavailable("away"), 12)).collect();
        for nth in 0..12 {
            let most = PACE.retry_most.min(PACE.retry_first * 2_u32.pow(nth));
            let column: Vec<_> = rows.iter().map(|row| row[nth as usize]).collect();
            assert!(column.iter().all(|wait| *wait <= most), "{nth}: {column:?}");
            assert!(column.iter().any(|wait| *wait < most / 4), "{nth}: no jitter below");
            assert!(column.iter().any(|wait| *wait > most * 3 / 4), "{nth}: no jitter above");
        }
    }

    #[test]
    fn what_will_not_pass_by_itself_is_tried_slowly_and_a_new_certificate_at_once() {
        let denied = waits(&Status::permission_denied("no"), 3);
        assert!(denied.iter().all(|wait| *wait >= PACE.refused / 2 && *wait <= PACE.refused), "{denied:?}");
        let expired = waits(&Status::unauthenticated("expired"), 2);
        assert!(expired[0] <= PACE.retry_first && expired[1] >= PACE.refused / 2, "{expired:?}");
    }

    #[test]
    fn the_broker_is_never_asked_earlier_than_it_says_and_no_mistake_of_its_silences_a_client() {
        let told = |seconds| {
            let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(seconds)));
            waits(&Status::with_error_details(Code::ResourceExhausted, "wait", details), 1)[0]
        };
        assert!((Duration::from_secs(7)..=Duration::from_secs(8)).contains(&told(7)));
        assert!(told(1_000_000) <= LONGEST_TOLD + PACE.retry_first);
    }
}
