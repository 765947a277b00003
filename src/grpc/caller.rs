//! Who calls: an access token in `authorization`, or the certificate of the connection, as a domain
//! [`Caller`]. Knows no permission rules beyond what was granted to whom.

use std::sync::Arc;

use http::Extensions;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::status;
use super::watch::{Authorize, WatchCaller};
use crate::domain::caller::{Caller, Grant, Identity};
use crate::domain::clock::Timestamp;
use crate::domain::ids::ClientId;
use crate::domain::secret::SecretText;
use crate::listen::peer::PeerInfo;
use crate::pb::v1 as pb;
use crate::service::Service;
use crate::service::clients::{ClientError, ClientProof};
use crate::service::journal::{Happening, Origin};

/// The longest client secret that is looked at.
const MAX_SECRET_BYTES: usize = 1024;

/// What the operator granted to whoever shows a certificate with a name.
#[derive(Clone, Debug)]
pub struct CertificateGrant {
    /// The SPIFFE URI or the DNS name.
    pub name: Box<str>,
    /// What it may do.
    pub grant: Grant,
}

/// Finds out who calls.
pub struct Callers {
    service: Arc<Service>,
    certificate_grants: Vec<CertificateGrant>,
}

/// A caller, and until when what it showed is good.
#[derive(Debug)]
pub struct Known {
    /// The caller.
    pub caller: Caller,
    /// When the token or the certificate expires.
    pub valid_until: Option<Timestamp>,
    /// The access token by which it is known, to look again whether it is revoked.
    pub token: Option<SecretText>,
}

impl Callers {
    /// Callers of `service`.
    pub fn new(service: Arc<Service>, certificate_grants: Vec<CertificateGrant>) -> Self {
        Self { service, certificate_grants }
    }

    /// Where a request comes from.
    pub fn origin(&self, extensions: &Extensions) -> Origin {
        let peer = extensions.get::<Arc<PeerInfo>>();
        let mut certificate_names = Vec::new();
        if let Some(certificate) = peer.and_then(|peer| peer.certificate.as_ref()) {
            certificate_names.extend(certificate.spiffe_id.as_deref().map(Into::into));
            certificate_names.extend(certificate.dns_names.iter().map(|name| name.as_str().into()));
        }
        let request_id = extensions.get::<super::observe::RequestId>();
        Origin {
            request_id: request_id.map(|id| id.0.clone()).unwrap_or_default(),
            peer: peer.map(|peer| peer.address.ip()),
            certificate_names,
        }
    }

    /// Who calls, by the metadata and the connection. Showing nothing is no error: such a caller may
    /// do what everybody may. Showing something bad is one.
    ///
    /// # Errors
    /// UNAUTHENTICATED for a token that is not good, or not good for avouch.
    pub async fn known(
        &self,
        metadata: &MetadataMap,
        extensions: &Extensions,
    ) -> Result<Known, Status> {
        if let Some(token) = bearer(metadata)? {
            return self.by_token(token).await;
        }
        let peer = extensions.get::<Arc<PeerInfo>>();
        let Some(certificate) = peer.and_then(|peer| peer.certificate.as_ref()) else {
            return Ok(Known { caller: Caller::anonymous(), valid_until: None, token: None });
        };
        if self.service.now() >= certificate.not_after {
            return Err(status::caller_unknown());
        }
        let names = self.origin(extensions).certificate_names;
        let grants = self
            .certificate_grants
            .iter()
            .filter(|grant| names.contains(&grant.name))
            .map(|grant| grant.grant.clone())
            .collect();
        Ok(Known {
            caller: Caller { identity: Identity::Certificate(names), grants },
            valid_until: Some(certificate.not_after),
            token: None,
        })
    }

