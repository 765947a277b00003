use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::domain::event::{Cause, Initiator, Reason};
use crate::domain::ids::{SessionId, TokenId};
use crate::domain::scope::Names;

const CAUSE: Cause = Cause { reason: Reason::AdminAction, initiator: Initiator::System };
const START: u64 = 1_800_000_000;

fn id(n: u8) -> [u8; 16] {
    let mut bytes = [n; 16];
    bytes[0] = 0xee;
    bytes
}

fn name<T: std::str::FromStr>(kind: &str, n: u8) -> T
where
    T::Err: std::fmt::Debug,
{
    format!("{kind}{n}").parse().unwrap()
}

/// A token whose every part is one of a few, so that revocations meet it.
#[derive(Clone, Copy, Debug)]
struct Token {
    token: u8,
    session: Option<u8>,
    subject: u8,
    client: u8,
    key: u8,
    epochs: [u32; 3],
    lives: u64,
}

impl Token {
    fn claims(self) -> (Claims, KeyId) {
        let [global, client, subject] = self.epochs.map(Epoch);
        let claims = Claims {
            issuer: "https://id.example".into(),
            subject: name("u", self.subject),
            audience: Names::new(["a"]).unwrap(),
            client: name("c", self.client),
            scope: Names::default(),
            token_id: TokenId::from_bytes(id(self.token)),
            session: self.session.map(|n| SessionId::from_bytes(id(n))),
            issued_at: Timestamp::from_secs(START),
            not_before: Timestamp::from_secs(START),
            expires_at: Timestamp::from_secs(START + self.lives),
            authenticated_at: None,
            methods: Names::default(),
            epochs: Epochs { global, client, subject },
        };
        (claims, name("k", self.key))
    }
}

fn tokens() -> impl Strategy<Value = Token> {
    let epochs = [0..3_u32, 0..3_u32, 0..3_u32];
    (0..4_u8, prop::option::of(0..4_u8), 0..3_u8, 0..3_u8, 0..3_u8, epochs, 1..3600_u64).prop_map(
        |(token, session, subject, client, key, epochs, lives)| Token {
            token,
            session,
            subject,
            client,
            key,
            epochs,
            lives,
        },
    )
}

/// What may happen to a view: a revocation, or time.
#[derive(Clone, Debug)]
enum Step {
    /// Of a token that lives as long as the token under test does, as the server makes them.
    Token(u8),
    /// Of a session, whose last token expires so much later than the one under test.
    Session(u8, u64),
    Subject(u8, u32, u64),
    Client(u8, u32, u64),
    Everything(u32),
    Key(u8, u64),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..4_u8).prop_map(Step::Token),
        (0..4_u8, 0..3600_u64).prop_map(|(n, more)| Step::Session(n, more)),
        (0..3_u8, 0..4_u32, 0..7200_u64).prop_map(|(n, e, s)| Step::Subject(n, e, s)),
        (0..3_u8, 0..4_u32, 0..7200_u64).prop_map(|(n, e, s)| Step::Client(n, e, s)),
        (0..2_u32).prop_map(Step::Everything),
        (0..3_u8, 0..7200_u64).prop_map(|(n, s)| Step::Key(n, s)),
        (0..900_u64).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 0..40)
}

/// The same by maps of everything, without buckets or marks.
#[derive(Default)]
struct Naive {
    tokens: HashMap<TokenId, Timestamp>,
    sessions: HashMap<SessionId, Timestamp>,
    subjects: HashMap<SubjectId, (u32, Timestamp)>,
    clients: HashMap<ClientId, (u32, Timestamp)>,
    keys: HashMap<KeyId, Timestamp>,
    everything: u32,
}

impl Naive {
    fn apply(&mut self, revocation: &Revocation) {
        let at = revocation.expires_at;
        match &revocation.target {
            Target::Token { id, .. } => {
                self.tokens.insert(*id, at);
            }
            Target::Session { id, .. } => {
                let known = self.sessions.entry(*id).or_insert(at);
                *known = at.max(*known);
            }
            Target::Subject { id, epoch } => raise(&mut self.subjects, id, epoch.0, at),
            Target::Client { id, epoch } => raise(&mut self.clients, id, epoch.0, at),
            Target::Everything { epoch } => self.everything = self.everything.max(epoch.0),
            Target::Key { id } => {
                let known = self.keys.entry(id.clone()).or_insert(at);
                *known = at.max(*known);
            }
        }
    }

