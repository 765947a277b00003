//! Users: people with a name and, as a rule, a password.

use crate::domain::clock::Timestamp;
use crate::domain::ids::SubjectId;
use crate::domain::scope::Names;
use crate::domain::secret::SecretText;

/// A user.
#[derive(Clone, Debug)]
pub struct User {
    /// Who the tokens speak for.
    pub subject: SubjectId,
    /// The canonical name to log in with (RFC 8265 UsernameCaseMapped).
    pub username: Box<str>,
    /// The name to show.
    pub display_name: Box<str>,
    /// The password's hash as a PHC string.
    pub password_hash: Option<SecretText>,
    /// When the password was last set.
    pub password_changed_at: Option<Timestamp>,
    /// The scopes that the user may be granted; empty means whatever the client may have.
    pub scope: Names,
    /// Whether the user may not log in.
    pub disabled: bool,
    /// When the user was created.
    pub created_at: Timestamp,
}

impl User {
    /// Of `asked`, what this user may be granted.
    pub fn permitted(&self, asked: &Names) -> Names {
        if self.scope.is_empty() { asked.clone() } else { asked.intersection(&self.scope) }
    }
}
