//! Backups, as a stream.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Answer;
use crate::domain::caller::Caller;
use crate::domain::ids::Cursor;
use crate::grpc::convert::token;
use crate::listen::peer::{KeptOpen, PeerInfo};
use crate::pb::v1 as pb;
use crate::service::Service;
use crate::service::backup::Piece;
use crate::service::journal::Origin;
use crate::store::backup::End;

/// How many messages may wait for the caller. More would only be memory.
const WAITING: usize = 4;

/// The pieces as they come. A backup of which the end is missing is none, so its connection may grow old.
pub struct Pieces {
    pieces: ReceiverStream<Answer<pb::CreateBackupResponse>>,
    _kept_open: Option<KeptOpen>,
}

impl Stream for Pieces {
    type Item = Answer<pb::CreateBackupResponse>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.pieces).poll_next(cx)
    }
}

pub(super) async fn create(
    service: &Arc<Service>,
    caller: &Caller,
    origin: &Origin,
    peer: Option<&Arc<PeerInfo>>,
) -> Answer<Pieces> {
    let mut backup = service.begin_backup(caller, origin).await?;
    let _kept_open = peer.map(PeerInfo::keep_open);
    let (sender, pieces) = mpsc::channel(WAITING);
    // It reads the disk and waits for the caller. It ends with the stream.
    tokio::task::spawn_blocking(move || {
        loop {
            let message = match backup.next_piece() {
                Ok(None) => return,
                Ok(Some(piece)) => Ok(response(piece)),
                Err(error) => Err(error.into()),
            };
            let over = message.is_err();
            if sender.blocking_send(message).is_err() || over {
                return;
            }
        }
    });
    Ok(Pieces { pieces: ReceiverStream::new(pieces), _kept_open })
}

fn response(piece: Piece) -> pb::CreateBackupResponse {
    let Piece { bytes, records, end } = piece;
    pb::CreateBackupResponse { chunk: bytes, record_count: records, point: end.map(point) }
}

fn point(End { point, at, .. }: End) -> pb::BackupPoint {
    let cursor = Cursor { log_id: point.log_id, revision: point.head };
    pb::BackupPoint { cursor: Some(token::to_cursor(cursor)), point_time: token::to_time(Some(at)) }
}
