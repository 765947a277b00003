//! `user`: people and their passwords.

use std::path::PathBuf;

use super::args::Global;
use super::connection::Connection;
use super::failure::Failure;
use super::output::Output;
use super::{password, view};
use crate::pb::v1::{
    CreateUserRequest, DeleteUserRequest, DisableUserRequest, EnableUserRequest, GetUserRequest,
    ListUsersRequest, ScopeList, SetUserPasswordRequest, UpdateUserRequest,
};

/// Keep users. USER is a subject, or a name after --by-name.
#[derive(Debug, clap::Subcommand)]
#[command(
    after_help = "Examples:\n  avouch user list --credentials avouch-data/admin-client.json\n  avouch user create grace --credentials avouch-data/admin-client.json"
)]
pub(super) enum User {
    /// Create a user. The password is asked for, unless a flag says otherwise.
    #[command(
        after_help = "Examples:\n  avouch user create grace --display-name 'Grace Hopper' \\\n      --credentials avouch-data/admin-client.json\n  avouch user create grace --password-file grace.password \\\n      --credentials avouch-data/admin-client.json"
    )]
    Create {
        /// The name to log in with.
        username: String,
        /// The name to show.
        #[arg(long, value_name = "NAME")]
        display_name: Option<String>,
        /// A file with the password, mode 0600, or - for stdin.
        #[arg(long, value_name = "FILE", conflicts_with = "no_password")]
        password_file: Option<PathBuf>,
        /// No password: the user cannot log in by one.
        #[arg(long)]
        no_password: bool,
        /// A scope that the user may be granted; repeat for more. Without it: whatever the client may have.
        #[arg(long)]
        scope: Vec<String>,
    },
    /// Show one user.
    #[command(
        after_help = "Examples:\n  avouch user get SUBJECT --credentials avouch-data/admin-client.json\n  avouch user get --by-name ada --credentials avouch-data/admin-client.json"
    )]
    Get(Which),
    /// List all users.
    #[command(
        after_help = "Example:\n  avouch user list --credentials avouch-data/admin-client.json --json"
    )]
    List,
    /// Change a user's name, display name or scopes. New scopes revoke what was issued.
    #[command(
        after_help = "Example:\n  avouch user update --by-name ada --display-name Ada \\\n      --credentials avouch-data/admin-client.json"
    )]
    Update {
        #[command(flatten)]
        which: Which,
        /// The new name to log in with.
        #[arg(long)]
        username: Option<String>,
        /// The new name to show.
        #[arg(long, value_name = "NAME")]
        display_name: Option<String>,
        /// The new scopes; repeat for more. An empty one alone lifts the limit.
        #[arg(long)]
        scope: Option<Vec<String>>,
    },
    /// Set a user's password, and revoke everything that was issued to the user.
    #[command(
        after_help = "Example:\n  avouch user set-password --by-name ada \\\n      --credentials avouch-data/admin-client.json"
    )]
    SetPassword {
        #[command(flatten)]
        which: Which,
        /// A file with the password, mode 0600, or - for stdin. Without it the password is asked for.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Disable a user, and revoke everything that was issued to the user.
    #[command(
        after_help = "Example:\n  avouch user disable --by-name ada \\\n      --credentials avouch-data/admin-client.json"
    )]
    Disable(Which),
    /// Enable a user again.
    #[command(
        after_help = "Example:\n  avouch user enable --by-name ada --credentials avouch-data/admin-client.json"
    )]
    Enable(Which),
    /// Delete a user, and revoke everything that was issued to the user.
    #[command(
        after_help = "Example:\n  avouch user delete SUBJECT --credentials avouch-data/admin-client.json"
    )]
    Delete(Which),
}

/// A user, one way or the other.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Which {
    /// The user's subject.
    #[arg(value_name = "SUBJECT")]
    subject: Option<String>,
    /// The user's name, instead of the subject.
    #[arg(long, value_name = "USERNAME")]
    by_name: Option<String>,
}

