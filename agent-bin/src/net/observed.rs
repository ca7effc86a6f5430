//! A look at what the server sends, between TLS and HTTP/2, for the credit that it returns and for its last words.
//!
//! A server that ends a connection may say why (a TLS alert, a GOAWAY) before the agent's next write fails. HTTP/2 would report
//! the failed write and not read any further. So here a write that finds the connection gone is let pass; what is left is
//! read, and the failure is told in the place of its end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use elklet_core::delivery::CreditObserver;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;

use super::Event;

/// The first stream of a client, which is the only one on a Transfer connection (RFC 9113, section 5.1.1).
const TRANSFER_STREAM: u32 = 1;

/// Credit that the server has returned on the Transfer stream, for the thread that waits for it.
#[derive(Debug)]
pub(crate) struct Credit {
    returned: AtomicU64,
    /// Above this the agent's loop wants to hear of it; else it looks when it has reason to.
    wanted: AtomicU64,
}

impl Credit {
    pub(super) fn new() -> Self {
        Self { returned: AtomicU64::new(0), wanted: AtomicU64::new(u64::MAX) }
    }

    pub(super) fn returned(&self) -> u64 {
        self.returned.load(Ordering::Relaxed)
    }

    pub(super) fn want(&self, credit: Option<u64>) {
        self.wanted.store(credit.unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// A connection that is watched.
#[derive(Debug)]
pub(super) struct Observed<S> {
    inner: S,
    /// Why nothing can be written any more.
    broken: Option<io::Error>,
    observer: CreditObserver,
    credit: Arc<Credit>,
    events: mpsc::Sender<Event>,
}

impl<S> Observed<S> {
    pub(super) fn new(inner: S, credit: Arc<Credit>, events: mpsc::Sender<Event>) -> Self {
        Self { inner, broken: None, observer: CreditObserver::new(TRANSFER_STREAM), credit, events }
    }

    /// Writes, unless the connection is known to be gone, or found to be: then it seems to succeed with `pretended`.
    fn write_with<T>(
        &mut self,
        pretended: T,
        write: impl FnOnce(Pin<&mut S>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>>
    where
        S: Unpin,
    {
        if self.broken.is_none() {
            match ready!(write(Pin::new(&mut self.inner))) {
                Err(error) if is_gone(&error) => self.broken = Some(error),
                result => return Poll::Ready(result),
            }
        }
        Poll::Ready(Ok(pretended))
    }
}

/// Whether the peer has ended the connection, after which reading comes to an end.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset)
}

impl<S: AsyncRead + Unpin> AsyncRead for Observed<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut this.inner).poll_read(context, buffer));
        let is_end = match &read {
            Ok(()) => buffer.filled().len() == before,
            Err(error) => error.kind() == io::ErrorKind::UnexpectedEof,
        };
        if let Some(broken) = this.broken.take_if(|_| is_end) {
            return Poll::Ready(Err(broken));
        }
        read?;
        let returned = this.observer.observe(&buffer.filled()[before..]);
        if returned > 0 {
            let sum = this.credit.returned.fetch_add(returned, Ordering::Relaxed) + returned;
            if sum >= this.credit.wanted.load(Ordering::Relaxed) {
                this.credit.want(None);
                // A full channel means that the loop is about to look anyway.
                let _ = this.events.try_send(Event::Credit);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Observed<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write_with(bytes.len(), |inner| inner.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        self.get_mut().write_with(bytes, |inner| inner.poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().write_with((), |inner| inner.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}
