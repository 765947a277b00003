//! How faults begin, and how they are put right.

use std::time::Duration;

use rustix::process::Signal;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::clock::{self, LEAD_SECS, OUT_SECS};
use crate::dice::Dice;
use crate::fault::{Fault, Trouble, Way};
use crate::gateway;
use crate::history::{Doubt, Micros, Recorder};
use crate::net::{Link, Node};
use crate::process::PATIENCE;
use crate::rig::{Rig, serves};

/// How soon replicas keep up with one whose clock was set.
const KEPT_UP: Duration = Duration::from_secs(3);
/// How far clocks differ for callers that are within what replicas keep up with, once they do.
const IN_STEP: Duration = Duration::from_secs(3);
/// How far a clock goes to and fro.
const TO_AND_FRO: Duration = Duration::from_secs(8);

/// What is left to do to put a fault right.
enum Undo {
    Nothing,
    Heal(usize),
    Members(Vec<usize>),
    ContinueMember(usize),
    ContinueReplica(usize),
    StartReplica(usize),
    SlowDisk,
    MakeRoom(usize),
    Quota,
    Compaction(JoinHandle<()>),
    Clock { replica: usize, since: Micros, ahead: i64 },
    ToAndFro { replica: usize, since: Micros, moving: JoinHandle<()> },
}

impl Undo {
    /// What comes later the higher this is: 1 takes members that are led, and 2 that they have room, too.
    const fn turn(&self) -> u8 {
        match self {
            Self::Quota | Self::Compaction(_) => 1,
            Self::StartReplica(_) => 2,
            _ => 0,
        }
    }
}

fn micros(it: Duration) -> Micros {
    u64::try_from(it.as_micros()).expect("short")
}

impl Trouble {
    /// Lets it happen, for a while, and puts everything right again. Says when it was put right.
    pub(crate) async fn strike(self, rig: &mut Rig, recorder: &Recorder, dice: &Dice) -> Instant {
        let alone = self.second.is_none();
        let mut undos = vec![self.first.begin(0, rig, recorder, alone, dice).await];
        if let Some(second) = self.second {
            // The first has begun to show, or not.
            sleep(dice.between(Duration::ZERO, self.hold / 2)).await;
            undos.push(second.begin(1, rig, recorder, alone, dice).await);
        }
        sleep(self.hold).await;
        if dice.chance(50) {
            undos.reverse();
        }
        undos.sort_by_key(Undo::turn);
        let mut led = false;
        let mut gap = Duration::ZERO;
        for undo in undos {
            sleep(gap).await;
            if undo.turn() > 0 && !std::mem::replace(&mut led, true) {
                all_are_led(rig).await;
            }
            undo.put_right(rig, recorder, alone).await;
            gap = dice.between(Duration::ZERO, Duration::from_secs(2));
        }
        rig.start_the_fallen();
        let healed = Instant::now();
        all_are_led(rig).await;
        healed
    }
}

async fn all_are_led(rig: &mut Rig) {
    // A disk that is full ends a member, as etcd's documentation says.
    rig.members.iter_mut().for_each(|member| member.program.start());
    for member in &mut rig.members {
        member.led().await;
    }
}

