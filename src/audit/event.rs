//! One security event and its line.

use serde_json::Value;

use crate::domain::clock::Timestamp;

/// The longest text of one field, in bytes. What a caller sends must not swell the log.
const MAX_FIELD_BYTES: usize = 512;

/// How much an event matters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Level {
    /// As it should be.
    Info,
    /// Somebody was turned away.
    Warn,
    /// Somebody should look.
    Critical,
}

impl Level {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Critical => "critical",
        }
    }
}

macro_rules! names {
    ($($(#[$meta:meta])* $variant:ident = $name:literal $level:ident,)+) => {
        /// What happened, in the words of the OWASP Logging Vocabulary where it has one.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub enum AuditName {
            $($(#[$meta])* $variant,)+
        }

        impl AuditName {
            /// Every name.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name in the log.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// How much such an event matters.
            pub const fn level(self) -> Level {
                match self {
                    $(Self::$variant => Level::$level,)+
                }
            }
        }
    };
}

names! {
    /// A credential was accepted.
    AuthnLoginSuccess = "authn_login_success" Info,
    /// A credential was not accepted.
    AuthnLoginFail = "authn_login_fail" Warn,
    /// A source was locked out of an account.
    AuthnLoginLock = "authn_login_lock" Critical,
    /// A password was changed or set.
    AuthnPasswordChange = "authn_password_change" Info,
    /// A password was not changed.
    AuthnPasswordChangeFail = "authn_password_change_fail" Critical,
    /// Tokens were issued by a refresh.
    AuthnTokenCreated = "authn_token_created" Info,
    /// A refresh token was not accepted.
    AuthnTokenFail = "authn_token_fail" Warn,
    /// A spent refresh token was presented.
    AuthnTokenReuse = "authn_token_reuse" Critical,
    /// Something was revoked.
    AuthnTokenRevoked = "authn_token_revoked" Info,
    /// An administrator is about to change something.
    AuthzAdmin = "authz_admin" Warn,
    /// A caller may not do what it asked for.
    AuthzFail = "authz_fail" Critical,
    /// A client was changed.
    ClientChanged = "client_changed" Info,
    /// A client was registered.
    ClientCreated = "client_created" Info,
    /// A client was deleted.
    ClientDeleted = "client_deleted" Info,
    /// A client was disabled.
    ClientDisabled = "client_disabled" Info,
    /// A client was enabled again.
    ClientEnabled = "client_enabled" Info,
    /// A client got a new secret.
    ClientSecretRotated = "client_secret_rotated" Info,
    /// Somebody asked too often, or there was no room.
    ExcessRateLimitExceeded = "excess_rate_limit_exceeded" Warn,
    /// A request was refused for what it holds.
    InputValidationFail = "input_validation_fail" Warn,
    /// A signing key was announced.
    KeyCreated = "key_created" Info,
    /// A signing key was removed.
    KeyRemoved = "key_removed" Info,
    /// A signing key was taken back.
    KeyRevoked = "key_revoked" Critical,
    /// Another key signs.
    KeyRotated = "key_rotated" Info,
    /// The whole state was read, for a backup.
    SensitiveRead = "sensitive_read" Warn,
    /// A session was opened.
    SessionCreated = "session_created" Info,
    /// The configuration or the certificates changed.
    SysConfigChanged = "sys_config_changed" Info,
    /// The server stopped.
    SysShutdown = "sys_shutdown" Warn,
    /// The server started.
    SysStartup = "sys_startup" Warn,
    /// A user was created.
    UserCreated = "user_created" Warn,
    /// A user was deleted.
    UserDeleted = "user_deleted" Warn,
    /// A user was disabled.
    UserDisabled = "user_disabled" Warn,
    /// A user was enabled again.
    UserEnabled = "user_enabled" Warn,
    /// A user was changed.
    UserUpdated = "user_updated" Warn,
    /// A watcher came.
    WatchStarted = "watch_started" Info,
    /// A watcher left or was cut.
    WatchEnded = "watch_ended" Info,
}

macro_rules! event {
    ($($(#[$meta:meta])* $field:ident,)+) => {
        /// One security event: what happened, when, and who or what it is about.
        #[derive(Clone, Debug)]
        pub struct AuditEvent {
            /// What happened.
            pub name: AuditName,
            /// When.
            pub at: Timestamp,
            /// The position of the revocation in the log, when there is one.
            pub revision: Option<u64>,
            $($(#[$meta])* pub $field: Option<Box<str>>,)+
        }

        impl AuditEvent {
            /// An event with nothing but a name and a time.
            pub const fn new(name: AuditName, at: Timestamp) -> Self {
                Self { name, at, revision: None, $($field: None,)+ }
            }

            $(
                $(#[$meta])*
                #[must_use]
                pub fn $field(mut self, text: impl Into<Box<str>>) -> Self {
                    self.$field = Some(text.into());
                    self
                }
            )+

            fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
                [$((stringify!($field), self.$field.as_deref())),+]
                    .into_iter()
                    .filter_map(|(name, text)| Some((name, text?)))
            }
        }
    };
}

event! {
    /// Which call; the same as in the answer and in the diagnostics.
    request_id,
    /// The method, `avouch.v1.IdentityService/Refresh`.
    method,
    /// Who called: a client, a subject or a certificate's name.
    caller,
    /// The subject that it is about.
    subject,
    /// The client that it is about.
    client_id,
    /// The session that it is about.
    session_id,
    /// The access token that it is about, its `jti`.
    token_id,
    /// The signing key that it is about.
    kid,
    /// The end user's address, or the peer's.
    source,
    /// What was revoked: token, session, subject, client, everything or key.
    target,
    /// Why.
    reason,
    /// How it was answered: a gRPC code.
    outcome,
}

impl AuditEvent {
    /// The position of the revocation in the log.
    #[must_use]
    pub const fn revision(mut self, revision: u64) -> Self {
        self.revision = Some(revision);
        self
    }

    /// The event as one line of JSON, its members by name, with its line end. Whatever the texts
    /// hold, it stays one line of printable characters.
    pub fn to_line(&self) -> String {
        let (at, revision) = (self.at.to_string(), self.revision.map(|number| number.to_string()));
        let mut members: Vec<(&str, &str)> = Vec::with_capacity(16);
        members.extend([
            ("event", self.name.as_str()),
            ("level", self.name.level().as_str()),
            ("ts", &at),
        ]);
        members.extend(self.fields());
        members.extend(revision.as_deref().map(|number| ("revision", number)));
        members.sort_unstable_by_key(|(name, _)| *name);
        let mut line = String::with_capacity(320);
        for (name, text) in members {
            line.push_str(if line.is_empty() { "{\"" } else { ",\"" });
            line.push_str(name);
            line.push_str("\":");
            // The one member that is a number.
            if name == "revision" { line.push_str(text) } else { push_text(&mut line, text) }
        }
        line.push_str("}\n");
        line
    }
}

/// Adds a text as a JSON string. Most are short and plain, and go in as they are.
fn push_text(line: &mut String, text: &str) {
    let plain = |b: u8| matches!(b, b' '..=b'~') && b != b'"' && b != b'\\';
    if text.len() <= MAX_FIELD_BYTES && text.bytes().all(plain) {
        line.push('"');
        line.push_str(text);
        line.push('"');
    } else {
        line.push_str(&Value::from(clean(text)).to_string());
    }
}

/// Shortens a text, and replaces what would act on a terminal or break a line in a viewer: JSON
/// escapes the C0 controls, but neither DEL nor C1, nor the separators and overrides of Unicode.
fn clean(text: &str) -> String {
    let harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let mut out = String::with_capacity(text.len().min(MAX_FIELD_BYTES));
    for c in text.chars() {
        if out.len() + c.len_utf8() > MAX_FIELD_BYTES {
            out.push('…');
            break;
        }
        if harmful(c) {
            out.push('\u{fffd}');
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_one_line_whatever_a_caller_sends() {
        let hostile = "a\n{\"event\":\"authn_login_success\"}\r\u{1b}[2J\u{85}\u{2028}\u{202e}\"\\";
        let line = AuditEvent::new(AuditName::AuthnLoginFail, Timestamp::from_secs(0))
            .subject(hostile)
            .reason("x".repeat(10_000))
            .to_line();
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.chars().all(|c| c == '\n' || !c.is_control()), "{line}");
        assert!(!line.contains(['\u{2028}', '\u{202e}']));
        assert!(line.len() < 2_000);
        let back: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(back["event"], "authn_login_fail");
        assert_eq!(back["level"], "warn");
        assert_eq!(back["ts"], "1970-01-01T00:00:00.000Z");
        assert!(back.get("client_id").is_none());
    }

    #[test]
    fn a_line_has_its_members_by_name() {
        let line = AuditEvent::new(AuditName::AuthnTokenRevoked, Timestamp::from_secs(1))
            .token_id("t")
            .caller("a \"b\" \\ c")
            .revision(7)
            .to_line();
        let whole = concat!(
            r#"{"caller":"a \"b\" \\ c","event":"authn_token_revoked","level":"info","#,
            r#""revision":7,"token_id":"t","ts":"1970-01-01T00:00:01.000Z"}"#,
            "\n"
        );
        assert_eq!(line, whole);
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::HashSet<_> =
            AuditName::ALL.iter().map(|name| name.as_str()).collect();
        assert_eq!(names.len(), AuditName::ALL.len());
    }
}
