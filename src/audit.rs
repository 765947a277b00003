//! The audit log: one JSON line for each security event, written by a thread of its own, so that a
//! slow disk, or a collector that is away, holds up nobody who does not ask to wait.
//!
//! An event has only the fields below, so nothing else can get in; none of them holds a secret.

mod event;
mod otlp;
mod sink;
mod writer;

pub use event::{AuditEvent, AuditName, Level};
pub use otlp::Collector;
pub use writer::{AuditDown, AuditLog, AuditOpenError};
