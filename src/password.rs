//! Passwords: which ones are good enough, how they are hashed, and how hashing never starves the rest.
//! Knows Argon2 and threads; must not know accounts, the store or the wire.

pub mod params;
pub mod pepper;
pub mod phc;
pub mod policy;
pub mod pool;

mod engine;

pub use params::HashParams;
pub use pepper::{Pepper, PepperError};
pub use phc::PasswordHash;
pub use policy::{PasswordPolicy, PolicyError};
pub use pool::{HashError, Hasher, PoolSettings, PoolStats, Verification};
