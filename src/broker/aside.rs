//! Work that takes long, beside the requests that don't: plans, explanations, states of the past.
//!
//! Steps: wait for one of few slots; work on a thread that no other request waits for. A slot is held until the work is
//! over, also where whoever asked has gone, so that asking often costs those who ask, and memory for few whole states.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Broker;
use super::error::BrokerError;

/// How many at a time.
const SLOTS: usize = 2;

/// The slots.
#[derive(Debug)]
pub(super) struct Slots(Arc<Semaphore>);

/// One slot.
pub(super) type Slot = OwnedSemaphorePermit;

impl Default for Slots {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(SLOTS)))
    }
}

impl Broker {
    /// Waits for a slot.
    pub(super) async fn free_slot(&self) -> Result<Slot, BrokerError> {
        let slot = Arc::clone(&self.slots.0).acquire_owned().await;
        slot.map_err(|error| BrokerError::Internal(error.to_string()))
    }

    /// Works in a slot, and answers with the slot, for what comes next.
    pub(super) async fn within<T: Send + 'static>(
        &self,
        slot: Slot,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(T, Slot), BrokerError> {
        let done = self.tasks.spawn_blocking(move || (work(), slot)).await;
        done.map_err(|error| BrokerError::Internal(error.to_string()))
    }

    /// Works in a slot of its own.
    pub(super) async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, BrokerError> {
        Ok(self.within(self.free_slot().await?, work).await?.0)
    }
}
