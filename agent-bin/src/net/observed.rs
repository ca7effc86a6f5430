//! A look at what the server sends, between TLS and HTTP/2, for the credit that it returns.

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
    observer: CreditObserver,
    credit: Arc<Credit>,
    events: mpsc::Sender<Event>,
}

impl<S> Observed<S> {
    pub(super) fn new(inner: S, credit: Arc<Credit>, events: mpsc::Sender<Event>) -> Self {
        Self { inner, observer: CreditObserver::new(TRANSFER_STREAM), credit, events }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Observed<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(context, buffer))?;
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
        Pin::new(&mut self.get_mut().inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}
