//! A data directory full of sessions, without a server and without a hash for each.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use avouch::domain::clock::Timestamp;
use avouch::domain::entropy::{Entropy, SeededEntropy};
use avouch::domain::event::{Cause, Initiator, Reason};
use avouch::domain::ids::{Epochs, Generation, LogId};
use avouch::domain::key::MacKeyId;
use avouch::domain::scope::Names;
use avouch::domain::secret::SecretBytes;
use avouch::domain::session::{Device, Session};
use avouch::store::codec::SCHEMA_VERSION;
use avouch::store::ledger::Ledger;
use avouch::store::sled::{SledEngine, SledSettings};
use avouch::store::{NewSession, Store as _};

/// How many are opened at a time.
const AT_ONCE: usize = 2_000;

/// The session of the user of this number, as a login at `now` would leave it.
///
/// # Panics
/// Never: the names are well formed.
pub(crate) fn session(number: usize, entropy: &dyn Entropy, now: Timestamp) -> Session {
    Session {
        id: entropy.session_id(),
        subject: format!("user-{number:012}").parse().expect("a name"),
        client: "web".parse().expect("a name"),
        scope: Names::new(["read", "write"]).expect("names"),
        audience: Names::new(["orders"]).expect("a name"),
        epochs: Epochs::default(),
        nonce: SecretBytes::new(entropy.bytes()),
        generation: Generation::default(),
        mac_key: MacKeyId(1),
        created_at: now,
        rotated_at: now,
        idle_expires_at: now.after(Duration::from_secs(7 * 86_400)),
        expires_at: now.after(Duration::from_secs(30 * 86_400)),
        access_expires_at: now.after(Duration::from_secs(3_600)),
        methods: Names::new(["pwd"]).expect("a name"),
        device: Device::default(),
        revoked: None,
    }
}

/// Opens sessions in a directory, many at a time, and revokes the first few.
///
/// # Panics
/// When the directory cannot be opened or written to.
pub(crate) async fn fill(dir: &Path, sessions: usize, revoked: usize, now: Timestamp) {
    let settings = SledSettings {
        min_free_bytes: 0,
        max_group: 4096,
        flush_deadline: Duration::from_secs(60),
        ..SledSettings::new(SCHEMA_VERSION)
    };
    let engine = SledEngine::open(dir, &settings, LogId::from_bytes([1; 16])).expect("it opens");
    let ledger = Arc::new(Ledger::new(engine));
    let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(7));
    let next = Arc::new(AtomicUsize::new(0));
    let workers = (0..AT_ONCE.min(sessions)).map(|_| {
        let (ledger, entropy, next) =
            (Arc::clone(&ledger), Arc::clone(&entropy), Arc::clone(&next));
        tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= sessions {
                    return;
                }
                let session = session(number, &*entropy, now);
                let id = session.id;
                let new = NewSession {
                    session,
                    max_per_subject: 10,
                    looked_beyond: false,
                    clear_attempts: None,
                };
                ledger.open_session(new, now).await.expect("opened");
                if number < revoked {
                    let cause = Cause { reason: Reason::AdminAction, initiator: Initiator::Admin };
                    ledger.revoke_session(id, cause, now).await.expect("revoked");
                }
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.expect("it filled");
    }
    ledger.close().await;
}
