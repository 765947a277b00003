//! What the service tells about itself, as counters and as audit lines.

use std::sync::Arc;

use crate::audit::{AuditDown, AuditEvent, AuditLog, AuditName};
use crate::domain::clock::Timestamp;
use crate::domain::event::{Entry, Event, Revocation, Target};
use crate::domain::key::KeyState;
use crate::domain::session::ReuseKind;
use crate::metrics::{self, HashOutcome, Level, Metrics, ReuseCause, Rotation};
use crate::service::Service;
use crate::service::journal::{
    Failure, Happening, Journal, Origin, Recording, Unrecorded, Verdict,
};

/// Counts, and passes on.
pub struct Metered {
    inner: Arc<dyn Journal>,
    metrics: Arc<Metrics>,
}

impl Metered {
    /// Counts in `metrics` what `inner` is told.
    pub const fn new(inner: Arc<dyn Journal>, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics }
    }
}

impl Journal for Metered {
    fn record(&self, at: Timestamp, origin: &Origin, happening: Happening) {
        match &happening {
            Happening::LoginSucceeded { session: Some(_), .. } => self.metrics.session_opened(),
            Happening::Refreshed { retry, .. } => {
                self.metrics.refreshed(if *retry { Rotation::Retried } else { Rotation::Rotated });
            }
            Happening::RefreshFailed { failure: Failure::Reused(kind), .. } => {
                self.metrics.reused(match kind {
                    ReuseKind::Concurrent => ReuseCause::Concurrent,
                    ReuseKind::LateRetry => ReuseCause::LateRetry,
                    ReuseKind::Replay => ReuseCause::Replay,
                    ReuseKind::OtherClient => ReuseCause::OtherClient,
                });
            }
            Happening::Revoked { entry } => self.metrics.revoked(level(entry)),
            Happening::Introspected { verdict } => self.metrics.introspected(match verdict {
                Verdict::Active => metrics::Verdict::Active,
                Verdict::Inactive => metrics::Verdict::Inactive,
                Verdict::Revoked(_) => metrics::Verdict::Revoked,
                Verdict::NotForCaller => metrics::Verdict::NotForCaller,
            }),
            _ => {}
        }
        // Asked about thousands of times a second; the counters are enough.
        if !matches!(happening, Happening::Introspected { .. }) {
            self.inner.record(at, origin, happening);
        }
    }

    fn record_surely<'a>(
        &'a self,
        at: Timestamp,
        origin: &'a Origin,
        happening: Happening,
    ) -> Recording<'a> {
        self.inner.record_surely(at, origin, happening)
    }
}

fn revocation(entry: &Entry) -> Option<&Revocation> {
    match &entry.event {
        Event::Revocation(revocation) => Some(revocation),
        Event::KeySetChanged { .. } => None,
    }
}

fn level(entry: &Entry) -> Level {
    match revocation(entry).map(|revocation| &revocation.target) {
        Some(Target::Token { .. }) => Level::Token,
        Some(Target::Session { .. }) => Level::Session,
        Some(Target::Subject { .. }) => Level::Subject,
        Some(Target::Client { .. }) => Level::Client,
        Some(Target::Everything { .. }) => Level::Everything,
        Some(Target::Key { .. }) | None => Level::Key,
    }
}

/// Writes audit lines.
pub struct Audited(pub Arc<AuditLog>);

impl Journal for Audited {
    fn record(&self, at: Timestamp, origin: &Origin, happening: Happening) {
        self.0.record(&event(at, origin, happening));
    }

    fn record_surely<'a>(
        &'a self,
        at: Timestamp,
        origin: &'a Origin,
        happening: Happening,
    ) -> Recording<'a> {
        let event = event(at, origin, happening);
        Box::pin(async move { self.0.record_surely(&event).await.map_err(|AuditDown| Unrecorded) })
    }
}

fn event(at: Timestamp, origin: &Origin, happening: Happening) -> AuditEvent {
    let mut event = line(at, happening);
    if !origin.request_id.is_empty() {
        event = event.request_id(origin.request_id.clone());
    }
    if let (None, Some(peer)) = (&event.source, origin.peer) {
        event = event.source(peer.to_string());
    }
    event
}

/// Sets what is known.
macro_rules! with {
    ($event:ident, $($field:ident = $value:expr),+ $(,)?) => {
        $(if let Some(value) = $value {
            $event = $event.$field(value.to_string());
        })+
    };
}

