//! Work that blocks, off the net thread.

use tokio::task::spawn_blocking;

/// Runs what blocks where it may.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.expect("a panic ends the process")
}
