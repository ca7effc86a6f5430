//! Files that come bit by bit, as fast as the client takes them.

use super::reply::{Reply, streamed};
use bytes::Bytes;
use http::header::{CONTENT_DISPOSITION, HeaderValue};
use std::io;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long a client may take over one piece. It ends the answer then, so that nobody holds it open for ever.
const PIECE_TIMEOUT: Duration = Duration::from_secs(60);

/// What fills a body.
#[derive(Debug)]
pub(super) struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Pieces {
    /// Adds a piece once the client has taken the one before. Returns false when the client is gone.
    pub(super) async fn send(&self, piece: Vec<u8>) -> bool {
        piece.is_empty() || self.0.send_timeout(Ok(piece.into()), PIECE_TIMEOUT).await.is_ok()
    }

    /// Breaks the answer off, so that nobody takes it for whole.
    pub(super) async fn fail(&self, error: io::Error) {
        // The client may have gone already.
        _ = self.0.send_timeout(Err(error), PIECE_TIMEOUT).await;
    }
}

/// Answers with a file of this name, which whoever has the other end fills.
pub(super) fn attachment(content_type: &'static str, name: &str) -> (Reply, Pieces) {
    let (pieces, receiver) = mpsc::channel(1);
    let mut response = streamed(content_type, receiver);
    let headers = response.headers_mut();
    // A browser is to save it, whatever is in it.
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
    let name: String = name.chars().map(safe).collect();
    let disposition = HeaderValue::try_from(format!("attachment; filename=\"{name}\""));
    headers.insert(CONTENT_DISPOSITION, disposition.expect("the name is ASCII without quotes"));
    (response, Pieces(pieces))
}
