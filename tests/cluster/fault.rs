//! What goes wrong, and which of it may go wrong together.

use std::time::Duration;

use crate::clock::{LEAD_SECS, OUT_SECS};
use crate::dice::Dice;
use crate::replica::Store;

/// Which packets of a member are lost.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    Both,
    /// What it sends.
    Out,
    /// What it is sent.
    In,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// The leader is killed.
    LeaderKilled,
    /// Two members are killed: nothing can be written.
    QuorumLost,
    /// A member stands still, the leader or another.
    MemberPaused { leader: bool },
    /// A replica reaches no member.
    ReplicaCut(usize),
    /// A member does not reach the other two; replicas reach all.
    MemberCut { leader: bool, way: Way },
    /// A replica is killed.
    ReplicaKilled(usize),
    /// A replica stands still.
    ReplicaPaused(usize),
    /// Nobody reaches a replica; it reaches etcd.
    CallersCut(usize),
    /// Syncs of one member's disk are slow, or of all.
    SlowDisk { all: bool },
    /// All packets between members and replicas are slow and some are lost; for callers too, or not.
    SlowNetwork { callers: bool },
    /// etcd is out of its quota, until room is made and the alarm is disarmed.
    OutOfQuota,
    /// A member's disk is full.
    DiskFull(usize),
    /// All that can be compacted is, again and again, and each member is defragmented.
    Compaction,
    /// Each node is restarted, one after the other.
    RollingRestart,
    /// The clock of a replica is set forward by so many seconds, or back, and later set right again:
    /// two steps while it runs.
    Clock { replica: usize, ahead: i64 },
    /// The clock of a replica is set to and fro, several times a second.
    ClockToAndFro(usize),
    /// A replica is killed, and started with a clock that is far off: it must not start.
    ClockRefused { replica: usize, ahead: i64 },
}

impl Fault {
    /// Each once.
    pub(crate) fn each(store: Store, dice: &Dice) -> Vec<Self> {
        let replica = |dice: &Dice| dice.below(store.replicas());
        let alone = vec![
            Self::ReplicaKilled(replica(dice)),
            Self::ReplicaPaused(replica(dice)),
            Self::CallersCut(replica(dice)),
            Self::SlowNetwork { callers: true },
            Self::RollingRestart,
        ];
        if store == Store::Sled {
            return alone;
        }
        let member = [
            Self::LeaderKilled,
            Self::MemberPaused { leader: true },
            Self::ReplicaCut(replica(dice)),
            Self::MemberCut { leader: true, way: Way::Both },
            Self::MemberCut { leader: dice.chance(50), way: *dice.of(&[Way::Out, Way::In]) },
            Self::SlowDisk { all: true },
            Self::SlowNetwork { callers: false },
            Self::OutOfQuota,
            Self::DiskFull(dice.below(3)),
            Self::Compaction,
            Self::QuorumLost,
            Self::MemberPaused { leader: false },
            Self::Clock { replica: replica(dice), ahead: 8 },
            Self::ClockRefused { replica: replica(dice), ahead: *dice.of(&[90, -90]) },
        ];
        [&alone[..], &member].concat()
    }

    /// Any of them.
    pub(crate) fn any(store: Store, dice: &Dice) -> Self {
        let mut all = Self::each(store, dice);
        if store == Store::Etcd {
            let between = |least: i64, most: usize| least + dice.below(most) as i64;
            for ahead in [between(2, 8), between(LEAD_SECS + 2, 13), between(OUT_SECS + 5, 20)] {
                for ahead in [ahead, -ahead] {
                    all.push(Self::Clock { replica: dice.below(store.replicas()), ahead });
                }
            }
            all.push(Self::ClockToAndFro(dice.below(store.replicas())));
            all.push(Self::MemberCut { leader: true, way: Way::Out });
            all.push(Self::MemberCut { leader: true, way: Way::In });
            all.push(Self::SlowDisk { all: false });
        }
        *dice.of(&all)
    }

    /// Whether both may be there at once, and be put right again in any order.
    fn goes_with(self, other: Self) -> bool {
        // They take it that everything else works, or does again soon.
        let of_replicas = |it: Self| {
            matches!(
                it,
                Self::ReplicaCut(_)
                    | Self::ReplicaKilled(_)
                    | Self::ReplicaPaused(_)
                    | Self::CallersCut(_)
                    | Self::Clock { .. }
                    | Self::ClockToAndFro(_)
            )
        };
        let of_clocks = |it: Self| matches!(it, Self::Clock { .. } | Self::ClockToAndFro(_));
        let one_way = |one: Self, other: Self| match one {
            Self::RollingRestart => of_clocks(other) && !other.is_out(),
            Self::OutOfQuota => of_replicas(other),
            Self::ClockRefused { .. } => false,
            // Nobody lets go of a process that stands still.
            Self::SlowDisk { .. } => {
                !matches!(other, Self::MemberPaused { .. } | Self::SlowDisk { .. })
            }
            // One clock at a time is wrong: of two nobody could say which.
            Self::Clock { .. } | Self::ClockToAndFro(_) => {
                !of_clocks(other) && (!one.is_out() || !other.silences_replicas())
            }
            _ => true,
        };
        self != other && one_way(self, other) && one_way(other, self)
    }

