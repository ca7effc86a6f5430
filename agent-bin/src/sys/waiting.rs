//! Runs async work to its end on the thread that asks for it.

use std::io;
use std::pin::{Pin, pin};

/// Runs work on a runtime of its own, and returns what it comes to. Nothing that it has left behind, as a name that is still being looked
/// up, is waited for.
///
/// # Errors
/// The system refuses what a runtime needs.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let mut done = None;
    run(pin!(async { done = Some(work.await) }))?;
    Ok(done.expect("the work is at its end"))
}

/// Each kind of work would have a scheduler of its own in the binary if it were known here.
fn run(work: Pin<&mut dyn Future<Output = ()>>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(work);
    runtime.shutdown_background();
    Ok(())
}
