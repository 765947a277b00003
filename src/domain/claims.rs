//! What an access token asserts (RFC 9068). Not how it is encoded or signed.

use crate::domain::clock::Timestamp;
use crate::domain::ids::{ClientId, Epochs, SessionId, SubjectId, TokenId};
use crate::domain::scope::Names;

/// The claims of an access token.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Claims {
    /// `iss`: who issued it.
    pub issuer: Box<str>,
    /// `sub`: who it speaks for.
    pub subject: SubjectId,
    /// `aud`: who may accept it; one or more.
    pub audience: Names,
    /// `client_id`: who asked for it.
    pub client: ClientId,
    /// `scope`: what it allows.
    pub scope: Names,
    /// `jti`: its own id.
    pub token_id: TokenId,
    /// `sid`: the session it belongs to; none for a token that a client got for itself.
    pub session: Option<SessionId>,
    /// `iat`: when it was issued, whole seconds.
    pub issued_at: Timestamp,
    /// `nbf`: not good before, whole seconds.
    pub not_before: Timestamp,
    /// `exp`: not good at or after, whole seconds.
    pub expires_at: Timestamp,
    /// `auth_time`: when the subject last proved itself, whole seconds.
    pub authenticated_at: Option<Timestamp>,
    /// `amr`: how it did (RFC 8176), `pwd` and the like.
    pub methods: Names,
    /// `epo`: the epochs it was issued under.
    pub epochs: Epochs,
}
