//! What is served over plain HTTP: to verifiers the public keys, to operators health and metrics.
//! Knows no layer but readiness and metrics; whatever else it shows comes in through a trait.

pub mod ops;
pub mod public;
