//! Users and clients.

use std::time::Duration;

use super::fields::{Fields, time};
use super::token::{texts, to_duration, to_time};
use crate::domain::caller::{Grant, Right};
use crate::domain::client::{Client, ClientType, Lifetimes, ReuseDetection};
use crate::domain::clock::Timestamp;
use crate::domain::ids::{ClientId, Epoch};
use crate::domain::user::User;
use crate::pb::v1 as pb;

/// A user for the wire.
pub fn to_user(user: &User, epoch: Epoch) -> pb::User {
    pb::User {
        subject: user.subject.to_string(),
        username: user.username.to_string(),
        display_name: user.display_name.to_string(),
        scopes: texts(user.scope.iter()),
        disabled: user.disabled,
        has_password: user.password_hash.is_some(),
        create_time: Some(time(user.created_at)),
        password_change_time: to_time(user.password_changed_at),
        epoch: epoch.0,
    }
}

/// A client for the wire.
pub fn to_client(client: &Client, epoch: Epoch) -> pb::Client {
    let kind = match client.kind {
        ClientType::Confidential => pb::ClientType::Confidential,
        ClientType::Public => pb::ClientType::Public,
    };
    let reuse = match client.reuse_detection {
        ReuseDetection::Enforce => pb::ReuseDetection::Enforce,
        ReuseDetection::Report => pb::ReuseDetection::Report,
    };
    pb::Client {
        client_id: client.id.to_string(),
        display_name: client.display_name.to_string(),
        r#type: kind.into(),
        first_party: client.first_party,
        scopes: texts(client.scope.iter()),
        audiences: texts(client.audience.iter()),
        grants: client.grants.iter().map(to_grant).collect(),
        certificate_names: texts(client.certificate_names.iter().map(AsRef::as_ref)),
        access_token_lifetime: to_duration(client.lifetimes.access),
        session_idle_lifetime: to_duration(client.lifetimes.idle),
        session_absolute_lifetime: to_duration(client.lifetimes.absolute),
        retry_window: to_duration(client.lifetimes.retry_window),
        reuse_detection: reuse.into(),
        disabled: client.disabled,
        create_time: Some(time(client.created_at)),
        epoch: epoch.0,
    }
}

fn to_grant(grant: &Grant) -> pb::Grant {
    pb::Grant {
        right: grant.right as i32,
        audience: grant.audience.as_deref().unwrap_or_default().to_owned(),
        client_id: grant.client.as_ref().map(ToString::to_string).unwrap_or_default(),
        subject: grant.subject.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

/// A registration from the wire. `id` is what stands for an empty id. `defaults` stand for lifetimes
/// that are not set.
pub fn client(
    fields: &mut Fields,
    client: pb::Client,
    id: Option<ClientId>,
    defaults: &Lifetimes,
) -> Option<Client> {
    let id = match id {
        Some(id) if client.client_id.is_empty() => Some(id),
        Some(_) | None => fields.parse("client.client_id", &client.client_id),
    };
    const LONGEST: Duration = Duration::from_secs(400 * 86_400);
    let lifetimes = Lifetimes {
        access: fields
            .duration("client.access_token_lifetime", client.access_token_lifetime, LONGEST)
            .unwrap_or(defaults.access),
        idle: fields
            .duration("client.session_idle_lifetime", client.session_idle_lifetime, LONGEST)
            .unwrap_or(defaults.idle),
        absolute: fields
            .duration("client.session_absolute_lifetime", client.session_absolute_lifetime, LONGEST)
            .unwrap_or(defaults.absolute),
        retry_window: fields
            .duration("client.retry_window", client.retry_window, LONGEST)
            .unwrap_or(defaults.retry_window),
    };
    let kind = match pb::ClientType::try_from(client.r#type) {
        Ok(pb::ClientType::Confidential | pb::ClientType::Unspecified) => ClientType::Confidential,
        Ok(pb::ClientType::Public) => ClientType::Public,
        Err(_) => {
            fields.wrong("client.type", "is not a known value");
            ClientType::Confidential
        }
    };
    let reuse_detection = match pb::ReuseDetection::try_from(client.reuse_detection) {
        Ok(pb::ReuseDetection::Enforce | pb::ReuseDetection::Unspecified) => {
            ReuseDetection::Enforce
        }
        Ok(pb::ReuseDetection::Report) => ReuseDetection::Report,
        Err(_) => {
            fields.wrong("client.reuse_detection", "is not a known value");
            ReuseDetection::Enforce
        }
    };
    if client.grants.len() > 64 {
        fields.wrong("client.grants", "must be at most 64");
    }
    let grants = client.grants.into_iter().take(64).filter_map(|it| grant(fields, it)).collect();
    if client.certificate_names.len() > 16 {
        fields.wrong("client.certificate_names", "must be at most 16");
    }
    let certificate_names = client
        .certificate_names
        .into_iter()
        .take(16)
        .map(|name| {
            fields.required("client.certificate_names", &name);
            fields.text("client.certificate_names", name, 256)
        })
        .collect();
    let display_name = fields.text("client.display_name", client.display_name, 256);
    let scope = fields.names("client.scopes", &client.scopes);
    let audience = fields.names("client.audiences", &client.audiences);
    Some(Client {
        id: id?,
        display_name,
        kind,
        secret_digest: None,
        first_party: client.first_party,
        scope,
        audience,
        grants,
        certificate_names,
        lifetimes,
        reuse_detection,
        disabled: false,
        created_at: Timestamp::default(),
    })
}

fn grant(fields: &mut Fields, grant: pb::Grant) -> Option<Grant> {
    let right = Right::from_number(grant.right);
    if right.is_none() {
        fields.wrong("client.grants.right", "must be set to a known right");
    }
    let audience = fields.names(
        "client.grants.audience",
        if grant.audience.is_empty() { &[] } else { std::slice::from_ref(&grant.audience) },
    );
    Some(Grant {
        right: right?,
        audience: audience.iter().next().map(Into::into),
        client: fields.parse_optional("client.grants.client_id", &grant.client_id),
        subject: fields.parse_optional("client.grants.subject", &grant.subject),
    })
}
