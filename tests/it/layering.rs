//! Which layer may use which, and which crate: read from the source. What is not in the tables is
//! not allowed; to allow more is a decision that shows in a review of this file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const ANY: &[&str] = &["*"];

/// A module of the crate and the ones that it may name by `crate::`.
const LAYERS: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("crypto", &["domain"]),
    ("precis", &["domain"]),
    ("jwt", &["domain", "crypto"]),
    ("keys", &["domain", "jwt", "crypto"]),
    ("password", &["domain", "precis", "metrics", "trace"]),
    ("store", &["domain", "metrics"]),
    ("feed", &["domain", "store", "metrics"]),
    (
        "service",
        &[
            "domain", "crypto", "jwt", "keys", "password", "precis", "store", "feed", "trace",
            "verified",
        ],
    ),
    ("listen", &["domain"]),
    ("lifecycle", &[]),
    ("metrics", &[]),
    ("telemetry", &[]),
    ("trace", &[]),
    ("pb", &[]),
    ("http", &["lifecycle", "metrics"]),
    (
        "grpc",
        &["domain", "verified", "service", "feed", "store", "listen", "pb", "metrics", "trace"],
    ),
    ("audit", &["domain"]),
    ("config", &["domain"]),
    ("client", &["domain", "pb", "jwt"]),
    ("verified", &["domain", "crypto", "jwt"]),
    ("verifier", &["domain", "crypto", "jwt", "verified", "client", "pb"]),
    ("layer", &["verifier"]),
    ("sidecar", &["domain", "verifier", "metrics"]),
    // It stands where the service does on a server: it has a feed, and serves it with what serves that.
    ("agent", &["domain", "store", "feed", "grpc", "listen", "client", "pb"]),
    ("cli", &["crypto", "config", "client", "pb", "domain"]),
    ("app", ANY),
    ("main", &["app", "cli", "config", "telemetry"]),
];

