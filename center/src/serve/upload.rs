//! `/grpc.FileExt/Upload`: a file from a host, in pieces.

use super::connection::ConnectionHandle;
use super::grpc::{Encoding, MessageReader, Outgoing, ReadError, Status};
use super::interpose::{UploadAt, UploadStep, UploadWatch};
use super::shared::{Shared, unix_seconds};
use crate::fleet::Upload;
use bytes::Bytes;
use elklet_proto::grpc::file_upload_response::StatusCode;
use elklet_proto::grpc::{FileUploadRequest, FileUploadResponse};
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use prost::Message as _;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The longest file name that is made of a token, well below the limit of file systems.
const MAX_NAME: usize = 128;

/// Serves one upload to its end.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    connection: ConnectionHandle,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let id = request.body().stream_id();
    answer(&shared, &connection, request, respond).await;
    connection.closed(id);
}

async fn answer(
    shared: &Shared,
    connection: &ConnectionHandle,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let encoding = match Encoding::of(request.headers()) {
        Ok(encoding) => encoding,
        Err(status) => {
            // The client may have gone already, here and below.
            _ = Outgoing::new(respond, Encoding::Identity).finish(&status);
            return;
        }
    };
    let mut outgoing = Outgoing::new(respond, encoding);
    let mut watch = shared.interpose.upload().unwrap_or_else(|| Box::new(|_| UploadStep::Go));
    if let UploadStep::Refuse(status) = watch(UploadAt::Start) {
        _ = outgoing.finish(&status);
        return;
    }
    let limit = shared.options.message_limit;
    let reader =
        MessageReader::new(request.into_body(), encoding, limit, connection.window, connection.unstored.clone());
    let pieces = Pieces { reader, limit, file_limit: shared.options.upload_limit };
    let (upload, reset) = receive(pieces, shared.options.upload_dir.as_deref(), watch).await;
    if reset {
        outgoing.reset(h2::Reason::INTERNAL_ERROR);
        shared.change(|fleet| fleet.add_upload(upload));
        return;
    }
    let status = if upload.error.is_none() { StatusCode::Success } else { StatusCode::Failed };
    let response = FileUploadResponse { status: status.into() };
    let answered = outgoing.send(encoding.message(&response.encode_to_vec()), usize::MAX).await;
    if answered.is_ok() {
        _ = outgoing.finish(&Status::ok());
    }
    shared.note(format!("upload {:?}: {} bytes, {:?}", upload.token, upload.len, upload.error));
    if let Err(refused) = shared.sink.take_upload(&upload).await {
        shared.sink_refused(refused);
    }
    shared.change(|fleet| fleet.add_upload(upload));
}

/// Returns the upload, and whether it is to be reset instead of answered.
async fn receive(mut pieces: Pieces, dir: Option<&Path>, mut watch: UploadWatch) -> (Upload, bool) {
    let mut upload = Upload { token: String::new(), path: PathBuf::new(), len: 0, error: None, svr_time: 0 };
    let outcome = receive_into(&mut upload, &mut pieces, dir, &mut watch).await;
    let reset = matches!(outcome, Err(Failed::Reset));
    if let Err(error) = outcome {
        if !upload.path.as_os_str().is_empty() {
            // Half a file is of no use, so it goes. If it cannot be removed, it does no harm either.
            _ = fs::remove_file(&upload.path);
        }
        upload.error = Some(match error {
            Failed::Reset => "it was reset".to_owned(),
            Failed::Because(reason) => reason,
        });
    }
    upload.svr_time = unix_seconds();
    (upload, reset)
}

/// Why an upload came to nothing.
enum Failed {
    Reset,
    Because(String),
}

impl From<String> for Failed {
    fn from(reason: String) -> Self {
        Self::Because(reason)
    }
}

async fn receive_into(
    upload: &mut Upload,
    pieces: &mut Pieces,
    dir: Option<&Path>,
    watch: &mut UploadWatch,
) -> Result<(), Failed> {
    let first = pieces.next().await?.ok_or_else(|| "the stream ended before its first message".to_owned())?;
    upload.token = first.token;
    let dir = dir.ok_or_else(|| "the center has no directory for uploads".to_owned())?;
    fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    upload.path = dir.join(file_name(&upload.token));
    let failed = |error| format!("{}: {error}", upload.path.display());
    let mut file = File::create(&upload.path).map_err(failed)?;
    let mut piece = Some(first.data);
    while let Some(data) = piece {
        upload.len += data.len() as u64;
        if upload.len > pieces.file_limit {
            return Err(Failed::Because(format!(
                "a file of {} bytes or more, the limit is {}",
                upload.len, pieces.file_limit
            )));
        }
        file.write_all(&data).map_err(failed)?;
        obey(watch(UploadAt::Taken(upload.len))).await?;
        piece = pieces.next().await?.map(|request| request.data);
    }
    obey(watch(UploadAt::End)).await
}

async fn obey(step: UploadStep) -> Result<(), Failed> {
    match step {
        UploadStep::Go | UploadStep::Refuse(_) => Ok(()),
        UploadStep::Reset => Err(Failed::Reset),
        UploadStep::Stall => std::future::pending().await,
        UploadStep::Fail(reason) => Err(Failed::Because(reason)),
    }
}

/// The messages of an upload.
struct Pieces {
    reader: MessageReader,
    limit: usize,
    file_limit: u64,
}

impl Pieces {
    /// Returns the next one. What came before it was written.
    async fn next(&mut self) -> Result<Option<FileUploadRequest>, String> {
        let said = |error: ReadError| error.to_string();
        self.reader.stored().map_err(said)?;
        let Some(message) = self.reader.next().await.map_err(said)? else { return Ok(None) };
        let body = message.body(self.limit).map_err(said)?;
        let len = body.len();
        let request = FileUploadRequest::decode(body);
        request.map(Some).map_err(|error| format!("a message of {len} bytes is no FileUploadRequest: {error}"))
    }
}

/// Returns a token as a file name that cannot lead out of its directory.
fn file_name(token: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
    let name: String = token.chars().take(MAX_NAME).map(safe).collect();
    match name.strip_prefix('.') {
        Some(rest) => format!("_{rest}"),
        None if name.is_empty() => "_".to_owned(),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_stays_in_its_directory() {
        for (token, name) in [
            ("f3a9-01", "f3a9-01"),
            ("../../etc/passwd", "_._.._etc_passwd"),
            ("..", "_."),
            ("", "_"),
            ("a/b\0c", "a_b_c"),
            ("ü", "_"),
        ] {
            assert_eq!(file_name(token), name);
        }
        assert_eq!(file_name(&"x".repeat(1000)).len(), MAX_NAME);
    }
}
