//! A TCP proxy before a server: a link that a test can cut, slow down, or make to lose bytes.
//!
//! Limits count the bytes that go from the server to the client, over all connections together: that is where a snapshot
//! and a replication stream go.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::deadline::rest;
use crate::error::{Error, Result};

/// No limit.
const NEVER: u64 = u64::MAX;

/// A running proxy. When it is dropped, its connections are cut and its port is given back.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    link: Arc<Link>,
    listener: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Link {
    target: SocketAddr,
    ending: AtomicBool,
    refusing: AtomicBool,
    bytes_per_s: AtomicU64,
    /// How many bytes may still go to the client before the link is cut.
    cut_in: AtomicU64,
    /// How many bytes to lose next.
    lose: AtomicU64,
    passed: AtomicU64,
    /// Both ends of every connection, by its number.
    open: Mutex<HashMap<u64, [TcpStream; 2]>>,
    next_number: AtomicU64,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and passes on to `target`.
    pub fn start(target: SocketAddr) -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Error::io("listen for a proxy"))?;
        let addr = listener.local_addr().map_err(Error::io("listen for a proxy"))?;
        let link = Arc::new(Link {
            target,
            ending: AtomicBool::new(false),
            refusing: AtomicBool::new(false),
            bytes_per_s: AtomicU64::new(NEVER),
            cut_in: AtomicU64::new(NEVER),
            lose: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            open: Mutex::new(HashMap::new()),
            next_number: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&link);
        let listener = thread::spawn(move || accept(&listener, &accepting));
        Ok(Self { addr, link, listener: Some(listener) })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many bytes have gone to clients so far.
    pub fn passed_bytes(&self) -> u64 {
        self.link.passed.load(Ordering::SeqCst)
    }

    /// Cuts every connection, and takes no new one until [`Self::mend`].
    pub fn cut(&self) {
        self.link.refusing.store(true, Ordering::SeqCst);
        self.link.cut_open();
    }

    /// Cuts every connection; new ones are taken.
    pub fn drop_connections(&self) {
        self.link.cut_open();
    }

    /// Takes connections again, at full speed, without limits.
    pub fn mend(&self) {
        self.link.cut_in.store(NEVER, Ordering::SeqCst);
        self.link.bytes_per_s.store(NEVER, Ordering::SeqCst);
        self.link.lose.store(0, Ordering::SeqCst);
        self.link.refusing.store(false, Ordering::SeqCst);
    }

    /// Cuts, as [`Self::cut`] does, when exactly that many more bytes have gone to the client.
    pub fn cut_after(&self, bytes: u64) {
        self.link.cut_in.store(bytes, Ordering::SeqCst);
    }

    /// Passes on no more than that many bytes a second to the client, on each connection.
    pub fn throttle(&self, bytes_per_s: u64) {
        self.link.bytes_per_s.store(bytes_per_s.max(1), Ordering::SeqCst);
    }

    /// Loses the next bytes that should go to the client, without a trace.
    pub fn lose(&self, bytes: u64) {
        self.link.lose.store(bytes, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.link.ending.store(true, Ordering::SeqCst);
        self.link.cut_open();
        // Wakes the listener, which sees that this is the end.
        let _ = TcpStream::connect(self.addr);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

impl Link {
    fn cut_open(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, ends) in open.drain() {
            for end in ends {
                let _ = end.shutdown(Shutdown::Both);
            }
        }
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// How many of `wanted` bytes may go to the client before the cut.
    fn allow(&self, wanted: usize) -> usize {
        let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
        let before = self
            .cut_in
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                Some(if left == NEVER { NEVER } else { left.saturating_sub(wanted) })
            })
            .unwrap_or(NEVER);
        usize::try_from(before.min(wanted)).unwrap_or(usize::MAX)
    }

    /// How many of `wanted` bytes are to be lost.
    fn take_lost(&self, wanted: usize) -> usize {
        let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
        let before = self
            .lose
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left.saturating_sub(wanted)))
            .unwrap_or(0);
        usize::try_from(before.min(wanted)).unwrap_or(usize::MAX)
    }
}

fn accept(listener: &TcpListener, link: &Arc<Link>) {
    for client in listener.incoming() {
        if link.is_ending() {
            return;
        }
        let Ok(client) = client else { continue };
        if link.refusing.load(Ordering::SeqCst) {
            continue;
        }
        // A target that is gone looks to the client as it would without a proxy: a connection that ends at once.
        let Ok(server) = TcpStream::connect(link.target) else { continue };
        let _ = connect(link, &client, &server);
    }
}

fn connect(link: &Arc<Link>, client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_server) = (client.try_clone()?, server.try_clone()?);
    let (from_server, to_client) = (server.try_clone()?, client.try_clone()?);
    let number = link.next_number.fetch_add(1, Ordering::SeqCst);
    {
        let mut open = link.open.lock().unwrap_or_else(PoisonError::into_inner);
        // A cut sets the mark before it takes the lock: it either finds this connection or is seen here.
        if link.refusing.load(Ordering::SeqCst) || link.is_ending() {
            return Ok(());
        }
        open.insert(number, [client.try_clone()?, server.try_clone()?]);
    }
    thread::spawn(move || {
        let _ = pass_up(&from_client, &to_server);
        let _ = to_server.shutdown(Shutdown::Both);
        let _ = from_client.shutdown(Shutdown::Both);
    });
    let link = Arc::clone(link);
    thread::spawn(move || {
        let _ = pass_down(&link, &from_server, &to_client);
        let _ = to_client.shutdown(Shutdown::Both);
        let _ = from_server.shutdown(Shutdown::Both);
        link.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
    });
    Ok(())
}

fn pass_up(mut client: &TcpStream, mut server: &TcpStream) -> io::Result<u64> {
    io::copy(&mut client, &mut server)
}

fn pass_down(link: &Link, mut server: &TcpStream, mut client: &TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let rate = link.bytes_per_s.load(Ordering::SeqCst);
        // A slow link passes small pieces, fifty a second.
        let piece = usize::try_from(rate / 50).unwrap_or(usize::MAX).clamp(1, buffer.len());
        let count = server.read(buffer.get_mut(..piece).unwrap_or_default())?;
        if count == 0 {
            return Ok(());
        }
        let lost = link.take_lost(count);
        let kept = buffer.get(lost..count).unwrap_or_default();
        let allowed = link.allow(kept.len());
        // Counted before it goes: who has received a byte finds it counted.
        link.passed.fetch_add(u64::try_from(allowed).unwrap_or(0), Ordering::SeqCst);
        client.write_all(kept.get(..allowed).unwrap_or_default())?;
        if allowed < kept.len() || link.cut_in.load(Ordering::SeqCst) == 0 {
            link.refusing.store(true, Ordering::SeqCst);
            link.cut_open();
            return Ok(());
        }
        if rate != NEVER {
            let micros = u64::try_from(count).unwrap_or(0).saturating_mul(1_000_000) / rate;
            rest(Duration::from_micros(micros));
        }
    }
}
