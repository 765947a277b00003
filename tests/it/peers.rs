//! Several replicas over one store: what one did, all know; what one does not know, it does not say.

mod board;
mod cut;
mod etcd;
pub(crate) mod rig;
mod shared;
mod sweep;
mod time;
mod waits;
