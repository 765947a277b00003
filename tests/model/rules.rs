//! What is modelled: how large, and by which rules. Each rule can be taken out, to see that the model
//! finds what goes wrong without it.

/// What a commit compares with what its decision has read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Compare {
    /// All of it.
    All,
    /// The session, but not the epochs.
    SessionOnly,
    /// Nothing.
    Nothing,
}

/// What is done about a transaction whose outcome is not known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unknown {
    /// Read again. If what stands there is what this transaction would have put there, and nothing was
    /// written since, it happened; otherwise decide again.
    Recognise,
    /// Read again, and decide again in any case.
    Rerun,
    /// Say that nothing happened.
    Failed,
    /// Say that it happened.
    Applied,
}

/// The rules of the protocol.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) compare: Compare,
    pub(crate) unknown: Unknown,
    /// A transaction that is sent again after an unknown outcome, and turned away, looks once more
    /// whether it was the first sending that came first.
    pub(crate) own_late_known: bool,
    /// A commit with an event is answered once the watch of this replica has applied the event.
    pub(crate) answer_after_watch: bool,
    /// An answer that rests on another's event waits for that event, too.
    pub(crate) already_waits: bool,
    /// The retry window runs from the rotation. Taken out: each retry begins it anew.
    pub(crate) window_fixed: bool,
    /// `as_of` moves once the watch has applied what the proof has read.
    pub(crate) proof_waits: bool,
    /// `as_of` is the moment before that read. Taken out: the moment after.
    pub(crate) proof_looks_back: bool,
    /// A replica that is cut off from the store proves nothing.
    pub(crate) frozen_when_cut: bool,
    /// A heartbeat gives `as_of` once the stream has sent what it vouches for.
    pub(crate) beat_after_frames: bool,
    /// A replica that starts reads the live set as it is now, not as some member remembers it.
    pub(crate) load_is_current: bool,
    /// Introspect waits for the cursor that it was given.
    pub(crate) introspect_waits: bool,
    /// A cursor ahead of this replica is refused. Taken out: it gets this replica's snapshot.
    pub(crate) ahead_refused: bool,
    /// A stream that is resumed goes on after the watcher's cursor. Taken out: after the head.
    pub(crate) resumes_at_cursor: bool,
    /// A stream is attached to the tail before the snapshot is read. Taken out: after.
    pub(crate) attach_first: bool,
}

impl Rules {
    /// As avouch does it.
    pub(crate) const AVOUCH: Self = Self {
        compare: Compare::All,
        unknown: Unknown::Recognise,
        own_late_known: true,
        answer_after_watch: true,
        already_waits: true,
        window_fixed: true,
        proof_waits: true,
        proof_looks_back: true,
        frozen_when_cut: true,
        beat_after_frames: true,
        load_is_current: true,
        introspect_waits: true,
        ahead_refused: true,
        resumes_at_cursor: true,
        attach_first: true,
    };
}

/// How much may happen. Everything that is counted is counted in all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    pub(crate) name: &'static str,
    pub(crate) replicas: u8,
    /// How far the clock of each replica is ahead, in ticks.
    pub(crate) clocks: [u8; 3],
    /// How far time goes, in ticks.
    pub(crate) ticks: u8,
    /// The retry window, in ticks.
    pub(crate) window: u8,
    /// Refresh calls of the client that the session belongs to.
    pub(crate) honest: u8,
    /// Whether that client uses a successor only once its earlier calls are over.
    pub(crate) patient: bool,
    /// Refresh calls of somebody who has copies of its tokens and passes for it.
    pub(crate) thief: u8,
    /// Revoke calls, of the session or of its subject.
    pub(crate) revokes: u8,
    /// Answers that get lost, and transactions that get lost or come late.
    pub(crate) losses: u8,
    pub(crate) crashes: u8,
    /// How often a replica is cut off from the store.
    pub(crate) cuts: u8,
    pub(crate) watchers: u8,
}

impl Scope {
    /// Two replicas, where nothing happens.
    pub(crate) const STILL: Self = Self {
        name: "still",
        replicas: 2,
        clocks: [0; 3],
        ticks: 0,
        window: 2,
        honest: 0,
        patient: true,
        thief: 0,
        revokes: 0,
        losses: 0,
        crashes: 0,
        cuts: 0,
        watchers: 0,
    };

    /// How far two clocks are apart at most.
    pub(crate) fn skew(&self) -> u8 {
        let clocks = &self.clocks[..usize::from(self.replicas)];
        clocks.iter().max().copied().unwrap_or(0) - clocks.iter().min().copied().unwrap_or(0)
    }
}
