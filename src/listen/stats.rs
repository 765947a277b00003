//! What a listener counts. Whoever exports metrics reads a snapshot.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::domain::clock::Timestamp;

/// One counter. Ordering between counters does not matter to anybody.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn sub(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, to: u64) {
        self.0.store(to, Ordering::Relaxed);
    }

    fn load(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The live counters of one listener, shared by its parts.
#[derive(Debug, Default)]
pub struct ListenStats {
    pub(crate) accept_errors: Count,
    pub(crate) accepted: Count,
    pub(crate) active: Count,
    pub(crate) aged: Count,
    pub(crate) certificate_not_after_millis: Count,
    pub(crate) certificate_reload_failures: Count,
    pub(crate) certificate_reloads: Count,
    pub(crate) first_bytes_timeouts: Count,
    pub(crate) handshake_failures: Count,
    pub(crate) handler_panics: Count,
    pub(crate) refused_global: Count,
    pub(crate) refused_peer: Count,
    pub(crate) stalled: Count,
}

impl ListenStats {
    /// What the counters show now; each by itself, not one consistent cut.
    pub fn snapshot(&self) -> ListenSnapshot {
        ListenSnapshot {
            accept_errors: self.accept_errors.load(),
            accepted: self.accepted.load(),
            active: self.active.load(),
            aged: self.aged.load(),
            certificate_not_after: match self.certificate_not_after_millis.load() {
                0 => None,
                millis => Some(Timestamp::from_millis(millis)),
            },
            certificate_reload_failures: self.certificate_reload_failures.load(),
            certificate_reloads: self.certificate_reloads.load(),
            first_bytes_timeouts: self.first_bytes_timeouts.load(),
            handler_panics: self.handler_panics.load(),
            handshake_failures: self.handshake_failures.load(),
            refused_global: self.refused_global.load(),
            refused_peer: self.refused_peer.load(),
            stalled: self.stalled.load(),
        }
    }
}

/// The counters of one listener at one moment. All but `active` and `certificate_not_after` only
/// rise.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ListenSnapshot {
    /// Times that `accept` itself failed, for want of file descriptors or memory.
    pub accept_errors: u64,
    /// Connections accepted, those refused by a cap not counted.
    pub accepted: u64,
    /// Connections open now, handshakes included.
    pub active: u64,
    /// Connections that were asked to go because of their age.
    pub aged: u64,
    /// When the certificate we present ends; `None` without TLS.
    pub certificate_not_after: Option<Timestamp>,
    /// New certificate files that could not be used; the old ones stay.
    pub certificate_reload_failures: u64,
    /// New certificate files taken into use.
    pub certificate_reloads: u64,
    /// Connections closed because nothing whole arrived in time after TLS.
    pub first_bytes_timeouts: u64,
    /// Calls that ended in a panic of ours.
    pub handler_panics: u64,
    /// TLS handshakes that failed or took too long.
    pub handshake_failures: u64,
    /// Connections refused because the listener holds as many as it may.
    pub refused_global: u64,
    /// Connections refused because their address holds as many as it may.
    pub refused_peer: u64,
    /// Connections closed because the peer took none of its output for too long.
    pub stalled: u64,
}
