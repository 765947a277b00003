use std::convert::Infallible;

use proptest::prelude::*;

use super::*;

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
const ACCESS: Duration = HOUR;

fn policy() -> RingPolicy {
    RingPolicy::new(Algorithm::Es256, ACCESS)
}

/// A ring whose keys are only names, with every state change carried out as a server would.
struct Model {
    records: Vec<KeyRecord>,
    policy: RingPolicy,
    now: Timestamp,
    made: u32,
    /// Which key signed last, and when.
    signed: Vec<(KeyId, Timestamp)>,
}

impl Model {
    fn new(policy: RingPolicy) -> Self {
        let now = Timestamp::from_secs(1_800_000_000);
        Self { records: Vec::new(), policy, now, made: 0, signed: Vec::new() }
    }

    fn carry_out(&mut self, plan: &[KeyChange]) {
        let (now, made) = (self.now, &mut self.made);
        let result = apply_at(&self.records, plan, now, |algorithm, state, activate_at| {
            *made += 1;
            Ok::<_, Infallible>(KeyRecord {
                id: format!("k{made:04}").parse().unwrap(),
                algorithm,
                state,
                created_at: now,
                activate_at,
                retired_at: None,
                remove_at: None,
                revoked_at: None,
                public: PublicKey::Ed25519 { x: "".into() },
                sealed_private: vec![1],
            })
        });
        self.records = result.unwrap();
    }

    fn tick(&mut self) -> Vec<KeyChange> {
        let plan = plan_at(&self.records, &self.policy, self.now);
        self.carry_out(&plan);
        plan
    }

    fn revoke(&mut self, id: &KeyId) {
        self.carry_out(&revoke_plan(&self.records, id, &self.policy, self.now));
    }

    fn advance(&mut self, by: Duration) -> Vec<KeyChange> {
        self.now = self.now.after(by);
        self.tick()
    }

    fn find(&self, id: &str) -> Option<&KeyRecord> {
        self.records.iter().find(|r| r.id.as_str() == id)
    }

    fn state(&self, id: &str) -> Option<KeyState> {
        self.find(id).map(|r| r.state)
    }

    fn signer(&self) -> KeyRecord {
        let mut active = self.records.iter().filter(|r| r.state == KeyState::Active);
        let signer = active.next().cloned().unwrap();
        assert_eq!(active.next(), None, "two active keys");
        signer
    }
}

#[test]
fn names_of_algorithms() {
    for name in ["ES256", "EdDSA", "RS256"] {
        assert_eq!(name.parse::<Algorithm>().unwrap().to_string(), name);
    }
    for name in ["", "es256", "HS256", "none", "ES384", "PS256"] {
        assert_eq!(name.parse::<Algorithm>(), Err(UnknownAlgorithm));
    }
}

const MS: Duration = Duration::from_millis(1);

fn id(name: &str) -> KeyId {
    name.parse().unwrap()
}

impl Model {
    /// A new key that may sign in an hour.
    fn announcement(&self) -> KeyChange {
        KeyChange::Announce {
            algorithm: self.policy.algorithm,
            activate_at: self.now.after(self.policy.announce_for),
        }
    }

    fn announced(&self) -> Vec<&str> {
        let announced = self.records.iter().filter(|r| r.state == KeyState::Announced);
        announced.map(|r| r.id.as_str()).collect()
    }

    /// A ring as it was before there were reserves: k0001 signs, and no key is announced.
    fn without_reserve(policy: RingPolicy) -> Self {
        let mut ring = Self::new(policy);
        ring.carry_out(&[KeyChange::Start { algorithm: policy.algorithm }]);
        ring
    }
}

#[test]
fn the_first_start_makes_one_key_that_signs_at_once_and_one_in_reserve() {
    let mut ring = Model::new(policy());
    let reserve = ring.announcement();
    assert_eq!(ring.tick(), [KeyChange::Start { algorithm: Algorithm::Es256 }, reserve]);
    assert_eq!(ring.records.len(), 2);
    assert_eq!(ring.signer().activate_at, ring.now);
    assert_eq!(ring.announced(), ["k0002"]);
    assert_eq!(ring.tick(), []);
}

#[test]
fn one_whole_rotation_to_the_millisecond() {
    let mut ring = Model::new(policy());
    ring.tick();
    assert_eq!(ring.advance(HOUR), [], "the reserve may sign, and waits");
    assert_eq!(ring.advance(30 * DAY - HOUR - MS), []);
    assert_eq!(ring.signer().id.as_str(), "k0001");
    let plan = ring.advance(MS);
    let remove_at = ring.now.after(ACCESS + RingPolicy::SKEW);
    let retired = KeyChange::Retire { id: id("k0001"), remove_at };
    assert_eq!(plan, [retired, KeyChange::Activate(id("k0002")), ring.announcement()]);
    assert_eq!(ring.signer().id.as_str(), "k0002");
    assert_eq!(ring.state("k0001"), Some(KeyState::Retired));
    assert_eq!(ring.advance(ACCESS + RingPolicy::SKEW - MS), []);
    assert_eq!(ring.advance(MS), [KeyChange::Remove(id("k0001"))]);
    assert_eq!(ring.announced(), ["k0003"]);
    assert_eq!(ring.records.len(), 2);
}

