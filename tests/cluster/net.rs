//! The network between the nodes, in this process: each node has a namespace with one device, and what
//! is sent there comes out here, packet by packet, to be passed on, held up or dropped. So a link can be
//! cut in one direction, and be slow and lossy, on kernels that have no module for it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use avouch::domain::entropy::{Entropy, SeededEntropy};
use tappers::{Interface, Tun};
use tokio::time::Instant;

use crate::own::run;

/// How many nodes there are: the callers, three members, three replicas.
pub(crate) const NODES: usize = 7;

/// A place in the network.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Ord, PartialOrd)]
pub(crate) enum Node {
    /// Where the tests call from.
    Callers,
    /// A member of etcd, 0 to 2.
    Member(usize),
    /// A replica of avouch, 0 to 2.
    Replica(usize),
}

impl Node {
    pub(crate) const MEMBERS: [Self; 3] = [Self::Member(0), Self::Member(1), Self::Member(2)];
    pub(crate) const REPLICAS: [Self; 3] = [Self::Replica(0), Self::Replica(1), Self::Replica(2)];

    const fn index(self) -> usize {
        match self {
            Self::Callers => 0,
            Self::Member(n) => 1 + n,
            Self::Replica(n) => 4 + n,
        }
    }

    pub(crate) fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 66, 0, 10 + u8::try_from(self.index()).expect("few nodes"))
    }

    /// Its namespace.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Callers => "callers".to_owned(),
            Self::Member(n) => format!("m{n}"),
            Self::Replica(n) => format!("r{n}"),
        }
    }

    fn of(address: [u8; 4]) -> Option<usize> {
        let [10, 66, 0, last] = address else { return None };
        let index = usize::from(last).checked_sub(10)?;
        (index < NODES).then_some(index)
    }
}

/// How one direction of a link is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Link {
    /// Nothing passes, and nobody is told.
    pub(crate) cut: bool,
    /// How long each packet takes.
    pub(crate) delay: Duration,
    /// At most so much longer.
    pub(crate) jitter: Duration,
    /// How many of a thousand packets are lost.
    pub(crate) lost_per_mille: u32,
}

impl Link {
    /// Both at once.
    fn and(self, other: Self) -> Self {
        Self {
            cut: self.cut || other.cut,
            delay: self.delay + other.delay,
            jitter: self.jitter + other.jitter,
            lost_per_mille: self.lost_per_mille + other.lost_per_mille,
        }
    }
}

/// How many faults of the network may be there at once.
pub(crate) const LAYERS: usize = 2;

/// A packet on its way.
struct Held {
    due: Instant,
    /// In the order of their coming, if they are due at once.
    number: u64,
    to: usize,
    bytes: Box<[u8]>,
}