    fn check(&self, claims: &Claims, key: &KeyId, now: Timestamp) -> Option<RevokedBy> {
        let below = |known: Option<&(u32, Timestamp)>, epoch: Epoch| {
            known.is_some_and(|(current, at)| now < *at && epoch.0 < *current)
        };
        if self.keys.get(key).is_some_and(|at| now < *at) {
            return Some(RevokedBy::Key);
        }
        if claims.epochs.global.0 < self.everything {
            return Some(RevokedBy::Everything);
        }
        if below(self.clients.get(&claims.client), claims.epochs.client) {
            return Some(RevokedBy::Client);
        }
        if below(self.subjects.get(&claims.subject), claims.epochs.subject) {
            return Some(RevokedBy::Subject);
        }
        if claims.session.is_some_and(|id| self.sessions.contains_key(&id)) {
            return Some(RevokedBy::Session);
        }
        self.tokens.contains_key(&claims.token_id).then_some(RevokedBy::Token)
    }
}

fn raise<K: Clone + Eq + std::hash::Hash>(
    map: &mut HashMap<K, (u32, Timestamp)>,
    id: &K,
    epoch: u32,
    at: Timestamp,
) {
    let known = map.entry(id.clone()).or_insert((epoch, at));
    *known = (known.0.max(epoch), known.1.max(at));
}

fn revocation(target: Target, expires_at: Timestamp) -> Revocation {
    Revocation { target, cause: CAUSE, at: Timestamp::default(), expires_at }
}

fn revocation_of(step: &Step, token: Token, now: u64) -> Option<Revocation> {
    let (client, subject) = (name("c", 0), name("u", 0));
    let audience = Names::new(["a"]).unwrap();
    let expires_at = Timestamp::from_secs(START + token.lives);
    Some(match *step {
        Step::Token(n) => {
            let id = TokenId::from_bytes(id(n));
            let target = Target::Token { id, expires_at, client, subject, audience };
            revocation(target, expires_at.after(SKEW))
        }
        Step::Session(n, more) => {
            let id = SessionId::from_bytes(id(n));
            let target = Target::Session { id, client, subject, audience };
            revocation(target, Timestamp::from_secs(START + token.lives + more).after(SKEW))
        }
        Step::Subject(n, epoch, lives) => {
            let target = Target::Subject { id: name("u", n), epoch: Epoch(epoch) };
            revocation(target, Timestamp::from_secs(now + lives))
        }
        Step::Client(n, epoch, lives) => {
            let target = Target::Client { id: name("c", n), epoch: Epoch(epoch) };
            revocation(target, Timestamp::from_secs(now + lives))
        }
        Step::Everything(epoch) => {
            revocation(Target::Everything { epoch: Epoch(epoch) }, Timestamp::from_secs(now + 1))
        }
        Step::Key(n, lives) => {
            revocation(Target::Key { id: name("k", n) }, Timestamp::from_secs(now + lives))
        }
        Step::Pass(_) => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever was revoked in whatever order, twice or once: as long as a token lives, the view says of
    /// it what maps of everything say.
    #[test]
    fn the_view_agrees_with_maps_of_everything(token in tokens(), steps in steps()) {
        let (view, mut naive) = (View::default(), Naive::default());
        let (claims, key) = token.claims();
        let marks = Marks::of(&claims, &key);
        let mut now = START;
        for step in &steps {
            if let Step::Pass(seconds) = step {
                now += seconds;
            }
            if let Some(revocation) = revocation_of(step, token, now) {
                view.apply(&revocation);
                view.apply(&revocation);
                naive.apply(&revocation);
            }
            let moment = Timestamp::from_secs(now);
            view.expire(moment);
            naive.subjects.retain(|_, (_, at)| moment < *at);
            naive.clients.retain(|_, (_, at)| moment < *at);
            if moment >= claims.expires_at.after(SKEW) {
                return Ok(());
            }
            let expected = naive.check(&claims, &key, moment);
            prop_assert_eq!(view.revoked_by(&marks), expected, "at {}", now);
            let standing = expected.map_or(Standing::Clear, Standing::Revoked);
            prop_assert_eq!(view.standing(&marks), standing);
        }
    }

    /// Buckets, their digests and what a snapshot shows of them, against maps of sets.
    #[test]
    fn buckets_hold_what_was_put_in(
        entries in prop::collection::vec((0..6_u64, prop_oneof![0..40_u64, any::<u64>()]), 0..400),
        after in 0..8_u64,
    ) {
        let view = View::default();
        let mut sets: BTreeMap<u64, HashSet<u64>> = BTreeMap::new();
        for (end, mark) in entries {
            view.insert_token((end + 1) * 60, mark);
            sets.entry((end + 1) * 60).or_default().insert(mark);
        }
        prop_assert_eq!(view.len(), sets.values().map(HashSet::len).sum::<usize>());
        let counted = || sets.range(after * 60 + 1..).flat_map(|(_, set)| set);
        let digest = view.digest(Timestamp::from_secs(after * 60));
        prop_assert_eq!(digest.count, counted().count() as u64);
        prop_assert_eq!(digest.xor, counted().fold(0, |xor, mark| xor ^ mark));
        let mut end = 0;
        let mut shown = BTreeMap::new();
        while let Some((next, marks)) = view.token_bucket_after(end) {
            prop_assert!(next > end);
            shown.insert(next, marks.into_iter().collect::<HashSet<_>>());
            end = next;
        }
        prop_assert_eq!(&shown, &sets);
        view.expire(Timestamp::from_secs(after * 60));
        sets.retain(|end, _| *end > after * 60);
        prop_assert_eq!(view.len(), sets.values().map(HashSet::len).sum::<usize>());
    }
}

#[test]
fn readers_see_each_entry_from_the_moment_that_it_was_added() {
    const ENTRIES: u64 = 200_000;
    let view = View::default();
    let added = std::sync::atomic::AtomicU64::new(0);
    let sessions: Vec<_> = (0..ENTRIES)
        .map(|n| {
            let mut bytes = [0; 16];
            bytes[8..].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
            SessionId::from_bytes(bytes)
        })
        .collect();
    let token = Token {
        token: 0,
        session: None,
        subject: 0,
        client: 0,
        key: 0,
        epochs: [0; 3],
        lives: 300,
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let (mut claims, key) = token.claims();
                let mut asked = 0_u64;
                loop {
                    let known = added.load(Ordering::Acquire);
                    if known > 0 {
                        asked = asked.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let at = usize::try_from((asked >> 20) % known).unwrap();
                        claims.session = Some(sessions[at]);
                        let marks = Marks::of(&claims, &key);
                        assert_eq!(view.revoked_by(&marks), Some(RevokedBy::Session), "{at}");
                    }
                    if known == ENTRIES {
                        return;
                    }
                }
            });
        }
        for (session, count) in sessions.iter().zip(1..) {
            view.insert_session(START + 960, session.key64());
            added.store(count, Ordering::Release);
        }
    });
}

