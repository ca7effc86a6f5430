//! The task of one output: it reads from the store, sends what [`Delivery`] says, and writes the position.
//!
//! Reading, encoding and the database's writes happen on threads that may wait for the disk. An output without news waits for the store
//! to tell of some, and has no timer.

use super::delivery::{Action, BatchId, Delivery, Item, Millis};
use super::sender::{Body, Encoder, Outcome, Sender};
use super::settings::{From, Output};
use super::status::{State, Status};
use crate::clock::now_ms;
use crate::store::{Follower, Missed, SearchError, Store};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle, JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Records that are read and encoded in one go, unless they come to the bytes that an output may hold before.
const READ: usize = 5_000;
/// Reading is tried again after this when the store cannot be read.
const READ_AGAIN: Duration = Duration::from_secs(5);
/// How long what was sent may take to be confirmed when the center ends.
const END_WAIT: Duration = Duration::from_secs(2);
/// A line about records that were given up is logged so often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What one output needs.
#[derive(Debug)]
pub(super) struct Runner {
    pub(super) output: Output,
    pub(super) sender: Sender,
    pub(super) store: Arc<Store>,
    pub(super) status: Arc<Status>,
    pub(super) stopped: watch::Receiver<bool>,
}

/// What was read.
struct Read {
    follower: Follower,
    result: Result<Encoded, SearchError>,
}

#[derive(Default)]
struct Encoded {
    items: Vec<Item<Body>>,
    /// Records that are too large, and the bytes of the largest.
    too_large: (u64, usize),
    /// True if there is nothing more to read.
    nothing: bool,
}

/// Why a run has ended.
enum Ended {
    Stopped,
    /// A thread panicked, or the store's database does not work. The run begins again where the position is.
    Broken(String),
}

impl Runner {
    /// Runs until the center ends.
    pub(super) async fn run(mut self) {
        loop {
            let ended = match self.open().await {
                Ok((follower, position)) => self.pass_on(follower, position).await,
                Err(error) => Ended::Broken(error),
            };
            match ended {
                Ended::Stopped => return,
                Ended::Broken(error) => {
                    self.status.error(error);
                    self.status.state(State::Failing);
                    tokio::select! {
                        () = sleep(READ_AGAIN) => {}
                        _ = self.stopped.wait_for(|stopped| *stopped) => return,
                    }
                }
            }
        }
    }

    /// Finds where the output is.
    async fn open(&self) -> Result<(Follower, u64), String> {
        let (store, output) = (Arc::clone(&self.store), self.output.clone());
        let opened = spawn_blocking(move || {
            let positions = store.site().positions();
            let kept = positions.get(&output.name).map_err(|error| error.to_string())?;
            let position = match (kept, output.from) {
                (Some(position), _) => position,
                (None, From::Now) => *store.next_seq().borrow(),
                (None, From::Start) => 0,
            };
            let begin = |position| store.follow(position);
            let (follower, position) = match begin(position) {
                Ok(follower) => (follower, position),
                Err(SearchError::Ahead(..)) => {
                    log::error!("forward {}: position {position} is of another store; it begins anew", output.name);
                    (begin(0).map_err(|error| error.to_string())?, 0)
                }
                Err(error) => return Err(error.to_string()),
            };
            // Where a new output begins is not decided again after a restart.
            positions.set(&output.name, position).map_err(|error| error.to_string())?;
            Ok((follower.only(output.types), position))
        });
        let (follower, position) = opened.await.map_err(|error| error.to_string())??;
        log::info!("forward {}: {} from position {position}", self.output.name, self.status.kind);
        Ok((follower, position))
    }

    async fn pass_on(&mut self, follower: Follower, position: u64) -> Ended {
        let mut stopped = self.stopped.clone();
        let mut flow = Flow::new(self, follower, position);
        let ended = tokio::select! {
            ended = flow.run() => ended,
            _ = stopped.wait_for(|stopped| *stopped) => Ended::Stopped,
        };
        if matches!(ended, Ended::Stopped) {
            flow.end().await;
        }
        ended
    }
}

/// One run of an output.
struct Flow<'a> {
    runner: &'a mut Runner,
    delivery: Delivery<Body>,
    encoder: Encoder,
    began: Instant,
    follower: Option<Follower>,
    reading: Option<JoinHandle<Read>>,
    read_again: Option<Instant>,
    sending: JoinSet<(BatchId, Outcome)>,
    keeping: Option<JoinHandle<(u64, Result<(), String>)>>,
    news: watch::Receiver<u64>,
    /// False while there may be more to read.
    caught_up: bool,
    missed: Missed,
    logged: Option<Instant>,
}

/// What a run waited for.
enum Event {
    Read(Result<Read, JoinError>),
    Sent(Result<(BatchId, Outcome), JoinError>),
    Kept(Result<(u64, Result<(), String>), JoinError>),
    News,
    Time,
}