#[test]
fn a_server_that_slept_through_a_rotation_activates_the_reserve() {
    let mut ring = Model::new(policy());
    ring.tick();
    ring.advance(90 * DAY);
    assert_eq!(ring.signer().id.as_str(), "k0002");
    assert_eq!(ring.announced(), ["k0003"]);
}

#[test]
fn a_ring_without_a_reserve_announces_one_before_it_rotates() {
    for slept in [Duration::ZERO, 90 * DAY] {
        let mut ring = Model::without_reserve(policy());
        let plan = ring.advance(slept);
        assert_eq!(plan, [ring.announcement()]);
        assert_eq!(ring.tick(), []);
        assert_eq!(ring.advance(HOUR - MS), []);
        assert_eq!(ring.signer().id.as_str(), "k0001");
        ring.advance(90 * DAY);
        assert_eq!(ring.signer().id.as_str(), "k0002");
    }
}

#[test]
fn a_reserve_that_is_younger_than_the_announcement_waits_past_the_rotation() {
    let mut ring = Model::new(policy());
    ring.tick();
    ring.advance(30 * DAY - MS);
    ring.revoke(&id("k0002"));
    assert_eq!(ring.announced(), ["k0003"], "another takes its place in the same plan");
    assert_eq!(ring.advance(HOUR - MS), []);
    assert_eq!(ring.signer().id.as_str(), "k0001");
    ring.advance(MS);
    assert_eq!(ring.signer().id.as_str(), "k0003");
}

#[test]
fn another_algorithm_is_announced_and_takes_over() {
    let mut ring = Model::new(policy());
    ring.tick();
    ring.policy.algorithm = Algorithm::EdDsa;
    assert_eq!(ring.tick(), [ring.announcement(), KeyChange::Remove(id("k0002"))]);
    assert_eq!(ring.advance(HOUR - MS), []);
    ring.advance(MS);
    assert_eq!(ring.signer().algorithm, Algorithm::EdDsa);
    assert_eq!(ring.announced(), ["k0004"]);
}

#[test]
fn revoking_the_signer_activates_the_reserve_at_once_and_announces_another() {
    let mut ring = Model::new(policy());
    ring.tick();
    ring.now = ring.now.after(MS);
    let stolen = ring.signer().id;
    let plan = revoke_plan(&ring.records, &stolen, &ring.policy, ring.now);
    let revoked = KeyChange::Revoke(stolen.clone());
    assert_eq!(plan, [revoked, KeyChange::Activate(id("k0002")), ring.announcement()]);
    ring.revoke(&stolen);
    assert_eq!(ring.state("k0001"), Some(KeyState::Revoked));
    let record = ring.find("k0001").unwrap();
    assert_eq!((record.revoked_at, record.sealed_private.len()), (Some(ring.now), 0));
    assert_eq!(ring.signer().id.as_str(), "k0002");
    assert_eq!(ring.signer().activate_at, ring.now);
    assert_eq!(ring.announced(), ["k0003"]);
    assert_eq!(revoke_plan(&ring.records, &stolen, &ring.policy, ring.now), []);
    ring.advance(90 * DAY);
    assert_eq!(ring.state("k0001"), Some(KeyState::Revoked), "kept to remember");
}

#[test]
fn revoking_the_only_key_makes_another_and_revoking_others_changes_no_signer() {
    let mut ring = Model::without_reserve(policy());
    ring.revoke(&id("k0001"));
    assert_eq!(ring.signer().id.as_str(), "k0002");
    assert_eq!(ring.announced(), ["k0003"]);
    ring.advance(30 * DAY - HOUR);
    ring.revoke(&id("k0003"));
    assert_eq!(ring.signer().id.as_str(), "k0002");
    assert_eq!(ring.announced(), ["k0004"], "another reserve is announced");
    assert_eq!(ring.tick(), []);
    assert_eq!(revoke_plan(&ring.records, &id("nobody"), &ring.policy, ring.now), []);
}

#[test]
fn rotating_by_hand_takes_the_key_that_was_announced_first_and_announces_another() {
    let mut ring = Model::new(policy());
    ring.tick();
    ring.now = ring.now.after(MS);
    let activate_at = ring.now;
    ring.carry_out(&[KeyChange::Announce { algorithm: Algorithm::EdDsa, activate_at }]);
    let plan = rotate_plan(&ring.records, &ring.policy, ring.now).unwrap();
    let remove_at = ring.now.after(ACCESS + RingPolicy::SKEW);
    let retired = KeyChange::Retire { id: id("k0001"), remove_at };
    assert_eq!(plan, [retired, KeyChange::Activate(id("k0002")), ring.announcement()]);
    ring.carry_out(&plan);
    assert_eq!(ring.signer().id.as_str(), "k0002");
    let bare = Model::without_reserve(policy());
    assert_eq!(rotate_plan(&bare.records, &bare.policy, bare.now), None);
}

