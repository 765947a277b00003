//! What a sidecar counts.

use std::fmt::Write as _;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::labels::{label, label_set};
use super::register::Register;
use super::view::{ViewLevels, ViewMetrics};
use super::{Count, Level64, raise};

label! {
    /// Who asks a sidecar.
    Entry {
        /// Envoy.
        ExtAuthz = "ext_authz",
        /// nginx, Traefik or Caddy.
        ForwardAuth = "forward_auth",
    }
}

label! {
    /// What a sidecar says.
    Answered {
        /// The request may pass.
        Allow = "allow",
        /// It may not.
        Deny = "deny",
        /// Nobody can tell now.
        Unavailable = "unavailable",
    }
}

label! {
    /// Why a sidecar says what it says.
    Reason {
        /// The token is good.
        Token = "token",
        /// The path needs none.
        Public = "public",
        /// The token is for another audience.
        Audience = "audience",
        /// The server says that the token is not good.
        Inactive = "inactive",
        /// The token is none of the issuer's, or not in its time.
        Invalid = "invalid",
        /// `authorization` is not well formed, or there are two.
        MalformedToken = "malformed_token",
        /// There is no token.
        MissingToken = "missing_token",
        /// The token was revoked.
        Revoked = "revoked",
        /// The token does not allow it.
        Scope = "scope",
        /// A claim cannot stand in a header.
        UnsafeClaim = "unsafe_claim",
        /// The client sent a header that is not a client's to send, where it cannot be removed.
        IdentityHeader = "identity_header",
        /// The question, or the request, cannot be understood.
        Malformed = "malformed",
        /// No rule for the path takes the method.
        Method = "method",
        /// No rule is for the path.
        NoRule = "no_rule",
        /// The path is not in normal form.
        Path = "path",
        /// The question is too large.
        TooLarge = "too_large",
        /// The set of revocations is not complete yet.
        NotReady = "not_ready",
        /// Revocations are not known up to now.
        Stale = "stale",
    }
}

impl Reason {
    /// What is said for this reason.
    pub const fn answer(self) -> Answered {
        match self {
            Self::Token | Self::Public => Answered::Allow,
            Self::NotReady | Self::Stale => Answered::Unavailable,
            Self::Audience
            | Self::IdentityHeader
            | Self::Inactive
            | Self::Invalid
            | Self::Malformed
            | Self::MalformedToken
            | Self::Method
            | Self::MissingToken
            | Self::NoRule
            | Self::Path
            | Self::Revoked
            | Self::Scope
            | Self::TooLarge
            | Self::UnsafeClaim => Answered::Deny,
        }
    }
}

label_set! {
    JudgedLabels { entry: Entry, answer: Answered, reason: Reason }
    EntryLabels { entry: Entry }
}

/// Seconds: from a token that is remembered to one that the server is asked about.
const LATENCY_BUCKETS: [f64; 13] = [
    0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005,
    0.025, 0.1, 0.5,
];

fn latency() -> Histogram {
    Histogram::new(LATENCY_BUCKETS)
}

/// How a verifier is doing, as it is told before each scrape.
#[derive(Clone, Copy, Debug, Default)]
pub struct VerifierLevels {
    /// What it refuses tokens by.
    pub view: ViewLevels,
    /// Whether some were left out, for lack of room.
    pub partial: bool,
    /// Questions to the server so far.
    pub asked: u64,
    /// Tokens accepted so far although what was known was too old.
    pub opened: u64,
}

/// The recorders of a sidecar.
#[derive(Debug)]
pub struct SidecarMetrics {
    requests: Family<JudgedLabels, Count>,
    latency: Family<EntryLabels, Histogram, fn() -> Histogram>,
    view: ViewMetrics,
    partial: Level64,
    asked: Count,
    opened: Count,
}

impl SidecarMetrics {
    /// Registers every recorder under `avouch_sidecar_`, at zero.
    pub fn register(registry: &mut Registry) -> Self {
        let mut r = Register::avouch(registry).under("sidecar");
        let metrics = Self {
            requests: r.number("requests", "Requests judged, by answer and reason"),
            latency: r.made_in_seconds(
                "latency",
                "Time of one judgement",
                Family::new_with_constructor(latency as fn() -> Histogram),
            ),
            view: ViewMetrics::register(&mut r),
            partial: r.number("view_partial", "1 when some were left out"),
            asked: r.number("asked", "Questions to the server"),
            opened: r.number("opened", "Tokens accepted although what was known was too old"),
        };
        for entry in Entry::ALL {
            drop(metrics.latency.get_or_create(&EntryLabels { entry }));
            for reason in Reason::ALL {
                let labels = JudgedLabels { entry, answer: reason.answer(), reason };
                drop(metrics.requests.get_or_create(&labels));
            }
        }
        metrics
    }

    /// A request was judged in `took`.
    pub fn judged(&self, entry: Entry, reason: Reason, took: Duration) {
        let labels = JudgedLabels { entry, answer: reason.answer(), reason };
        self.requests.get_or_create(&labels).inc();
        self.latency.get_or_create(&EntryLabels { entry }).observe(took.as_secs_f64());
    }

    /// How the verifier is doing now.
    pub fn report(&self, levels: &VerifierLevels) {
        self.view.report(&levels.view);
        self.partial.set(levels.partial.into());
        raise(&self.asked, levels.asked);
        raise(&self.opened, levels.opened);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_every_reason_from_the_start_and_how_the_view_is() {
        let mut registry = Registry::default();
        let metrics = SidecarMetrics::register(&mut registry);
        metrics.judged(Entry::ExtAuthz, Reason::Revoked, Duration::from_micros(20));
        let view = ViewLevels {
            synced: true,
            age: Some(Duration::from_millis(1500)),
            revision: 7,
            ..ViewLevels::default()
        };
        metrics.report(&VerifierLevels { view, ..VerifierLevels::default() });
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "avouch_sidecar_requests_total{entry=\"ext_authz\",answer=\"deny\",reason=\"revoked\"} 1",
            "avouch_sidecar_requests_total{entry=\"forward_auth\",answer=\"unavailable\",reason=\"stale\"} 0",
            "avouch_sidecar_latency_seconds_bucket{le=\"0.000025\",entry=\"ext_authz\"} 1",
            "avouch_sidecar_view_age_seconds 1.5",
            "avouch_sidecar_view_synced 1",
            "avouch_sidecar_applied_revision 7",
            "avouch_build_info{version=",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }
}
