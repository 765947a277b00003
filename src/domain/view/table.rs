//! Tables of 64-bit marks that one writer adds to while any number of readers look things up: a
//! reader takes no lock and waits for nobody.
//!
//! Nothing is ever taken out: a table is dropped whole, or another is built in its place.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How full a table gets before a larger one takes its place, in tenths.
const FULL_TENTHS: usize = 8;
/// The smallest table. Most buckets hold a handful.
const MIN_SLOTS: usize = 8;

/// The first slot to look in. By the upper bits and without a power of two, so that a table may be
/// larger by half instead of double. Marks are random already; the factor spreads those that tests count
/// up.
fn home(mark: u64, slots: usize) -> usize {
    let mixed = mark.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let scaled = (u128::from(mixed) * slots as u128) >> 64;
    usize::try_from(scaled).unwrap_or(0)
}

const fn larger(slots: usize) -> usize {
    let more = slots + slots / 2;
    if more < MIN_SLOTS { MIN_SLOTS } else { more }
}

const fn is_full(count: u64, slots: usize) -> bool {
    (count as usize + 1) * 10 > slots * FULL_TENTHS
}

/// What became of an insertion.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Inserted {
    /// It was not there.
    New,
    /// It was there already.
    Known,
    /// There is no room: use a larger table.
    NoRoom,
}

/// A set of marks.
pub(super) struct MarkSet {
    /// Zero is an empty slot.
    slots: Box<[AtomicU64]>,
    /// Whether zero itself is a member.
    zero: AtomicBool,
    count: AtomicU64,
    xor: AtomicU64,
}

impl MarkSet {
    fn with_slots(slots: usize) -> Self {
        Self {
            slots: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            zero: AtomicBool::new(false),
            count: AtomicU64::new(0),
            xor: AtomicU64::new(0),
        }
    }

    /// An empty set.
    pub(super) fn new() -> Self {
        Self::with_slots(MIN_SLOTS)
    }

    /// A larger table with the same members.
    pub(super) fn grown(&self) -> Self {
        let grown = Self::with_slots(larger(self.slots.len()));
        for mark in self.marks() {
            grown.insert(mark);
        }
        grown
    }

    /// Whether a mark is a member.
    pub(super) fn contains(&self, mark: u64) -> bool {
        if mark == 0 {
            return self.zero.load(Ordering::Acquire);
        }
        let slots = &*self.slots;
        let mut at = home(mark, slots.len());
        // It ends: a table is never full.
        loop {
            match slots[at].load(Ordering::Acquire) {
                0 => return false,
                found if found == mark => return true,
                _ => at = if at + 1 == slots.len() { 0 } else { at + 1 },
            }
        }
    }

    /// Adds a mark. For the one writer.
    pub(super) fn insert(&self, mark: u64) -> Inserted {
        if mark == 0 {
            if self.zero.swap(true, Ordering::AcqRel) {
                return Inserted::Known;
            }
            self.count.fetch_add(1, Ordering::Release);
            return Inserted::New;
        }
        let slots = &*self.slots;
        let mut at = home(mark, slots.len());
        loop {
            match slots[at].load(Ordering::Acquire) {
                0 => break,
                found if found == mark => return Inserted::Known,
                _ => at = if at + 1 == slots.len() { 0 } else { at + 1 },
            }
        }
        if is_full(self.count(), slots.len()) {
            return Inserted::NoRoom;
        }
        slots[at].store(mark, Ordering::Release);
        self.count.fetch_add(1, Ordering::Release);
        self.xor.fetch_xor(mark, Ordering::Release);
        Inserted::New
    }

    /// How many members.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// The exclusive or of the members.
    pub(super) fn xor(&self) -> u64 {
        self.xor.load(Ordering::Acquire)
    }

    /// The members.
    pub(super) fn marks(&self) -> impl Iterator<Item = u64> {
        let slots = self.slots.iter().map(|slot| slot.load(Ordering::Acquire));
        let zero = self.zero.load(Ordering::Acquire).then_some(0);
        slots.filter(|mark| *mark != 0).chain(zero)
    }

    /// What it takes, in bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.slots.len() * 8 + size_of::<Self>()
    }
}