impl Fault {
    /// Lets it begin. `layer` is its own in the network, and `alone` that there is no other fault.
    async fn begin(
        self,
        layer: usize,
        rig: &mut Rig,
        recorder: &Recorder,
        alone: bool,
        dice: &Dice,
    ) -> Undo {
        let cut = Link { cut: true, ..Link::default() };
        match self {
            Self::LeaderKilled => {
                let leader = leader(dice).await;
                rig.members[leader].program.kill().await;
                Undo::Members(vec![leader])
            }
            Self::QuorumLost => {
                let spared = dice.below(3);
                let killed: Vec<usize> = (0..3).filter(|it| *it != spared).collect();
                for member in &killed {
                    rig.members[*member].program.kill().await;
                }
                Undo::Members(killed)
            }
            Self::MemberPaused { leader } => {
                let member = chosen(leader, dice).await;
                rig.members[member].program.signal(Signal::STOP);
                Undo::ContinueMember(member)
            }
            Self::ReplicaCut(replica) => {
                for member in Node::MEMBERS {
                    rig.network.set_both(layer, Node::Replica(replica), member, cut);
                }
                Undo::Heal(layer)
            }
            Self::MemberCut { leader, way } => {
                let member = Node::Member(chosen(leader, dice).await);
                for other in Node::MEMBERS.into_iter().filter(|it| *it != member) {
                    if way != Way::In {
                        rig.network.set(layer, member, other, cut);
                    }
                    if way != Way::Out {
                        rig.network.set(layer, other, member, cut);
                    }
                }
                Undo::Heal(layer)
            }
            Self::ReplicaKilled(replica) => {
                rig.replicas[replica].kill().await;
                Undo::StartReplica(replica)
            }
            Self::ReplicaPaused(replica) => {
                rig.replicas[replica].signal(Signal::STOP);
                Undo::ContinueReplica(replica)
            }
            Self::CallersCut(replica) => {
                rig.network.set_both(layer, Node::Callers, Node::Replica(replica), cut);
                Undo::Heal(layer)
            }
            Self::SlowDisk { all } => {
                slow_disk(rig, all, dice).await;
                Undo::SlowDisk
            }
            Self::SlowNetwork { callers } => {
                slow_network(rig, layer, callers);
                Undo::Heal(layer)
            }
            Self::OutOfQuota => {
                use_up_the_quota(rig).await;
                Undo::Quota
            }
            Self::DiskFull(member) => {
                rig.members[member].fill();
                Undo::MakeRoom(member)
            }
            Self::Compaction => Undo::Compaction(tokio::spawn(compact_again_and_again())),
            Self::RollingRestart => {
                rolling_restart(rig).await;
                Undo::Nothing
            }
            Self::Clock { replica, ahead } => {
                let since = recorder.now();
                rig.skews[replica].set(ahead * 1000);
                if alone {
                    shows(rig, replica, ahead).await;
                }
                Undo::Clock { replica, since, ahead }
            }
            Self::ClockToAndFro(replica) => {
                let since = recorder.now();
                let skew = std::sync::Arc::clone(&rig.skews[replica]);
                let dice = Dice::new(since, "to and fro");
                let most = usize::try_from(TO_AND_FRO.as_millis()).expect("short");
                let moving = tokio::spawn(async move {
                    loop {
                        let by = i64::try_from(dice.below(2 * most + 1)).expect("short");
                        skew.set(by - i64::try_from(most).expect("short"));
                        sleep(dice.between(Duration::ZERO, Duration::from_millis(500))).await;
                    }
                });
                Undo::ToAndFro { replica, since, moving }
            }
            Self::ClockRefused { replica, ahead } => {
                rig.replicas[replica].kill().await;
                rig.skews[replica].set(ahead * 1000);
                rig.replicas[replica].start();
                let said = rig.replicas[replica].ended().await;
                assert!(said.contains("clock"), "it says why it does not start: {said}");
                rig.skews[replica].set(0);
                Undo::StartReplica(replica)
            }
        }
    }
}

