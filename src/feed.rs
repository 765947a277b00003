//! stub
use crate::domain::claims::Claims;
use crate::domain::ids::{Cursor, KeyId, Revision};
use crate::domain::view::RevokedBy;
use std::time::Duration;
/// stub
pub struct Feed;
/// stub
#[derive(Clone, Copy, Debug)]
pub struct AckCount {
    /// c
    pub connected: u32,
    /// a
    pub applied: u32,
    /// d
    pub complete: bool,
}
impl Feed {
    /// stub
    pub fn check(&self, _c: &Claims, _k: &KeyId) -> Option<RevokedBy> {
        None
    }
    /// stub
    pub async fn wait_for(&self, _c: Cursor, _d: Duration) -> bool {
        true
    }
    /// stub
    pub async fn wait_for_acks(&self, _r: Revision, _d: Duration) -> AckCount {
        AckCount { connected: 0, applied: 0, complete: true }
    }
}
