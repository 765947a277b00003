//! The configuration of `avouch sidecar`: `[sidecar]`, `[log]` and `[[rule]]` in one TOML file, over it
//! `AVOUCH_SIDECAR_<KEY>` and `AVOUCH_LOG_<KEY>`, over that flags.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::load::is_service_link;
use super::rules::{self, Rule};
use super::section::{KeyFault, section};
use super::sections::Log;
use super::value::{Value, choice};
use super::{ConfigErrors, Sources, file, suggest};
use crate::domain::address::Address;
use crate::domain::route::{Route, Routes};
use crate::domain::scope::Names;

choice! {
    /// What to do with a token when revocations are not known up to now.
    Policy {
        /// Unavailable.
        Closed = "closed",
        /// Ask the server; unavailable if it does not answer.
        Introspect = "introspect",
        /// Let it through until it expires, and count it.
        Open = "open",
    }
}

/// The mode of a Unix socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SocketMode(pub u32);

impl Value for SocketMode {
    fn read(text: &str) -> Result<Self, String> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
        mode.map(Self).ok_or_else(|| "must be a mode such as 0660".into())
    }

    fn show(&self) -> String {
        format!("{:04o}", self.0)
    }
}

impl Value for Address {
    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: crate::domain::address::AddressError| error.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for Names {
    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: crate::domain::scope::ScopeError| error.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

section! {
    /// `[sidecar]`: what a sidecar listens on and whose tokens it takes.
    Sidecar {
        /// The issuer of the tokens, exactly as in `iss`.
        issuer: Option<String> = None,
        /// The audiences that this workload goes by, with spaces between them; a rule may name others.
        audience: Names = Names::default(),
        /// Where Envoy asks: unix:///path or a loopback address. Empty for nowhere.
        ext_authz: Option<Address> = None,
        /// Where nginx, Traefik and Caddy ask. Empty for nowhere.
        forward_auth: Option<Address> = None,
        /// Where /metrics, /livez and /readyz are. Empty for nowhere.
        ops: Option<Address> = Some(Address::Tcp(SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9193))),
        /// Who may connect to a Unix socket is who may write to it.
        socket_mode: SocketMode = SocketMode(0o660),
        /// Where a node agent serves revocations on: unix:///path or a loopback address. Empty to follow the server itself.
        agent: Option<Address> = None,
        /// Whether ext_authz and forward_auth may listen beyond this machine, where anybody who reaches them can try tokens.
        beyond_loopback: bool = false,
        /// What to do when revocations are not known up to now: closed, introspect or open.
        policy: Policy = Policy::Introspect,
        /// How old what is known of revocations may be.
        max_staleness: Duration = Duration::from_secs(5),
        /// How far the clocks of this machine and of the server may be apart; at most 5s.
        leeway: Duration = Duration::from_secs(5),
        /// Whether the upstream gets the token beside the identity headers. Envoy takes it away, other proxies have to be told to.
        forward_token: bool = true,
        /// How many verified tokens to remember, at about 1 KiB each.
        remembered_tokens: usize = 16_384,
        /// How long checks may go on after a signal to stop.
        drain_timeout: Duration = Duration::from_secs(10),
        /// The name of this sidecar in the server's metrics and logs.
        name: String = "avouch-sidecar".into(),
    }
}

/// The configuration of a sidecar. It holds no secret.
#[derive(Clone, Debug)]
pub struct SidecarConfig {
    /// `[sidecar]`.
    pub sidecar: Sidecar,
    /// `[log]`.
    pub log: Log,
    /// `[[rule]]`, by what they are for. Without a file one rule for every path.
    pub rules: Routes<Rule>,
}

impl SidecarConfig {
    /// One line for the log at start.
    pub fn summary(&self) -> String {
        let Sidecar { policy, max_staleness, .. } = &self.sidecar;
        format!(
            "{} rules; tokens of {}; {} when revocations are older than {}",
            self.rules.iter().count(),
            self.sidecar.issuer.as_deref().unwrap_or_default(),
            policy.show(),
            max_staleness.show(),
        )
    }

