//! A TCP connection that the runtime need not watch while nobody reads.
//!
//! Servers send a stream in small pieces. Each wakes whoever watches the connection, even if it is read every few milliseconds only, and that costs
//! both sides more than the bytes do. Invariant: a connection that rests is watched again as soon as it is read or written.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

/// A connected byte stream, with or without TLS.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// Lets what arrives wake nobody until it is read or written the next time.
    fn rest(&mut self);
}

impl Stream for UnixStream {
    fn rest(&mut self) {
        // Of a server on this machine, for a moment: not worth it.
    }
}

impl Stream for Socket {
    fn rest(&mut self) {
        if let State::Watched(_) = self.state
            && let State::Watched(stream) = std::mem::replace(&mut self.state, State::Lost)
            && let Ok(stream) = stream.into_std()
        {
            self.state = State::Resting(stream);
        }
    }
}

impl Stream for TlsStream<Socket> {
    fn rest(&mut self) {
        self.get_mut().0.rest();
    }
}

/// A TCP connection.
#[derive(Debug)]
pub(super) struct Socket {
    state: State,
}

#[derive(Debug)]
enum State {
    Watched(TcpStream),
    Resting(std::net::TcpStream),
    /// The system did not take it back.
    Lost,
}

impl Socket {
    pub(super) const fn new(stream: TcpStream) -> Self {
        Self { state: State::Watched(stream) }
    }

    fn watched(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        if let State::Resting(_) = self.state
            && let State::Resting(stream) = std::mem::replace(&mut self.state, State::Lost)
        {
            self.state = State::Watched(TcpStream::from_std(stream)?);
        }
        match &mut self.state {
            State::Watched(stream) => Ok(Pin::new(stream)),
            State::Resting(_) | State::Lost => Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the system can't watch the connection any more",
            )),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.watched()?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.watched()?.poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.watched()?.poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watched()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watched()?.poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn what_came_while_it_rested_is_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (socket, accepted) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (mut socket, mut server) = (Socket::new(socket.unwrap()), accepted.unwrap().0);
        let mut found = [0; 4];
        for said in [b"what", b"came"] {
            socket.rest();
            socket.rest();
            server.write_all(said).await.unwrap();
            socket.read_exact(&mut found).await.unwrap();
            assert_eq!(&found, said);
        }
        socket.rest();
        socket.write_all(b"back").await.unwrap();
        server.read_exact(&mut found).await.unwrap();
        assert_eq!(&found, b"back");
        socket.rest();
        drop(server);
        assert_eq!(socket.read(&mut found).await.unwrap(), 0, "its end is met as well");
    }
}
