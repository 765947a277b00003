//! Who gets a connection: the caps, global and per address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::stats::ListenStats;

/// The caps of one listener and what is held under them.
#[derive(Debug)]
pub(super) struct Admission {
    max: usize,
    max_per_peer: usize,
    held: Mutex<Held>,
    stats: Arc<ListenStats>,
}

#[derive(Debug, Default)]
struct Held {
    total: usize,
    /// Only addresses that hold something, so no larger than `max`.
    by_peer: HashMap<IpAddr, usize>,
}

impl Admission {
    pub(super) fn new(max: usize, max_per_peer: usize, stats: Arc<ListenStats>) -> Arc<Self> {
        Arc::new(Self { max, max_per_peer, held: Mutex::default(), stats })
    }

    /// A place for a connection from `address`, or `None`, counted, if a cap is reached.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let peer = aggregate(address);
        let mut held = self.lock();
        if held.total >= self.max {
            self.stats.refused_global.add();
            return None;
        }
        let of_peer = held.by_peer.get(&peer).copied().unwrap_or(0);
        if of_peer >= self.max_per_peer {
            self.stats.refused_peer.add();
            return None;
        }
        held.by_peer.insert(peer, of_peer + 1);
        held.total += 1;
        self.stats.accepted.add();
        self.stats.active.add();
        Some(Place { admission: Arc::clone(self), peer })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's place under the caps; free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    admission: Arc<Admission>,
    peer: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.admission.lock();
        held.total -= 1;
        match held.by_peer.get_mut(&self.peer) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                held.by_peer.remove(&self.peer);
            }
        }
        self.admission.stats.active.sub();
    }
}

/// The address that a peer is counted under. One IPv6 host commonly owns a whole /64.
fn aggregate(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let network = u128::from(v6) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(network))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn counts_ipv6_by_network_and_mapped_ipv4_as_ipv4() {
        assert_eq!(aggregate(ip("2001:db8:1:2:3:4:5:6")), ip("2001:db8:1:2::"));
        assert_eq!(aggregate(ip("::ffff:192.0.2.7")), ip("192.0.2.7"));
        assert_ne!(aggregate(ip("192.0.2.7")), aggregate(ip("192.0.2.8")));
    }

    #[test]
    fn a_dropped_place_is_free_again() {
        let stats = Arc::new(ListenStats::default());
        let admission = Admission::new(3, 2, Arc::clone(&stats));
        let first = admission.admit(ip("2001:db8::1")).expect("a place");
        let second = admission.admit(ip("2001:db8::2")).expect("a place");
        assert!(admission.admit(ip("2001:db8::3")).is_none(), "the same /64");
        let third = admission.admit(ip("192.0.2.1")).expect("a place");
        assert!(admission.admit(ip("192.0.2.2")).is_none(), "the listener is full");
        drop(first);
        let fourth = admission.admit(ip("2001:db8::3")).expect("a place");
        drop((second, third, fourth));
        assert_eq!(admission.lock().total, 0);
        assert!(admission.lock().by_peer.is_empty());
        let seen = stats.snapshot();
        assert_eq!((seen.accepted, seen.active), (4, 0));
        assert_eq!((seen.refused_global, seen.refused_peer), (1, 1));
    }
}
