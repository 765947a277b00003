//! The wire types of `avouch.v1`, generated from `proto/`; and what `Debug` may show of those that
//! carry secrets. Knows nothing else.

/// The generated types.
#[expect(unused_qualifications, clippy::allow_attributes, clippy::all, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("avouch.v1");
}

/// The descriptors of all protos, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/avouch_descriptor.bin"));

use std::fmt;
use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstDecoder, ProstEncoder};
use v1::{
    ChangePasswordRequest, ClientAuthentication, CreateClientResponse, CreateUserRequest,
    IntrospectRequest, PasswordGrant, RefreshRequest, RevokeRequest, RotateClientSecretResponse,
    SetUserPasswordRequest, TokenSet, revoke_request,
};

/// The codec of the generated clients and servers: tonic's for prost, but each call begins with two
/// buffers of 1 KiB, which nearly all messages fit in and the allocator has at hand, and not of 8 KiB.
/// What is larger has them grow.
#[derive(Clone, Copy, Debug)]
pub struct MessageCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for MessageCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for MessageCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstEncoder::new(small())
    }

    fn decoder(&mut self) -> ProstDecoder<U> {
        ProstDecoder::new(small())
    }
}

/// The largest that glibc keeps for each thread, and when to hand on what was encoded, as in tonic.
fn small() -> BufferSettings {
    BufferSettings::new(1016, 32 * 1024)
}

/// `Debug` with an allow-list: only the named fields are shown.
macro_rules! shown {
    ($($name:ident { $($field:ident),* })*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name))
                    $(.field(stringify!($field), &self.$field))*
                    .finish_non_exhaustive()
            }
        }
    )*};
}

shown! {
    ChangePasswordRequest { client }
    ClientAuthentication { client_id }
    CreateClientResponse { client }
    CreateUserRequest { display_name, scopes }
    IntrospectRequest { client, token_type_hint, at_least }
    PasswordGrant { }
    RefreshRequest { client, scopes, audiences }
    RevokeRequest { client, target, reason, initiating_entity, wait }
    RotateClientSecretResponse { cursor, revoked }
    SetUserPasswordRequest { subject }
    TokenSet { token_type, session_id, scopes, audiences, subject }
}

impl fmt::Debug for revoke_request::Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(_) => f.write_str("Token(<redacted>)"),
            Self::SessionId(id) => write!(f, "SessionId({id:?})"),
            Self::Subject(id) => write!(f, "Subject({id:?})"),
            Self::ClientId(id) => write!(f, "ClientId({id:?})"),
            Self::Everything(_) => f.write_str("Everything"),
        }
    }
}
