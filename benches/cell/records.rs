//! Records as avouch stores them, with realistic contents.

use std::time::Duration;

use avouch::domain::clock::Timestamp;
use avouch::domain::event::{Cause, Event, Initiator, Reason, Revocation, Target};
use avouch::domain::ids::{Epochs, Generation, SessionId};
use avouch::domain::key::MacKeyId;
use avouch::domain::scope::Names;
use avouch::domain::secret::SecretBytes;
use avouch::domain::session::{Device, Session};
use avouch::store::codec::{self, key};

use crate::Failure;

/// When the sessions of the measurement began.
const BEGUN: Timestamp = Timestamp::from_secs(1_800_000_000);

/// The records of one session.
pub(crate) struct Records {
    pub(crate) at: Vec<u8>,
    pub(crate) record: Vec<u8>,
    /// Without a value, as the entry of the subject's sessions.
    pub(crate) index: Vec<u8>,
    /// Without a value, as the entry of what is due.
    pub(crate) due: Vec<u8>,
    /// The event of its revocation.
    pub(crate) event: Vec<u8>,
    /// The epochs that a rotation reads: of everything, of the client, of the subject.
    pub(crate) epochs: [Vec<u8>; 3],
}

/// Spreads the bits of a number (SplitMix64).
pub(crate) const fn spread(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The session of this number: a user in a browser, two scopes, two audiences.
pub(crate) fn session(number: u64) -> Result<Records, Failure> {
    let bits = |salt: u64| spread(spread(number) ^ salt);
    let mut id = [0; 16];
    id[..8].copy_from_slice(&bits(1).to_be_bytes());
    id[8..].copy_from_slice(&bits(2).to_be_bytes());
    let mut nonce = [0; 32];
    for (at, chunk) in nonce.chunks_mut(8).enumerate() {
        chunk.copy_from_slice(&bits(3 + at as u64).to_be_bytes());
    }
    let subject = format!("usr_{:016x}{:06x}", bits(7), bits(8) >> 40).parse()?;
    let created = BEGUN.after(Duration::from_millis(number));
    let session = Session {
        id: SessionId::from_bytes(id),
        subject,
        client: "web-shop".parse()?,
        scope: Names::new(["orders:read", "orders:write"])?,
        audience: Names::new(["avouch", "orders"])?,
        epochs: Epochs::default(),
        nonce: SecretBytes::new(nonce),
        generation: Generation(3),
        mac_key: MacKeyId(1),
        created_at: created,
        rotated_at: created.after(Duration::from_secs(900)),
        idle_expires_at: created.after(Duration::from_secs(7 * 86_400)),
        expires_at: created.after(Duration::from_secs(30 * 86_400)),
        access_expires_at: created.after(Duration::from_secs(1_210)),
        methods: Names::new(["pwd"])?,
        device: Device {
            id: "".into(),
            name: "".into(),
            user_agent: "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
                .into(),
            address: "203.0.113.77".into(),
        },
        revoked: None,
    };
    let event = Event::Revocation(Revocation {
        target: Target::Session {
            id: session.id,
            client: session.client.clone(),
            subject: session.subject.clone(),
            audience: session.audience.clone(),
        },
        cause: Cause { reason: Reason::Logout, initiator: Initiator::User },
        at: created,
        expires_at: created.after(Duration::from_secs(1_300)),
    });
    Ok(Records {
        at: key::session(session.id),
        record: codec::write_session(&session),
        index: key::session_of(&session),
        due: key::session_due(session.ends_at(), session.id),
        event: codec::write_event(&event),
        epochs: [
            key::epoch(&avouch::store::Level::Everything),
            key::client_epoch(&session.client),
            key::subject_epoch(&session.subject),
        ],
    })
}