impl Held {
    const fn key(&self) -> (Instant, u64) {
        (self.due, self.number)
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

struct State {
    /// What each fault does to the links; they add up.
    layers: [[[Link; NODES]; NODES]; LAYERS],
    /// When the last packet of each link is due: none overtakes another.
    last: [[Option<Instant>; NODES]; NODES],
    held: BinaryHeap<Reverse<Held>>,
    number: u64,
    entropy: SeededEntropy,
}

struct Shared {
    state: Mutex<State>,
    more: Condvar,
    devices: Vec<Tun>,
}

/// The network. What it made goes with the process, which has namespaces of its own.
#[derive(Clone)]
pub(crate) struct Network(Arc<Shared>);

impl Network {
    /// A namespace and a device for each node; this process is among the callers.
    pub(crate) fn new(seed: u64) -> Self {
        let nodes: Vec<Node> =
            std::iter::once(Node::Callers).chain(Node::MEMBERS).chain(Node::REPLICAS).collect();
        let devices = nodes.iter().map(|node| device(*node)).collect();
        let state = State {
            layers: Default::default(),
            last: Default::default(),
            held: BinaryHeap::new(),
            number: 0,
            entropy: SeededEntropy::new(seed),
        };
        let shared = Shared { state: Mutex::new(state), more: Condvar::new(), devices };
        let network = Self(Arc::new(shared));
        for index in 0..NODES {
            let network = network.clone();
            std::thread::spawn(move || network.carry(index));
        }
        let late = network.clone();
        std::thread::spawn(move || late.deliver_late());
        network
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes how packets go from one node to another, that way alone, by one of the faults.
    pub(crate) fn set(&self, layer: usize, from: Node, to: Node, link: Link) {
        self.lock().layers[layer][from.index()][to.index()] = link;
    }

    /// Both ways.
    pub(crate) fn set_both(&self, layer: usize, one: Node, other: Node, link: Link) {
        self.set(layer, one, other, link);
        self.set(layer, other, one, link);
    }

    /// What one of the faults did is over.
    pub(crate) fn heal(&self, layer: usize) {
        self.lock().layers[layer] = Default::default();
    }

    /// Takes what one node sends, as long as the process lives.
    fn carry(&self, from: usize) {
        let mut packet = [0; 2048];
        loop {
            let Ok(length) = self.0.devices[from].recv(&mut packet) else { return };
            let packet = &packet[..length];
            // IPv4 without options is all that is spoken here; the target's address ends at byte 20.
            let Some(&[a, b, c, d]) = packet.get(16..20) else { continue };
            let Some(to) = Node::of([a, b, c, d]).filter(|_| packet[0] >> 4 == 4) else { continue };
            self.pass(from, to, packet);
        }
    }

    fn pass(&self, from: usize, to: usize, packet: &[u8]) {
        let mut state = self.lock();
        let of_all = state.layers.iter().map(|links| links[from][to]);
        let link = of_all.fold(Link::default(), Link::and);
        if link.cut {
            return;
        }
        let draw = if link.lost_per_mille > 0 || !link.jitter.is_zero() {
            let entropy: &dyn Entropy = &state.entropy;
            u64::from_le_bytes(entropy.bytes())
        } else {
            0
        };
        if draw % 1000 < u64::from(link.lost_per_mille) {
            return;
        }
        let now = Instant::now();
        let before = state.last[from][to].filter(|before| *before > now);
        if link.delay.is_zero() && before.is_none() {
            drop(state);
            self.hand_over(to, packet);
            return;
        }
        let part = f64::from(u32::try_from(draw >> 32).unwrap_or(0)) / f64::from(u32::MAX);
        let due = now + link.delay + link.jitter.mul_f64(part);
        let due = before.map_or(due, |before| before.max(due));
        state.last[from][to] = Some(due);
        state.number += 1;
        let number = state.number;
        state.held.push(Reverse(Held { due, number, to, bytes: packet.into() }));
        drop(state);
        self.0.more.notify_one();
    }

    /// A device that is full drops packets, as any other.
    fn hand_over(&self, to: usize, packet: &[u8]) {
        _ = self.0.devices[to].send(packet);
    }

    fn deliver_late(&self) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let due = state.held.peek().map(|Reverse(held)| held.due);
            state = match due {
                Some(due) if due <= now => {
                    let packet = state.held.pop().map(|Reverse(held)| held);
                    drop(state);
                    if let Some(held) = packet {
                        self.hand_over(held.to, &held.bytes);
                    }
                    self.lock()
                }
                Some(due) => {
                    let waited = self.0.more.wait_timeout(state, due - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.0.more.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

/// The device of a node, in its namespace. It stays this process's when it moves there.
fn device(node: Node) -> Tun {
    let name = format!("tun{}", node.index());
    let device = Tun::new_named(Interface::new(&name).expect("a name"));
    let device = device.expect("a TUN device can be made, which takes root and /dev/net/tun");
    let address = format!("{}/24", node.address());
    let namespace = node.name();
    let mut within = Vec::new();
    if node != Node::Callers {
        run("ip", &["netns", "add", &namespace]);
        run("ip", &["link", "set", &name, "netns", &namespace]);
        within = vec!["-n", &namespace];
        run("ip", &[&within[..], &["link", "set", "lo", "up"]].concat());
    }
    let ip = |words: &[&str]| run("ip", &[&within[..], words].concat());
    ip(&["link", "set", &name, "txqueuelen", "2000"]);
    ip(&["address", "add", &address, "dev", &name]);
    ip(&["link", "set", &name, "up"]);
    device
}
