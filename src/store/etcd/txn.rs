//! The one call that all reads and changes are made by, as plain as tonic can make it: the transaction is
//! encoded once, whatever the number of tries, and neither it nor its answer is given more memory than it
//! needs. Buffers of 8 KiB, as the generated client takes two of for each call, cost malloc much of what
//! the whole call costs.

use bytes::{BufMut as _, Bytes};
use prost::Message as _;
use tonic::client::Grpc;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_prost::ProstDecoder;

use super::pb::{TxnRequest, TxnResponse};

/// The largest answer that is read. etcd itself takes no request above 1.5 MiB, and pages are small.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// What a gRPC message has before it.
const PREFIX_BYTES: usize = 5;
/// Up to this much the allocator has at hand.
const SMALL_BYTES: usize = 1016;
/// When to hand on what was encoded: tonic's own choice, of no account for one message.
const YIELD_BYTES: usize = 32 * 1024;

/// A transaction as it is sent.
pub(super) struct Encoded(Bytes);

impl Encoded {
    pub(super) fn of(txn: &TxnRequest) -> Self {
        Self(txn.encode_to_vec().into())
    }

    /// Asks the member at the other end of a channel to carry it out.
    pub(super) async fn send(
        &self,
        channel: Channel,
        metadata: tonic::metadata::MetadataMap,
    ) -> Result<Response<TxnResponse>, Status> {
        let mut grpc = Grpc::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
        grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let mut request = Request::new(self.0.clone());
        *request.metadata_mut() = metadata;
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Txn");
        grpc.unary(request, path, TxnCodec { request_bytes: self.0.len() }).await
    }
}

struct TxnCodec {
    request_bytes: usize,
}

impl Codec for TxnCodec {
    type Encode = Bytes;
    type Decode = TxnResponse;
    type Encoder = AsIs;
    type Decoder = ProstDecoder<TxnResponse>;

    fn encoder(&mut self) -> AsIs {
        AsIs(BufferSettings::new(self.request_bytes + PREFIX_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::new(SMALL_BYTES, YIELD_BYTES))
    }
}

/// Encodes what is encoded already.
struct AsIs(BufferSettings);

impl Encoder for AsIs {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, encoded: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(encoded);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0
    }
}
