//! A byte stream that can be watched and ended from outside.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

/// The outside view of one [`Watched`] stream. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {
    ended: CancellationToken,
    kill: CancellationToken,
    error: Arc<Mutex<Option<String>>>,
}

impl Link {
    /// Ends when the stream was dropped by its user: the connection is over.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Whether the connection is over.
    pub fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Ends the connection: pending and further reads and writes fail.
    pub fn close(&self) {
        self.kill.cancel();
    }

    /// The first I/O error seen on the stream, for people.
    pub fn last_error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A stream with a [`Link`].
#[derive(Debug)]
pub struct Watched<S> {
    inner: S,
    killed: Pin<Box<WaitForCancellationFutureOwned>>,
    error: Arc<Mutex<Option<String>>>,
    _ended: DropGuard,
}

impl<S> Watched<S> {
    /// Wraps a stream.
    pub fn new(inner: S) -> (Self, Link) {
        let link = Link { ended: CancellationToken::new(), kill: CancellationToken::new(), error: Arc::default() };
        let watched = Watched {
            inner,
            killed: Box::pin(link.kill.clone().cancelled_owned()),
            error: Arc::clone(&link.error),
            _ended: link.ended.clone().drop_guard(),
        };
        (watched, link)
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.killed.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "connection closed by this side")),
            Poll::Pending => Ok(()),
        }
    }

    fn note<T>(&self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &outcome {
            // TLS words an end without goodbye at length.
            let ended = error.kind() == io::ErrorKind::UnexpectedEof;
            let told = || if ended { "the peer closed the connection".to_owned() } else { error.to_string() };
            self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(told);
        }
        outcome
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let outcome = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.note(outcome)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let outcome = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.note(outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let outcome = Pin::new(&mut self.inner).poll_flush(cx);
        self.note(outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.note(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

impl<S> Connected for Watched<S> {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}