impl<'a> Flow<'a> {
    fn new(runner: &'a mut Runner, follower: Follower, position: u64) -> Self {
        let limits = runner.sender.limits();
        // Outputs that lose the same receiver at the same time come back at different times.
        let seed = now_ms().cast_unsigned() ^ (runner as *const Runner as usize as u64).rotate_left(32);
        Self {
            delivery: Delivery::new(limits, position, seed),
            encoder: runner.sender.encoder(),
            began: Instant::now(),
            follower: Some(follower),
            reading: None,
            read_again: None,
            sending: JoinSet::new(),
            keeping: None,
            news: runner.store.next_seq(),
            caught_up: false,
            missed: Missed::default(),
            logged: None,
            runner,
        }
    }

    async fn run(&mut self) -> Ended {
        loop {
            self.act();
            self.read();
            self.tell();
            let event = self.event().await;
            let now = self.now();
            match event {
                Event::Read(Ok(read)) => self.handle_read(read, now),
                Event::Sent(Ok((id, outcome))) => self.handle_sent(id, outcome, now),
                Event::Kept(Ok((position, kept))) => {
                    if let Err(error) = &kept {
                        self.runner.status.error(format!("the position cannot be written: {error}"));
                    }
                    self.delivery.handle_kept(position, kept.is_ok(), now);
                }
                Event::News => self.caught_up = false,
                Event::Time => {}
                Event::Read(Err(error)) | Event::Sent(Err(error)) | Event::Kept(Err(error)) => {
                    return Ended::Broken(error.to_string());
                }
            }
        }
    }

    fn now(&self) -> Millis {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(Millis::MAX)
    }

    /// Carries out what is decided.
    fn act(&mut self) {
        while let Some(action) = self.delivery.poll_action(self.now()) {
            match action {
                Action::Send(id, records) => {
                    let sending = self.runner.sender.send(records);
                    self.sending.spawn(async move { (id, sending.await) });
                }
                Action::Keep(position) => self.keeping = Some(self.keep(position)),
            }
        }
    }

    fn keep(&self, position: u64) -> JoinHandle<(u64, Result<(), String>)> {
        let (store, name) = (Arc::clone(&self.runner.store), self.runner.output.name.clone());
        spawn_blocking(move || {
            let kept = store.site().positions().set(&name, position);
            (position, kept.map_err(|error| error.to_string()))
        })
    }

    /// Has a thread read and encode, if there may be something and there is room for it.
    fn read(&mut self) {
        if self.caught_up || self.read_again.is_some() || !self.delivery.has_room() {
            return;
        }
        let Some(mut follower) = self.follower.take() else { return };
        // What is stored from here on is news.
        self.news.mark_unchanged();
        let mut encoder = self.encoder.clone();
        let most = self.runner.sender.limits().held_bytes;
        self.reading = Some(spawn_blocking(move || {
            let result = encode(&mut follower, &mut encoder, most);
            Read { follower, result }
        }));
    }

