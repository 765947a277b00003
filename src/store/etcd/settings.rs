//! How to reach an etcd, and where in it avouch keeps its records.

use std::path::PathBuf;
use std::time::Duration;

use crate::metrics::StoreRecorder;

/// The file in `server.files_dir` for [`EtcdSettings::seen_file`].
pub const SEEN_FILE: &str = "etcd-seen.json";

/// How an [`EtcdEngine`](super::EtcdEngine) behaves.
#[derive(Clone, Debug)]
pub struct EtcdSettings {
    /// The members, each `host:port`, or that as an `http://` or `https://` URL.
    pub endpoints: Vec<String>,
    /// What every key begins with. Whoever has another prefix in the same etcd sees nothing of this
    /// avouch.
    pub prefix: String,
    /// How to speak TLS. None is plaintext.
    pub tls: Option<EtcdTls>,
    /// Who to log in as.
    pub login: Option<EtcdLogin>,
    /// How long one call to a member may take. Then another is asked.
    pub request_timeout: Duration,
    /// How long a change or a read may take in all: several calls, the resolving of one whose answer
    /// was lost, and the wait for the watch.
    pub deadline: Duration,
    /// A file in which it is kept how far etcd was, of this replica alone. None keeps it nowhere.
    pub seen_file: Option<PathBuf>,
    /// The version of the records of the layers above. Records of another version do not open.
    pub schema_version: u32,
    /// Where times and sizes are recorded.
    pub recorder: StoreRecorder,
}

impl EtcdSettings {
    /// The defaults, for records of this version.
    pub fn new(endpoints: Vec<String>, prefix: String, schema_version: u32) -> Self {
        Self {
            endpoints,
            prefix,
            tls: None,
            login: None,
            request_timeout: Duration::from_secs(2),
            deadline: Duration::from_secs(5),
            seen_file: None,
            schema_version,
            recorder: StoreRecorder::default(),
        }
    }

    /// The members and the prefix, as an operator writes them.
    pub(in crate::store) fn place(&self) -> String {
        let scheme = if self.tls.is_some() { "etcds" } else { "etcd" };
        let hosts =
            self.endpoints.iter().map(|at| at.split_once("://").map_or(&**at, |(_, at)| at));
        let hosts: Vec<_> = hosts.collect();
        format!("{scheme}://{}/{}", hosts.join(","), self.prefix.trim_matches('/'))
    }
}

/// The files of a TLS client. They are read again for each new connection.
#[derive(Clone, Debug)]
pub struct EtcdTls {
    /// The certificates of those who may certify a member, PEM.
    pub ca_file: PathBuf,
    /// The own certificate and its key, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Who to log in as. The file is read again for each login.
#[derive(Clone, Debug)]
pub struct EtcdLogin {
    /// The name.
    pub username: String,
    /// The file that has the password, and perhaps a line's end.
    pub password_file: PathBuf,
}
