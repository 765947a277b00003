//! Diagnostics: one subscriber for the process, lines to stderr. Knows nothing of what is logged.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Why diagnostics could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter makes no sense.
    #[error("log.level is neither a level nor a filter: {0}")]
    Filter(#[from] ParseError),
    /// Somebody set a subscriber before.
    #[error("diagnostics are set up already")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Sends diagnostics to stderr, one JSON object a line or text for eyes. `level` is a level or a
/// filter such as `info,avouch::store=debug`.
///
/// # Errors
/// When the filter makes no sense or diagnostics are set up already.
pub fn init(json: bool, level: &str) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(level)?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json {
        subscriber.json().flatten_event(true).with_current_span(false).finish().try_init()?;
    } else {
        let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
        subscriber.with_ansi(ansi).finish().try_init()?;
    }
    Ok(())
}
