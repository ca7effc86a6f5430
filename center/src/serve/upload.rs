//! `/grpc.FileExt/Upload`: a file from a host, in pieces.
//!
//! The pieces go into a file beside those that are whole, and get its name at the end. With a store, the agent hears of success once the
//! file is on the disk and the database knows of it.

use super::connection::ConnectionHandle;
use super::grpc::{Encoding, MessageReader, Outgoing, ReadError, Status};
use super::interpose::{UploadAt, UploadStep, UploadWatch};
use super::shared::Shared;
use crate::authority::Peer;
use crate::clock::now_ms;
use crate::clock::now_s;
use crate::fleet::{Fleet, Task, Upload};
use crate::http::Thing;
use crate::store::site;
use bytes::Bytes;
use elklet_proto::grpc::file_upload_response::StatusCode;
use elklet_proto::grpc::{FileUploadRequest, FileUploadResponse};
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use prost::Message as _;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::{SemaphorePermit, watch};

/// The longest file name that is made of a token, well below the limit of file systems.
const MAX_NAME: usize = 128;

/// An agent has so long between two pieces of a file. What has arrived of it takes room meanwhile.
const PIECE_WITHIN: Duration = Duration::from_secs(60);

/// Files of one name, before an upload of that name fails.
const MAX_SAME: usize = 1_000;

/// Uploads that the database knows, those that failed among them. Beyond it, the oldest go with their files.
const MAX_KNOWN: i64 = 10_000;

/// How the name of a file begins that is not whole. No token's does.
const UNFINISHED: &str = ".part-";

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
    let (unstored, assembling) = (connection.unstored.clone(), Arc::clone(&shared.assembling));
    let mut reader = MessageReader::new(request.into_body(), encoding, limit, connection.window, unstored, assembling);
    reader.set_begins_within(Some(PIECE_WITHIN));
    let pieces = Pieces { shared, reader, room: None, outgoing: &mut outgoing, closed: connection.closed.clone() };
    let (upload, reset) = receive(shared, &connection.who, pieces, watch).await;
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
    let token = upload.token.clone();
    shared.change(|fleet| {
        fleet.answer_task(&upload.token, &report(&upload), now_ms());
        fleet.add_upload(upload);
    });
    shared.watched.changed(Thing::Task, &token);
}

/// Returns the upload, and whether it is to be reset instead of answered.
async fn receive(shared: &Shared, who: &Peer, mut pieces: Pieces<'_>, mut watch: UploadWatch) -> (Upload, bool) {
    let mut upload = Upload { svr_time: now_s(), ..Upload::default() };
    let received = receive_into(shared, who, &mut upload, &mut pieces, &mut watch).await;
    let outcome = match received {
        Ok(receiving) => place(shared, receiving, &mut upload).await.map_err(Failed::Because),
        Err(failed) => Err(failed),
    };
    let reset = matches!(outcome, Err(Failed::Reset));
    if let Err(error) = outcome {
        upload.path = PathBuf::new();
        upload.error = Some(match error {
            Failed::Reset => "it was reset".to_owned(),
            Failed::Because(reason) => reason,
        });
        let (row, dir) = (upload.clone(), shared.options.upload_dir.clone());
        match shared.site(move |site| know(site, dir.as_deref(), row, (MAX_KNOWN, u64::MAX))).await {
            None => {}
            Some(Ok((known, gone))) => {
                upload = known;
                forget(shared, &gone);
            }
            Some(Err(error)) => shared.note(format!("that an upload failed is not kept: {error}")),
        }
    }
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

/// A file that is not whole. It is removed unless it gets another name.
struct Receiving<'a> {
    path: PathBuf,
    /// Nothing while a thread has it.
    file: Option<File>,
    /// Bytes of all uploads that are under way, and this one's part of them.
    all: &'a AtomicU64,
    bytes: u64,
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Relaxed);
        // Half a file is of no use. If it cannot be removed, the next start does it.
        _ = fs::remove_file(&self.path);
    }
}