    /// Every audience that a token may have here.
    pub fn audiences(&self) -> Vec<String> {
        let of_rules = self.rules.iter().filter(|(_, rule)| !rule.public).flat_map(|(_, rule)| {
            if rule.audience.is_empty() {
                self.sidecar.audience.iter()
            } else {
                rule.audience.iter()
            }
        });
        let mut all: Vec<String> = of_rules.map(str::to_owned).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Reads and checks everything. `issuer` is who issued the sidecar's own credentials, if they say.
///
/// # Errors
/// Every mistake there is, not only the first.
pub fn load(sources: &Sources, issuer: Option<String>) -> Result<SidecarConfig, ConfigErrors> {
    let mut errors = ConfigErrors::default();
    let mut parts =
        Parts { sidecar: Sidecar { issuer, ..Sidecar::default() }, log: Log::default() };
    let mut rules: Vec<(String, Route, Rule)> = Vec::new();
    match &sources.file {
        Some(path) => {
            let name = path.display().to_string();
            match std::fs::read_to_string(path) {
                Ok(text) => {
                    if parts.apply_file(&name, &text, &mut rules, &mut errors).is_none() {
                        return Err(errors);
                    }
                }
                Err(error) => {
                    errors.push(name, format!("cannot be read: {error}"));
                    return Err(errors);
                }
            }
        }
        // Without a file every path needs a token.
        None => rules
            .extend(Route::beneath("/").ok().map(|route| (String::new(), route, Rule::default()))),
    }
    for (name, value) in &sources.environment {
        let Some(rest) = name.strip_prefix("AVOUCH_") else { continue };
        // The file itself is for the command line to find.
        if name == RULES_VARIABLE || is_service_link(rest) {
            continue;
        }
        for section in SECTIONS {
            let prefix = format!("{}_", section.to_ascii_uppercase());
            if let Some(key) = rest.strip_prefix(&prefix) {
                parts.apply(name, section, &key.to_ascii_lowercase(), value, &mut errors);
            }
        }
    }
    for (flag, key, value) in &sources.flags {
        match key.split_once('.') {
            Some((section, key)) => parts.apply(flag, section, key, value, &mut errors),
            None => errors.push(flag, "must be SECTION.KEY=VALUE"),
        }
    }
    let Parts { sidecar, log } = parts;
    check(&sidecar, &rules, &mut errors);
    let origins: Vec<(String, String)> =
        rules.iter().map(|(origin, route, _)| (origin.clone(), route.name())).collect();
    let rules = Routes::new(rules.into_iter().map(|(_, route, rule)| (route, rule)).collect());
    for (first, second) in rules.as_ref().err().into_iter().flatten() {
        let ((first, first_name), (second, second_name)) = (&origins[*first], &origins[*second]);
        errors.push(
            second,
            format!(
                "the rule for {second_name} is for what the rule for {first_name} at {first} is for"
            ),
        );
    }
    match rules {
        Ok(rules) if errors.0.is_empty() => Ok(SidecarConfig { sidecar, log, rules }),
        _ => Err(errors),
    }
}

const SECTIONS: [&str; 2] = ["sidecar", "log"];
/// Names the file.
const RULES_VARIABLE: &str = "AVOUCH_SIDECAR_RULES";

struct Parts {
    sidecar: Sidecar,
    log: Log,
}

impl Parts {
    fn apply_file(
        &mut self,
        name: &str,
        text: &str,
        rules: &mut Vec<(String, Route, Rule)>,
        errors: &mut ConfigErrors,
    ) -> Option<()> {
        // What is no TOML says nothing, and nothing more is to be said of it.
        for table in file::read(name, text, errors)? {
            let origin = format!("{name}:{}", table.line);
            match (table.name.as_str(), table.in_array) {
                ("rule", true) => {
                    let rule = rules::read(name, &table, errors);
                    rules.extend(rule.map(|(route, rule)| (origin, route, rule)));
                }
                ("rule", false) => {
                    errors.push(origin, "write [[rule]] with two brackets: there may be many");
                }
                (section, false) if SECTIONS.contains(&section) => {
                    for setting in &table.settings {
                        let origin = format!("{name}:{}", setting.line);
                        self.apply(&origin, section, &setting.key, &setting.text, errors);
                    }
                }
                (section, true) if SECTIONS.contains(&section) => {
                    errors.push(origin, format!("write [{section}] with one bracket"));
                }
                (section, _) => {
                    let near = suggest::nearest(section, SECTIONS.into_iter().chain(["rule"]));
                    let text = format!("section [{section}] is not known{}", Hint(near));
                    errors.push(origin, text);
                }
            }
        }
        Some(())
    }

    fn apply(
        &mut self,
        origin: &str,
        section: &str,
        key: &str,
        text: &str,
        errors: &mut ConfigErrors,
    ) {
        let outcome = match section {
            "sidecar" => self.sidecar.set(key, text),
            "log" => self.log.set(key, text),
            _ => Err(KeyFault::Unknown),
        };
        match outcome {
            Ok(()) => {}
            Err(KeyFault::Value(expected)) => {
                errors.push(origin, format!("{section}.{key} {expected}"));
            }
            Err(KeyFault::Unknown) => {
                let known = self.keys();
                let written = format!("{section}.{key}");
                let near = suggest::nearest(&written, known.iter().map(String::as_str));
                errors.push(origin, format!("{written} is not known{}", Hint(near)));
            }
        }
    }

    fn keys(&self) -> Vec<String> {
        let of = |section: &'static str, keys: Vec<super::section::KeyDoc>| {
            keys.into_iter().map(move |key| format!("{section}.{}", key.name))
        };
        of("sidecar", self.sidecar.keys()).chain(of("log", self.log.keys())).collect()
    }
}

struct Hint<'a>(Option<&'a str>);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |near| write!(f, "; did you mean {near}?"))
    }
}

