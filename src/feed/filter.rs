//! What one watcher sees. It may be sent more than it asked for, never less, and never a token or a
//! session that its rights do not reach.

use crate::domain::caller::{Caller, Grant, Resource, Right};
use crate::domain::event::{Entry, Event, Revocation, Target};
use crate::domain::ids::ClientId;

/// Which tokens and sessions to show. Subjects, clients, keys and everything always pass: a watcher
/// that missed one would accept what is revoked.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    audiences: Vec<Box<str>>,
    clients: Vec<ClientId>,
    /// The rights that narrow it; none when the caller may watch everything.
    limited: Option<Caller>,
}

impl Filter {
    /// Shows what is good for one of `audiences` and belongs to one of `clients`; an empty list does
    /// not restrict.
    pub const fn new(audiences: Vec<Box<str>>, clients: Vec<ClientId>) -> Self {
        Self { audiences, clients, limited: None }
    }

    /// The same, narrowed to what `caller` may watch.
    #[must_use]
    pub fn narrowed_to(mut self, caller: &Caller) -> Self {
        let unlimited = |grant: &&Grant| {
            grant.right == Right::Watch
                && grant.audience.is_none()
                && grant.client.is_none()
                && grant.subject.is_none()
        };
        if caller.grants.iter().find(unlimited).is_none() {
            self.limited = Some(caller.clone());
        }
        self
    }

    /// Whether everything passes, so that frames can be shared.
    pub const fn is_open(&self) -> bool {
        self.audiences.is_empty() && self.clients.is_empty() && self.limited.is_none()
    }

    /// The audiences it shows, as far as a list can say: those that were asked for, and of them only
    /// what the rights reach when every right names its audience.
    pub fn audiences(&self) -> Vec<Box<str>> {
        self.effective(&self.audiences, |grant| grant.audience.clone())
    }

    /// The clients it shows, as far as a list can say.
    pub fn clients(&self) -> Vec<ClientId> {
        self.effective(&self.clients, |grant| grant.client.clone())
    }

    fn effective<T: Clone + PartialEq>(
        &self,
        asked: &[T],
        limit: impl Fn(&Grant) -> Option<T>,
    ) -> Vec<T> {
        let Some(caller) = &self.limited else { return asked.to_vec() };
        let grants = caller.grants.iter().filter(|grant| grant.right == Right::Watch);
        let Some(limits) = grants.map(limit).collect::<Option<Vec<T>>>() else {
            return asked.to_vec();
        };
        limits.into_iter().filter(|own| asked.is_empty() || asked.contains(own)).collect()
    }

    /// Whether a revocation passes.
    pub fn passes(&self, revocation: &Revocation) -> bool {
        let (client, subject, audience) = match &revocation.target {
            Target::Token { client, subject, audience, .. }
            | Target::Session { client, subject, audience, .. } => (client, subject, audience),
            Target::Subject { .. }
            | Target::Client { .. }
            | Target::Everything { .. }
            | Target::Key { .. } => return true,
        };
        let asked = (self.audiences.is_empty()
            || self.audiences.iter().any(|own| audience.contains(own)))
            && (self.clients.is_empty() || self.clients.contains(client));
        let resource =
            Resource { audience: Some(audience), client: Some(client), subject: Some(subject) };
        asked && self.limited.as_ref().is_none_or(|caller| caller.may(Right::Watch, resource))
    }

    /// The revocation in an entry, if it passes.
    pub fn shows<'a>(&self, entry: &'a Entry) -> Option<&'a Revocation> {
        match &entry.event {
            Event::Revocation(revocation) => self.passes(revocation).then_some(revocation),
            Event::KeySetChanged { .. } => None,
        }
    }
}
