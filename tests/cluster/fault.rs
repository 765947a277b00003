//! What goes wrong, and how it is put right.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::dice::Dice;
use crate::gateway;
use crate::net::{Link, Node};
use crate::process::PATIENCE;
use crate::replica::Store;
use crate::rig::Rig;

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
        ];
        [&alone[..], &member].concat()
    }

    /// Any of them, and for how long.
    pub(crate) fn any(store: Store, dice: &Dice) -> (Self, Duration) {
        let mut all = Self::each(store, dice);
        if store == Store::Etcd {
            all.push(Self::MemberCut { leader: true, way: Way::Out });
            all.push(Self::MemberCut { leader: true, way: Way::In });
            all.push(Self::SlowDisk { all: false });
        }
        let fault = *dice.of(&all);
        (fault, dice.between(Duration::from_secs(2), Duration::from_secs(10)))
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
        }
    }

    /// Lets it happen, for a while, and puts everything right again. Says when it was put right.
    pub(crate) async fn strike(self, rig: &mut Rig, hold: Duration, dice: &Dice) -> Instant {
        let cut = Link { cut: true, ..Link::default() };
        match self {
            Self::LeaderKilled => {
                let leader = leader().await;
                rig.members[leader].program.kill().await;
                sleep(hold).await;
                rig.members[leader].program.start();
            }
            Self::QuorumLost => {
                let spared = dice.below(3);
                for member in (0..3).filter(|it| *it != spared) {
                    rig.members[member].program.kill().await;
                }
                sleep(hold).await;
                rig.members.iter_mut().for_each(|member| member.program.start());
            }
            Self::MemberPaused { leader } => {
                let member = &rig.members[chosen(leader, dice).await];
                member.program.signal(Signal::STOP);
                sleep(hold).await;
                member.program.signal(Signal::CONT);
            }
            Self::ReplicaCut(replica) => {
                for member in Node::MEMBERS {
                    rig.network.set_both(Node::Replica(replica), member, cut);
                }
                sleep(hold).await;
            }
            Self::MemberCut { leader, way } => {
                let member = Node::Member(chosen(leader, dice).await);
                for other in Node::MEMBERS.into_iter().filter(|it| *it != member) {
                    if way != Way::In {
                        rig.network.set(member, other, cut);
                    }
                    if way != Way::Out {
                        rig.network.set(other, member, cut);
                    }
                }
                sleep(hold).await;
            }
            Self::ReplicaKilled(replica) => {
                rig.replicas[replica].kill().await;
                sleep(hold).await;
                rig.replicas[replica].start();
            }
            Self::ReplicaPaused(replica) => {
                rig.replicas[replica].signal(Signal::STOP);
                sleep(hold).await;
                rig.replicas[replica].signal(Signal::CONT);
            }
            Self::CallersCut(replica) => {
                rig.network.set_both(Node::Callers, Node::Replica(replica), cut);
                sleep(hold).await;
            }
            Self::SlowDisk { all } => slow_disk(rig, all, hold).await,
            Self::SlowNetwork { callers } => {
                slow_network(rig, callers);
                sleep(hold).await;
            }
            Self::OutOfQuota => out_of_quota(rig, hold).await,
            Self::DiskFull(member) => {
                rig.members[member].fill();
                sleep(hold).await;
                rig.members[member].make_room();
            }
            Self::Compaction => compaction(hold).await,
            Self::RollingRestart => rolling_restart(rig).await,
        }
        rig.network.heal();
        rig.start_the_fallen();
        let healed = Instant::now();
        for member in &mut rig.members {
            member.led().await;
        }
        healed
    }
}

async fn leader() -> usize {
    let began = Instant::now();
    loop {
        if let Some(leader) = gateway::leader().await {
            return leader;
        }
        assert!(began.elapsed() < PATIENCE, "nobody leads");
        sleep(Duration::from_millis(100)).await;
    }
}

async fn chosen(leads: bool, dice: &Dice) -> usize {
    let leader = leader().await;
    if leads { leader } else { (leader + 1 + dice.below(2)) % 3 }
}

async fn slow_disk(rig: &mut Rig, all: bool, hold: Duration) {
    let leader = leader().await;
    let by = Duration::from_millis(if all { 100 } else { 300 });
    for (index, member) in rig.members.iter_mut().enumerate() {
        if all || index == leader {
            member.slow_down(by);
        }
    }
    sleep(hold).await;
    for member in &mut rig.members {
        member.quicken().await;
    }
}

fn slow_network(rig: &Rig, callers: bool) {
    let link = Link {
        cut: false,
        delay: Duration::from_millis(100),
        jitter: Duration::from_millis(30),
        lost_per_mille: 20,
    };
    let nodes: Vec<Node> = Node::MEMBERS.into_iter().chain(Node::REPLICAS).collect();
    for one in &nodes {
        for other in nodes.iter().filter(|it| *it != one) {
            rig.network.set(*one, *other, link);
        }
        if callers && matches!(one, Node::Replica(_)) {
            rig.network.set_both(Node::Callers, *one, link);
        }
    }
}

/// The keys that fill the database.
const JUNK: &str = "junk/";

async fn out_of_quota(rig: &Rig, hold: Duration) {
    let value = vec![7; 1 << 20];
    let most = rig.sizes.quota_mebibytes * 2;
    for number in 0..most {
        let member = usize::try_from(number % 3).expect("a member");
        match gateway::put(member, &format!("{JUNK}{}", number % 2), &value).await {
            Err(said) if said.contains("space exceeded") => break,
            // Another member may have more time.
            _ => {}
        }
    }
    assert_eq!(gateway::alarmed(0).await, Ok(true), "the quota is used up");
    sleep(hold).await;
    // As etcd's documentation tells operators to.
    gateway::delete(0, JUNK).await.expect("deleted");
    let revision = gateway::status(0).await.expect("a status").revision;
    gateway::compact(0, revision).await.expect("compacted");
    for member in 0..3 {
        gateway::defragment(member).await.expect("defragmented");
    }
    gateway::disarm(0).await.expect("disarmed");
}

async fn compaction(hold: Duration) {
    let until = Instant::now() + hold;
    while Instant::now() < until {
        if let Ok(status) = gateway::status(0).await {
            // Somebody else may have been quicker.
            _ = gateway::compact(0, status.revision).await;
        }
        sleep(Duration::from_millis(250)).await;
    }
    for member in 0..3 {
        gateway::defragment(member).await.expect("defragmented");
    }
}

async fn rolling_restart(rig: &mut Rig) {
    for member in &mut rig.members {
        member.program.terminate().await;
        member.program.start();
        member.led().await;
    }
    for index in 0..rig.replicas.len() {
        rig.replicas[index].terminate().await;
        rig.replicas[index].start();
        // Whether the last one does is asked by whoever let this happen.
        _ = rig.serving().await;
    }
}
