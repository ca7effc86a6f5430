//! What a test has put around the server: those who read along, and what is to go wrong.

use super::fault::{Fault, Pace, UploadFault};
use super::records::Line;
use elklet_center::fleet::Upload;
use elklet_center::message::Batch;
use elklet_center::serve::{Interpose, Step, UploadWatch};
use elklet_center::sink::{Sink, Taking};
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, watch};

/// Takes every message at once, and is asked before and while streams are served.
pub(super) struct Hooks {
    pub(super) pace: watch::Sender<Pace>,
    pub(super) faults: Mutex<VecDeque<Fault>>,
    pub(super) upload_faults: Mutex<VecDeque<UploadFault>>,
    pub(super) lines: Mutex<Option<mpsc::Sender<Line>>>,
    observers: Mutex<Vec<Observer>>,
    deadly: Mutex<Option<Deadly>>,
}

/// Returns true if it wants to be called again.
type Observer = Box<dyn FnMut(&Arc<Batch>) -> bool + Send>;

/// Returns true for a message that ends its connection.
type Deadly = Box<dyn FnMut(&Batch) -> bool + Send>;

impl Hooks {
    pub(super) fn new(lines: Option<mpsc::Sender<Line>>) -> Self {
        Self {
            pace: watch::Sender::new(Pace::Full),
            faults: Mutex::default(),
            upload_faults: Mutex::default(),
            lines: Mutex::new(lines),
            observers: Mutex::default(),
            deadly: Mutex::default(),
        }
    }

    pub(super) fn observe(&self, observer: impl FnMut(&Arc<Batch>) -> bool + Send + 'static) {
        lock(&self.observers).push(Box::new(observer));
    }

    pub(super) fn die_of(&self, deadly: impl FnMut(&Batch) -> bool + Send + 'static) {
        *lock(&self.deadly) = Some(Box::new(deadly));
    }

    /// Queues a line for the writer, and waits while the queue is full.
    async fn write(&self, line: Line) {
        let lines = lock(&self.lines).clone();
        if let Some(lines) = lines {
            // The writer has already said why it is gone.
            _ = lines.send(line).await;
        }
    }
}

impl Sink for Hooks {
    fn take<'a>(&'a self, _: &'a str, batch: &'a Arc<Batch>) -> Taking<'a> {
        Box::pin(async move {
            lock(&self.observers).retain_mut(|observer| observer(batch));
            self.write(Line::Batch(Arc::clone(batch))).await;
            Ok(None)
        })
    }

    fn take_upload<'a>(&'a self, upload: &'a Upload) -> Taking<'a> {
        Box::pin(async move {
            self.write(Line::Upload(upload.clone())).await;
            Ok(None)
        })
    }
}

impl Interpose for Hooks {
    fn opened(&self) -> Option<Step> {
        lock(&self.faults).pop_front().map(Step::from)
    }

    fn before_message(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(keep_pace(self.pace.subscribe()))
    }

    fn dies_of(&self, batch: &Batch) -> bool {
        lock(&self.deadly).as_mut().is_some_and(|deadly| deadly(batch))
    }

    fn upload(&self) -> Option<UploadWatch> {
        lock(&self.upload_faults).pop_front().map(UploadFault::watch)
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks").finish_non_exhaustive()
    }
}

/// Waits as long as the pace asks before the next message.
async fn keep_pace(mut pace: watch::Receiver<Pace>) {
    loop {
        let now = *pace.borrow_and_update();
        match now {
            Pace::Full => return,
            Pace::Delay(delay) => tokio::select! {
                () = tokio::time::sleep(delay) => return,
                _ = pace.changed() => {}
            },
            Pace::Stopped => {
                if pace.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

/// An observer that panics fails its test. The center goes on.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
