//! Watches what passes between TLS and HTTP/2: the credit that the server returns, a reset of the stream, the data that has left, and
//! the server's last words.
//!
//! HTTP/2 accepts data long before it writes it, and writes PINGs first. Only data that has passed here before a PING
//! can be confirmed by it.
//!
//! A server that ends a connection may say why (a TLS alert, a GOAWAY) before the agent's next write fails. HTTP/2
//! would report the failed write and stop reading. So a write that finds the connection gone pretends to succeed here.
//! HTTP/2 reads what is left, and gets the write's error in place of the end.
//!
//! A connection that is given up is closed by a reset. A regular close would retransmit for minutes (FIN-WAIT-1) and
//! keep the port, and the agent could not use that port to tell the server that the connection is gone; see
//! [`half_open`](super::half_open).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use elklet_core::delivery::{CreditObserver, DataObserver};
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio_rustls::client::TlsStream;

use super::Event;
use crate::sys::atomic::AtomicU64;

/// The first stream of a client (RFC 9113, section 5.1.1). Only calls for the next certificate follow it on a Transfer connection.
const TRANSFER_STREAM: u32 = 1;

/// Counts what has passed on the Transfer stream, for those who wait for it.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// Credit that the server has returned, in bytes.
    returned: AtomicU64,
    /// The agent's loop wants to be told when `returned` reaches this, unless it is 0.
    wanted: AtomicU64,
    /// Bytes of data that have left.
    sent: AtomicU64,
    /// True once the server has reset the stream. Behind the end of both sides, HTTP/2 passes over it.
    is_reset: AtomicBool,
    /// Notified when data has left.
    left: Notify,
    /// True when the server knows that the connection ends, so that no reset is needed.
    is_in_order: AtomicBool,
}

impl Flow {
    pub(super) fn returned(&self) -> u64 {
        self.returned.load(Ordering::Relaxed)
    }

    pub(super) fn want(&self, credit: Option<u64>) {
        self.wanted.store(credit.unwrap_or(0), Ordering::Relaxed);
    }

    fn is_wanted(&self, credit: u64) -> bool {
        let wanted = self.wanted.load(Ordering::Relaxed);
        wanted != 0 && credit >= wanted
    }

    /// Returns true once the server has reset the stream.
    pub(super) fn is_reset(&self) -> bool {
        self.is_reset.load(Ordering::Relaxed)
    }

    /// The server has ended the connection, so close it without a reset.
    pub(super) fn close_in_order(&self) {
        self.is_in_order.store(true, Ordering::Relaxed);
    }

    /// Waits until `bytes` bytes of data have left since the stream began.
    pub(super) async fn sent(&self, bytes: u64) {
        while self.sent.load(Ordering::Relaxed) < bytes {
            self.left.notified().await;
        }
    }
}

/// A watched connection.
#[derive(Debug)]
pub(super) struct Observed {
    inner: TlsStream<TcpStream>,
    /// Why nothing can be written any more.
    broken: Option<io::Error>,
    credit: CreditObserver,
    data: DataObserver,
    flow: Arc<Flow>,
    events: mpsc::Sender<Event>,
}

impl Observed {
    pub(super) fn new(inner: TlsStream<TcpStream>, flow: Arc<Flow>, events: mpsc::Sender<Event>) -> Self {
        let (credit, data) = (CreditObserver::new(TRANSFER_STREAM), DataObserver::new(TRANSFER_STREAM));
        Self { inner, broken: None, credit, data, flow, events }
    }

    /// Counts the data in the first `written` bytes of these slices.
    fn count<'a>(&mut self, slices: impl Iterator<Item = &'a [u8]>, mut written: usize) {
        let mut data = 0;
        for slice in slices {
            let part = &slice[..written.min(slice.len())];
            data += self.data.observe(part);
            written -= part.len();
        }
        if data > 0 {
            self.flow.sent.fetch_add(data, Ordering::Relaxed);
            self.flow.left.notify_one();
        }
    }

    /// Writes, or returns `None` once the connection is known to be gone.
    fn write_with<T>(
        &mut self,
        write: impl FnOnce(Pin<&mut TlsStream<TcpStream>>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<Option<T>>> {
        if self.broken.is_none() {
            match ready!(write(Pin::new(&mut self.inner))) {
                Err(error) if is_gone(&error) => self.broken = Some(error),
                result => return Poll::Ready(result.map(Some)),
            }
        }
        Poll::Ready(Ok(None))
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        if !self.flow.is_in_order.load(Ordering::Relaxed) {
            // A failure means that the connection is gone already.
            let _ = sockopt::set_socket_linger(self.inner.get_ref().0, Some(Duration::ZERO));
        }
    }
}

/// Returns true when the peer has ended the connection. Reading will then reach an end.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset)
}

impl AsyncRead for Observed {
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
        let returned = this.credit.observe(&buffer.filled()[before..]);
        if this.credit.is_reset() {
            this.flow.is_reset.store(true, Ordering::Relaxed);
        }
        if returned > 0 {
            let sum = this.flow.returned.fetch_add(returned, Ordering::Relaxed) + returned;
            if this.flow.is_wanted(sum) {
                this.flow.want(None);
                // A full channel means that the loop is about to look anyway.
                let _ = this.events.try_send(Event::Credit);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Observed {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(this.write_with(|inner| inner.poll_write(context, bytes)))?;
        this.count([bytes].into_iter(), written.unwrap_or(0));
        Poll::Ready(Ok(written.unwrap_or(bytes.len())))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(this.write_with(|inner| inner.poll_write_vectored(context, slices)))?;
        let slices = slices.iter().map(|slice| &**slice);
        this.count(slices.clone(), written.unwrap_or(0));
        Poll::Ready(Ok(written.unwrap_or_else(|| slices.map(<[u8]>::len).sum())))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().write_with(|inner| inner.poll_flush(context)).map_ok(Option::unwrap_or_default)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}
