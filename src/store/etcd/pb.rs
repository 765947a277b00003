//! The messages of etcd that are used, generated from `rpc.proto`; and what `Debug` may show of those
//! that carry secrets.

use std::fmt;

#[expect(unreachable_pub, unused_qualifications, clippy::all, reason = "generated code")]
mod generated {
    tonic::include_proto!("etcdserverpb");
}

pub(in crate::store) use generated::*;

impl fmt::Debug for AuthenticateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthenticateRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for AuthenticateResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthenticateResponse").finish_non_exhaustive()
    }
}