#[test]
fn a_view_with_a_limit_says_of_whom_it_cannot_tell_and_until_when() {
    let view = View::with_limit(10);
    let token = Token {
        token: 200,
        session: Some(200),
        subject: 0,
        client: 0,
        key: 0,
        epochs: [0; 3],
        lives: 300,
    };
    let (claims, key) = token.claims();
    let marks = Marks::of(&claims, &key);
    let bucket = bucket_end(claims.expires_at.after(SKEW), TOKEN_BUCKET_SECS);
    for n in 0..10 {
        view.insert_token(bucket, n + 1);
    }
    assert_eq!(view.standing(&marks), Standing::Clear);
    assert!(!view.is_partial());

    // One more in another bucket: tokens of that bucket alone are in doubt.
    view.insert_token(bucket + 60, 11);
    assert!(view.is_partial());
    assert_eq!(view.standing(&marks), Standing::Clear);
    view.insert_token(bucket, claims.token_id.key64());
    assert_eq!(view.standing(&marks), Standing::Unsure);
    assert_eq!(view.len(), 10, "nothing was pushed out");

    // What is known stays known: over the limit, a raise of an epoch that is held takes no room.
    let held = Token { token: 0, ..token };
    let mut known = held.claims().0;
    known.token_id = TokenId::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let known = Marks::of(&known, &key);
    assert_eq!(view.revoked_by(&known), Some(RevokedBy::Token));

    // Once the bucket is gone, so is the doubt.
    view.expire(Timestamp::from_secs(bucket + 60));
    assert!(!view.is_partial());

    // A subject that found no room puts everybody in doubt until it has expired.
    for n in 0..10 {
        view.insert_token(bucket + 600, n + 1);
    }
    let target = Target::Subject { id: name("u", 9), epoch: Epoch(1) };
    view.apply(&revocation(target, Timestamp::from_secs(START + 500)));
    assert_eq!(view.standing(&marks), Standing::Unsure);
    view.expire(Timestamp::from_secs(START + 499));
    assert_eq!(view.standing(&marks), Standing::Unsure);
    view.expire(Timestamp::from_secs(START + 500));
    assert_eq!(view.standing(&marks), Standing::Clear);
}

/// The price that the design allows is 21 bytes an entry, whatever the size.
#[test]
fn an_entry_takes_at_most_21_bytes() {
    for size in [1_000_u64, 10_000, 100_000, 333_333, 1_000_000] {
        let view = View::default();
        for n in 0..size {
            view.insert_token(START + 60, n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        }
        let entries = u64::try_from(view.len()).unwrap();
        let bytes = u64::try_from(view.bytes()).unwrap();
        assert!(bytes <= 21 * entries, "{bytes} bytes for {entries}");
    }
}
