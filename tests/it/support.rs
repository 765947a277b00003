//! What several tests need.

pub(crate) mod serve;
pub(crate) mod world;
