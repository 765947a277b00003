//! `sidecar`: answer the proxy beside a workload.

use std::path::PathBuf;

use super::args::{Global, settings};
use super::connection::{authentication, upstream};
use super::failure::Failure;
use super::files::{ClientCredentials, read_json};
use super::output::{self, Output};
use super::serve::ServeError;
use crate::client::upstream::Upstream;
use crate::config::sidecar::{SidecarConfig, load};
use crate::config::{self, Sources};
use crate::pb::v1::ClientAuthentication;

const HELP: &str = "\
Examples:
  avouch client create sidecar --audience avouch \\
      --grant watch:audience=orders --grant introspect --save sidecar.json \\
      --credentials avouch-data/admin-client.json
  avouch sidecar --credentials sidecar.json --issuer http://127.0.0.1:7701 \\
      --audience orders --ext-authz unix:///run/avouch/authz.sock
  avouch sidecar --server https://id.example.com:7700 --ca-file ca.pem \\
      --credentials sidecar.json --rules rules.toml \\
      --forward-auth 127.0.0.1:9192
  avouch sidecar --rules rules.toml --check

The file of rules:
  [sidecar]
  issuer = \"https://id.example.com\"
  audience = \"orders\"

  [[rule]]                       # this path and everything beneath it
  prefix = \"/orders\"
  methods = \"GET HEAD\"
  scope = \"orders:read\"          # all of these, with spaces between

  [[rule]]
  prefix = \"/orders\"
  methods = \"POST PUT DELETE\"
  scope = \"orders:write\"
  policy = \"closed\"              # when revocations are not known up to now
  max_staleness = \"2s\"

  [[rule]]
  grpc = \"orders.v1.Orders/Get\"  # orders.v1.Orders for all of its methods

  [[rule]]
  path = \"/healthz\"              # this path, and with a slash at its end
  public = true

