//! `node-agent`: follow the server once for a whole machine.

use std::time::Duration;

use super::args::{Global, duration};
use super::connection::{authentication, upstream};
use super::failure::Failure;
use super::files::ClientCredentials;
use super::serve::ServeError;
use crate::client::upstream::Upstream;
use crate::domain::address::Address;
use crate::pb::v1::ClientAuthentication;

/// Follow the server once for a whole machine, and serve its revocations on to the pods there.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  avouch client create node-agent --audience avouch --grant watch \\\n      --save agent.json --credentials avouch-data/admin-client.json\n  avouch node-agent --server https://id.example.com:7700 --ca-file ca.pem \\\n      --credentials agent.json --listen unix:///run/avouch/agent.sock\n  avouch watch --server unix:///run/avouch/agent.sock\n\nThe agent serves avouch.v1.RevocationService with the server's cursors and the\nserver's time: to watch here is to watch there. While the server is silent,\nas_of stands still here, too. Whoever may write to the socket may watch\neverything, so an agent listens on no address that other machines reach, and\nits own credentials need the right `watch` without limits.\nFilters show everything; ListRevocations is for the server itself."
)]
pub(super) struct NodeAgent {
    /// Where neighbours connect: unix:///path, in a directory that is there, or a loopback address.
    #[arg(
        long,
        env = "AVOUCH_AGENT_LISTEN",
        value_name = "ADDRESS",
        default_value = "unix:///run/avouch/agent.sock"
    )]
    listen: Address,
    /// The mode of the socket: who may write to it may watch.
    #[arg(long, value_name = "OCTAL", default_value = "0660", value_parser = mode)]
    socket_mode: u32,
    /// Where /metrics, /livez and /readyz are; `off` for nowhere.
    #[arg(
        long,
        env = "AVOUCH_AGENT_OPS",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9194",
        value_parser = ops
    )]
    ops: Ops,
    /// The name of this agent in the server's metrics and logs, the node's for example.
    #[arg(
        long,
        env = "AVOUCH_AGENT_NAME",
        value_name = "NAME",
        default_value = "avouch-node-agent"
    )]
    name: String,
    /// The most revocations to hold, at about 21 bytes each. The agent stops when there are more.
    #[arg(long, value_name = "COUNT", default_value_t = 4_000_000)]
    max_entries: u64,
    /// The most streams of neighbours.
    #[arg(long, value_name = "COUNT", default_value_t = 1024)]
    max_neighbours: usize,
    /// How long streams may take to end after a signal to stop.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    drain_timeout: Duration,
    /// How log lines look: human or json.
    #[arg(long, value_name = "FORMAT", default_value = "human", value_parser = ["human", "json"])]
    log_format: String,
    /// What is logged: error, warn, info, debug, trace, or a filter.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
}

/// Where probes are, or that there are none.
#[derive(Clone, Debug)]
struct Ops(Option<Address>);

fn ops(text: &str) -> Result<Ops, String> {
    if text == "off" {
        return Ok(Ops(None));
    }
    text.parse().map(|address| Ops(Some(address))).map_err(|_| {
        "must be an IP address and a port such as 127.0.0.1:9194, unix:///absolute/path, or off"
            .to_owned()
    })
}

fn mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| "must be three octal digits such as 660".to_owned())
}

/// What was typed, and how the agent reaches its server.
pub struct NodeAgentOptions {
    /// Where neighbours connect.
    pub listen: Address,
    /// The mode of a Unix socket.
    pub socket_mode: u32,
    /// Where probes and metrics are.
    pub ops: Option<Address>,
    /// The name for the server.
    pub name: String,
    /// The most revocations.
    pub max_entries: u64,
    /// The most streams.
    pub max_neighbours: usize,
    /// How long a drain may take.
    pub drain_timeout: Duration,
    /// Whether log lines are JSON.
    pub log_json: bool,
    /// What is logged.
    pub log_level: String,
    /// The server, certificates included.
    pub server: Upstream,
    /// The client, when its certificate does not say.
    pub client: Option<ClientAuthentication>,
}

impl NodeAgent {
    pub(super) async fn run(
        self,
        global: &Global,
        agent: impl AsyncFnOnce(NodeAgentOptions) -> Result<(), ServeError>,
    ) -> Result<(), Failure> {
        if !self.listen.is_local() {
            return Err(Failure::Usage(format!(
                "--listen {} is reachable from other machines, and an agent asks nobody who they are: use unix:///path or a loopback address",
                self.listen
            )));
        }
        let credentials = match &global.credentials {
            Some(path) => Some(ClientCredentials::read(path)?),
            None if global.cert.is_some() => None,
            None => {
                let text = "say who the agent is: --credentials FILE, or --cert and --key";
                return Err(Failure::Usage(text.into()));
            }
        };
        let options = NodeAgentOptions {
            listen: self.listen,
            socket_mode: self.socket_mode,
            ops: self.ops.0,
            name: self.name,
            max_entries: self.max_entries,
            max_neighbours: self.max_neighbours,
            drain_timeout: self.drain_timeout,
            log_json: self.log_format == "json",
            log_level: self.log_level,
            server: upstream(global)?,
            client: credentials.as_ref().map(authentication),
        };
        agent(options).await.map_err(|error| Failure::Other(error.to_string()))
    }
}
