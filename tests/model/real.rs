//! The rules that the model shares with the server: the functions of the crate themselves, asked with
//! records made of the model's small numbers. What they said is remembered, because the checker asks
//! the same again millions of times.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use avouch::domain::claims::Claims;
use avouch::domain::client::{Lifetimes, ReuseDetection};
use avouch::domain::clock::Timestamp;
use avouch::domain::event::{Cause, Initiator, RETENTION, Reason, Revocation, Target};
use avouch::domain::ids::{
    ClientId, Epoch, Epochs, Generation, KeyId, SessionId, SubjectId, TokenId,
};
use avouch::domain::key::MacKeyId;
use avouch::domain::scope::Names;
use avouch::domain::secret::SecretBytes;
use avouch::domain::session::{
    Device, Presented, Revoked, RotationDecision, RotationRules, Session, SessionState,
    decide_rotation,
};
use avouch::domain::view::{Marks, SESSION_BUCKET_SECS, View, bucket_end};

use crate::state::{Happened, Line};

/// How long a tick is.
const TICK: Duration = Duration::from_secs(10);
/// When the model begins.
const START: Timestamp = Timestamp::from_secs(1_800_000_000);

/// What a Refresh is worth.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Worth {
    Rotate(Line),
    Retry,
    Reuse,
    Refuse,
}

fn remembered<K: Eq + Hash + Copy, V: Copy>(
    memory: &RefCell<HashMap<K, V>>,
    key: K,
    ask: impl FnOnce(K) -> V,
) -> V {
    if let Some(known) = memory.borrow().get(&key) {
        return *known;
    }
    let new = ask(key);
    memory.borrow_mut().insert(key, new);
    new
}

fn at(tick: u8) -> Timestamp {
    START.after(TICK * u32::from(tick))
}

fn tick_of(at: Timestamp) -> u8 {
    u8::try_from(at.since(START).as_secs() / TICK.as_secs()).expect("a tick")
}

fn subject() -> SubjectId {
    "ada".parse().expect("a subject")
}

fn client() -> ClientId {
    "app".parse().expect("a client")
}

fn audience() -> Names {
    Names::new(["orders"]).expect("names")
}

const SESSION: SessionId = SessionId::from_bytes([7; 16]);

fn session(line: &Line) -> Session {
    let cause = Cause { reason: Reason::Logout, initiator: Initiator::User };
    Session {
        id: SESSION,
        subject: subject(),
        client: client(),
        scope: Names::default(),
        audience: audience(),
        epochs: Epochs::default(),
        nonce: SecretBytes::new([1; 32]),
        generation: Generation(line.generation.into()),
        mac_key: MacKeyId(line.mac.into()),
        created_at: START,
        rotated_at: at(line.rotated_at),
        idle_expires_at: START.after(Lifetimes::default().idle),
        expires_at: START.after(Lifetimes::default().absolute),
        access_expires_at: START.after(Lifetimes::default().access),
        methods: Names::default(),
        device: Device::default(),
        revoked: line.revoked.then_some(Revoked { at: START, cause }),
    }
}

fn epochs(of_subject: u8) -> Epochs {
    Epochs { subject: Epoch(of_subject.into()), ..Epochs::default() }
}

/// What a Refresh is decided on: line, epoch, generation presented, MAC key, window, now.
type Refresh = (Line, u8, u8, u8, u8, u8);

thread_local! {
    static REFRESHES: RefCell<HashMap<Refresh, Worth>> = RefCell::default();
    static LIVES: RefCell<HashMap<(Line, u8), bool>> = RefCell::default();
    static VIEWS: RefCell<HashMap<([Happened; 4], u8), bool>> = RefCell::default();
}

/// What [`decide_rotation`] says of generation `presented`, at `now`, at a replica that signs new tokens
/// with `mac`, while the subject's epoch is `epoch` and the retry window is `window` ticks.
pub(crate) fn refresh(line: Line, epoch: u8, presented: u8, mac: u8, window: u8, now: u8) -> Worth {
    let key = (line, epoch, presented, mac, window, now);
    REFRESHES.with(|memory| {
        remembered(memory, key, |_| {
            let presented = Presented {
                session: SESSION,
                generation: Generation(presented.into()),
                client: client(),
                scope: None,
                audience: None,
                permitted_audience: audience(),
            };
            let retry_window = TICK * u32::from(window);
            let rules = RotationRules {
                lifetimes: Lifetimes { retry_window, ..Lifetimes::default() },
                reuse_detection: ReuseDetection::Enforce,
                mac_key: MacKeyId(mac.into()),
            };
            let session = session(&line);
            match decide_rotation(&session, &presented, &rules, &epochs(epoch), at(now)) {
                RotationDecision::Rotate(next) => Worth::Rotate(Line {
                    generation: u8::try_from(next.generation.0).expect("a small generation"),
                    mac: u8::try_from(next.mac_key.0).expect("a small key id"),
                    rotated_at: tick_of(next.rotated_at),
                    revoked: next.revoked.is_some(),
                }),
                RotationDecision::Retry => Worth::Retry,
                RotationDecision::Reuse(_, ended) => {
                    assert!(ended.is_some_and(|ended| ended.revoked.is_some()));
                    Worth::Reuse
                }
                RotationDecision::Refuse(_) => Worth::Refuse,
            }
        })
    })
}

/// Whether the session can be refreshed, by [`Session::state_at`].
pub(crate) fn is_live(line: Line, epoch: u8) -> bool {
    LIVES.with(|memory| {
        remembered(memory, (line, epoch), |(line, epoch)| {
            session(&line).state_at(&epochs(epoch), START) == SessionState::Active
        })
    })
}

/// Whether a verifier that holds the events of `log` whose bit is in `held` refuses an access token of
/// the session, by [`View::revoked_by`].
pub(crate) fn refuses(log: [Happened; 4], held: u8) -> bool {
    VIEWS.with(|memory| {
        remembered(memory, (log, held), |(log, held)| {
            let view = View::default();
            for (index, happened) in log.iter().enumerate() {
                if held & (1 << index) == 0 {
                    continue;
                }
                let cause = Cause { reason: Reason::Logout, initiator: Initiator::User };
                let expires_at = START.after(RETENTION);
                let (target, expires_at) = match *happened {
                    Happened::Nothing => continue,
                    Happened::SessionEnded => (
                        Target::Session {
                            id: SESSION,
                            client: client(),
                            subject: subject(),
                            audience: audience(),
                        },
                        Timestamp::from_secs(bucket_end(expires_at, SESSION_BUCKET_SECS)),
                    ),
                    Happened::SubjectRaised(epoch) => {
                        (Target::Subject { id: subject(), epoch: Epoch(epoch.into()) }, expires_at)
                    }
                };
                view.apply(&Revocation { target, cause, at: START, expires_at });
            }
            let key: KeyId = "k1".parse().expect("a key id");
            let claims = Claims {
                issuer: "https://avouch".into(),
                subject: subject(),
                audience: audience(),
                client: client(),
                scope: Names::default(),
                token_id: TokenId::from_bytes([9; 16]),
                session: Some(SESSION),
                issued_at: START,
                not_before: START,
                expires_at: START.after(Lifetimes::default().access),
                authenticated_at: None,
                methods: Names::default(),
                epochs: Epochs::default(),
            };
            view.revoked_by(&Marks::of(&claims, &key)).is_some()
        })
    })
}
