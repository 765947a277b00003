//! The layers, one over the other.

use std::path::PathBuf;

use super::section::KeyFault;
use super::{Config, ConfigErrors, SECTIONS, check, file, grants, suggest};

/// What a configuration is made of. Nothing else is read.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Whether to begin with what `serve --dev` wants.
    pub dev: bool,
    /// The TOML file.
    pub file: Option<PathBuf>,
    /// The environment; only names that begin with `AVOUCH_` are looked at.
    pub environment: Vec<(String, String)>,
    /// Flags: how the user wrote it, `section.key`, and the value.
    pub flags: Vec<(String, String, String)>,
}

/// The environment of this process, as far as it is text.
pub fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Reads and checks everything.
///
/// # Errors
/// Every mistake there is, not only the first.
pub fn load(sources: &Sources) -> Result<Config, ConfigErrors> {
    let mut errors = ConfigErrors::default();
    let mut config = Config::default();
    if sources.dev {
        config.dev = true;
        config.server.reflection = true;
        config.store.path = Some("./avouch-data".into());
        config.audit.output.clear();
    }
    let mut complete = true;
    if let Some(path) = &sources.file {
        let name = path.display().to_string();
        complete = match std::fs::read_to_string(path) {
            Ok(text) => apply_file(&mut config, &name, &text, &mut errors),
            Err(error) => {
                errors.push(name, format!("cannot be read: {error}"));
                false
            }
        };
    }
    for (name, value) in &sources.environment {
        apply_variable(&mut config, name, value, &mut errors);
    }
    for (flag, key, value) in &sources.flags {
        match key.split_once('.') {
            Some((section, key)) => apply(&mut config, flag, section, key, value, &mut errors),
            None => errors.push(flag, "must be SECTION.KEY=VALUE"),
        }
    }
    if sources.dev && config.audit.output.is_empty() {
        config.audit.output = config.data_dir().join("audit.jsonl").display().to_string();
    }
    // What the file may say is neither missing nor wrong as long as nobody can read it.
    if complete {
        check::check(&config, &mut errors);
    }
    if errors.0.is_empty() { Ok(config) } else { Err(errors) }
}

/// Whether the file could be taken apart.
fn apply_file(config: &mut Config, name: &str, text: &str, errors: &mut ConfigErrors) -> bool {
    let Some(tables) = file::read(name, text, errors) else { return false };
    for table in tables {
        let origin = format!("{name}:{}", table.line);
        if table.name == "grant" {
            if table.in_array {
                config.grants.extend(grants::read(name, &table, errors));
            } else {
                errors.push(origin, "write [[grant]] with two brackets: there may be many");
            }
        } else if table.in_array {
            errors.push(origin, format!("write [{}] with one bracket", table.name));
        } else if !SECTIONS.contains(&table.name.as_str()) {
            let known = SECTIONS.iter().copied().chain(["grant"]);
            let hint = hint(suggest::nearest(&table.name, known).map(|near| format!("[{near}]")));
            errors.push(origin, format!("section [{}] is not known{hint}", table.name));
        } else {
            for setting in table.settings {
                let origin = format!("{name}:{}", setting.line);
                apply(config, &origin, &table.name, &setting.key, &setting.text, errors);
            }
        }
    }
    true
}

/// Variables that the command line reads itself.
const OF_THE_COMMANDS: [&str; 7] =
    ["CA_FILE", "CERT", "CONFIG", "CREDENTIALS", "KEY", "SERVER", "TOKEN"];

fn apply_variable(config: &mut Config, name: &str, value: &str, errors: &mut ConfigErrors) {
    let Some(rest) = name.strip_prefix("AVOUCH_") else { return };
    // What concerns a sidecar may stand beside what concerns the server.
    let of_a_sidecar = rest.starts_with("SIDECAR_");
    if OF_THE_COMMANDS.contains(&rest) || of_a_sidecar || is_service_link(rest) {
        return;
    }
    let lower = rest.to_ascii_lowercase();
    match lower.split_once('_').filter(|(section, _)| SECTIONS.contains(section)) {
        Some((section, key)) => apply(config, name, section, key, value, errors),
        None => {
            let known = all_keys().map(|key| variable(&key)).collect::<Vec<_>>();
            let near = suggest::nearest(name, known.iter().map(String::as_str));
            errors.push(name, format!("is not known{}", hint(near.map(str::to_owned))));
        }
    }
}

/// Whether Kubernetes made this variable for a service whose name begins with `avouch`, as it does
/// for each service of the namespace: `AVOUCH_SERVICE_HOST`, `AVOUCH_SERVER_PORT_7700_TCP_ADDR`.
pub(super) fn is_service_link(rest: &str) -> bool {
    let words: Vec<&str> = rest.split('_').collect();
    let is = |word: &str| words.contains(&word);
    (is("SERVICE") && (is("HOST") || is("PORT"))) || words.last() == Some(&"PORT") || {
        let after_port = words.iter().skip_while(|word| **word != "PORT").nth(1);
        after_port.is_some_and(|number| number.parse::<u16>().is_ok())
    }
}

fn all_keys() -> impl Iterator<Item = String> {
    Config::default().keys().into_iter().flat_map(|(section, keys)| {
        keys.into_iter().map(move |key| format!("{section}.{}", key.name))
    })
}

/// The environment variable for `section.key`.
pub(super) fn variable(key: &str) -> String {
    format!("AVOUCH_{}", key.replace('.', "_").to_ascii_uppercase())
}

fn apply(
    config: &mut Config,
    origin: &str,
    section: &str,
    key: &str,
    text: &str,
    errors: &mut ConfigErrors,
) {
    match config.set(section, key, text) {
        Ok(()) => {}
        Err(KeyFault::Value(expected)) => {
            errors.push(origin, format!("{section}.{key} {expected}"));
        }
        Err(KeyFault::Unknown) => {
            let written = format!("{section}.{key}");
            let known = all_keys().collect::<Vec<_>>();
            let same_section = known
                .iter()
                .filter(|known| known.split_once('.').is_some_and(|(known, _)| known == section));
            // A key of the same section is the likelier mistake.
            let near = suggest::nearest(&written, same_section.map(String::as_str))
                .or_else(|| suggest::nearest(&written, known.iter().map(String::as_str)));
            let hint = hint(near.map(str::to_owned));
            errors.push(origin, format!("{written} is not known{hint}"));
        }
    }
}

fn hint(near: Option<String>) -> String {
    near.map(|near| format!("; did you mean {near}?")).unwrap_or_default()
}
