//! Where connections come in. An accept loop of our own over hyper, so that every limit exists:
//! tonic's server has no deadline for a handshake or a preface, no bound on connections, no way to
//! cut a peer that does not read, and no GOAWAY with a grace.
//!
//! Serves any tower service: `tonic::service::Routes` for gRPC, an `axum::Router` for plain HTTP.
//! Knows nothing of avouch but how to draw random bytes.

pub mod body;
pub mod deadline;
pub mod listener;
pub mod panic;
pub mod peer;
pub mod settings;
pub mod stats;
pub mod tls;

mod admission;
mod connection;
mod io;
mod refusal;
mod socket;

use std::time::Duration;

use tokio::time::Instant;

/// This long from now; for a duration without end, a generation from now.
fn after(duration: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(duration).unwrap_or_else(|| now + Duration::from_secs(30 * 365 * 24 * 3600))
}
