//! A call with one message each way.

use bytes::Bytes;
use elklet_core::link::grpc::{self, MessageReader};
use h2::client::{self, ResponseFuture, SendRequest};
use tokio::task::JoinHandle;

use super::misbehaviour::CenterMisbehaved;
use super::transfer::{Connector, End, content, next_data, request, status, write_message};
use crate::config::Address;

/// A connection for calls, apart from the stream's. Dropping it closes it.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) requests: SendRequest<Bytes>,
    connection: JoinHandle<()>,
}

impl Calls {
    /// Connects.
    ///
    /// # Errors
    /// How the attempt ended instead.
    pub(super) async fn open(connector: &Connector, address: &Address) -> Result<Self, End> {
        let tls = connector.connect(address).await?;
        let (requests, connection) = client::Builder::new().enable_push(false).handshake::<_, Bytes>(tls).await?;
        // The call learns how the connection ends, so this need not.
        let connection = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { requests, connection })
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Sends a message and returns the answer, of at most `limit` bytes.
///
/// # Errors
/// How the call ended instead. It has no time limit of its own.
pub(super) async fn call(
    requests: SendRequest<Bytes>,
    path: &str,
    message: &[u8],
    limit: usize,
) -> Result<Vec<u8>, End> {
    let (mut response, mut stream) = requests.ready().await?.send_request(request(path), false)?;
    let whole = [&grpc::prefix(false, message.len()), message].concat();
    let written = match write_message(&mut stream, Bytes::from(whole)).await {
        Ok(true) => stream.send_data(Bytes::new(), true),
        other => other.map(drop),
    };
    match (answer(&mut response, limit).await, written) {
        (Err(End::Http2(_)), Err(error)) => Err(error.into()),
        (Ok(None), _) => Err(End::Center(CenterMisbehaved::Nothing)),
        (Ok(Some(answer)), _) => Ok(answer),
        (Err(end), _) => Err(end),
    }
}

/// Reads the answer to a call to its end, which has status OK. Of several messages it is the last.
///
/// # Errors
/// How the call ended instead.
pub(super) async fn answer(response: &mut ResponseFuture, limit: usize) -> Result<Option<Vec<u8>>, End> {
    let (head, mut body) = response.await?.into_parts();
    if head.status != http::StatusCode::OK {
        return Err(End::Http(head.status));
    }
    if let Some(status) = status(&head.headers) {
        return Err(End::Status(status));
    }
    let encoding = head.headers.get("grpc-encoding").map(|value| value.as_bytes().to_vec());
    let mut reader = MessageReader::new(limit);
    let mut taken = None;
    while let Some(data) = next_data(&mut body).await? {
        let mut rest = &data[..];
        while let Some(message) = reader.next(&mut rest)? {
            taken = Some(content(message, encoding.as_deref()).map_err(End::Center)?);
        }
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    match status(&trailers).filter(|status| status.code != 0) {
        Some(status) => Err(End::Status(status)),
        None => Ok(taken),
    }
}