impl Undo {
    async fn put_right(self, rig: &mut Rig, recorder: &Recorder, alone: bool) {
        match self {
            Self::Nothing => {}
            Self::Heal(layer) => rig.network.heal(layer),
            Self::Members(them) => {
                them.iter().for_each(|member| rig.members[*member].program.start());
            }
            Self::ContinueMember(member) => rig.members[member].program.signal(Signal::CONT),
            Self::ContinueReplica(replica) => rig.replicas[replica].signal(Signal::CONT),
            Self::StartReplica(replica) => rig.replicas[replica].start(),
            Self::SlowDisk => {
                for member in &mut rig.members {
                    member.quicken().await;
                }
            }
            Self::MakeRoom(member) => rig.members[member].make_room(),
            Self::Quota => make_room_in_the_quota().await,
            Self::Compaction(compacting) => {
                compacting.abort();
                for member in 0..3 {
                    gateway::defragment(member).await.expect("defragmented");
                }
            }
            Self::Clock { replica, since, ahead } => {
                if alone && ahead.abs() > OUT_SECS {
                    out_of_service(rig, replica).await;
                }
                rig.skews[replica].set(0);
                let apart = Duration::from_secs(ahead.unsigned_abs());
                let in_step = alone && ahead.abs() <= LEAD_SECS;
                // Its time stands still until the others' has come as far.
                let after = KEPT_UP + if ahead > 0 { apart } else { Duration::ZERO };
                let (kept_up, to) = (micros(KEPT_UP), recorder.now() + micros(after));
                let steady = micros(if in_step { IN_STEP } else { apart });
                recorder.doubt(Doubt { from: since, to: since + kept_up, apart: micros(apart) });
                recorder.doubt(Doubt { from: since, to, apart: steady });
            }
            Self::ToAndFro { replica, since, moving } => {
                moving.abort();
                rig.skews[replica].set(0);
                let to = recorder.now() + micros(KEPT_UP + TO_AND_FRO);
                recorder.doubt(Doubt { from: since, to, apart: micros(TO_AND_FRO) });
            }
        }
    }
}

/// Waits until somebody says that the clock of a replica is off by as much.
async fn shows(rig: &Rig, replica: usize, ahead: i64) {
    let began = Instant::now();
    let other = (replica + 1) % rig.replicas.len();
    loop {
        let [own, others] = [clock::ahead(replica).await, clock::ahead(other).await];
        let near = |said: Option<f64>, wanted: i64| {
            said.is_some_and(|said| (said - wanted as f64).abs() < 2.0)
        };
        if near(own, ahead) || near(others, -ahead) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{ahead} s ahead, and yet it says {own:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

async fn out_of_service(rig: &Rig, replica: usize) {
    let began = Instant::now();
    while serves(replica).await {
        let said = rig.replicas[replica].tail(10);
        assert!(began.elapsed() < PATIENCE, "its clock is far off, and yet it serves: {said}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Who leads; anybody, if nobody does for long.
async fn leader(dice: &Dice) -> usize {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        if let Some(leader) = gateway::leader().await {
            return leader;
        }
        sleep(Duration::from_millis(100)).await;
    }
    dice.below(3)
}

async fn chosen(leads: bool, dice: &Dice) -> usize {
    let leader = leader(dice).await;
    if leads { leader } else { (leader + 1 + dice.below(2)) % 3 }
}

async fn slow_disk(rig: &mut Rig, all: bool, dice: &Dice) {
    let leader = leader(dice).await;
    let by = Duration::from_millis(if all { 100 } else { 300 });
    for (index, member) in rig.members.iter_mut().enumerate() {
        if all || index == leader {
            member.slow_down(by);
        }
    }
}

fn slow_network(rig: &Rig, layer: usize, callers: bool) {
    let link = Link {
        cut: false,
        delay: Duration::from_millis(100),
        jitter: Duration::from_millis(30),
        lost_per_mille: 20,
    };
    let nodes: Vec<Node> = Node::MEMBERS.into_iter().chain(Node::REPLICAS).collect();
    for one in &nodes {
        for other in nodes.iter().filter(|it| *it != one) {
            rig.network.set(layer, *one, *other, link);
        }
        if callers && matches!(one, Node::Replica(_)) {
            rig.network.set_both(layer, Node::Callers, *one, link);
        }
    }
}

/// The keys that fill the database.
const JUNK: &str = "junk/";

async fn use_up_the_quota(rig: &Rig) {
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
}

/// As etcd's documentation tells operators to.
async fn make_room_in_the_quota() {
    gateway::delete(0, JUNK).await.expect("deleted");
    let revision = gateway::status(0).await.expect("a status").revision;
    gateway::compact(0, revision).await.expect("compacted");
    for member in 0..3 {
        gateway::defragment(member).await.expect("defragmented");
    }
    gateway::disarm(0).await.expect("disarmed");
}

async fn compact_again_and_again() {
    loop {
        if let Ok(status) = gateway::status(0).await {
            // Somebody else may have been quicker.
            _ = gateway::compact(0, status.revision).await;
        }
        sleep(Duration::from_millis(250)).await;
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