/// Has a thread that may wait for the disk do something.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

impl<'a> Receiving<'a> {
    async fn begin(shared: &'a Shared, dir: &Path) -> io::Result<Self> {
        let number = shared.uploads_begun.fetch_add(1, Relaxed);
        let (dir, path) = (dir.to_owned(), dir.join(format!("{UNFINISHED}{number}")));
        let created = path.clone();
        let file = blocking(move || {
            fs::create_dir_all(&dir)?;
            File::create(created)
        });
        Ok(Self { file: Some(file.await?), path, all: &shared.receiving, bytes: 0 })
    }

    async fn write(&mut self, data: Vec<u8>) -> io::Result<()> {
        let mut file = self.file.take().ok_or_else(|| io::Error::other("an earlier piece was not written"))?;
        self.file = Some(blocking(move || file.write_all(&data).map(|()| file)).await?);
        Ok(())
    }
}

/// Checks that an agent whose certificate is for it alone sends no file in another's name.
fn held_to_id(shared: &Shared, who: &Peer, token: &str) -> Result<(), Failed> {
    let Peer::Agent(bound) = who else { return Ok(()) };
    let is_anothers =
        |fleet: &Fleet| fleet.tasks.iter().any(|task| task.token == token && task.agent_id != bound.agent_id);
    if !shared.read(is_anothers) {
        return Ok(());
    }
    shared.change(|fleet| fleet.totals.id_mismatches += 1);
    Err(Failed::Because(format!("the certificate is for agent {}, and the task is another's", bound.agent_id)))
}

async fn receive_into<'a>(
    shared: &'a Shared,
    who: &Peer,
    upload: &mut Upload,
    pieces: &mut Pieces<'_>,
    watch: &mut UploadWatch,
) -> Result<Receiving<'a>, Failed> {
    let first = pieces.next().await?.ok_or_else(|| "the stream ended before its first message".to_owned())?;
    // Without the token, nobody takes this for the task's end.
    held_to_id(shared, who, &first.token)?;
    upload.token = first.token;
    let (limit, most) = (shared.options.upload_limit, shared.options.max_uploads);
    let dir =
        shared.options.upload_dir.as_deref().ok_or_else(|| "the center has no directory for uploads".to_owned())?;
    let failed = |error: io::Error| Failed::Because(format!("{}: {error}", dir.display()));
    let mut receiving = Receiving::begin(shared, dir).await.map_err(failed)?;
    let mut piece = Some(first.data);
    while let Some(data) = piece {
        let len = data.len() as u64;
        upload.len += len;
        if upload.len > limit {
            return Err(Failed::Because(format!("a file of {} bytes or more, the limit is {limit}", upload.len)));
        }
        receiving.bytes += len;
        let all = receiving.all.fetch_add(len, Relaxed) + len;
        if all > most {
            return Err(Failed::Because(format!("the uploads under way have {all} bytes, the limit is {most}")));
        }
        receiving.write(data).await.map_err(failed)?;
        obey(watch(UploadAt::Taken(upload.len))).await?;
        piece = pieces.next().await?.map(|request| request.data);
    }
    obey(watch(UploadAt::End)).await?;
    Ok(receiving)
}

/// Gives a whole file its name, and has the database know of it.
async fn place(shared: &Shared, mut receiving: Receiving<'_>, upload: &mut Upload) -> Result<(), String> {
    let Some(dir) = receiving.path.parent().map(Path::to_owned) else { return Err("it has no directory".to_owned()) };
    let (file, part, token) = (receiving.file.take(), receiving.path.clone(), upload.token.clone());
    let (shown, uploads) = (dir.display().to_string(), dir.clone());
    let placed = blocking(move || {
        file.map_or(Ok(()), |file| file.sync_all())?;
        let path = free_name(&dir, &file_name(&token))?;
        // A crash in between leaves an empty file, which the database does not know.
        fs::rename(&part, &path)?;
        File::open(&dir)?.sync_all()?;
        Ok(path)
    });
    upload.path = placed.await.map_err(|error| format!("{shown}: {error}"))?;
    let (row, most) = (upload.clone(), shared.options.max_uploads);
    match shared.site(move |site| know(site, Some(&uploads), row, (MAX_KNOWN, most))).await {
        None => Ok(()),
        Some(Ok((known, gone))) => {
            *upload = known;
            forget(shared, &gone);
            Ok(())
        }
        Some(Err(error)) => {
            let path = upload.path.clone();
            // Nobody would know of it. If it cannot be removed, whoever looks after the disk finds it.
            _ = blocking(move || fs::remove_file(path)).await;
            Err(error.to_string())
        }
    }
}

