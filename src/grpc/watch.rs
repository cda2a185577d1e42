//! One open watch as a stream: what is told, heartbeats, and the question before each of them whether this client may still
//! hear it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};
use tokio_stream::Stream;
use tonic::Status;

use super::convert::target_kind_out;
use super::proto::watch_response::Event;
use super::proto::{Heartbeat, Resynchronise, TokensRevoked, WatchResponse};
use super::standing::Standing;
use crate::broker::{Broker, BrokerError, Happened, Told, Watch};
use crate::domain::decide::DenyReason;
use crate::domain::target::Target;
use crate::id::Revision;

/// How often a watch without news says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The stream of one watch. It holds no task of its own: ten thousand of them are only memory.
pub(crate) struct WatchStream {
    broker: Arc<Broker>,
    standing: Standing,
    watch: Watch,
    heartbeat: Pin<Box<Sleep>>,
    ended: bool,
}

impl WatchStream {
    pub(super) fn new(broker: Arc<Broker>, standing: Standing, watch: Watch) -> Self {
        // The first heartbeat comes at once: it says that the watch stands, and from which revision.
        let heartbeat = Box::pin(tokio::time::sleep(Duration::ZERO));
        Self { broker, standing, watch, heartbeat, ended: false }
    }

    fn next_pause(&self) -> Duration {
        // The moment at which the certificate or the token lapses is not slept through.
        let left = self.standing.ends_at().saturating_sub(self.broker.clock().now().seconds());
        HEARTBEAT.min(Duration::from_secs(left.max(1).unsigned_abs()))
    }

    fn end(&mut self, status: Status) -> Poll<Option<Result<WatchResponse, Status>>> {
        self.ended = true;
        Poll::Ready(Some(Err(status)))
    }
}

fn answer(revision: Revision, event: Event) -> Poll<Option<Result<WatchResponse, Status>>> {
    Poll::Ready(Some(Ok(WatchResponse { revision: revision.0, event: Some(event) })))
}

impl Stream for WatchStream {
    type Item = Result<WatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        // INVARIANT (INV-WATCH-2): read before the queue; what it speaks for has left the queue where that is empty then.
        let up_to = this.watch.told_up_to();
        match this.watch.poll_next(context) {
            Poll::Ready(Some(Told { revision, happened, .. })) => {
                // INVARIANT (INV-WATCH-1): asked before each event, not only when the watch was opened.
                if let Err(status) = this.standing.caller() {
                    return this.end(status);
                }
                // The last word of a revoked client's watch is that it is revoked.
                if matches!(&happened, Happened::Revoked(Target::Client(_), ids) if ids.is_empty()) {
                    if this.watch.is_client_revoked() {
                        return this.end(BrokerError::Refused(DenyReason::ClientRevoked).into());
                    }
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                match happened {
                    Happened::Resynchronise => answer(revision, Event::Resynchronise(Resynchronise {})),
                    Happened::Revoked(target, ids) => {
                        let kind = target_kind_out(&target).into();
                        answer(revision, Event::Revoked(TokensRevoked { kind, token_ids: ids.to_vec() }))
                    }
                }
            }
            Poll::Ready(None) => {
                if this.broker.stopping().is_cancelled() {
                    return this.end(Status::unavailable("this replica is stopping; connect again"));
                }
                let why = this.broker.open().err();
                let sealed = || BrokerError::Sealed { why: "the watch ended with the vault".to_owned() };
                this.end(why.unwrap_or_else(sealed).into())
            }
            Poll::Pending => {
                if this.heartbeat.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                if let Err(status) = this.standing.caller() {
                    return this.end(status);
                }
                if this.watch.is_client_revoked() {
                    return this.end(BrokerError::Refused(DenyReason::ClientRevoked).into());
                }
                let pause = this.next_pause();
                this.heartbeat.as_mut().reset(Instant::now() + pause);
                answer(up_to, Event::Heartbeat(Heartbeat {}))
            }
        }
    }
}
