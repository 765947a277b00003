//! `session`: who is logged in, where and since when.

use super::args::Global;
use super::connection::Connection;
use super::failure::Failure;
use super::output::Output;
use super::view;
use crate::pb::v1::{GetSessionRequest, ListSessionsRequest};

/// See sessions. To end one: avouch revoke --session ID.
#[derive(Debug, clap::Subcommand)]
#[command(
    after_help = "Examples:\n  avouch session list SUBJECT --credentials avouch-data/admin-client.json\n  avouch session list --token tokens.json"
)]
pub(super) enum Session {
    /// List the sessions of a subject, newest first.
    #[command(
        after_help = "Examples:\n  avouch session list SUBJECT --credentials avouch-data/admin-client.json\n  avouch session list --token tokens.json --ended"
    )]
    List {
        /// Whose. Without it: the caller's own.
        subject: Option<String>,
        /// Those that are over, too.
        #[arg(long)]
        ended: bool,
    },
    /// Show one session.
    #[command(
        after_help = "Example:\n  avouch session get ID --credentials avouch-data/admin-client.json"
    )]
    Get {
        /// Its id.
        #[arg(allow_hyphen_values = true)]
        id: String,
    },
}

impl Session {
    pub(super) async fn run(self, global: &Global, out: &mut Output) -> Result<(), Failure> {
        let connection = Connection::authenticated(global).await?;
        let mut api = connection.sessions();
        match self {
            Self::List { subject, ended } => {
                let mut request = ListSessionsRequest {
                    subject: subject.unwrap_or_default(),
                    include_ended: ended,
                    ..ListSessionsRequest::default()
                };
                let mut rows = Vec::new();
                loop {
                    let page =
                        api.list_sessions(connection.request(request.clone())).await?.into_inner();
                    rows.extend(page.sessions.iter().map(view::session));
                    if page.next_page_token.is_empty() {
                        break;
                    }
                    request.page_token = page.next_page_token;
                }
                let columns = [
                    "session_id",
                    "client_id",
                    "state",
                    "create_time",
                    "refresh_time",
                    "generation",
                ];
                out.rows(&columns, &rows)
            }
            Self::Get { id } => {
                let request = connection.request(GetSessionRequest { session_id: id });
                let answer = api.get_session(request).await?.into_inner();
                out.record(&view::session(&answer.session.unwrap_or_default()))
            }
        }
    }
}
