//! Who is in the play: the clients and the users, made once at the beginning.

use std::path::Path;
use std::time::Duration;

use avouch::pb::v1 as pb;
use avouch::pb::v1::admin_service_client::AdminServiceClient;
use avouch::pb::v1::authenticate_request::Grant;
use avouch::pb::v1::identity_service_client::IdentityServiceClient;
use tonic::Request;
use tonic::transport::Channel;

/// The password of all users.
pub(crate) const PASSWORD: &str = "correct horse battery staple 7";
/// How many users there are. The last few are taken back as a whole now and then.
pub(crate) const USERS: usize = 12;

/// A client that logs users in, and its retry window.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) credentials: pb::ClientAuthentication,
    pub(crate) window: Duration,
}

/// Everybody.
#[derive(Clone, Debug)]
pub(crate) struct Cast {
    /// May do anything.
    pub(crate) admin: pb::ClientAuthentication,
    /// With a window that is longer than any fault.
    pub(crate) patient: App,
    /// With a window that is soon over.
    pub(crate) hasty: App,
    /// May watch and introspect.
    pub(crate) watcher: pb::ClientAuthentication,
    /// Names and subjects.
    pub(crate) users: Vec<(String, String)>,
}

fn admin(files: &Path) -> pb::ClientAuthentication {
    let text = std::fs::read_to_string(files.join("admin-client.json")).expect("credentials");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let text = |key: &str| json[key].as_str().expect("text").to_owned();
    pb::ClientAuthentication { client_id: text("client_id"), client_secret: text("client_secret") }
}

/// A token of a client for itself, as the value of `authorization`.
pub(crate) async fn bearer(channel: Channel, client: &pb::ClientAuthentication) -> String {
    let request = pb::AuthenticateRequest {
        client: Some(client.clone()),
        grant: Some(Grant::ClientCredentials(pb::ClientCredentialsGrant {})),
        audiences: vec!["avouch".to_owned()],
        ..Default::default()
    };
    let answer = IdentityServiceClient::new(channel).authenticate(request).await.expect("a token");
    format!("Bearer {}", answer.into_inner().tokens.expect("tokens").access_token)
}

/// A request with that value.
pub(crate) fn with<T>(message: T, bearer: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", bearer.parse().expect("ASCII"));
    request
}

impl Cast {
    /// Registers everybody, by the credentials that the first start wrote to `files`.
    pub(crate) async fn register(channel: Channel, files: &Path) -> Self {
        let admin = admin(files);
        let bearer = bearer(channel.clone(), &admin).await;
        let mut service = AdminServiceClient::new(channel);
        let mut create = async |client: pb::Client| {
            let request = pb::CreateClientRequest { client: Some(client) };
            let answer = service.create_client(with(request, &bearer)).await.expect("a client");
            let answer = answer.into_inner();
            pb::ClientAuthentication {
                client_id: answer.client.expect("the client").client_id,
                client_secret: answer.client_secret,
            }
        };
        let app = |id: &str, window: Duration| pb::Client {
            client_id: id.to_owned(),
            r#type: pb::ClientType::Confidential.into(),
            first_party: true,
            scopes: vec!["orders:read".to_owned()],
            audiences: vec!["orders".to_owned()],
            retry_window: prost_types::Duration::try_from(window).ok(),
            ..Default::default()
        };
        let windows = [Duration::from_secs(120), Duration::from_secs(2)];
        let patient = create(app("patient", windows[0])).await;
        let hasty = create(app("hasty", windows[1])).await;
        let grant = |right: pb::Right| pb::Grant { right: right.into(), ..Default::default() };
        let watcher = pb::Client {
            client_id: "watcher".to_owned(),
            r#type: pb::ClientType::Confidential.into(),
            audiences: vec!["avouch".to_owned()],
            grants: vec![grant(pb::Right::Watch), grant(pb::Right::Introspect)],
            ..Default::default()
        };
        let watcher = create(watcher).await;
        let mut users = Vec::new();
        for number in 0..USERS {
            let username = format!("user-{number}");
            let request = pb::CreateUserRequest {
                username: username.clone(),
                password: PASSWORD.to_owned(),
                ..Default::default()
            };
            let answer = service.create_user(with(request, &bearer)).await.expect("a user");
            users.push((username, answer.into_inner().user.expect("the user").subject));
        }
        Self {
            admin,
            patient: App { credentials: patient, window: windows[0] },
            hasty: App { credentials: hasty, window: windows[1] },
            watcher,
            users,
        }
    }
}
