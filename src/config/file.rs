//! The TOML file, taken apart into settings with the lines they stand on.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ConfigErrors;

/// One `key = value`, its place, and the value as text.
pub(super) struct Setting {
    pub(super) line: usize,
    pub(super) key: String,
    pub(super) text: String,
}

/// A `[section]`, or one element of an array `[[section]]`.
pub(super) struct Table {
    pub(super) line: usize,
    pub(super) name: String,
    pub(super) in_array: bool,
    pub(super) settings: Vec<Setting>,
}

/// Takes `text` apart; what cannot be used goes to `errors` under the file's `name`. None when it is
/// no TOML at all.
pub(super) fn read(name: &str, text: &str, errors: &mut ConfigErrors) -> Option<Vec<Table>> {
    let line = |at: usize| 1 + text.bytes().take(at).filter(|b| *b == b'\n').count();
    let (root, faults) = DeTable::parse_recoverable(text);
    for fault in &faults {
        let at = fault.span().map_or(0, |span| span.start);
        errors.push(format!("{name}:{}", line(at)), fault.message());
    }
    if !faults.is_empty() {
        return None;
    }
    let mut tables = Vec::new();
    for (key, value) in root.into_inner() {
        let at = line(key.span().start);
        let section = key.into_inner().into_owned();
        match value.into_inner() {
            DeValue::Table(table) => tables.push(Table {
                line: at,
                settings: settings(name, &section, table, &line, errors),
                name: section,
                in_array: false,
            }),
            DeValue::Array(array) => {
                for element in array {
                    let at = line(element.span().start);
                    if let DeValue::Table(table) = element.into_inner() {
                        tables.push(Table {
                            line: at,
                            settings: settings(name, &section, table, &line, errors),
                            name: section.clone(),
                            in_array: true,
                        });
                    } else {
                        errors.push(format!("{name}:{at}"), format!("{section} must hold tables"));
                    }
                }
            }
            _ => errors.push(
                format!("{name}:{at}"),
                format!("{section} stands outside a section; write it below [a section]"),
            ),
        }
    }
    Some(tables)
}

fn settings(
    file: &str,
    section: &str,
    table: DeTable<'_>,
    line: &impl Fn(usize) -> usize,
    errors: &mut ConfigErrors,
) -> Vec<Setting> {
    let mut settings = Vec::new();
    for (key, value) in table {
        let at = line(key.span().start);
        let key = key.into_inner().into_owned();
        match scalar(value) {
            Some(text) => settings.push(Setting { line: at, key, text }),
            None => errors.push(
                format!("{file}:{at}"),
                format!("{section}.{key} must be one string, number, true or false"),
            ),
        }
    }
    settings
}

fn scalar(value: Spanned<DeValue<'_>>) -> Option<String> {
    match value.into_inner() {
        DeValue::String(text) => Some(text.into_owned()),
        DeValue::Integer(number) => {
            let digits = number.as_str().replace('_', "");
            Some(i128::from_str_radix(&digits, number.radix()).ok()?.to_string())
        }
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(value) => Some(value.to_string()),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}
