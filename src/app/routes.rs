//! The gRPC services on one router, each with what its messages may take.

use std::sync::Arc;

use tonic::service::Routes;

use super::BuildError;
use crate::domain::client::Lifetimes;
use crate::grpc::admin::Admin;
use crate::grpc::caller::Callers;
use crate::grpc::identity::Identity;
use crate::grpc::session::Sessions;
use crate::grpc::watch::{Authorize, RevocationServer};
use crate::pb;
use crate::service::Service;

pub(super) fn routes(
    service: &Arc<Service>,
    callers: &Arc<Callers>,
    lifetimes: Lifetimes,
    (max_request, max_response): (usize, usize),
) -> Routes {
    use pb::v1::admin_service_server::AdminServiceServer;
    use pb::v1::identity_service_server::IdentityServiceServer;
    use pb::v1::session_service_server::SessionServiceServer;
    let identity = Identity::new(Arc::clone(service), Arc::clone(callers));
    let sessions = Sessions::new(Arc::clone(service), Arc::clone(callers));
    let admin = Admin::new(Arc::clone(service), Arc::clone(callers), lifetimes);
    let revocations = RevocationServer::new(
        Arc::clone(service.feed()),
        Arc::clone(callers) as Arc<dyn Authorize>,
    );
    // A page of a thousand sessions or clients is larger than any other answer.
    let max_page = max_response.max(4 * 1024 * 1024);
    Routes::new(
        IdentityServiceServer::new(identity)
            .max_decoding_message_size(max_request)
            .max_encoding_message_size(max_response),
    )
    .add_service(
        SessionServiceServer::new(sessions)
            .max_decoding_message_size(max_request)
            .max_encoding_message_size(max_page),
    )
    .add_service(
        AdminServiceServer::new(admin)
            .max_decoding_message_size(max_request.max(64 * 1024))
            .max_encoding_message_size(max_page),
    )
    .add_service(revocations)
}

/// Adds gRPC reflection, of both its versions.
pub(super) fn add_reflection(routes: Routes) -> Result<Routes, BuildError> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let failed = |error: tonic_reflection::server::Error| BuildError::Reflection(error.to_string());
    Ok(routes
        .add_service(builder().build_v1().map_err(failed)?)
        .add_service(builder().build_v1alpha().map_err(failed)?))
}
