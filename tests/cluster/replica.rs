//! The command line of `avouch serve` as a node of the cluster: the only place that knows it.

use std::path::Path;

use crate::access::Access;
use crate::clock::Skew;
use crate::net::Node;
use crate::process::Program;

/// What the tokens name.
pub(crate) const ISSUER: &str = "https://id.example.com";
/// Where each replica serves gRPC.
pub(crate) const PORT: u16 = 7700;
/// Where each replica tells its metrics.
pub(crate) const OPS_PORT: u16 = 7702;

/// Where the state is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Store {
    /// On the disk of the one replica that there is.
    Sled,
    /// In etcd, for three.
    Etcd,
}

impl Store {
    /// How many replicas there are.
    pub(crate) const fn replicas(self) -> usize {
        match self {
            Self::Sled => 1,
            Self::Etcd => 3,
        }
    }
}

/// How long an access token lives.
pub(crate) const ACCESS_LIFETIME: &str = "120s";

/// Names another avouch than the one that was compiled with the tests: one that stays while they are
/// compiled anew.
const BINARY: &str = "AVOUCH_CLUSTER_BINARY";

#[expect(clippy::disallowed_methods, reason = "tests have no configuration file")]
fn program() -> String {
    std::env::var(BINARY).unwrap_or_else(|_| env!("CARGO_BIN_EXE_avouch").to_owned())
}

/// A replica that does not run yet, and its clock. `directory` has the key file that all share;
/// `preloaded` lets it see that clock.
pub(crate) fn replica(
    index: usize,
    store: Store,
    access: Option<&Access>,
    directory: &Path,
    preloaded: &Path,
) -> (Program, Skew) {
    let node = Node::Replica(index);
    let own = directory.join(node.name());
    std::fs::create_dir_all(&own).expect("a directory");
    let mut settings = vec![
        format!("server.listen={}:{PORT}", node.address()),
        "server.public_listen=127.0.0.1:0".to_owned(),
        format!("server.ops_listen={}:{OPS_PORT}", node.address()),
        "server.plaintext_mesh=true".to_owned(),
        "server.drain_timeout=5s".to_owned(),
        format!("issuer.url={ISSUER}"),
        format!("keys.encryption_key_file={}", directory.join("encryption.key").display()),
        // The quickest that a server takes.
        "password.memory_kib=7168".to_owned(),
        "password.iterations=5".to_owned(),
        format!("tokens.access_lifetime={ACCESS_LIFETIME}"),
        "throttle.free_failures=100".to_owned(),
        "sessions.max_per_subject=1000000".to_owned(),
        "store.sweep_interval=10s".to_owned(),
        format!("audit.output={}", own.join("audit.jsonl").display()),
    ];
    let data = own.join("data");
    match store {
        Store::Sled => {
            settings.push(format!("store.path={}", data.display()));
            settings.push("store.min_free_bytes=0".to_owned());
        }
        Store::Etcd => {
            let members = Node::MEMBERS.map(|it| format!("{}:2379", it.address())).join(",");
            match access {
                None => {
                    settings.push(format!("store.url=etcd://{members}/avouch"));
                    settings.push("etcd.plaintext_behind_mesh=true".to_owned());
                }
                Some(access) => {
                    settings.push(format!("store.url=etcds://{members}/avouch"));
                    settings.extend(access.of_replica(node));
                }
            }
            settings.push(format!("server.files_dir={}", data.display()));
        }
    }
    let mut words = vec![program(), "serve".to_owned()];
    words.extend(settings.into_iter().map(|it| format!("--set={it}")));
    let skew = Skew::new(&own);
    let program = Program::new(node, words, &own, directory.join(format!("{}.log", node.name())))
        .with_variable("LD_PRELOAD", preloaded)
        .with_variable("CLOCK_AHEAD", &skew.path);
    (program, skew)
}
