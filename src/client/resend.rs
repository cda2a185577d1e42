//! Sends again what no broker has looked at.
//!
//! A connection may end between the moment that a request is given to it and the moment that the broker takes it up: a
//! replica stops, or asks a connection to go. gRPC calls for a transparent retry then (gRFC A6), which tonic leaves to its
//! users. A request that a broker may have looked at is never repeated here: whoever sent it must say whether it may be.
//!
//! # Invariants
//! - `INV-RESEND-1`: a request is sent again only where its message was never asked for by the connection that lost it, or
//!   where HTTP/2 says that it was not processed: it was given up before it was its turn, or the broker refused its stream,
//!   or it named a last stream before it (RFC 9113, sections 6.8 and 8.7).

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use h2::Reason;
use http::{Request, Response};
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::{Channel, Error};
use tower::{Service, ServiceExt};

/// Connections that may be lost under one request before it fails.
const MOST: u32 = 5;

/// Longest message that is kept, in bytes; a request with a longer one fails with its connection.
const MOST_BYTES: usize = 4 * 1024 * 1024;

/// A channel that does so.
#[derive(Debug, Clone)]
pub struct Resending(pub(super) Channel);

impl Service<Request<Body>> for Resending {
    type Response = Response<Body>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The channel that was asked whether it is ready is the one that is called.
        let fresh = self.0.clone();
        let mut channel = std::mem::replace(&mut self.0, fresh);
        let (parts, body) = request.into_parts();
        let kept = Kept::new(body);
        Box::pin(async move {
            let mut answer = channel.call(Request::from_parts(parts.clone(), kept.lend())).await;
            for _ in 1..MOST {
                match &answer {
                    Err(error) if kept.may_go_again(error) => {}
                    _ => break,
                }
                answer = channel.ready().await?.call(Request::from_parts(parts.clone(), kept.lend())).await;
            }
            answer
        })
    }
}

/// What became of a request whose connection ended. Where none could be made, every address was tried already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    NotProcessed,
    Unknown,
}

fn fate(error: &Error) -> Option<Fate> {
    let mut at: Option<&dyn std::error::Error> = Some(error);
    let mut found = None;
    while let Some(error) = at {
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            found = Some(if error.is_canceled() { Fate::NotProcessed } else { Fate::Unknown });
        }
        if let Some(error) = error.downcast_ref::<h2::Error>().filter(|error| error.is_remote()) {
            let gone = error.is_go_away() && error.reason() == Some(Reason::NO_ERROR);
            let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
            if gone || refused {
                return Some(Fate::NotProcessed);
            }
        }
        at = error.source();
    }
    found
}

/// A body, with what was taken from it.
#[derive(Clone)]
struct Kept(Arc<Mutex<Message>>);

struct Message {
    body: Body,
    /// In order, all that came out of it; shared with what was sent, not copied.
    taken: Vec<Bytes>,
    ended: bool,
    /// Whether more was taken than is kept.
    incomplete: bool,
}

impl Kept {
    fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(Message { body, taken: Vec::new(), ended: false, incomplete: false })))
    }

    fn lend(&self) -> Body {
        Body::new(Lent { kept: self.clone(), next: 0 })
    }

    /// INVARIANT (INV-RESEND-1)
    fn may_go_again(&self, error: &Error) -> bool {
        let message = self.message();
        match fate(error) {
            Some(Fate::NotProcessed) => !message.incomplete,
            // Every RPC begins with a message: without one nothing is done.
            Some(Fate::Unknown) => message.taken.is_empty() && !message.ended,
            None => false,
        }
    }

    fn message(&self) -> MutexGuard<'_, Message> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body from its beginning.
struct Lent {
    kept: Kept,
    next: usize,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let kept = self.kept.clone();
        let mut message = kept.message();
        if let Some(again) = message.taken.get(self.next) {
            self.next = self.next.saturating_add(1);
            return Poll::Ready(Some(Ok(Frame::data(again.clone()))));
        }
        if message.ended {
            return Poll::Ready(None);
        }
        let frame = std::task::ready!(Pin::new(&mut message.body).poll_frame(context));
        match &frame {
            None => message.ended = true,
            Some(Ok(frame)) => match frame.data_ref().filter(|_| !message.incomplete) {
                Some(data) if message.bytes().saturating_add(data.len()) <= MOST_BYTES => {
                    message.taken.push(data.clone());
                    self.next = self.next.saturating_add(1);
                }
                _ => message.give_up(),
            },
            Some(Err(_)) => message.give_up(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let message = self.kept.message();
        self.next == message.taken.len() && (message.ended || message.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let message = self.kept.message();
        if message.taken.is_empty() { message.body.size_hint() } else { SizeHint::default() }
    }
}

impl Message {
    fn bytes(&self) -> usize {
        self.taken.iter().map(Bytes::len).sum()
    }

    /// It can't be sent again; what was taken is not needed any more.
    fn give_up(&mut self) {
        self.incomplete = true;
    }
}