/// A crate and where it may be used: a module, or a file or folder of one.
const CRATES: &[(&str, &[&str])] = &[
    ("arc_swap", &["client", "domain/view", "keys", "listen", "verifier"]),
    ("argon2", &["password/engine"]),
    ("async_trait", &["agent/upstream", "client", "feed/source", "store", "verifier"]),
    ("aws_lc_rs", &["crypto", "jwt", "listen"]),
    ("axum", &["http", "app", "sidecar/forward_auth"]),
    ("base64", &["app", "crypto", "domain", "jwt", "keys", "password", "service"]),
    (
        "bytes",
        &[
            "agent",
            "feed",
            "grpc",
            "http",
            "keys",
            "layer",
            "listen",
            "password",
            "sidecar",
            "store/etcd",
        ],
    ),
    ("clap", &["cli", "main"]),
    ("futures_core", &["grpc", "client"]),
    ("futures_util", &["agent/relay", "grpc", "listen", "client", "cli"]),
    (
        "http",
        &["agent/neighbour", "config", "grpc", "layer", "listen", "client", "sidecar/ext_authz"],
    ),
    ("http_body", &["grpc", "layer", "listen", "sidecar/ext_authz"]),
    ("http_body_util", &["sidecar/ext_authz"]),
    ("hyper", &["listen"]),
    ("hyper_util", &["listen", "client/balance", "store/etcd/socket"]),
    ("jsonwebtoken", &["jwt"]),
    ("opentelemetry", &["telemetry", "trace", "grpc/trace"]),
    ("opentelemetry_otlp", &["telemetry"]),
    ("opentelemetry_proto", &["audit/otlp"]),
    ("opentelemetry_sdk", &["telemetry", "trace", "grpc/trace", "grpc/observe", "app"]),
    ("pin_project_lite", &["grpc", "layer", "listen"]),
    ("precis_profiles", &["precis"]),
    ("prometheus_client", &["metrics", "http", "app"]),
    ("prost", &["pb", "grpc", "client", "cli", "sidecar/wire", "sidecar/ext_authz", "store/etcd"]),
    ("prost_types", &["pb", "grpc", "client", "cli"]),
    ("ratatui", &["cli/top"]),
    ("rpassword", &["cli"]),
    ("rustix", &["cli/backup", "metrics/process", "password/pool", "store/sled"]),
    ("rustls", &["listen"]),
    ("serde", &["jwt", "store/etcd/seen"]),
    ("serde_ignored", &["config"]),
    ("serde_json", &["app", "audit", "cli", "http", "jwt", "keys", "store/etcd/seen"]),
    ("sled", &["store/sled"]),
    ("socket2", &["listen"]),
    ("subtle", &["domain/secret", "password/engine"]),
    ("thiserror", ANY),
    ("tokio", ANY),
    ("tokio_rustls", &["listen"]),
    ("tokio_stream", &["grpc", "client", "store/etcd"]),
    ("tokio_util", &["app", "listen", "client"]),
    ("toml", &["config/file"]),
    (
        "tonic",
        &[
            "pb",
            "grpc",
            "agent",
            "client",
            "verifier/ask",
            "layer",
            "app",
            "audit/otlp",
            "cli",
            "listen/body",
            "listen/refusal",
            "sidecar",
            "store/etcd",
        ],
    ),
    ("tonic_health", &["grpc/health", "app"]),
    ("tonic_prost", &["pb", "sidecar/ext_authz", "store/etcd"]),
    ("tonic_reflection", &["app"]),
    ("tonic_types", &["audit/otlp", "grpc/status", "layer", "listen/refusal", "client", "cli"]),
    ("tower", &["listen", "client", "store/etcd/socket"]),
    ("tower_layer", &["app", "grpc", "layer", "listen", "client"]),
    ("tower_service", &["grpc", "layer", "listen", "client", "sidecar/ext_authz"]),
    ("tracing", ANY),
    ("tracing_subscriber", &["telemetry"]),
    ("twox_hash", &["store/sled"]),
    ("unicode_normalization", &["password", "precis"]),
    ("x509_parser", &["listen"]),
    ("zeroize", ANY),
];

/// Crates that the domain may use: it is plain Rust, without I/O, tasks or a wire format.
const OF_THE_DOMAIN: &[&str] = &["arc_swap", "base64", "subtle", "thiserror", "zeroize"];

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The code of a file: without comments, texts, and what is compiled for unit tests alone.
fn code(text: &str) -> String {
    let code = blank(text);
    // By the style of this crate, unit tests end a file.
    let tests = code.find("#[cfg(test)]\nmod tests {").unwrap_or(code.len());
    code[..tests].to_owned()
}

/// Comments and the insides of texts, blanked.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(hashes) = raw_text(&text[..at], rest) {
            let end = format!("\"{}", "#".repeat(hashes));
            let start = 2 + hashes;
            rest[start..].find(&end).map_or(rest.len(), |n| start + n + end.len())
        } else if let Some(inside) = rest.strip_prefix('"') {
            let mut escaped = false;
            let end = inside.find(|c| {
                let is_end = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                is_end
            });
            end.map_or(rest.len(), |n| n + 2)
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            rest[1..].find('\'').map_or(1, |n| n + 2)
        } else {
            let c = rest.chars().next().expect("not at the end");
            out.push(c);
            at += c.len_utf8();
            continue;
        };
        out.push_str(if rest.starts_with('"') { "\"\"" } else { "" });
        at += skip;
    }
    out
}

/// With how many `#` a raw text begins here, if one does.
fn raw_text(before: &str, rest: &str) -> Option<usize> {
    let rest = rest.strip_prefix('r')?;
    if before.ends_with(|c: char| c.is_alphanumeric() || c == '_') && !before.ends_with('b') {
        return None;
    }
    let hashes = rest.bytes().take_while(|byte| *byte == b'#').count();
    rest[hashes..].starts_with('"').then_some(hashes)
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    &text[..end]
}

