//! Wire types to domain types and back; all validation of fields. Knows no service.

pub mod admin;
pub mod fields;
pub mod revocation;
pub mod token;

pub use fields::{Fields, Invalid, duration, known_timestamp, time as timestamp};