    /// Whether it is the clock of a replica, which is out of service for that.
    pub(crate) const fn is_out(self) -> bool {
        matches!(self, Self::Clock { ahead, .. } if ahead.unsigned_abs() > OUT_SECS.unsigned_abs())
    }

    /// Whether replicas may be hindered to tell each other what time it is.
    const fn silences_replicas(self) -> bool {
        !matches!(
            self,
            Self::LeaderKilled
                | Self::MemberPaused { .. }
                | Self::MemberCut { .. }
                | Self::DiskFull(_)
                | Self::Compaction
        )
    }

    /// The name in reports, the same whichever node it strikes.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::LeaderKilled => "leader killed",
            Self::QuorumLost => "two members killed",
            Self::MemberPaused { leader: true } => "leader paused",
            Self::MemberPaused { leader: false } => "member paused",
            Self::ReplicaCut(_) => "replica cut off from etcd",
            Self::MemberCut { leader: true, way: Way::Both } => "leader cut off from the others",
            Self::MemberCut { leader: false, way: Way::Both } => "member cut off from the others",
            Self::MemberCut { leader: true, way: Way::Out } => "leader not heard by the others",
            Self::MemberCut { leader: false, way: Way::Out } => "member not heard by the others",
            Self::MemberCut { leader: true, way: Way::In } => "leader hears nothing of the others",
            Self::MemberCut { leader: false, way: Way::In } => "member hears nothing of the others",
            Self::ReplicaKilled(_) => "replica killed",
            Self::ReplicaPaused(_) => "replica paused",
            Self::CallersCut(_) => "replica cut off from its callers",
            Self::SlowDisk { all: true } => "slow disks, 100 ms a sync",
            Self::SlowDisk { all: false } => "slow disk of the leader, 300 ms a sync",
            Self::SlowNetwork { callers: true } => "slow network, for callers too",
            Self::SlowNetwork { callers: false } => "slow network, 100 ms and more, 2 % lost",
            Self::OutOfQuota => "etcd out of quota",
            Self::DiskFull(_) => "disk of a member full",
            Self::Compaction => "full compaction and defragmentation",
            Self::RollingRestart => "rolling restart of everything",
            Self::Clock { ahead, .. } => match (ahead > 0, ahead.unsigned_abs()) {
                (true, 0..=10) => "clock up to 10 s ahead",
                (false, 0..=10) => "clock up to 10 s behind",
                (true, 11..=30) => "clock 10 to 30 s ahead",
                (false, 11..=30) => "clock 10 to 30 s behind",
                (true, _) => "clock over 30 s ahead",
                (false, _) => "clock over 30 s behind",
            },
            Self::ClockToAndFro(_) => "clock set to and fro by 8 s",
            Self::ClockRefused { .. } => "started with a clock 90 s off",
        }
    }
}

/// What goes wrong at once: one fault, or two.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trouble {
    pub(crate) first: Fault,
    pub(crate) second: Option<Fault>,
    /// For how long.
    pub(crate) hold: Duration,
}

impl Trouble {
    /// Any: one fault, and as often two.
    pub(crate) fn any(store: Store, dice: &Dice) -> Self {
        let first = Fault::any(store, dice);
        let other = Fault::any(store, dice);
        let second = (dice.chance(50) && first.goes_with(other)).then_some(other);
        let hold = dice.between(Duration::from_secs(2), Duration::from_secs(10));
        Self { first, second, hold }
    }

    /// For the report.
    pub(crate) fn name(&self) -> String {
        let Some(second) = self.second else { return self.first.name().to_owned() };
        let mut names = [self.first.name(), second.name()];
        names.sort_unstable();
        names.join(" + ")
    }
}

#[test]
fn two_faults_never_wait_for_each_other_nor_are_two_clocks_wrong() {
    let dice = Dice::new(7, "pairs");
    let pairs = (0..5_000).filter_map(|_| {
        let trouble = Trouble::any(Store::Etcd, &dice);
        trouble.second.map(|second| [trouble.first.name(), second.name()])
    });
    let pairs: Vec<[&str; 2]> = pairs.collect();
    assert!(pairs.len() > 1_000, "{}", pairs.len());
    for names in pairs {
        let one =
            |what: &[&str]| names.iter().any(|name| what.iter().any(|it| name.starts_with(it)));
        assert!(!names.iter().all(|name| name.starts_with("clock")), "{names:?}");
        assert!(!one(&["rolling"]) || one(&["clock"]), "{names:?}");
        assert!(!one(&["etcd out"]) || one(&["replica", "clock"]), "{names:?}");
        assert!(!one(&["slow disk"]) || !one(&["leader paused", "member paused"]), "{names:?}");
        assert!(!one(&["started with"]), "{names:?}");
    }
}
