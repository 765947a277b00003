//! Notes that replicas leave each other beside the records: who is there, who waits for whom. They
//! are small, they come down by themselves, and nobody's tokens hang on them.

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::StoreError;

/// Notes that are put up under a lease come down when it ends.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Lease(pub i64);

/// What happened to the notes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// These are all there are: at the beginning, and whenever changes may have been missed.
    All(Vec<(String, Vec<u8>)>),
    /// A note was put up, or another one in its place.
    Put(String, Vec<u8>),
    /// A note came down.
    Gone(String),
}

/// Where replicas that share one store leave notes.
///
/// Whoever follows sees the changes in one order, the same for all: once a note of one's own is
/// seen, every note that was put up before it has been seen as well.
#[async_trait]
pub trait Board: Send + Sync + 'static {
    /// Begins a lease. It ends by itself `ttl` after it began or was last kept.
    ///
    /// # Errors
    /// When the store does not answer.
    async fn lease(&self, ttl: Duration) -> Result<Lease, StoreError>;

    /// Keeps a lease for another while. False when it has ended.
    ///
    /// # Errors
    /// When the store does not answer.
    async fn keep(&self, lease: Lease) -> Result<bool, StoreError>;

    /// Ends a lease.
    ///
    /// # Errors
    /// When the store does not answer.
    async fn end(&self, lease: Lease) -> Result<(), StoreError>;

    /// Puts a note up, in place of one of the same name. False when the lease has ended.
    ///
    /// # Errors
    /// When the store does not answer; the note may be up then.
    async fn put(&self, name: &str, value: Vec<u8>, lease: Lease) -> Result<bool, StoreError>;

    /// Takes down every note whose name begins with `prefix`.
    ///
    /// # Errors
    /// When the store does not answer.
    async fn take_down(&self, prefix: &str) -> Result<(), StoreError>;

    /// All notes, then every change, until the receiver is dropped. Must be called in a tokio runtime.
    fn follow(&self) -> mpsc::UnboundedReceiver<Change>;
}