fn line(at: Timestamp, happening: Happening) -> AuditEvent {
    match happening {
        Happening::LoginSucceeded { subject, client, session, evicted } => {
            let mut event = AuditEvent::new(AuditName::AuthnLoginSuccess, at)
                .subject(subject.as_str())
                .client_id(client.as_str());
            with!(event, session_id = session);
            if let Some(evicted) = evicted {
                event = event.reason(format!("revoked session {evicted} for it"));
            }
            event
        }
        Happening::LoginFailed { subject, client, source, failure } => {
            let mut event = AuditEvent::new(AuditName::AuthnLoginFail, at).reason(failure.name());
            with!(event, subject = subject, client_id = client, source = source);
            event
        }
        Happening::Throttled { client, source, what } => {
            let name = if what == "attempts" {
                AuditName::AuthnLoginLock
            } else {
                AuditName::ExcessRateLimitExceeded
            };
            let mut event = AuditEvent::new(name, at).client_id(client.as_str()).reason(what);
            with!(event, source = source);
            event
        }
        Happening::Refreshed { subject, client, session, retry } => {
            AuditEvent::new(AuditName::AuthnTokenCreated, at)
                .subject(subject.as_str())
                .client_id(client.as_str())
                .session_id(session.to_string())
                .reason(if retry { "retried" } else { "rotated" })
        }
        Happening::RefreshFailed { subject, client, session, failure, revoked } => {
            let name = match failure {
                Failure::Reused(_) => AuditName::AuthnTokenReuse,
                _ => AuditName::AuthnTokenFail,
            };
            let mut event = AuditEvent::new(name, at).reason(failure.name());
            with!(event, subject = subject, client_id = client, session_id = session);
            if revoked {
                event = event.outcome("session revoked");
            }
            event
        }
        Happening::Revoked { entry } => revoked_line(at, &entry),
        Happening::Denied { caller, what } => {
            AuditEvent::new(AuditName::AuthzFail, at).caller(&*caller).method(what)
        }
        Happening::Introspected { verdict } => {
            AuditEvent::new(AuditName::AuthnTokenFail, at).reason(verdict.name())
        }
        Happening::Attempted { what, caller } => {
            AuditEvent::new(AuditName::AuthzAdmin, at).caller(&*caller).method(what)
        }
        Happening::Administered { action, caller, subject, client, key, reason } => {
            let mut event =
                AuditEvent::new(administered(action), at).caller(&*caller).method(action);
            with!(event, subject = subject, client_id = client, kid = key);
            if let Some(reason) = reason {
                event = event.reason(reason.name());
            }
            event
        }
    }
}

fn revoked_line(at: Timestamp, entry: &Entry) -> AuditEvent {
    let mut event = AuditEvent::new(AuditName::AuthnTokenRevoked, at).revision(entry.revision.0);
    let Some(revocation) = revocation(entry) else { return event };
    event = event.reason(revocation.cause.reason.name()).caller(revocation.cause.initiator.name());
    match &revocation.target {
        Target::Token { id, client, subject, .. } => event
            .target("token")
            .token_id(id.to_string())
            .client_id(client.as_str())
            .subject(subject.as_str()),
        Target::Session { id, client, subject, .. } => event
            .target("session")
            .session_id(id.to_string())
            .client_id(client.as_str())
            .subject(subject.as_str()),
        Target::Subject { id, .. } => event.target("subject").subject(id.as_str()),
        Target::Client { id, .. } => event.target("client").client_id(id.as_str()),
        Target::Everything { .. } => event.target("everything"),
        Target::Key { id } => event.target("key").kid(id.as_str()),
    }
}

fn administered(action: &str) -> AuditName {
    match action {
        "user_created" => AuditName::UserCreated,
        "user_deleted" => AuditName::UserDeleted,
        "user_disabled" => AuditName::UserDisabled,
        "user_enabled" => AuditName::UserEnabled,
        "password_set" | "password_changed" => AuditName::AuthnPasswordChange,
        "client_created" => AuditName::ClientCreated,
        "client_deleted" => AuditName::ClientDeleted,
        "client_disabled" => AuditName::ClientDisabled,
        "client_enabled" => AuditName::ClientEnabled,
        "client_secret_rotated" => AuditName::ClientSecretRotated,
        "client_updated" => AuditName::ClientChanged,
        "key_announced" => AuditName::KeyCreated,
        "key_rotated" => AuditName::KeyRotated,
        "key_revoked" => AuditName::KeyRevoked,
        _ => AuditName::UserUpdated,
    }
}

/// What the parts had counted when the metrics were last told.
#[derive(Default)]
pub struct Told {
    hashed: u64,
    shed: u64,
    failed: u64,
    commits: u64,
    groups: u64,
    sync: std::time::Duration,
}

/// Copies what the parts count themselves into the metrics.
pub fn report(service: &Service, metrics: &Metrics, told: &mut Told) {
    let pool = service.hash_stats();
    metrics.hash_pool(pool.queued, pool.running);
    let shed = pool.shed_full + pool.shed_source;
    metrics.hashes(HashOutcome::Done, pool.completed.saturating_sub(told.hashed));
    metrics.hashes(HashOutcome::Shed, shed.saturating_sub(told.shed));
    metrics.hashes(HashOutcome::Failed, pool.failed.saturating_sub(told.failed));
    (told.hashed, told.shed, told.failed) = (pool.completed, shed, pool.failed);

    let store = service.store().status();
    metrics.store(store.disk_bytes, store.queued);
    let groups = store.groups.saturating_sub(told.groups);
    if groups > 0 {
        // The engine counts; the time of one group is known as a mean since the last report.
        let commits = store.commits.saturating_sub(told.commits);
        let mean = store.sync_time.saturating_sub(told.sync) / u32::try_from(groups).unwrap_or(1);
        metrics.store_group(commits, mean);
        for _ in 1..groups.min(10_000) {
            metrics.store_group(0, mean);
        }
    }
    (told.commits, told.groups, told.sync) = (store.commits, store.groups, store.sync_time);

    metrics.watchers(service.feed().watchers().len());
    if let Ok(keys) = service.published_keys() {
        let count = |state| keys.iter().filter(|key| key.state == state).count();
        metrics.keys(metrics::KeyState::Announced, count(KeyState::Announced));
        metrics.keys(metrics::KeyState::Active, count(KeyState::Active));
        metrics.keys(metrics::KeyState::Retired, count(KeyState::Retired));
    }
}
