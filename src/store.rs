//! The store: every state change of avouch as one atomic, durable step.

pub mod engine;
pub mod fault;
mod group;
pub mod memory;
pub mod sled;

#[cfg(test)]
mod engine_suite;

/// Why the store did not do what it was asked.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum StoreError {
    /// The store cannot commit now: failed, closed, out of space or overloaded.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// A record does not match its checksum or cannot be read.
    #[error("the store holds a damaged record: {0}")]
    Corrupt(String),
    /// A rule of this program is broken.
    #[error("internal error in the store: {0}")]
    Internal(&'static str),
}

/// Why a store did not open. The text tells an operator what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "{path} is in use by another avouch process; stop that one first, or give this one another --data-dir"
    )]
    InUse {
        /// The directory.
        path: String,
    },
    /// It was written by a version of avouch that this one does not understand.
    #[error(
        "{path} has schema version {found}, this avouch reads version {expected}; use the avouch version that wrote it, or restore a backup"
    )]
    Schema {
        /// The directory.
        path: String,
        /// What it has.
        found: u32,
        /// What is read.
        expected: u32,
    },
    /// It lost something that was acknowledged, or holds something that was never written.
    #[error(
        "{path} is damaged: {what}; avouch does not start on it, because a lost revocation would make a revoked token good again. Restore a backup into an empty directory"
    )]
    Damaged {
        /// The directory or the file.
        path: String,
        /// What does not match.
        what: String,
    },
    /// The operating system refused.
    #[error("cannot open {path}: {source}")]
    Io {
        /// The directory or the file.
        path: String,
        /// What it said.
        source: std::io::Error,
    },
}
