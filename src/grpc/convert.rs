//! Domain types to wire types and back. All validation of fields is here.

pub mod revocation;

use crate::domain::clock::Timestamp;

/// A moment as it is on the wire.
pub fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    let millis = at.as_millis();
    prost_types::Timestamp {
        seconds: i64::try_from(millis / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(millis % 1000 * 1_000_000).unwrap_or(0),
    }
}

/// A moment as it is on the wire, none for the Unix epoch, which stands for not known.
pub fn known_timestamp(at: Timestamp) -> Option<prost_types::Timestamp> {
    (at != Timestamp::default()).then(|| timestamp(at))
}

/// A span of time as it is on the wire.
pub fn duration(span: std::time::Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(span.subsec_nanos()).unwrap_or(0),
    }
}
