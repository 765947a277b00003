//! What a request is worth: the rule for its method and path, then its token.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::identity::{Identity, spellings};
use crate::domain::route::{Found, Routes, is_method};
use crate::domain::view::RevokedBy;
use crate::metrics::sidecar::{Entry, Reason, SidecarMetrics};
use crate::verifier::{
    BearerError, Policy, Refusal, Requirement, Unmet, VerifiedToken, Verifier, bearer,
};

/// What a rule demands of a request.
#[derive(Clone, Debug)]
pub struct Rule {
    /// How it reads in a log line.
    pub name: Box<str>,
    /// Whether no token is needed, and none is looked at.
    pub public: bool,
    /// What a token must have.
    pub requirement: Requirement,
    /// What to do when revocations are not known up to now.
    pub policy: Policy,
    /// How old what is known may be.
    pub max_staleness: Duration,
    /// Whether the upstream gets the token.
    pub forward_token: bool,
}

/// A request as a proxy tells of it. All bytes are the client's.
#[derive(Default)]
pub(super) struct Asked<'a> {
    pub(super) method: &'a [u8],
    pub(super) target: &'a [u8],
    /// Each value of `authorization`.
    pub(super) authorization: Vec<&'a [u8]>,
}

/// A request that may pass.
#[derive(Debug)]
pub(super) struct Allowed {
    /// Who calls; nobody in particular on a public path.
    pub(super) identity: Option<Identity>,
    pub(super) forward_token: bool,
}

/// Why a request does not pass.
#[derive(Clone, Debug)]
pub(super) struct Denied {
    pub(super) reason: Reason,
    /// The scopes that are missing from a token that has not all of them.
    pub(super) scope: Option<Box<str>>,
}

impl From<Reason> for Denied {
    fn from(reason: Reason) -> Self {
        Self { reason, scope: None }
    }
}

impl Denied {
    /// 401 where another token may help, 403 where none does.
    pub(super) const fn status(&self) -> u16 {
        match self.reason {
            Reason::Audience
            | Reason::Inactive
            | Reason::Invalid
            | Reason::MalformedToken
            | Reason::MissingToken
            | Reason::Revoked => 401,
            _ => 403,
        }
    }

    /// `www-authenticate` (RFC 6750 section 3), which says no more than the client must know.
    pub(super) fn challenge(&self) -> Option<String> {
        match (self.reason, &self.scope, self.status()) {
            (Reason::MissingToken, ..) => Some("Bearer".to_owned()),
            (_, Some(scope), _) => {
                Some(format!("Bearer error=\"insufficient_scope\", scope=\"{scope}\""))
            }
            (_, None, 401) => Some("Bearer error=\"invalid_token\"".to_owned()),
            _ => None,
        }
    }
}

/// What the gate says.
#[derive(Debug)]
pub(super) enum Answer {
    Allow(Allowed),
    Deny(Denied),
    /// Nobody can tell now.
    Unavailable(Reason),
}

/// Judges requests.
pub struct Gate {
    verifier: Verifier,
    rules: Routes<Rule>,
    metrics: Arc<SidecarMetrics>,
    spellings: Vec<String>,
}

impl Gate {
    /// Judges by `rules`, with tokens as `verifier` knows them.
    pub fn new(verifier: Verifier, rules: Routes<Rule>, metrics: Arc<SidecarMetrics>) -> Self {
        Self { verifier, rules, metrics, spellings: spellings() }
    }

    /// Every spelling of the headers that are ours to set.
    pub(super) fn spellings(&self) -> &[String] {
        &self.spellings
    }