    async fn by_token(&self, token: &str) -> Result<Known, Status> {
        let now = self.service.now();
        let verified = self.service.check_access(token, now).await;
        let verified = verified.map_err(|_| status::caller_unknown())?;
        let claims = &verified.claims;
        if !claims.audience.contains(&self.service.settings().own_audience) {
            return Err(status::caller_unknown());
        }
        let caller = if claims.session.is_some() {
            Caller {
                identity: Identity::Subject {
                    subject: claims.subject.clone(),
                    client: claims.client.clone(),
                    session: claims.session,
                },
                grants: Vec::new(),
            }
        } else {
            let client = self
                .service
                .recent_client(&claims.client)
                .await
                .map_err(status::store)?
                .filter(|client| !client.disabled)
                .ok_or_else(status::caller_unknown)?;
            Caller {
                identity: Identity::Client(claims.client.clone()),
                grants: client.grants.clone(),
            }
        };
        Ok(Known {
            caller,
            valid_until: Some(claims.expires_at),
            token: Some(SecretText::new(token.to_owned())),
        })
    }

    /// Who calls, when the message may carry a client's credentials. Those are looked at first.
    ///
    /// # Errors
    /// UNAUTHENTICATED for a client that did not prove itself, or as for [`Callers::known`].
    pub async fn known_or_client(
        &self,
        client: Option<&pb::ClientAuthentication>,
        metadata: &MetadataMap,
        extensions: &Extensions,
    ) -> Result<Caller, Status> {
        let Some(message) = client else {
            return Ok(self.known(metadata, extensions).await?.caller);
        };
        let origin = self.origin(extensions);
        let secret = client_secret(message);
        let proof = client_proof(message, secret.as_ref(), &origin);
        let client = self.service.client_by_proof(&proof).await.map_err(|error| match error {
            ClientError::Store(error) => status::store(error),
            ClientError::Refused(failure) => {
                let happening = Happening::LoginFailed {
                    subject: None,
                    client: proof.id.clone(),
                    source: None,
                    failure,
                };
                self.service.journal().record(self.service.now(), &origin, happening);
                status::credential_refused()
            }
        })?;
        Ok(Caller { identity: Identity::Client(client.id.clone()), grants: client.grants.clone() })
    }
}

#[tonic::async_trait]
impl Authorize for Callers {
    async fn watch_caller(
        &self,
        extensions: &Extensions,
        metadata: &MetadataMap,
    ) -> Result<WatchCaller, Status> {
        let known = self.known(metadata, extensions).await?;
        // Nobody in particular: to show something may help, so it is not for want of a right.
        if known.caller.identity == Identity::Anonymous {
            return Err(status::caller_unknown());
        }
        let revoked = known.token.map(|token| {
            let service = Arc::clone(&self.service);
            let revoked =
                move || service.access_tokens().check(token.expose(), service.now()).is_err();
            Arc::new(revoked) as Arc<dyn Fn() -> bool + Send + Sync>
        });
        let close = extensions.get::<Arc<PeerInfo>>().map(|peer| {
            let peer = Arc::clone(peer);
            Arc::new(move || peer.close.cancel()) as Arc<dyn Fn() + Send + Sync>
        });
        Ok(WatchCaller { caller: known.caller, valid_until: known.valid_until, revoked, close })
    }
}

/// The secret of a client, if it sent one.
pub fn client_secret(message: &pb::ClientAuthentication) -> Option<SecretText> {
    let sent = !message.client_secret.is_empty();
    // Too long to be one: it stands as a wrong secret, without the work of a digest over it.
    let secret = if message.client_secret.len() > MAX_SECRET_BYTES {
        String::new()
    } else {
        message.client_secret.clone()
    };
    sent.then(|| SecretText::new(secret))
}

/// What a client shows of itself. A text that is no client id is nobody's.
pub fn client_proof<'a>(
    message: &pb::ClientAuthentication,
    secret: Option<&'a SecretText>,
    origin: &'a Origin,
) -> ClientProof<'a> {
    ClientProof {
        id: message.client_id.parse::<ClientId>().ok(),
        secret,
        certificate_names: &origin.certificate_names,
    }
}

/// The bearer token of a call (RFC 6750 section 2.1): exactly one well-formed header, or none.
fn bearer(metadata: &MetadataMap) -> Result<Option<&str>, Status> {
    if metadata.contains_key("authorization-bin") {
        return Err(status::caller_unknown());
    }
    let mut values = metadata.get_all("authorization").iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(status::caller_unknown());
    }
    let (scheme, token) = value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .ok_or_else(status::caller_unknown)?;
    let token_char = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || !token.bytes().all(token_char)
    {
        return Err(status::caller_unknown());
    }
    Ok(Some(token))
}
