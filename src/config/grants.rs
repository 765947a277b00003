//! `[[grant]]`: what a caller may do that proves itself by a certificate.

use std::fmt::Display;
use std::str::FromStr;

use super::file::Table;
use super::{ConfigErrors, suggest};
use crate::domain::caller::{Grant, Right};

/// A right for whoever shows a certificate with this name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateGrant {
    /// The SPIFFE URI or DNS name in the certificate.
    pub certificate_name: Box<str>,
    /// The right and its limits.
    pub grant: Grant,
}

const KEYS: [&str; 5] = ["certificate_name", "right", "audience", "client", "subject"];

/// Reads one element; `None` when it has a mistake, which `errors` then says.
pub(super) fn read(
    file: &str,
    table: &Table,
    errors: &mut ConfigErrors,
) -> Option<CertificateGrant> {
    let before = errors.0.len();
    let mut values: [Option<&str>; 5] = [None; 5];
    for setting in &table.settings {
        match KEYS.iter().position(|key| *key == setting.key) {
            Some(index) => values[index] = Some(&setting.text),
            None => errors.push(
                format!("{file}:{}", setting.line),
                format!("grant.{} is not known{}", setting.key, hint(&setting.key)),
            ),
        }
    }
    let origin = format!("{file}:{}", table.line);
    let [name, right, audience, client, subject] = values;
    if name.is_none_or(str::is_empty) {
        errors.push(&origin, "grant.certificate_name is missing");
    }
    let right: Option<Right> = right.and_then(|text| text.parse().ok());
    if right.is_none() {
        let names = Right::ALL.map(Right::name).join(", ");
        errors.push(&origin, format!("grant.right must be one of: {names}"));
    }
    let grant = Grant {
        right: right.unwrap_or(Right::Introspect),
        audience: audience.map(Box::from),
        client: parse(&origin, "client", client, errors),
        subject: parse(&origin, "subject", subject, errors),
    };
    let certificate_name = name?.into();
    (errors.0.len() == before).then_some(CertificateGrant { certificate_name, grant })
}

fn parse<T: FromStr<Err: Display>>(
    origin: &str,
    key: &str,
    text: Option<&str>,
    errors: &mut ConfigErrors,
) -> Option<T> {
    match text?.parse() {
        Ok(value) => Some(value),
        Err(error) => {
            errors.push(origin, format!("grant.{key} {error}"));
            None
        }
    }
}

fn hint(key: &str) -> String {
    suggest::nearest(key, KEYS).map(|near| format!("; did you mean {near}?")).unwrap_or_default()
}