    /// Judges, counts, and says on one log line why somebody was turned away.
    pub(super) async fn judge(&self, entry: Entry, asked: Result<Asked<'_>, Reason>) -> Answer {
        let began = Instant::now();
        let (answer, seen) = match asked {
            Ok(asked) => self.answer(&asked).await,
            Err(reason) => (Answer::Deny(reason.into()), Seen::default()),
        };
        let rule = seen.rule.map_or("", |rule| &*rule.name);
        let reason = match &answer {
            Answer::Allow(Allowed { identity: Some(_), .. }) => Reason::Token,
            Answer::Allow(_) => Reason::Public,
            Answer::Deny(denied) => {
                let claims = seen.token.as_ref().map(|token| &token.claims);
                tracing::info!(
                    target: "avouch::sidecar::denied",
                    entry = entry.as_str(),
                    reason = denied.reason.as_str(),
                    status = denied.status(),
                    rule,
                    subject = claims.map(|claims| claims.subject.as_str()),
                    token_id = claims.map(|claims| claims.token_id.to_string()),
                    revoked_by = seen.revoked_by.map(RevokedBy::name),
                );
                denied.reason
            }
            Answer::Unavailable(reason) => {
                tracing::warn!(
                    target: "avouch::sidecar::denied",
                    entry = entry.as_str(),
                    reason = reason.as_str(),
                    rule,
                    "cannot tell",
                );
                *reason
            }
        };
        self.metrics.judged(entry, reason, began.elapsed());
        answer
    }

    async fn answer(&self, asked: &Asked<'_>) -> (Answer, Seen<'_>) {
        let mut seen = Seen::default();
        let answer = match self.decide(asked, &mut seen).await {
            Ok(allowed) => Answer::Allow(allowed),
            Err(No::Denied(denied)) => Answer::Deny(denied),
            Err(No::Unavailable(reason)) => Answer::Unavailable(reason),
        };
        (answer, seen)
    }

    async fn decide<'a>(&'a self, asked: &Asked<'_>, seen: &mut Seen<'a>) -> Result<Allowed, No> {
        let method = std::str::from_utf8(asked.method).map_err(|_| Reason::Malformed)?;
        let target = std::str::from_utf8(asked.target).map_err(|_| Reason::Path)?;
        if !is_method(method) {
            return Err(Reason::Malformed.into());
        }
        let rule = match self.rules.find(method, target) {
            Ok(Found::Rule(rule)) => rule,
            Ok(Found::NoMethod) => return Err(Reason::Method.into()),
            Ok(Found::NoRule) => return Err(Reason::NoRule.into()),
            Err(_) => return Err(Reason::Path.into()),
        };
        seen.rule = Some(rule);
        if rule.public {
            return Ok(Allowed { identity: None, forward_token: rule.forward_token });
        }
        let token = bearer(asked.authorization.iter().copied()).map_err(|error| match error {
            BearerError::Missing => Reason::MissingToken,
            BearerError::Malformed | BearerError::Repeated => Reason::MalformedToken,
        })?;
        let token = self.verifier.verify_with(token, rule.policy, rule.max_staleness).await;
        let token = token.map_err(|refusal| match refusal {
            Refusal::Invalid(_) => No::from(Reason::Invalid),
            Refusal::Revoked(by) => {
                seen.revoked_by = Some(by);
                Reason::Revoked.into()
            }
            Refusal::Inactive => Reason::Inactive.into(),
            Refusal::Stale => No::Unavailable(Reason::Stale),
            Refusal::NotReady => No::Unavailable(Reason::NotReady),
        })?;
        let token = seen.token.insert(token);
        match rule.requirement.check(&token.claims) {
            Ok(()) => {}
            Err(Unmet::Audience) => return Err(Reason::Audience.into()),
            Err(Unmet::Scope) => {
                let scope = Some(rule.requirement.scope.to_string().into());
                return Err(No::Denied(Denied { reason: Reason::Scope, scope }));
            }
        }
        let identity = Identity::of(&token.claims).map_err(|_| Reason::UnsafeClaim)?;
        Ok(Allowed { identity: Some(identity), forward_token: rule.forward_token })
    }
}

/// What a log line can say beside the answer.
#[derive(Default)]
struct Seen<'a> {
    rule: Option<&'a Rule>,
    token: Option<Arc<VerifiedToken>>,
    revoked_by: Option<RevokedBy>,
}

enum No {
    Denied(Denied),
    Unavailable(Reason),
}

impl From<Reason> for No {
    fn from(reason: Reason) -> Self {
        Self::Denied(reason.into())
    }
}