fn check(sidecar: &Sidecar, rules: &[(String, Route, Rule)], errors: &mut ConfigErrors) {
    if sidecar.issuer.is_none() {
        errors.push("", "sidecar.issuer is missing: --issuer URL, as `iss` is in the tokens");
    }
    if sidecar.ext_authz.is_none() && sidecar.forward_auth.is_none() {
        errors.push("", "nobody can ask: set --ext-authz, --forward-auth or both");
    }
    let entries = [
        ("sidecar.ext_authz", &sidecar.ext_authz),
        ("sidecar.forward_auth", &sidecar.forward_auth),
    ];
    for (key, address) in entries {
        if let Some(address) = address.as_ref().filter(|address| !address.is_local())
            && !sidecar.beyond_loopback
        {
            errors.push("", format!("{key} {address} is reachable from other machines: use a Unix socket or loopback, or set --beyond-loopback"));
        }
    }
    if let Some(address) = sidecar.agent.as_ref().filter(|address| !address.is_local()) {
        errors.push("", format!("sidecar.agent {address} is another machine: an agent proves nothing of itself, so it must be on this one"));
    }
    let [ext_authz, forward_auth] = entries.map(|(_, address)| address.as_ref());
    let all = [ext_authz, forward_auth, sidecar.ops.as_ref()];
    for (index, address) in all.iter().enumerate() {
        let any_port = matches!(address, Some(Address::Tcp(address)) if address.port() == 0);
        if address.is_some() && !any_port && all[..index].contains(address) {
            errors.push("", "two of sidecar.ext_authz, forward_auth and ops are the same address");
        }
    }
    let unaddressed =
        |(_, _, rule): &&(String, Route, Rule)| !rule.public && rule.audience.is_empty();
    if sidecar.audience.is_empty()
        && let Some((origin, route, _)) = rules.iter().find(unaddressed)
    {
        errors.push(
            origin,
            format!(
                "the rule for {} takes tokens for anybody: set --audience or rule.audience",
                route.name()
            ),
        );
    }
    if rules.is_empty() && errors.0.is_empty() {
        errors.push("", "there are no rules: every request would be refused");
    }
    for (key, duration) in
        [("max_staleness", sidecar.max_staleness), ("drain_timeout", sidecar.drain_timeout)]
    {
        if duration == Duration::ZERO {
            errors.push("", format!("sidecar.{key} must not be 0"));
        }
    }
    if sidecar.leeway > Duration::from_secs(5) {
        errors.push("", "sidecar.leeway must be 0 to 5s");
    }
    if sidecar.remembered_tokens == 0 {
        errors.push("", "sidecar.remembered_tokens must not be 0");
    }
}
