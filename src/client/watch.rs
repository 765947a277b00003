//! Follows WatchRevocations for good: holds the live set, resumes where it was, and tells a dead
//! stream from a quiet one. Knows nothing of tokens and their verification.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use self::live::{Live, Opening};
use crate::domain::entropy::Entropy;
use crate::domain::ids::Cursor;
use crate::domain::view::View;

mod apply;
mod event;
mod live;
mod retry;
mod settings;
mod take;

pub(crate) use self::apply::{changed, moment};
pub use self::event::{Fresh, Lost, WatchEvent};
pub use self::settings::{Authorization, Relay, SharedView, WatchSettings};

/// The longest wait before connecting again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Follows the revocations of one avouch.
pub struct Watch {
    settings: WatchSettings,
    entropy: Arc<dyn Entropy>,
    view: SharedView,
    /// The set that is being fetched; the old one stays in force until this one is complete.
    pending: Option<View>,
    /// Everything up to here is applied.
    cursor: Option<Cursor>,
    fresh: Option<Fresh>,
    live: Option<Live>,
    /// Tries since the last complete set.
    tries: u32,
    /// Streams that were left because they were not fresh, since one was.
    frozen: u32,
    next_endpoint: usize,
    /// Where to begin among replicas that were found: in the order in which they were, everybody would
    /// begin at the same one.
    first_replica: usize,
    retry_at: Option<Instant>,
    /// When what has expired was dropped last.
    expired_at: Instant,
}

impl Watch {
    /// Follows as `settings` say; `entropy` spreads the retries.
    pub fn new(settings: WatchSettings, entropy: Arc<dyn Entropy>) -> Self {
        let view = Arc::new(ArcSwap::from_pointee(View::with_limit(settings.max_entries)));
        Self {
            settings,
            view,
            pending: None,
            cursor: None,
            fresh: None,
            live: None,
            tries: 0,
            frozen: 0,
            next_endpoint: 0,
            first_replica: usize::from(u16::from_be_bytes(entropy.bytes())),
            retry_at: None,
            expired_at: Instant::now(),
            entropy,
        }
    }

    /// The set. It is complete once [`Watch::fresh`] says something.
    pub fn view(&self) -> SharedView {
        Arc::clone(&self.view)
    }

    /// Everything up to here is applied.
    pub const fn cursor(&self) -> Option<Cursor> {
        self.cursor
    }

    /// How fresh the set is; none before the first `Synced`.
    pub const fn fresh(&self) -> Option<Fresh> {
        self.fresh
    }

    /// Waits for the next thing to happen. Dropping the future loses nothing.
    pub async fn next(&mut self) -> WatchEvent {
        loop {
            if let Some(at) = self.retry_at {
                tokio::time::sleep_until(at).await;
                self.retry_at = None;
            }
            let Some(live) = &mut self.live else {
                if let Err(event) = self.connect().await {
                    return event;
                }
                continue;
            };
            let happened = match live.read().await {
                None => Some(self.lose(Lost::Silent)),
                Some(Err(status)) => Some(self.ended(&status)),
                Some(Ok(response)) => {
                    self.take(response).unwrap_or_else(|lost| Some(self.lose(lost)))
                }
            };
            if let Some(event) = happened {
                return event;
            }
        }
    }

    async fn connect(&mut self) -> Result<(), WatchEvent> {
        let Some(endpoint) = self.endpoint().await else {
            return Err(self.lose(Lost::Connect("there are no endpoints".to_owned())));
        };
        match Live::open(endpoint, &self.settings, self.cursor).await {
            Ok(live) => {
                self.live = Some(live);
                Ok(())
            }
            Err(Opening::Connect(why)) => Err(self.lose(Lost::Connect(why))),
            Err(Opening::Status(status)) => Err(self.ended(&status)),
        }
    }
}
