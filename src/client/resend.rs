//! Sends again what never left this machine.
//!
//! A connection may end between the moment that a request is given to it and the moment that it would send it: a replica
//! that stops, or one that asks a connection to go. gRPC calls for a transparent retry then (gRFC A6), which tonic leaves to
//! its users. A request whose first byte was sent is never repeated here: whoever sent it must say whether it may be.
//!
//! # Invariants
//! - `INV-RESEND-1`: what is sent again was not even asked for its body by the connection that lost it; no answer of a broker
//!   to it can exist, as every RPC begins with a message.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use http::{Request, Response};
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::{Channel, Error};
use tower::{Service, ServiceExt};

/// Connections that may be lost under one request before it fails.
const MOST: u32 = 5;

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
        let kept = Kept(Arc::new(Mutex::new(Some(body))));
        Box::pin(async move {
            let mut answer = channel.call(Request::from_parts(parts.clone(), kept.lend())).await;
            for _ in 1..MOST {
                match &answer {
                    // INVARIANT (INV-RESEND-1)
                    Err(error) if lost_its_connection(error) && kept.is_whole() => {}
                    _ => break,
                }
                answer = channel.ready().await?.call(Request::from_parts(parts.clone(), kept.lend())).await;
            }
            answer
        })
    }
}

/// Whether there was a connection, and it ended: before the request was its turn, or because the broker asked it to go. Where
/// none can be made, every address was tried already.
fn lost_its_connection(error: &Error) -> bool {
    let mut at: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = at {
        if error.is::<hyper::Error>() {
            return true;
        }
        at = error.source();
    }
    false
}

/// A body that stays here until somebody asks for what is in it.
struct Kept(Arc<Mutex<Option<Body>>>);

impl Kept {
    fn lend(&self) -> Body {
        Body::new(Lent { kept: Self(Arc::clone(&self.0)), taken: None })
    }

    fn is_whole(&self) -> bool {
        self.body().is_some()
    }

    fn body(&self) -> MutexGuard<'_, Option<Body>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Lent {
    kept: Kept,
    taken: Option<Body>,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.taken.is_none() {
            let body = self.kept.body().take();
            self.taken = body;
        }
        match &mut self.taken {
            Some(body) => Pin::new(body).poll_frame(context),
            // It went out over another connection.
            None => Poll::Ready(Some(Err(Status::cancelled("the request was sent elsewhere")))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.taken {
            Some(body) => body.is_end_stream(),
            None => self.kept.body().as_ref().is_none_or(HttpBody::is_end_stream),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.taken {
            Some(body) => body.size_hint(),
            None => self.kept.body().as_ref().map(HttpBody::size_hint).unwrap_or_default(),
        }
    }
}
