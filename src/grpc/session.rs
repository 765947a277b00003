//! `SessionService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::caller::Callers;
use super::convert::{Fields, token};
use super::status;
use crate::pb::v1 as pb;
use crate::service::Service;

/// Serves `SessionService`.
pub struct Sessions {
    service: Arc<Service>,
    callers: Arc<Callers>,
}

impl Sessions {
    /// Over this service.
    pub const fn new(service: Arc<Service>, callers: Arc<Callers>) -> Self {
        Self { service, callers }
    }
}

#[tonic::async_trait]
impl pb::session_service_server::SessionService for Sessions {
    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Result<Response<pb::ListSessionsResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let origin = self.callers.origin(&extensions);
        let caller = self.callers.known(&metadata, &extensions).await?.caller;
        let mut fields = Fields::default();
        let subject = fields.parse_optional("subject", &message.subject);
        let limit = fields.page_size("page_size", message.page_size);
        let after = fields.parse_optional("page_token", &message.page_token);
        fields.finish(Some(()))?;
        let page = self
            .service
            .list_sessions(&caller, subject, after, limit, message.include_ended, &origin)
            .await
            .map_err(status::sessions)?;
        let sessions =
            page.sessions.iter().map(|(session, state)| token::to_session(session, *state));
        Ok(Response::new(pb::ListSessionsResponse {
            sessions: sessions.collect(),
            next_page_token: page.next.map(|id| id.to_string()).unwrap_or_default(),
        }))
    }

    async fn get_session(
        &self,
        request: Request<pb::GetSessionRequest>,
    ) -> Result<Response<pb::GetSessionResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let origin = self.callers.origin(&extensions);
        let caller = self.callers.known(&metadata, &extensions).await?.caller;
        let mut fields = Fields::default();
        let id = fields.parse("session_id", &message.session_id);
        let id = fields.finish(id)?;
        let (session, state) =
            self.service.session(&caller, id, &origin).await.map_err(status::sessions)?;
        Ok(Response::new(pb::GetSessionResponse {
            session: Some(token::to_session(&session, state)),
        }))
    }
}