    async fn event(&mut self) -> Event {
        let polled = self.delivery.poll_timeout().map(|at| self.began + Duration::from_millis(at));
        let deadline = polled.into_iter().chain(self.read_again).min();
        tokio::select! {
            Some(sent) = self.sending.join_next() => Event::Sent(sent),
            read = done(&mut self.reading) => Event::Read(read),
            kept = done(&mut self.keeping) => Event::Kept(kept),
            Ok(()) = self.news.changed(), if self.caught_up => Event::News,
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                if self.read_again.is_some_and(|at| at <= Instant::now()) {
                    self.read_again = None;
                }
                Event::Time
            }
        }
    }

    fn handle_read(&mut self, read: Read, now: Millis) {
        let status = &self.runner.status;
        let missed = read.follower.missed();
        if missed != self.missed {
            let (records, blocks) = (missed.records - self.missed.records, missed.blocks - self.missed.blocks);
            let name = &self.runner.output.name;
            log::error!(
                "forward {name}: up to {records} records were dropped before they were passed on, and {blocks} blocks are damaged"
            );
            status.missed(records, blocks);
            self.missed = missed;
        }
        match read.result {
            Ok(encoded) => {
                self.caught_up = encoded.nothing;
                self.delivery.handle_records(encoded.items, read.follower.position(), now);
                let (count, bytes) = encoded.too_large;
                if count > 0 {
                    self.refused(count, &format!("one has {bytes} bytes"));
                }
            }
            Err(error) => {
                status.error(format!("the store cannot be read: {error}"));
                self.read_again = Some(Instant::now() + READ_AGAIN);
            }
        }
        self.follower = Some(read.follower);
    }

    fn handle_sent(&mut self, id: BatchId, outcome: Outcome, now: Millis) {
        let tally = self.delivery.handle_answer(id, outcome.answer, now);
        self.runner.status.count(tally);
        if tally.refused > 0 {
            self.logged_refusal(tally.refused, outcome.error.as_deref().unwrap_or("no reason"));
        }
        if let Some(error) = outcome.error {
            self.runner.status.error(error);
        }
    }

    /// Counts records that never go.
    fn refused(&mut self, count: u64, why: &str) {
        self.runner.status.count(super::delivery::Tally { refused: count, ..Default::default() });
        self.runner.status.error(format!("{count} records are given up: {why}"));
        self.logged_refusal(count, why);
    }

    fn logged_refusal(&mut self, count: u64, why: &str) {
        if self.logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            self.logged = Some(Instant::now());
            let name = &self.runner.output.name;
            log::error!(
                "forward {name}: {count} records are given up, and further ones only counted for a minute: {why}"
            );
        }
    }

    /// Says how far it is.
    fn tell(&self) {
        let status = &self.runner.status;
        status.at(self.delivery.position(), self.delivery.oldest_received_ms());
        status.state(if self.delivery.is_failing() || self.read_again.is_some() {
            State::Failing
        } else if self.delivery.is_empty() && self.caught_up {
            State::Idle
        } else {
            State::Sending
        });
    }

    /// Waits for what was sent, and writes the position.
    async fn end(&mut self) {
        _ = timeout(END_WAIT, async {
            while let Some(Ok((id, outcome))) = self.sending.join_next().await {
                self.handle_sent(id, outcome, self.now());
            }
        })
        .await;
        // A position that is being written now is an earlier one, and must not come after this.
        _ = done_if_any(&mut self.keeping).await;
        if self.delivery.is_unkept()
            && let Ok((_, Err(error))) = self.keep(self.delivery.position()).await
        {
            log::warn!("forward {}: the position is not written: {error}", self.runner.output.name);
        }
    }
}

/// Reads and encodes records until they have `most` bytes. Encoding may make a record many times as large, so that a number of records alone
/// is no bound.
fn encode(follower: &mut Follower, encoder: &mut Encoder, most: usize) -> Result<Encoded, SearchError> {
    let (mut encoded, mut bytes) = (Encoded::default(), 0);
    for read in 0..READ {
        if bytes >= most {
            break;
        }
        let found = match follower.next(1) {
            Ok(found) => found,
            // What was read goes first. The next read meets the error again.
            Err(_) if read > 0 => break,
            Err(error) => return Err(error),
        };
        let Some(found) = found.first() else {
            encoded.nothing = true;
            break;
        };
        match encoder.encode(found) {
            Ok(body) => {
                bytes += body.text.len();
                let (seq, received_ms, bytes) = (found.seq, found.received_ms, body.text.len());
                encoded.items.push(Item { seq, received_ms, bytes, body });
            }
            Err(bytes) => {
                encoded.too_large = (encoded.too_large.0 + 1, encoded.too_large.1.max(bytes));
            }
        }
    }
    Ok(encoded)
}

/// Waits for a thread, for ever if there is none.
async fn done<T>(task: &mut Option<JoinHandle<T>>) -> Result<T, JoinError> {
    let Some(running) = task else { return std::future::pending().await };
    let done = running.await;
    *task = None;
    done
}

async fn done_if_any<T>(task: &mut Option<JoinHandle<T>>) -> Option<T> {
    task.as_ref()?;
    done(task).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Batch, Record, Settings};

    #[test]
    fn no_more_is_encoded_in_one_go_than_an_output_may_hold() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { gather: Duration::from_millis(1), ..Settings::default() };
        let store = Store::open(dir.path(), settings).unwrap();
        let record = Record { data_type: 59, timestamp: 0, payload: vec![0; 1000].into() };
        let records = vec![record; 20];
        store.append(Batch { received_ms: 1, agent_id: "a", hostname: "gw1", records: &records }).wait().unwrap();
        let mut follower = store.follow(0).unwrap();
        let mut encode = |most| {
            let encoded = encode(&mut follower, &mut Encoder::Ndjson, most).unwrap();
            (encoded.items.iter().map(|item| item.seq).collect::<Vec<_>>(), encoded.nothing, follower.position())
        };
        let first = encode(1);
        assert_eq!((first.0.len(), first.1, first.2), (1, false, first.0[0] + 1));
        let some = encode(5_000);
        // A line has 1,336 bytes of base64 and what is around it.
        assert_eq!((some.0.len(), some.1, some.2), (4, false, first.2 + 4), "it goes on behind the first");
        let rest = encode(usize::MAX);
        assert_eq!((rest.0.len(), rest.1, rest.2), (15, true, some.2 + 15));
    }
}
