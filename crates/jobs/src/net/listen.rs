//! Taking connections on a free port.

use std::net::{IpAddr, SocketAddr};

use tokio::net::{TcpListener, TcpStream};

use crate::{Error, ErrorKind, Result};

/// A free port of this machine, on which connections are taken.
pub struct Listener {
    tcp: TcpListener,
    addr: SocketAddr,
}

impl Listener {
    /// Takes a free port of the address `ip`.
    pub async fn bind(ip: IpAddr) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::new(ErrorKind::Failed, format!("can't take connections on {ip}: {error}"))
                .hint("give an address of this machine")
        };
        let tcp = TcpListener::bind((ip, 0)).await.map_err(failed)?;
        let addr = tcp.local_addr().map_err(failed)?;
        Ok(Self { tcp, addr })
    }

    /// Where connections are taken.
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The next connection, and who made it. Cancel-safe.
    pub(crate) async fn accept(&self) -> Result<(TcpStream, SocketAddr)> {
        let failed = |error: std::io::Error| {
            Error::new(ErrorKind::Failed, format!("can't take a connection on {}: {error}", self.addr))
        };
        let (stream, peer) = self.tcp.accept().await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        Ok((stream, peer))
    }
}
