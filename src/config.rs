//! The configuration: a TOML file, then `AVOUCH_<SECTION>_<KEY>` from the environment, then flags,
//! each over the one before; checked as a whole, with every mistake reported at once. Knows no
//! running service; what a service needs it gets in its own settings.

pub mod grants;
pub mod rules;
pub mod section;
pub mod sections;
pub mod sidecar;
pub mod store_url;
pub mod value;

mod check;
mod file;
mod load;
mod reference;
mod secret_file;
mod suggest;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;

pub use check::{check_access, check_files};
pub use grants::CertificateGrant;
pub use load::{Sources, environment, load};
pub use reference::reference;
pub use secret_file::{SecretFileError, read_secret_file};

use section::{KeyDoc, KeyFault};
use sections::{
    Audit, Etcd, Issuer, Keys, Limits, Log, Password, Server, Sessions, Store, Telemetry, Throttle,
    Tls, Tokens,
};

macro_rules! config {
    ($($(#[doc = $doc:literal])+ $field:ident : $kind:ident,)+) => {
        /// The whole configuration. It holds no secret, only the paths of files that do.
        #[derive(Clone, Debug, Default, Eq, PartialEq)]
        pub struct Config {
            /// Whether this is a server to try things on: loopback, plaintext, made-up credentials.
            pub dev: bool,
            /// `[[grant]]`: what callers with a certificate may do.
            pub grants: Vec<CertificateGrant>,
            $($(#[doc = $doc])+ pub $field: $kind,)+
        }

        const SECTIONS: &[&str] = &[$(stringify!($field)),+];

        impl Config {
            fn set(&mut self, section: &str, key: &str, text: &str) -> Result<(), KeyFault> {
                match section {
                    $(stringify!($field) => self.$field.set(key, text),)+
                    _ => Err(KeyFault::Unknown),
                }
            }

            /// Every section with its keys, what they mean, and their values.
            pub fn keys(&self) -> Vec<(&'static str, Vec<KeyDoc>)> {
                vec![$((stringify!($field), self.$field.keys())),+]
            }
        }
    };
}

config! {
    /// Where avouch listens and how it stops.
    server: Server,
    /// Certificates.
    tls: Tls,
    /// What avouch calls itself in tokens.
    issuer: Issuer,
    /// Where the state is kept.
    store: Store,
    /// How to talk to etcd.
    etcd: Etcd,
    /// Signing keys.
    keys: Keys,
    /// How passwords are hashed and what a new one must be.
    password: Password,
    /// Default lifetimes.
    tokens: Tokens,
    /// Logins.
    sessions: Sessions,
    /// Failed logins.
    throttle: Throttle,
    /// What one peer, and all together, may take.
    limits: Limits,
    /// Diagnostics.
    log: Log,
    /// Traces.
    telemetry: Telemetry,
    /// Security events.
    audit: Audit,
}

/// Where security events go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AuditOutput {
    /// Beside what a program prints.
    Stdout,
    /// To the end of a file.
    File(PathBuf),
    /// To an OpenTelemetry collector.
    Otlp {
        /// Its URL.
        endpoint: String,
        /// The CA of its certificate, if it has one.
        ca_file: Option<PathBuf>,
    },
}

impl Config {
    /// The directory for what this server writes to files: its state, or, when that is in etcd, where it
    /// listens and the first credentials.
    pub fn data_dir(&self) -> PathBuf {
        let path = self.store.path.as_ref().unwrap_or(&self.server.files_dir);
        path.clone()
    }

    /// Where the state is, for people.
    fn state(&self) -> String {
        match &self.store.url {
            Some(url) => format!("state in {url}"),
            None => format!("data in {}", self.data_dir().display()),
        }
    }

    /// Where security events go.
    pub fn audit_output(&self) -> AuditOutput {
        match self.audit.output.as_str() {
            "stdout" => AuditOutput::Stdout,
            "otlp" => AuditOutput::Otlp {
                endpoint: self.audit.otlp_endpoint.clone().unwrap_or_default(),
                ca_file: self.audit.otlp_ca_file.clone(),
            },
            path => AuditOutput::File(path.into()),
        }
    }

    /// One line for the log at start: what an operator asks first. An allow-list by hand.
    pub fn summary(&self) -> String {
        let server = &self.server;
        let tls = match (&self.tls.cert_file, server.plaintext_mesh) {
            (Some(_), _) => match self.tls.client_auth {
                sections::ClientAuth::None => "tls",
                sections::ClientAuth::Optional => "tls, client certificates optional",
                sections::ClientAuth::Required => "mtls",
            },
            (None, true) => "plaintext behind a mesh",
            (None, false) => "plaintext on loopback",
        };
        format!(
            "grpc {}, public {}, ops {}, {tls}; issuer {}; {}; {} signing; argon2id {}/{}/{}; \
             access tokens live {} s; {} certificate grants{}",
            server.listen,
            server.public_listen,
            server.ops_listen,
            self.issuer.url.as_deref().unwrap_or("the public listener"),
            self.state(),
            self.keys.algorithm,
            self.password.memory_kib,
            self.password.iterations,
            self.password.parallelism,
            self.tokens.access_lifetime.as_secs(),
            self.grants.len(),
            if self.dev { "; dev" } else { "" },
        )
    }
}

/// One mistake in the configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// Where it was made: `avouch.toml:12`, `AVOUCH_SERVER_LISTEN`, `--set server.listen`; empty for
    /// one that is about the whole.
    pub origin: String,
    /// Which key, and what is wrong with it.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.origin.is_empty() {
            f.write_str(&self.text)
        } else {
            write!(f, "{}: {}", self.origin, self.text)
        }
    }
}

/// Every mistake in the configuration.
#[derive(Clone, Debug, Default, Eq, PartialEq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<Problem>);

impl ConfigErrors {
    fn push(&mut self, origin: impl Into<String>, text: impl Into<String>) {
        self.0.push(Problem { origin: origin.into(), text: text.into() });
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0.len() == 1 { "mistake" } else { "mistakes" };
        write!(f, "the configuration has {} {plural}:", self.0.len())?;
        for problem in &self.0 {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}
