//! `/grpc.FileExt/Upload`: a file from a host, in pieces.

use super::Upload;
use super::fault::UploadFault;
use super::grpc::{Encoding, Message, MessageReader, Outgoing, Status};
use super::records::Line;
use super::shared::{Shared, lock, unix_seconds};
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

/// The error of an upload that an injected fault has ended.
const BY_FAULT: &str = "reset by a fault";

/// The longest file name that is made of a token, well below the limit of file systems.
const MAX_NAME: usize = 128;

/// Serves one upload to its end.
pub(crate) async fn serve(shared: Arc<Shared>, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
    let encoding = match Encoding::of(request.headers()) {
        Ok(encoding) => encoding,
        Err(status) => {
            // The client may have gone already, here and below.
            _ = Outgoing::new(respond, Encoding::Identity).finish(&status);
            return;
        }
    };
    let mut outgoing = Outgoing::new(respond, encoding);
    let fault = lock(&shared.upload_faults).pop_front();
    if let Some(UploadFault::Status(status)) = &fault {
        _ = outgoing.finish(status);
        return;
    }
    let reader = MessageReader::new(request.into_body(), encoding, shared.options.message_limit);
    let upload = receive(reader, shared.options.upload_dir.as_deref(), fault).await;
    if upload.error.as_deref() == Some(BY_FAULT) {
        outgoing.reset(h2::Reason::INTERNAL_ERROR);
        shared.change(|state| state.uploads.push(upload));
        return;
    }
    let status = if upload.error.is_none() { StatusCode::Success } else { StatusCode::Failed };
    let response = FileUploadResponse { status: status.into() };
    let answered = outgoing.send(encoding.message(&response.encode_to_vec()), usize::MAX).await;
    if answered.is_ok() {
        _ = outgoing.finish(&Status::ok());
    }
    shared.note(format!("upload {:?}: {} bytes, {:?}", upload.token, upload.len, upload.error));
    shared.write(Line::Upload(upload.clone())).await;
    shared.change(|state| state.uploads.push(upload));
}

async fn receive(mut reader: MessageReader, dir: Option<&Path>, fault: Option<UploadFault>) -> Upload {
    let mut upload = Upload { token: String::new(), path: PathBuf::new(), len: 0, error: None, svr_time: 0 };
    let outcome = receive_into(&mut upload, &mut reader, dir, fault).await;
    if let Err(error) = outcome {
        if !upload.path.as_os_str().is_empty() {
            // Half a file is of no use, so it goes. If it cannot be removed, it does no harm either.
            _ = fs::remove_file(&upload.path);
        }
        upload.error = Some(error);
    }
    upload.svr_time = unix_seconds();
    upload
}

async fn receive_into(
    upload: &mut Upload,
    reader: &mut MessageReader,
    dir: Option<&Path>,
    fault: Option<UploadFault>,
) -> Result<(), String> {
    let first = next(reader).await?.ok_or("the stream ended before its first message")?;
    upload.token = first.token;
    let dir = dir.ok_or("the center has no directory for uploads")?;
    fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    upload.path = dir.join(file_name(&upload.token));
    let failed = |error| format!("{}: {error}", upload.path.display());
    let mut file = File::create(&upload.path).map_err(failed)?;
    let mut piece = Some(first.data);
    while let Some(data) = piece {
        file.write_all(&data).map_err(failed)?;
        upload.len += data.len() as u64;
        match fault {
            Some(UploadFault::Reset { after }) if upload.len >= after => return Err(BY_FAULT.to_owned()),
            Some(UploadFault::Stall { after }) if upload.len >= after => std::future::pending().await,
            _ => {}
        }
        piece = next(reader).await?.map(|request| request.data);
    }
    match fault {
        Some(UploadFault::Failed) => Err("a test wants it so".to_owned()),
        _ => Ok(()),
    }
}

async fn next(reader: &mut MessageReader) -> Result<Option<FileUploadRequest>, String> {
    let Some(Message { body, .. }) = reader.next().await.map_err(|error| error.to_string())? else { return Ok(None) };
    let len = body.len();
    let request = FileUploadRequest::decode(body);
    request.map(Some).map_err(|error| format!("a message of {len} bytes is no FileUploadRequest: {error}"))
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
