//! What avouch says over gRPC.

pub mod convert;
pub mod frame;
pub mod status;
pub mod watch;
