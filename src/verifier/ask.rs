//! Asking the server: about a token that only it can judge, and for keys that the stream has not
//! brought yet.

use std::time::Duration;

use async_trait::async_trait;
use tonic::Request;
use v1::identity_service_client::IdentityServiceClient;

use crate::client::identity::Identity;
use crate::client::transport::Transport;
use crate::client::watch::Authorization;
use crate::domain::secret::SecretText;
use crate::pb::v1;

/// How long the server may take.
const DEADLINE: Duration = Duration::from_millis(500);
/// Larger than the largest answer.
const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// The server did not answer, or not this caller.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the server did not answer: {0}")]
pub struct AskError(pub String);

/// Asks a server.
#[async_trait]
pub trait Ask: Send + Sync + 'static {
    /// Whether a token is good now (RFC 7662).
    ///
    /// # Errors
    /// When there is no answer.
    async fn is_active(&self, token: &str) -> Result<bool, AskError>;

    /// The public keys.
    ///
    /// # Errors
    /// When there is no answer.
    async fn keys(&self) -> Result<Vec<v1::JsonWebKey>, AskError>;
}

/// Asks over gRPC: Introspect and GetKeySet.
#[derive(Clone)]
pub struct AskServer {
    client: IdentityServiceClient<Transport>,
    authorization: Option<Authorization>,
}

impl AskServer {
    /// Asks over `transport`, with this credential when the certificate is not it.
    pub fn new(transport: impl Into<Transport>, authorization: Option<Authorization>) -> Self {
        let client = IdentityServiceClient::new(transport.into())
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        Self { client, authorization }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(value) = self.authorization.as_ref().and_then(|value| value()) {
            request.metadata_mut().insert("authorization", value);
        }
        request.set_timeout(DEADLINE);
        request
    }
}

async fn in_time<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, AskError> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(AskError(format!("{:?}: {}", status.code(), status.message()))),
        Err(_) => Err(AskError("no answer in time".to_owned())),
    }
}

#[async_trait]
impl Ask for AskServer {
    async fn is_active(&self, token: &str) -> Result<bool, AskError> {
        let message = v1::IntrospectRequest { token: token.to_owned(), ..Default::default() };
        let mut client = self.client.clone();
        let answer = in_time(client.introspect(self.request(message))).await?;
        Ok(answer.active)
    }

    async fn keys(&self) -> Result<Vec<v1::JsonWebKey>, AskError> {
        let mut client = self.client.clone();
        let answer = in_time(client.get_key_set(self.request(v1::GetKeySetRequest {}))).await?;
        Ok(answer.keys)
    }
}

/// By the typed calls: with their deadlines and retries, and over all replicas of their transport.
#[async_trait]
impl Ask for Identity {
    async fn is_active(&self, token: &str) -> Result<bool, AskError> {
        let answer = self.introspect(SecretText::new(token.to_owned())).await;
        Ok(answer.map_err(|error| AskError(error.to_string()))?.is_some())
    }

    async fn keys(&self) -> Result<Vec<v1::JsonWebKey>, AskError> {
        Ok(self.key_set().await.map_err(|error| AskError(error.to_string()))?.keys)
    }
}