/// A value beside a mark: an epoch, and the second after which it concerns no token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Raised {
    /// The epoch.
    pub(super) epoch: u32,
    /// Seconds since the Unix epoch.
    pub(super) expires: u32,
}

impl Raised {
    const fn pack(self) -> u64 {
        ((self.epoch as u64) << 32) | self.expires as u64
    }

    const fn unpack(packed: u64) -> Self {
        Self { epoch: (packed >> 32) as u32, expires: packed as u32 }
    }

    fn or_later(self, other: Self) -> Self {
        Self { epoch: self.epoch.max(other.epoch), expires: self.expires.max(other.expires) }
    }
}

/// Epochs by mark.
pub(super) struct EpochMap {
    /// A mark, zero for an empty slot, and its packed [`Raised`].
    slots: Box<[(AtomicU64, AtomicU64)]>,
    count: AtomicU64,
}

impl EpochMap {
    fn with_slots(slots: usize) -> Self {
        Self {
            slots: (0..slots).map(|_| (AtomicU64::new(0), AtomicU64::new(0))).collect(),
            count: AtomicU64::new(0),
        }
    }

    /// An empty map.
    pub(super) fn new() -> Self {
        Self::with_slots(MIN_SLOTS)
    }

    /// A larger table with the same entries.
    pub(super) fn grown(&self) -> Self {
        let grown = Self::with_slots(larger(self.slots.len()));
        for (mark, raised) in self.entries() {
            grown.raise(mark, raised);
        }
        grown
    }

    /// The same without what has expired.
    pub(super) fn without_expired(&self, now: u64) -> Self {
        let live = || self.entries().filter(|(_, raised)| now < u64::from(raised.expires));
        let count = live().count();
        let mut kept = Self::with_slots(MIN_SLOTS.max(count * 10 / FULL_TENTHS + 2));
        for (mark, raised) in live() {
            if kept.raise(mark, raised) == Inserted::NoRoom {
                kept = kept.grown();
                kept.raise(mark, raised);
            }
        }
        kept
    }

    /// The epoch of a mark, if one is known. `mark` is not zero.
    pub(super) fn epoch(&self, mark: u64) -> Option<u32> {
        if self.is_empty() {
            return None;
        }
        self.slot(mark).ok().map(|at| Raised::unpack(self.value(at)).epoch)
    }

    fn value(&self, at: usize) -> u64 {
        self.slots[at].1.load(Ordering::Acquire)
    }

    /// Where a mark is, or else where it belongs.
    fn slot(&self, mark: u64) -> Result<usize, usize> {
        let slots = &*self.slots;
        let mut at = home(mark, slots.len());
        loop {
            match slots[at].0.load(Ordering::Acquire) {
                0 => return Err(at),
                found if found == mark => return Ok(at),
                _ => at = if at + 1 == slots.len() { 0 } else { at + 1 },
            }
        }
    }

    /// Raises a mark's epoch and expiry; neither ever falls. For the one writer.
    pub(super) fn raise(&self, mark: u64, raised: Raised) -> Inserted {
        match self.slot(mark) {
            Ok(at) => {
                let later = Raised::unpack(self.value(at)).or_later(raised);
                self.slots[at].1.store(later.pack(), Ordering::Release);
                Inserted::Known
            }
            Err(_) if is_full(self.count(), self.slots.len()) => Inserted::NoRoom,
            Err(at) => {
                // The value first: whoever finds the mark finds its epoch.
                self.slots[at].1.store(raised.pack(), Ordering::Release);
                self.slots[at].0.store(mark, Ordering::Release);
                self.count.fetch_add(1, Ordering::Release);
                Inserted::New
            }
        }
    }

    /// How many entries.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// The second in which the first entry expires.
    pub(super) fn first_expiry(&self) -> Option<u64> {
        self.entries().map(|(_, raised)| u64::from(raised.expires)).min()
    }

    fn entries(&self) -> impl Iterator<Item = (u64, Raised)> {
        self.slots.iter().filter_map(|(mark, value)| {
            let mark = mark.load(Ordering::Acquire);
            (mark != 0).then(|| (mark, Raised::unpack(value.load(Ordering::Acquire))))
        })
    }

    /// What it takes, in bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.slots.len() * 16 + size_of::<Self>()
    }
}
