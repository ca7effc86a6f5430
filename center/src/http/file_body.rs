//! A body that is read from a file while it is sent.

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, SizeHint};
use std::fs::File;
use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// Bytes that are read at once. Two such pieces wait to be sent.
const PIECE: usize = 64 << 10;

/// A client that takes nothing for so long is left.
const STALL: Duration = Duration::from_secs(30);

/// Returns a body of the next `len` bytes of a file. It breaks off if the file is shorter or cannot be read.
pub(crate) fn file_body(file: File, len: u64) -> UnsyncBoxBody<Bytes, io::Error> {
    let (sender, pieces) = mpsc::channel(1);
    tokio::spawn(read(file, len, sender));
    FileBody { pieces, left: len }.boxed_unsync()
}

async fn read(mut file: File, mut left: u64, sender: mpsc::Sender<io::Result<Bytes>>) {
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; want];
            file.read_exact(&mut piece).map(|()| (file, Bytes::from(piece)))
        });
        let piece;
        (file, piece) = match read.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(read) => read,
            Err(error) => {
                // The client may be gone, here and below.
                _ = sender.send(Err(error)).await;
                return;
            }
        };
        left -= piece.len() as u64;
        if !matches!(tokio::time::timeout(STALL, sender.send(Ok(piece))).await, Ok(Ok(()))) {
            return;
        }
    }
}

struct FileBody {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    left: u64,
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.pieces.poll_recv(cx).map(|piece| match piece {
            Some(Ok(piece)) => {
                self.left -= piece.len() as u64;
                Some(Ok(Frame::data(piece)))
            }
            Some(Err(error)) => Some(Err(error)),
            None => Some(Err(io::ErrorKind::TimedOut.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