/// Forgets uploads that the database does not know any more.
fn forget(shared: &Shared, gone: &[i64]) {
    if !gone.is_empty() {
        shared.change(|fleet| {
            fleet.uploads.retain(|upload| !gone.contains(&upload.id));
            fleet.note(format!("{} old uploads are removed to make room", gone.len()));
        });
    }
}

/// Takes a name that no file has.
fn free_name(dir: &Path, name: &str) -> io::Result<PathBuf> {
    for n in 0..MAX_SAME {
        let path = if n == 0 { dir.join(name) } else { dir.join(format!("{name}.{n}")) };
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(_) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(format!("there are {MAX_SAME} files {name:?}")))
}

/// Writes an upload to the database, answers its task, and removes the oldest uploads if there are more than `most`, or more than
/// `most_bytes` bytes of all together. Returns it with its number and its task's agent, and the numbers of those that were removed.
fn know(
    site: &site::Site,
    dir: Option<&Path>,
    mut upload: Upload,
    (most, most_bytes): (i64, u64),
) -> Result<(Upload, Vec<i64>), site::SiteError> {
    if let Some(task) = site.tasks().get(&upload.token)? {
        let data: serde_json::Value = serde_json::from_str(&task.data).unwrap_or_default();
        upload.host_path = data["path"].as_str().unwrap_or_default().to_owned();
        upload.agent_id = task.agent_id;
    }
    upload.id = site.uploads().add(&site::Upload {
        id: 0,
        token: upload.token.clone(),
        agent_id: upload.agent_id.clone(),
        path: upload.host_path.clone(),
        file: upload.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        bytes: upload.len.cast_signed(),
        error: upload.error.clone().unwrap_or_default(),
        received_ms: now_ms(),
    })?;
    let report = report(&upload);
    site.tasks().revise(&[&upload.token], |row| {
        let mut task = Task::from(row.clone());
        let news = task.answer(&report, now_ms());
        *row = task.row();
        news
    })?;
    let mut gone = Vec::new();
    while let Some((oldest, known)) = site.uploads().oldest()?
        && oldest.id != upload.id
        && (known > most || site.uploads().bytes()?.cast_unsigned() > most_bytes)
    {
        remove(site, dir, &oldest)?;
        gone.push(oldest.id);
    }
    Ok((upload, gone))
}

/// Removes an upload with its file, which lies in `dir`. Without a directory the file stays wherever it is.
pub(crate) fn remove(site: &site::Site, dir: Option<&Path>, upload: &site::Upload) -> Result<bool, site::SiteError> {
    if !upload.file.is_empty()
        && let Some(dir) = dir
        && let Err(error) = fs::remove_file(dir.join(&upload.file))
        && error.kind() != io::ErrorKind::NotFound
    {
        log::warn!("{}: {error}", upload.file);
    }
    site.uploads().remove(upload.id)
}

/// Returns what AgentCenter itself reports about an upload, in the shape of an answer.
pub(crate) fn report(upload: &Upload) -> BTreeMap<String, String> {
    let status = if upload.error.is_none() { "succeed" } else { "failed" };
    let message = upload.error.clone().unwrap_or_else(|| upload.path.display().to_string());
    let fields = [("token", upload.token.clone()), ("status", status.to_owned()), ("msg", message)];
    fields.map(|(name, value)| (name.to_owned(), value)).into()
}