#[test]
fn two_active_keys_are_healed() {
    let mut ring = Model::new(policy());
    ring.tick();
    ring.now = ring.now.after(HOUR);
    ring.carry_out(&[KeyChange::Start { algorithm: Algorithm::Es256 }]);
    ring.tick();
    assert_eq!(ring.signer().id.as_str(), "k0003");
    assert_eq!(ring.state("k0001"), Some(KeyState::Retired));
    assert_eq!(ring.announced(), ["k0002"]);
}

#[test]
fn a_second_announced_key_waits_for_its_turn() {
    let mut ring = Model::new(policy());
    ring.tick();
    let activate_at = ring.now;
    ring.carry_out(&[KeyChange::Announce { algorithm: Algorithm::Es256, activate_at }]);
    ring.advance(30 * DAY);
    assert_eq!(ring.tick(), []);
    assert_eq!(ring.signer().id.as_str(), "k0003");
    assert_eq!(ring.announced(), ["k0002"], "it is the reserve now");
}

#[test]
fn debug_hides_the_sealed_key() {
    let mut ring = Model::new(policy());
    ring.tick();
    assert!(!format!("{:?}", ring.signer()).contains("sealed"));
    let mac = MacKeyRecord {
        id: MacKeyId(1),
        state: MacKeyState::Active,
        created_at: ring.now,
        sealed: vec![9; 9],
    };
    assert!(!format!("{mac:?}").contains("sealed"));
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Revoke(usize),
    Switch(Algorithm),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0_u64..40 * 86_400_000).prop_map(Step::Wait),
        8 => (0_u64..4_000_000).prop_map(Step::Wait),
        1 => any::<usize>().prop_map(Step::Revoke),
        1 => prop_oneof![Just(Algorithm::EdDsa), Just(Algorithm::Es256)].prop_map(Step::Switch),
    ]
}

proptest! {
    /// Whatever happens in whatever order: exactly one key signs, and exactly one is announced; who signs
    /// next is the one that was announced, in an emergency too, and else it was for long enough; and no
    /// key goes while a token of its can be alive.
    #[test]
    fn the_ring_keeps_its_promises(steps in prop::collection::vec(step(), 1..60)) {
        let mut ring = Model::new(policy());
        ring.tick();
        for step in steps {
            let before = ring.signer();
            let reserve = ring.announced()[0].to_owned();
            ring.signed.push((before.id.clone(), ring.now));
            let mut emergency = false;
            match step {
                Step::Wait(millis) => {
                    // The server signs up to the moment of the change.
                    ring.now = ring.now.after(Duration::from_millis(millis));
                    ring.signed.push((before.id.clone(), ring.now));
                }
                Step::Revoke(n) => {
                    let id = ring.records[n % ring.records.len()].id.clone();
                    ring.revoke(&id);
                    emergency = id == before.id;
                }
                Step::Switch(algorithm) => ring.policy.algorithm = algorithm,
            }
            ring.tick();
            prop_assert_eq!(ring.tick(), [], "a plan carried out leaves nothing to do");

            let signer = ring.signer();
            if signer.id != before.id {
                prop_assert_eq!(signer.id.as_str(), reserve.as_str());
                let announced_for = ring.now.since(signer.created_at);
                prop_assert!(emergency || announced_for >= ring.policy.announce_for);
            }
            for (id, at) in &ring.signed {
                let alive_until = at.after(ACCESS).after(RingPolicy::SKEW);
                if alive_until > ring.now {
                    prop_assert!(ring.records.iter().any(|r| r.id == *id), "gone too early");
                }
            }
            for record in &ring.records {
                prop_assert!(record.state != KeyState::Announced || record.retired_at.is_none());
            }
            prop_assert_eq!(ring.announced().len(), 1);
        }
    }
}

#[test]
fn mac_keys_rotate_and_are_kept_for_as_long_as_a_session_may_live() {
    let record = |id, state, at| MacKeyRecord {
        id: MacKeyId(id),
        state,
        created_at: at,
        sealed: Vec::new(),
    };
    let start = Timestamp::from_secs(1_000_000);
    let first = mac_plan_at(&[], start);
    assert_eq!(first, MacPlan { start: Some(MacKeyId(1)), remove: Vec::new() });
    let due = start.after(MAC_ROTATE_EVERY);
    let one = [record(1, MacKeyState::Active, start)];
    assert!(mac_plan_at(&one, due.before(Duration::from_millis(1))).is_empty());
    assert_eq!(mac_plan_at(&one, due).start, Some(MacKeyId(2)));
    let two = [record(2, MacKeyState::Active, due), record(1, MacKeyState::Previous, start)];
    let gone = due.after(MAC_KEEP);
    assert!(
        !mac_plan_at(&two, gone.before(Duration::from_millis(1))).remove.contains(&MacKeyId(1))
    );
    assert_eq!(mac_plan_at(&two, gone).remove, [MacKeyId(1)]);
}
