//! One state of the model: the store, the replicas, the calls under way, the watchers, and what an
//! onlooker who sees everything remembers of it.

/// The most replicas.
pub(crate) const REPLICAS: usize = 3;
/// The most calls under way at once, and the most transactions that nobody waits for any more.
pub(crate) const CALLS: usize = 2;
/// The most watchers.
pub(crate) const WATCHERS: usize = 2;
/// The most generations: one more than there may be Refresh calls.
pub(crate) const GENERATIONS: usize = 6;
/// The most events.
pub(crate) const EVENTS: usize = 4;

/// The one session, as far as rotation goes.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) struct Line {
    pub(crate) generation: u8,
    /// The MAC key of the current token. Each replica has its own newest, as during a change of keys,
    /// so that two replicas that rotate make different successors.
    pub(crate) mac: u8,
    /// By the clock of the replica that rotated.
    pub(crate) rotated_at: u8,
    pub(crate) revoked: bool,
}

/// What an event says.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) enum Happened {
    #[default]
    Nothing,
    SessionEnded,
    SubjectRaised(u8),
}

/// What a decision has read: records with their revisions. An epoch is its own revision.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) struct Seen {
    pub(crate) line: Line,
    pub(crate) version: u8,
    pub(crate) epoch: u8,
}

impl Seen {
    /// Whether nobody revoked the session or its subject: by the onlooker's own lights, whatever the
    /// crate's functions say.
    pub(crate) const fn lives(&self) -> bool {
        !self.line.revoked && self.epoch == 0
    }
}

/// What the cluster has committed.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) struct Stored {
    pub(crate) now: Seen,
    /// The events, oldest first. An event's revision is its place, counted from one.
    pub(crate) log: [Happened; EVENTS],
    pub(crate) head: u8,
}

/// Who calls.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Who {
    Honest,
    Thief,
    Admin,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Ask {
    /// Refresh, with the token of this generation.
    Refresh(u8),
    RevokeSession,
    RevokeSubject,
}

/// What a caller is told.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Told {
    /// The refresh token of this generation, made with this MAC key.
    Tokens(u8, u8),
    /// No.
    Refused,
    /// No, and the session is revoked for it.
    Reused,
    /// It is revoked, by this call.
    Revoked,
    /// It is revoked, by another.
    Already,
    /// No, and nothing happened.
    NothingHappened,
}

/// A transaction: it does what the call asks for, as decided over what was seen.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Transaction {
    pub(crate) who: Who,
    pub(crate) ask: Ask,
    pub(crate) replica: u8,
    /// When the call came in. Every run of its decision takes this for now.
    pub(crate) began: u8,
    pub(crate) seen: Seen,
    /// The caller was told that it did not happen.
    pub(crate) disowned: bool,
}

/// Where a call stands.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Phase {
    /// Its transaction is on the way.
    Sent,
    /// Its replica has heard no outcome.
    Unknown,
    /// This is the answer, once the replica's watch has applied so many events.
    Decided { told: Told, after: u8 },
}

/// A call at a replica.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Call {
    pub(crate) transaction: Transaction,
    pub(crate) phase: Phase,
    /// An earlier sending of this same transaction has an unknown outcome.
    pub(crate) unsure: bool,
}

/// How a replica comes to prove that it has everything. Moments are written as the number of events
/// whose Revoke had been acknowledged then, which is all that `as_of` promises.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) enum Proof {
    #[default]
    None,
    /// The clock was read; the store is about to be asked.
    Asking(u8),
    /// The newest event was the second when the store answered.
    Waiting(u8, u8),
}

/// A replica.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) struct Replica {
    pub(crate) down: bool,
    /// Nothing passes between it and the store.
    pub(crate) cut: bool,
    /// What it remembers of the records, as old as it may be.
    pub(crate) cache: Option<Seen>,
    /// How many events its watch has applied: its head.
    pub(crate) applied: u8,
    pub(crate) proof: Proof,
    pub(crate) as_of: u8,
    /// What it must have sent before it gives that `as_of`.
    pub(crate) vouches: u8,
}

/// Where a watcher stands with its stream.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) enum Stream {
    #[default]
    None,
    /// It waits for its snapshot from this replica, attached after so many events.
    Starting(u8, u8),
    /// It has a snapshot but is attached to nothing. Only without the rule.
    Detached(u8),
    /// It follows this replica.
    Following(u8),
}

/// A watcher.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) struct Watcher {
    pub(crate) stream: Stream,
    pub(crate) synced: bool,
    pub(crate) cursor: u8,
    /// The events that it has, by bit.
    pub(crate) held: u8,
    pub(crate) as_of: u8,
}

/// The client that the session belongs to.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) struct Honest {
    /// The generation of its token.
    pub(crate) generation: u8,
    /// When it first sent that token.
    pub(crate) first_sent: Option<u8>,
    /// It was refused.
    pub(crate) out: bool,
}

/// How much may still happen.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Left {
    pub(crate) honest: u8,
    pub(crate) thief: u8,
    pub(crate) revokes: u8,
    pub(crate) losses: u8,
    pub(crate) crashes: u8,
    pub(crate) cuts: u8,
}

/// What no run must do, found at a step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u16)]
pub(crate) enum Wrong {
    /// Two callers hold different successors of one token.
    Fork = 1,
    /// A spent token was good after its window.
    Late = 1 << 1,
    /// The session of a client that kept to the rules was revoked as if it had been stolen, or its
    /// token was refused while the session lived.
    HonestKilled = 1 << 2,
    /// Somebody was told of reuse while the session lived.
    ReuseLives = 1 << 3,
    /// A session was refreshed after it, or its subject, was revoked.
    DeadRotated = 1 << 4,
    /// What was said not to have happened happened.
    BrokenPromise = 1 << 5,
    /// The cursor that Revoke returned is before the event.
    CursorShort = 1 << 6,
    /// A watcher lost an event that it had.
    Forgot = 1 << 7,
}

/// What an onlooker remembers.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) struct Onlooker {
    /// When the parent of the current token was spent, truly.
    pub(crate) spent_at: u8,
    /// The MAC key of each generation as the first caller got it, plus one.
    pub(crate) got: [u8; GENERATIONS],
    /// The highest cursor of an acknowledged Revoke.
    pub(crate) acked: u8,
    /// The same, of those that each replica has acknowledged.
    pub(crate) acked_here: [u8; REPLICAS],
    /// What went wrong, by the bits of [`Wrong`].
    pub(crate) wrong: u16,
}

/// All of it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct State {
    pub(crate) time: u8,
    pub(crate) store: Stored,
    pub(crate) replicas: [Replica; REPLICAS],
    pub(crate) calls: [Option<Call>; CALLS],
    /// Transactions that are still on the way though nobody waits for them.
    pub(crate) late: [Option<Transaction>; CALLS],
    pub(crate) honest: Honest,
    pub(crate) watchers: [Watcher; WATCHERS],
    pub(crate) left: Left,
    pub(crate) onlooker: Onlooker,
}

impl State {
    pub(crate) const fn note(&mut self, wrong: Wrong) {
        self.onlooker.wrong |= wrong as u16;
    }

    pub(crate) const fn noted(&self, wrong: Wrong) -> bool {
        self.onlooker.wrong & wrong as u16 != 0
    }
}

/// The bits of the first `count` events.
pub(crate) const fn first(count: u8) -> u8 {
    (1 << count) - 1
}
