//! Compiles the protos without protoc and keeps their descriptors for reflection.

use std::error::Error;
use std::path::Path;

use prost::Message as _;

/// What is used of etcd's API. Nobody is served it, so it is no part of the descriptors.
const ETCD: &str = "src/store/etcd/rpc.proto";

const PROTOS: [&str; 6] = [
    "avouch/v1/admin_service.proto",
    "avouch/v1/identity_service.proto",
    "avouch/v1/revocation.proto",
    "avouch/v1/revocation_service.proto",
    "avouch/v1/session_service.proto",
    "avouch/v1/token.proto",
];

/// Messages that carry a secret: `pb.rs` writes their `Debug` by hand.
const SECRET: [&str; 12] = [
    ".avouch.v1.ChangePasswordRequest",
    ".avouch.v1.ClientAuthentication",
    ".avouch.v1.CreateClientResponse",
    ".avouch.v1.CreateUserRequest",
    ".avouch.v1.IntrospectRequest",
    ".avouch.v1.PasswordGrant",
    ".avouch.v1.RefreshRequest",
    ".avouch.v1.RevokeRequest",
    ".avouch.v1.RevokeRequest.target",
    ".avouch.v1.RotateClientSecretResponse",
    ".avouch.v1.SetUserPasswordRequest",
    ".avouch.v1.TokenSet",
];

/// Messages to and from etcd that carry a secret: `store/etcd/pb.rs` writes their `Debug` by hand.
const ETCD_SECRET: [&str; 2] =
    [".etcdserverpb.AuthenticateRequest", ".etcdserverpb.AuthenticateResponse"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed={ETCD}");
    let descriptors = protox::Compiler::new(["proto"])?
        .include_imports(true)
        .include_source_info(true)
        .open_files(PROTOS)?
        .file_descriptor_set();
    #[expect(clippy::disallowed_methods, reason = "how cargo tells a build script where to write")]
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(Path::new(&out).join("avouch_descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .codec_path("crate::pb::MessageCodec")
        .skip_debug(SECRET)
        .compile_fds(descriptors)?;
    let etcd = protox::compile([ETCD], ["src/store/etcd"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .bytes(".etcdserverpb")
        .skip_debug(ETCD_SECRET)
        .compile_fds(etcd)?;
    Ok(())
}