The most specific path decides, whatever the order: a path before a prefix, a
longer one before a shorter one. Where none of its rules takes the method, and
where there is no rule, the answer is 403. So it is for a path that can be read
in two ways (//, /../, %2F, ;), unless its prefix has literal_paths = true.
Upper and lower case are told apart. A rule may also have an audience and
forward_token of its own. Without --rules every path needs a good token for
--audience.

nginx asks at /auth/nginx, with X-Original-URI and X-Original-Method; Traefik
and Caddy at /auth/forwarded. The upstream gets x-avouch-subject,
x-avouch-client-id, x-avouch-scope, x-avouch-session-id, x-avouch-token-id and
x-avouch-expires.

A flag goes over the environment (AVOUCH_SIDECAR_AUDIENCE), which goes over the
file. The server is named by --server, and the sidecar by --credentials, or by
--cert and --key.";

/// Answer a proxy beside a workload: Envoy's ext_authz, and nginx, Traefik and Caddy over HTTP.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Sidecar {
    /// The file with the rules and, if you like, with [sidecar] and [log], TOML.
    #[arg(long, env = "AVOUCH_SIDECAR_RULES", value_name = "FILE")]
    rules: Option<PathBuf>,
    /// Check the rules and the rest without starting anything: exit code 0 or 64.
    #[arg(long)]
    check: bool,
    /// The issuer of the tokens, exactly as in `iss` [sidecar.issuer].
    #[arg(long, value_name = "URL")]
    issuer: Option<String>,
    /// The audience that this workload goes by; repeat for more [sidecar.audience].
    #[arg(long, value_name = "NAME")]
    audience: Vec<String>,
    /// Where Envoy asks: unix:///run/avouch/authz.sock or 127.0.0.1:9191 [sidecar.ext_authz].
    #[arg(long, value_name = "ADDRESS")]
    ext_authz: Option<String>,
    /// Where nginx, Traefik and Caddy ask: 127.0.0.1:9192 or unix:///… [sidecar.forward_auth].
    #[arg(long, value_name = "ADDRESS")]
    forward_auth: Option<String>,
    /// Where /metrics, /livez and /readyz are: 127.0.0.1:9193 unless you say [sidecar.ops].
    #[arg(long, value_name = "ADDRESS")]
    ops: Option<String>,
    /// What to do when revocations are not known up to now: closed, introspect or open [sidecar.policy].
    #[arg(long, value_name = "POLICY")]
    policy: Option<String>,
    /// How old what is known of revocations may be: 5s unless you say [sidecar.max_staleness].
    #[arg(long, value_name = "DURATION")]
    max_staleness: Option<String>,
    /// Let Envoy take the token away once it was checked; the identity headers remain [sidecar.forward_token].
    #[arg(long)]
    without_token: bool,
    /// Let ext_authz and forward_auth listen beyond this machine [sidecar.beyond_loopback].
    #[arg(long)]
    beyond_loopback: bool,
    /// Set any key of [sidecar] or [log].
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// How log lines look: human or json [log.format].
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// What is logged: error, warn, info, debug, trace, or a filter [log.level].
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

/// How a sidecar reaches its server, and who it is there.
pub struct SidecarLink {
    /// The server, certificates included.
    pub server: Upstream,
    /// The client, when its certificate does not say.
    pub client: Option<ClientAuthentication>,
}

impl Sidecar {
    pub(super) async fn run(
        self,
        global: &Global,
        out: &mut Output,
        sidecar: impl AsyncFnOnce(SidecarConfig, SidecarLink) -> Result<(), ServeError>,
    ) -> Result<(), Failure> {
        let check = self.check;
        let credentials = match &global.credentials {
            Some(path) if !check => Some(ClientCredentials::read(path)?),
            _ => None,
        };
        // Whoever hands out credentials may name the issuer in the same file.
        let issuer = match &global.credentials {
            Some(path) if !check => {
                read_json(path)?.and_then(|json| Some(json.get("issuer")?.as_str()?.to_owned()))
            }
            _ => None,
        };
        let config = self.load(issuer)?;
        if check {
            output::note("the rules are good");
            return out.text(&format!("{}\n", config.summary()));
        }
        if credentials.is_none() && global.cert.is_none() {
            let text = "say who the sidecar is: --credentials FILE, or --cert and --key";
            return Err(Failure::Usage(text.into()));
        }
        let server = upstream(global)?;
        let link = SidecarLink { server, client: credentials.as_ref().map(authentication) };
        sidecar(config, link).await.map_err(|error| Failure::Other(error.to_string()))
    }

    fn load(self, issuer: Option<String>) -> Result<SidecarConfig, Failure> {
        let Self {
            rules,
            check: _,
            issuer: issuer_flag,
            audience,
            ext_authz,
            forward_auth,
            ops,
            policy,
            max_staleness,
            without_token,
            beyond_loopback,
            set,
            log_format,
            log_level,
        } = self;
        let audience = (!audience.is_empty()).then(|| audience.join(" "));
        let named = [
            ("--issuer", "sidecar.issuer", issuer_flag),
            ("--audience", "sidecar.audience", audience),
            ("--ext-authz", "sidecar.ext_authz", ext_authz),
            ("--forward-auth", "sidecar.forward_auth", forward_auth),
            ("--ops", "sidecar.ops", ops),
            ("--policy", "sidecar.policy", policy),
            ("--max-staleness", "sidecar.max_staleness", max_staleness),
            ("--without-token", "sidecar.forward_token", without_token.then(|| "false".into())),
            (
                "--beyond-loopback",
                "sidecar.beyond_loopback",
                beyond_loopback.then(|| "true".into()),
            ),
            ("--log-format", "log.format", log_format),
            ("--log-level", "log.level", log_level),
        ];
        let flags = settings(named, set);
        let sources =
            Sources { dev: false, file: rules, environment: config::environment(), flags };
        Ok(load(&sources, issuer)?)
    }
}
