//! The Upload call (`grpc.FileExt/Upload`), on a connection of its own: pieces of a file go up, and one answer comes down.

use std::time::Duration;

use bytes::Bytes;
use elklet_proto::grpc::{FileUploadRequest, FileUploadResponse, file_upload_response::StatusCode};
use h2::SendStream;
use h2::client::ResponseFuture;
use prost::Message;
use tokio::time::timeout;

use super::misbehaviour::CenterMisbehaved;
use super::snappy::Compressor;
use super::transfer::{Connector, End, request, write_message};
use super::unary::{self, Calls};
use crate::config::Address;

const PATH: &str = "/grpc.FileExt/Upload";

/// A server that answers nothing, or takes nothing, for this long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest answer, in bytes. An answer is one number.
const MAX_ANSWER_BYTES: usize = 1024;

/// An open call. Dropping it without [`UploadCall::finish`] aborts it, so that the server keeps nothing.
#[derive(Debug)]
pub(crate) struct UploadCall {
    _calls: Calls,
    stream: SendStream<Bytes>,
    response: ResponseFuture,
    compressor: Compressor,
}

impl UploadCall {
    /// Connects and begins the call.
    ///
    /// # Errors
    /// How the attempt ended instead.
    pub(crate) async fn open(connector: &Connector, address: &Address) -> Result<Self, End> {
        patiently(async {
            let calls = Calls::open(connector, address).await?;
            let (response, stream) = calls.requests.clone().ready().await?.send_request(request(PATH), false)?;
            Ok(Self { _calls: calls, stream, response, compressor: Compressor::new() })
        })
        .await
    }

    /// Sends a piece and returns the length of its message in bytes.
    ///
    /// # Errors
    /// How the call ended instead.
    pub(crate) async fn send(&mut self, token: &str, data: Vec<u8>) -> Result<u64, End> {
        let piece = FileUploadRequest { token: token.to_owned(), data }.encode_to_vec();
        let message = Bytes::from(self.compressor.message(&[&piece]));
        let bytes = message.len() as u64;
        let written = patiently(async { Ok(write_message(&mut self.stream, message).await) }).await?;
        if let Ok(true) = written {
            return Ok(bytes);
        }
        // The server has ended the call before the file's end. Its answer says why, if there is one.
        match (patiently(answer(&mut self.response)).await, written) {
            (Ok(()), _) => Err(End::Center(CenterMisbehaved::EarlyAnswer)),
            (Err(End::Http2(_)), Err(error)) => Err(error.into()),
            (Err(end), _) => Err(end),
        }
    }

    /// Ends the file and waits for the server's answer.
    ///
    /// # Errors
    /// When the server has not taken the file.
    pub(crate) async fn finish(mut self) -> Result<(), End> {
        self.stream.send_data(Bytes::new(), true)?;
        patiently(answer(&mut self.response)).await
    }
}

async fn patiently<T>(step: impl Future<Output = Result<T, End>>) -> Result<T, End> {
    match timeout(PATIENCE, step).await {
        Ok(result) => result,
        Err(_) => Err(End::NoAnswer(PATIENCE)),
    }
}

/// Waits for word that the server has taken the file.
async fn answer(response: &mut ResponseFuture) -> Result<(), End> {
    let Some(answer) = unary::answer(response, MAX_ANSWER_BYTES).await? else {
        return Err(End::Center(CenterMisbehaved::Nothing));
    };
    let answer = FileUploadResponse::decode(&*answer).map_err(|error| End::Center(CenterMisbehaved::Answer(error)))?;
    match answer.status() {
        StatusCode::Success => Ok(()),
        StatusCode::Failed => Err(End::Center(CenterMisbehaved::NotKept)),
    }
}