/// The names that follow `path`, which may be one or a list in braces.
fn named_after(code: &str, path: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(path) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
            continue;
        }
        let rest = &code[at + path.len()..];
        match rest.strip_prefix('{') {
            None => {
                names.insert(word(rest).to_owned());
            }
            Some(list) => {
                let (mut depth, mut fresh) = (0, true);
                for (n, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => fresh = true,
                        c if fresh && !c.is_whitespace() => {
                            names.insert(word(&list[n..]).to_owned());
                            fresh = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    names
}

/// The crates that Cargo.toml names, as code names them.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut within = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            within = line.ends_with("dependencies]") && !line.contains("dev-");
        } else if within && let Some((name, _)) = line.split_once(" = ") {
            names.insert(name.replace('-', "_"));
        }
    }
    names
}

/// The file by its place below `src`, without `.rs`: `store/sled`.
fn place(root: &Path, file: &Path) -> String {
    let relative = file.strip_prefix(root).expect("below src").with_extension("");
    relative.to_str().expect("text").to_owned()
}

fn allowed<'t>(table: &[(&'t str, &'t [&'t str])], name: &str) -> &'t [&'t str] {
    table.iter().find(|(known, _)| *known == name).map_or(&[], |(_, may)| may)
}

/// Uses of a crate's name as the head of a path.
fn heads(code: &str, name: &str) -> bool {
    let path = format!("{name}::");
    code.match_indices(&path).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    }) || code.contains(&format!("use {name};"))
}

#[test]
fn layers_use_what_is_below_them_and_no_crate_but_their_own() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).expect("the manifest");
    let crates = dependencies(&manifest);
    assert!(crates.contains("sled") && crates.contains("tonic"), "{crates:?}");
    let src = root.join("src");
    let mut faults = Vec::new();
    for file in sources(&src) {
        let place = place(&src, &file);
        // Unit tests in a file of their own may use what they like.
        if place.ends_with("/tests") || place.contains("/tests/") || place == "store/engine_suite" {
            continue;
        }
        let module = place.split('/').next().expect("a name").to_owned();
        let code = code(&std::fs::read_to_string(&file).expect("text"));
        let may_use = allowed(LAYERS, &module);
        let mut named = named_after(&code, "crate::");
        // The program sees the library from outside.
        if module == "main" {
            named.extend(named_after(&code, "avouch::"));
        }
        for other in named {
            let fine = other == module || may_use == ANY || may_use.contains(&other.as_str());
            if !fine {
                faults.push(format!("src/{place}.rs uses crate::{other}"));
            }
        }
        if code.contains("super::super::") || (!place.contains('/') && code.contains("super::")) {
            faults.push(format!("src/{place}.rs leaves its module by super::"));
        }
        for name in &crates {
            let local = code.contains(&format!("mod {name};"));
            if local || !heads(&code, name) {
                continue;
            }
            let within = |may: &&str| place == **may || place.starts_with(&format!("{may}/"));
            let may = allowed(CRATES, name);
            let of_the_domain = module != "domain" || OF_THE_DOMAIN.contains(&name.as_str());
            if !of_the_domain || (may != ANY && !may.iter().any(within)) {
                faults.push(format!("src/{place}.rs uses the crate {name}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_reader_of_sources_sees_paths_and_not_texts() {
    let text = r###"
        // use crate::comment;
        use crate::{alpha, beta::{inner, other}, gamma as g};
        let s = "crate::text \" crate::text";
        let r = r#"crate::raw "quoted" "#;
        let q = '"'; let f = crate::delta::f();
        let inside = notcrate::x; let l = store::sled::X; sled::open();
    "###;
    let code = blank(text);
    let names: Vec<String> = named_after(&code, "crate::").into_iter().collect();
    assert_eq!(names, ["alpha", "beta", "delta", "gamma"]);
    assert!(heads(&code, "sled") && !heads(&code, "text") && !heads(&code, "crate_"));
    assert!(!heads("use store::sled::X;", "sled"));
}