/// Removes the files of uploads that a center did not receive to their ends before it ended itself.
pub(super) fn remove_unfinished(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(UNFINISHED))
            && let Err(error) = fs::remove_file(entry.path())
        {
            log::warn!("{}: {error}", entry.path().display());
        }
    }
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
struct Pieces<'a> {
    shared: &'a Shared,
    reader: MessageReader,
    /// The room in memory of the last one.
    room: Option<SemaphorePermit<'a>>,
    /// Where the answer will go, which tells when the client does not want it any more.
    outgoing: &'a mut Outgoing,
    closed: watch::Receiver<()>,
}

impl Pieces<'_> {
    /// Returns the next one. What came before it was written.
    ///
    /// It may have to wait for room that others have. A client that is gone meanwhile must not leave its part behind, or it could come again
    /// and again and leave one each time.
    async fn next(&mut self) -> Result<Option<FileUploadRequest>, String> {
        self.room = None;
        self.reader.stored().map_err(|error| error.to_string())?;
        let Self { shared, reader, room, outgoing, closed } = self;
        tokio::select! {
            // What has arrived whole counts, also if the client is gone.
            biased;
            read = read(shared, reader, room) => read,
            _ = closed.changed() => Err("the connection ended before the file did".to_owned()),
            () = outgoing.given_up() => Err("the client gave the call up".to_owned()),
        }
    }
}

async fn read<'a>(
    shared: &'a Shared,
    reader: &mut MessageReader,
    room: &mut Option<SemaphorePermit<'a>>,
) -> Result<Option<FileUploadRequest>, String> {
    let said = |error: ReadError| error.to_string();
    let Some(message) = reader.next().await.map_err(said)? else { return Ok(None) };
    let decoding = shared.decoding.acquire().await.expect("nobody closes it");
    let body = message.body(shared.options.message_limit).map_err(said)?;
    let len = body.len();
    *room = Some(shared.room_for(len).await);
    drop(decoding);
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
    use crate::fleet::TaskState;
    use crate::store::{Settings, Store};
    use elklet_proto::grpc;

    #[test]
    fn the_oldest_uploads_make_room_for_new_ones() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("data"), Settings::default()).unwrap();
        let task = grpc::Task { token: "t2".into(), data: "{\"path\":\"/etc/hosts\"}".into(), ..Default::default() };
        store.site().tasks().add(&[Task::new(&task, "a", "ann", 1).row()]).unwrap();
        let upload = |token: &str| {
            let path = free_name(dir.path(), "same").unwrap();
            fs::write(&path, token).unwrap();
            know(
                store.site(),
                Some(dir.path()),
                Upload { token: token.into(), path, len: 40, ..Upload::default() },
                (3, 100),
            )
            .unwrap()
        };
        let (first, _) = upload("t1");
        let (second, gone) = upload("t2");
        assert_eq!((second.agent_id.as_str(), second.host_path.as_str(), gone), ("a", "/etc/hosts", vec![]));
        assert_ne!(first.path, second.path, "tokens may have the same file name");
        let task = Task::from(store.site().tasks().get("t2").unwrap().unwrap());
        assert_eq!((task.state, task.answers), (TaskState::Answered, vec![report(&second)]));
        let (third, gone) = upload("t3");
        assert_eq!(gone, [first.id]);
        assert!(!first.path.exists() && second.path.exists() && third.path.exists());
        // Those that failed count as well.
        let failed = |token: &str| {
            let upload = Upload { token: token.into(), error: Some("no".into()), ..Upload::default() };
            know(store.site(), Some(dir.path()), upload, (3, u64::MAX)).unwrap().1
        };
        assert_eq!(failed("t4"), Vec::<i64>::new());
        assert_eq!(failed("t5"), [second.id]);
        assert!(!second.path.exists() && third.path.exists());
    }

    #[test]
    fn what_a_crash_left_behind_goes_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".part-7", "t.part-7"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        remove_unfinished(dir.path());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["t.part-7"]);
    }

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
