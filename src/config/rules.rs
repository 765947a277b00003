//! `[[rule]]`: which requests a sidecar lets through, and with what token.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use super::file::Table;
use super::sidecar::Policy;
use super::value::Value;
use super::{ConfigErrors, suggest};
use crate::domain::route::{PathFault, Route, is_method};
use crate::domain::scope::Names;

/// What a rule demands.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rule {
    /// Whether no token is needed, and none is looked at.
    pub public: bool,
    /// One of these must be in the token's audience; empty for that of the sidecar.
    pub audience: Names,
    /// All of these must be in the token's scope.
    pub scope: Names,
    /// What to do when revocations are not known up to now; none for the sidecar's.
    pub policy: Option<Policy>,
    /// How old what is known may be; none for the sidecar's.
    pub max_staleness: Option<Duration>,
    /// Whether the upstream gets the token; none for the sidecar's.
    pub forward_token: Option<bool>,
}

const KEYS: [&str; 11] = [
    "path",
    "prefix",
    "grpc",
    "methods",
    "public",
    "audience",
    "scope",
    "policy",
    "max_staleness",
    "forward_token",
    "literal_paths",
];

/// Reads one element; `None` when it has a mistake, which `errors` then says.
pub(super) fn read(file: &str, table: &Table, errors: &mut ConfigErrors) -> Option<(Route, Rule)> {
    let before = errors.0.len();
    let mut values: [Option<&str>; 11] = [None; 11];
    for setting in &table.settings {
        match KEYS.iter().position(|key| *key == setting.key) {
            Some(index) => values[index] = Some(&setting.text),
            None => {
                let hint = suggest::nearest(&setting.key, KEYS);
                let hint = hint.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                let origin = format!("{file}:{}", setting.line);
                errors.push(origin, format!("rule.{} is not known{hint}", setting.key));
            }
        }
    }
    let [
        path,
        prefix,
        grpc,
        methods,
        public,
        audience,
        scope,
        policy,
        max_staleness,
        forward,
        literal,
    ] = values;
    let origin = format!("{file}:{}", table.line);
    let mut reader = Reader { origin: &origin, errors };
    let route = reader.route(path, prefix, grpc, methods);
    let literal = reader.value::<bool>("literal_paths", literal).unwrap_or(false);
    let rule = Rule {
        public: reader.value("public", public).unwrap_or(false),
        audience: reader.parse("audience", audience).unwrap_or_default(),
        scope: reader.parse("scope", scope).unwrap_or_default(),
        policy: reader.value("policy", policy),
        max_staleness: reader.value("max_staleness", max_staleness),
        forward_token: reader.value("forward_token", forward),
    };
    let demands = [
        ("audience", audience),
        ("scope", scope),
        ("policy", policy),
        ("max_staleness", max_staleness),
    ];
    for (key, _) in demands.iter().filter(|(_, value)| rule.public && value.is_some()) {
        reader.wrong(format!("rule.{key} has no effect: the rule is public"));
    }
    if literal && rule.public {
        reader.wrong("rule.literal_paths must not be set where the rule is public: `/public/..%2fadmin` would need no token");
    }
    if literal && prefix.is_none() {
        reader.wrong("rule.literal_paths needs rule.prefix");
    }
    let route = route?;
    let route = if literal { route.taking_literal_paths() } else { route };
    (errors.0.len() == before).then_some((route, rule))
}

struct Reader<'a> {
    origin: &'a str,
    errors: &'a mut ConfigErrors,
}

impl Reader<'_> {
    fn wrong(&mut self, text: impl Into<String>) {
        self.errors.push(self.origin, text);
    }

    fn value<T: Value>(&mut self, key: &str, text: Option<&str>) -> Option<T> {
        match T::read(text?) {
            Ok(value) => Some(value),
            Err(expected) => {
                self.wrong(format!("rule.{key} {expected}"));
                None
            }
        }
    }

    fn parse<T: FromStr<Err: Display>>(&mut self, key: &str, text: Option<&str>) -> Option<T> {
        match text?.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.wrong(format!("rule.{key} {error}"));
                None
            }
        }
    }

    fn route(
        &mut self,
        path: Option<&str>,
        prefix: Option<&str>,
        grpc: Option<&str>,
        methods: Option<&str>,
    ) -> Option<Route> {
        let (key, route) = match (path, prefix, grpc) {
            (Some(path), None, None) => ("path", Route::exact(path)),
            (None, Some(prefix), None) => ("prefix", Route::beneath(prefix)),
            (None, None, Some(name)) => ("grpc", grpc_route(name)),
            _ => {
                self.wrong("a rule has exactly one of path, prefix and grpc");
                return None;
            }
        };
        let route = match route {
            Ok(route) => route,
            Err(fault) => {
                self.wrong(format!("rule.{key} {fault}{}", form(key)));
                return None;
            }
        };
        match (methods, grpc) {
            (None, None) => Some(route),
            (None, Some(_)) => Some(route.with_methods(["POST".into()])),
            (Some(_), Some(_)) => {
                self.wrong("rule.methods has no effect: gRPC is POST");
                None
            }
            (Some(methods), None) => {
                let methods: Vec<&str> = methods.split(' ').collect();
                if methods.iter().all(|method| is_method(method)) {
                    return Some(route.with_methods(methods.into_iter().map(Box::from)));
                }
                self.wrong("rule.methods must be methods with one space between them: GET HEAD");
                None
            }
        }
    }
}

const fn form(key: &str) -> &'static str {
    if key.len() == "grpc".len() && key.as_bytes()[0] == b'g' {
        ": write package.Service/Method or package.Service"
    } else {
        ": write it as it stands in requests, /orders/v1, without a query"
    }
}

/// `orders.v1.Orders/Get`, or `orders.v1.Orders` for all of its methods.
fn grpc_route(name: &str) -> Result<Route, PathFault> {
    let identifiers = |text: &str| {
        text.split('.').all(|word| {
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        })
    };
    match name.split_once('/') {
        Some((service, method)) if identifiers(service) && identifiers(method) => {
            Route::exact(&format!("/{name}"))
        }
        None if identifiers(name) => Route::beneath(&format!("/{name}")),
        _ => Err(PathFault::NotAPath),
    }
}
