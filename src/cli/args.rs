//! The flags that every command understands, and how single arguments are read.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::value::Value as _;
use crate::pb::v1::RevocationReason;

/// How to reach a server and how to show what it says.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Server")]
pub(super) struct Global {
    /// The server's URL.
    #[arg(
        long,
        global = true,
        env = "AVOUCH_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:7700"
    )]
    pub(super) server: String,
    /// A client's credentials: JSON with client_id and client_secret, mode 0600.
    #[arg(long, global = true, env = "AVOUCH_CREDENTIALS", value_name = "FILE")]
    pub(super) credentials: Option<PathBuf>,
    /// An access token to call with: the token, or what `login --save` wrote, mode 0600.
    #[arg(long, global = true, env = "AVOUCH_TOKEN", value_name = "FILE")]
    pub(super) token: Option<PathBuf>,
    /// The CAs that the server's certificate must chain to, PEM. Needed for https.
    #[arg(long, global = true, env = "AVOUCH_CA_FILE", value_name = "FILE")]
    pub(super) ca_file: Option<PathBuf>,
    /// A client certificate, PEM.
    #[arg(long, global = true, env = "AVOUCH_CERT", value_name = "FILE")]
    pub(super) cert: Option<PathBuf>,
    /// The client certificate's private key, PEM, mode 0600.
    #[arg(long, global = true, env = "AVOUCH_KEY", value_name = "FILE")]
    pub(super) key: Option<PathBuf>,
    /// Print JSON, one object a line.
    #[arg(long, global = true)]
    pub(super) json: bool,
}

/// Reads `250ms`, `10s`, `5m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    Duration::read(text)
}

/// The word for a value of a proto enumeration: `REVOCATION_REASON_LOGOUT` is `logout`.
pub(super) fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

/// Reads a reason by its word.
pub(super) fn reason(text: &str) -> Result<RevocationReason, String> {
    let name = format!("REVOCATION_REASON_{}", text.replace('-', "_").to_ascii_uppercase());
    RevocationReason::from_str_name(&name)
        .filter(|reason| *reason != RevocationReason::Unspecified)
        .ok_or_else(|| {
            let words: Vec<String> = (1..)
                .map_while(|number| RevocationReason::try_from(number).ok())
                .map(|reason| word(reason.as_str_name(), "REVOCATION_REASON_"))
                .collect();
            format!("one of: {}", words.join(", "))
        })
}

/// A duration as the API wants it.
pub(super) fn proto_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_words() {
        assert_eq!(reason("logout"), Ok(RevocationReason::Logout));
        assert_eq!(reason("credential-compromised"), Ok(RevocationReason::CredentialCompromised));
        assert!(reason("unspecified").unwrap_err().contains("external_signal"));
    }
}

/// What a file of settings is overridden by: flags with a name of their own, and each `--set`, with what
/// to call it in a complaint, its key and its value.
pub(super) fn settings<const N: usize>(
    named: [(&str, &str, Option<String>); N],
    set: Vec<String>,
) -> Vec<(String, String, String)> {
    let named = named.into_iter().filter_map(|(flag, key, value)| Some((flag, key, value?)));
    let set = set.into_iter().map(|text| match text.split_once('=') {
        Some((key, value)) => (format!("--set {key}"), key.to_owned(), value.to_owned()),
        // Without a dot it is reported with the rest of the mistakes.
        None => ("--set".to_owned(), String::new(), String::new()),
    });
    named.map(|(flag, key, value)| (flag.to_owned(), key.to_owned(), value)).chain(set).collect()
}
