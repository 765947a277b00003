//! What several tests need.

pub(crate) mod collector;
pub(crate) mod etcd;
pub(crate) mod proxy;
pub(crate) mod readme;
pub(crate) mod serve;
pub(crate) mod world;
