//! The timer of the net thread, set to whatever is due next.
//!
//! Tokio keeps its timers in a wheel of coarse and fine slots, and wakes the thread up to three times on the way to a
//! moment some seconds off. An idle agent waits for little else, so it uses timerfd_create(2), which wakes it once.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use elklet_core::time::Millis;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::clock::Clock;

/// Rings once, at the moment that was set last.
pub(crate) struct Alarm {
    timer: AsyncFd<OwnedFd>,
    clock: Clock,
    set_to: Option<Millis>,
}

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alarm").field("set_to", &self.set_to).finish_non_exhaustive()
    }
}

impl Alarm {
    /// An alarm that is not set.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub(crate) fn new(clock: Clock) -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        // SAFETY: the `AsyncFd` owns the descriptor, which is open, stays so as long as it is owned, and is the same at every call.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?;
        Ok(Self { timer, clock, set_to: None })
    }

    /// Sets it to ring at `moment`, at once if that has passed, or never. Setting it to the same moment again costs nothing.
    pub(crate) fn set(&mut self, moment: Option<Millis>) {
        if self.set_to == moment {
            return;
        }
        self.set_to = moment;
        const NEVER: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = moment.map_or(NEVER, |moment| {
            let left = self.clock.until(moment);
            // To the kernel, a time of 0 means never.
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()).max(i64::from(left.is_zero())),
            }
        });
        let value = Itimerspec { it_interval: NEVER, it_value };
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &value)
            .expect("the descriptor is a timer, and nanoseconds are fewer than a second's");
    }

    /// Waits until it rings. It is then no longer set.
    pub(crate) async fn rung(&mut self) {
        loop {
            // The runtime's end is the only error.
            let Ok(mut guard) = self.timer.readable_mut().await else { return };
            let expirations = guard.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut [0; 8])?));
            // The read would block if the alarm was set to another moment just before the old one.
            if expirations.is_ok() {
                break;
            }
        }
        self.set_to = None;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::runtime::Builder;
    use tokio::time::timeout;

    use super::*;

    #[test]
    fn it_rings_at_the_moment_that_it_was_set_to_last_and_once() {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let clock = Clock::start();
            let mut alarm = Alarm::new(clock).expect("a descriptor");
            let rings =
                async |alarm: &mut Alarm, wait| timeout(Duration::from_millis(wait), alarm.rung()).await.is_ok();
            alarm.set(Some(clock.now() + 3_600_000));
            assert!(!rings(&mut alarm, 1).await, "an hour is not over");
            alarm.set(Some(clock.now()));
            assert!(rings(&mut alarm, 60_000).await, "what has passed is due");
            assert!(!rings(&mut alarm, 20).await, "it rings once");
            let moment = clock.now() + 20;
            alarm.set(Some(moment));
            assert!(rings(&mut alarm, 60_000).await && clock.now() >= moment, "never before its moment");
            alarm.set(Some(clock.now() + 5));
            alarm.set(None);
            assert!(!rings(&mut alarm, 30).await, "it is not set any more");
        });
    }
}