impl Which {
    /// The subject, looked up if need be.
    async fn subject(self, connection: &Connection) -> Result<String, Failure> {
        if let Some(subject) = self.subject {
            return Ok(subject);
        }
        let request =
            GetUserRequest { subject: String::new(), username: self.by_name.unwrap_or_default() };
        let answer = connection.admin().get_user(connection.request(request)).await?.into_inner();
        Ok(answer.user.unwrap_or_default().subject)
    }
}

impl User {
    pub(super) async fn run(self, global: &Global, out: &mut Output) -> Result<(), Failure> {
        let connection = Connection::authenticated(global).await?;
        let mut api = connection.admin();
        match self {
            Self::Create { username, display_name, password_file, no_password, scope } => {
                let password = if no_password {
                    String::new()
                } else {
                    password::ask(password_file.as_deref(), "New password", true)?.into_exposed()
                };
                let display_name = display_name.unwrap_or_default();
                let request = CreateUserRequest { username, display_name, password, scopes: scope };
                let answer = api.create_user(connection.request(request)).await?.into_inner();
                out.record(&view::user(&answer.user.unwrap_or_default()))
            }
            Self::Get(which) => {
                let request = GetUserRequest {
                    subject: which.subject.unwrap_or_default(),
                    username: which.by_name.unwrap_or_default(),
                };
                let answer = api.get_user(connection.request(request)).await?.into_inner();
                out.record(&view::user(&answer.user.unwrap_or_default()))
            }
            Self::List => {
                let (mut rows, mut page_token) = (Vec::new(), String::new());
                loop {
                    let request = connection.request(ListUsersRequest { page_size: 0, page_token });
                    let page = api.list_users(request).await?.into_inner();
                    rows.extend(page.users.iter().map(view::user));
                    page_token = page.next_page_token;
                    if page_token.is_empty() {
                        break;
                    }
                }
                let columns = [
                    "subject",
                    "username",
                    "display_name",
                    "disabled",
                    "has_password",
                    "create_time",
                ];
                out.rows(&columns, &rows)
            }
            Self::Update { which, username, display_name, scope } => {
                let subject = which.subject(&connection).await?;
                let scopes = scope.map(|mut scopes| {
                    scopes.retain(|scope| !scope.is_empty());
                    ScopeList { scopes }
                });
                let request = UpdateUserRequest { subject, username, display_name, scopes };
                let answer = api.update_user(connection.request(request)).await?.into_inner();
                let mut value = view::user(&answer.user.unwrap_or_default());
                value["revoked"] = view::change(None, answer.revoked.as_ref())["revoked"].take();
                out.record(&value)
            }
            Self::SetPassword { which, password_file } => {
                let subject = which.subject(&connection).await?;
                let password = password::ask(password_file.as_deref(), "New password", true)?;
                let request = SetUserPasswordRequest { subject, password: password.into_exposed() };
                let answer = api.set_user_password(connection.request(request)).await?.into_inner();
                out.record(&view::change(answer.cursor.as_ref(), answer.revoked.as_ref()))
            }
            Self::Disable(which) => {
                let request = DisableUserRequest { subject: which.subject(&connection).await? };
                let answer = api.disable_user(connection.request(request)).await?.into_inner();
                out.record(&view::change(answer.cursor.as_ref(), answer.revoked.as_ref()))
            }
            Self::Enable(which) => {
                let request = EnableUserRequest { subject: which.subject(&connection).await? };
                let answer = api.enable_user(connection.request(request)).await?.into_inner();
                out.record(&view::user(&answer.user.unwrap_or_default()))
            }
            Self::Delete(which) => {
                let request = DeleteUserRequest { subject: which.subject(&connection).await? };
                let answer = api.delete_user(connection.request(request)).await?.into_inner();
                out.record(&view::change(answer.cursor.as_ref(), answer.revoked.as_ref()))
            }
        }
    }
}
