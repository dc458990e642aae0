//! A proxy before an S3 server that behaves as stores do on bad days: refuses, loses answers, breaks off, is slow, keeps half of a write, lists late.
//!
//! What happens to a request is decided by a seed, the request and how often it was made before, whatever the order in which requests come; and no
//! request meets more than `MOST_FAULTS` in a row, so whoever tries often enough succeeds.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::deadline::rest;
use crate::error::{Error, Result};
use crate::random::Random;
use crate::stores::S3Server;

/// How often in a row the same request meets a fault.
const MOST_FAULTS: u64 = 2;
/// How long a slow request waits at the most.
const SLOWEST_MS: u64 = 400;

/// What may happen to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// Nothing is done, and the answer is 503.
    Fails,
    /// The connection breaks when half of the request has come; nothing is done.
    BreaksRequest,
    /// It is done, and the connection breaks before the answer.
    LosesAnswer,
    /// It is done, and the connection breaks in the middle of the answer's body.
    BreaksAnswer,
    /// It is done after a while.
    IsSlow,
    /// Half of what was to be written is kept under the object's name, and the connection breaks.
    KeepsHalf,
    /// A listing shows what it showed before.
    ListsLate,
}

#[derive(Debug, Default)]
struct Weather {
    /// In how many of a hundred requests.
    percent: BTreeMap<Fault, u64>,
    /// Only requests for paths that contain this.
    only: String,
    /// Whether everything that changes the store is refused with 403.
    read_only: bool,
    /// The first write to a path that contains this loses its answer, and everything after it is refused with 403.
    parting: Option<Parting>,
    /// Requests for objects whose path contains this wait.
    held: Option<String>,
    waiting: usize,
    met: BTreeMap<Fault, u64>,
    /// How often each request was made.
    made: HashMap<String, u64>,
    lists: HashMap<String, Answer>,
}

#[derive(Debug)]
struct Parting {
    word: String,
    is_over: bool,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    seed: u64,
    weather: Mutex<Weather>,
    changed: Condvar,
    ending: std::sync::atomic::AtomicBool,
}

/// A running proxy; fair weather in the beginning. Its port is given back when it is dropped.
#[derive(Debug)]
pub struct FaultyStore {
    addr: SocketAddr,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

impl FaultyStore {
    /// Listens on a free port of 127.0.0.1.
    pub fn start(server: &S3Server, seed: u64) -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Error::io("listen for a store"))?;
        let addr = listener.local_addr().map_err(Error::io("listen for a store"))?;
        let shared = Arc::new(Shared {
            target: server.addr(),
            seed,
            weather: Mutex::default(),
            changed: Condvar::new(),
            ending: std::sync::atomic::AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        let listener = thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.ending.load(std::sync::atomic::Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                thread::spawn(move || {
                    // A connection that breaks is what this is for.
                    let _ = serve(&shared, &client);
                });
            }
        });
        Ok(Self { addr, shared, listener: Some(listener) })
    }

    /// The environment with which an S3 client reaches it.
    pub fn environment(&self) -> [(&'static str, String); 5] {
        S3Server::environment_of(&format!("http://{}", self.addr))
    }

    /// From now on these faults happen to so many of a hundred requests for paths that contain `only`.
    pub fn set(&self, only: &str, percent: &[(Fault, u64)]) {
        let mut weather = self.shared.weather();
        weather.percent = percent.iter().copied().collect();
        only.clone_into(&mut weather.only);
    }

    /// From now on nothing happens.
    pub fn clear(&self) {
        self.set("", &[]);
        self.shared.weather().parting = None;
    }

    /// The next write to a path that contains `only` is done, and its answer is lost; from then on every request for such a path is refused.
    pub fn lose_answer_and_refuse(&self, only: &str) {
        self.shared.weather().parting = Some(Parting { word: only.to_owned(), is_over: false });
    }

    /// Whether everything that would change the store is refused.
    pub fn set_read_only(&self, read_only: bool) {
        self.shared.weather().read_only = read_only;
    }

    /// From now on requests for objects whose path contains `word` wait until [`Self::release`].
    pub fn hold(&self, word: &str) {
        self.shared.weather().held = Some(word.to_owned());
    }

    /// How many requests wait.
    pub fn waiting(&self) -> usize {
        self.shared.weather().waiting
    }

    /// Lets all that waits go on.
    pub fn release(&self) {
        self.shared.weather().held = None;
        self.shared.changed.notify_all();
    }

    /// How many requests met which fault.
    pub fn met(&self) -> BTreeMap<Fault, u64> {
        self.shared.weather().met.clone()
    }
}

impl Drop for FaultyStore {
    fn drop(&mut self) {
        self.release();
        self.shared.ending.store(true, std::sync::atomic::Ordering::SeqCst);
        // Wakes the listener, which sees that this is the end.
        let _ = TcpStream::connect(self.addr);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

/// A request.
struct Request {
    method: String,
    /// Path and query.
    target: String,
    /// Without those that concern the connection, and without the length.
    headers: Vec<String>,
    body: Vec<u8>,
}

/// What happens to a request when the store goes away.
enum Last {
    Unanswered,
    Refused,
}

/// An answer.
#[derive(Clone, Debug)]
struct Answer {
    /// Status line and headers, without those that concern the connection, and without the length unless there is no body to it.
    head: Vec<String>,
    body: Vec<u8>,
}

impl Request {
    fn writes(&self) -> bool {
        matches!(self.method.as_str(), "PUT" | "POST" | "DELETE")
    }

    fn lists(&self) -> bool {
        self.method == "GET" && self.target.contains("list-type=2")
    }
}

impl Shared {
    fn weather(&self) -> MutexGuard<'_, Weather> {
        self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What happens to this request, with numbers of its own for the details.
    fn fate(&self, request: &Request) -> (Option<Fault>, Random) {
        let mut weather = self.weather();
        let name = format!("{} {}", request.method, request.target);
        let made = weather.made.entry(name.clone()).or_default();
        *made += 1;
        let turn = *made;
        let mut hasher = DefaultHasher::new();
        (self.seed, &name, turn).hash(&mut hasher);
        let mut random = Random::from_seed(hasher.finish());
        if turn.is_multiple_of(MOST_FAULTS + 1) || !request.target.contains(&weather.only) {
            return (None, random);
        }
        let fitting = |fault: &Fault| match fault {
            Fault::KeepsHalf => request.method == "PUT" && request.body.len() > 1,
            Fault::BreaksAnswer => request.method == "GET",
            Fault::ListsLate => request.lists(),
            _ => true,
        };
        let met = weather
            .percent
            .iter()
            .filter(|(fault, _)| fitting(fault))
            .find(|(_, percent)| random.chance(**percent))
            .map(|(fault, _)| *fault);
        if let Some(fault) = met {
            *weather.met.entry(fault).or_default() += 1;
        }
        (met, random)
    }

    /// Whether the request is refused for good, or the last one to be done.
    fn parts(&self, request: &Request) -> Option<Last> {
        let mut weather = self.weather();
        let parting = weather.parting.as_mut().filter(|parting| request.target.contains(&parting.word))?;
        if parting.is_over {
            return Some(Last::Refused);
        }
        parting.is_over = request.writes();
        parting.is_over.then_some(Last::Unanswered)
    }

    /// Waits while the request is held.
    fn wait_if_held(&self, request: &Request) {
        let mut weather = self.weather();
        let held = |weather: &Weather| {
            weather.held.as_ref().is_some_and(|word| !request.lists() && request.target.contains(word))
        };
        if !held(&weather) {
            return;
        }
        weather.waiting += 1;
        while held(&weather) {
            weather = self.changed.wait(weather).unwrap_or_else(PoisonError::into_inner);
        }
        weather.waiting -= 1;
    }
}

/// Serves one connection until either side ends it, or a fault does.
fn serve(shared: &Shared, client: &TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut reader = BufReader::new(client.try_clone()?);
    let mut client = client;
    while let Some(mut request) = read_request(&mut reader)? {
        shared.wait_if_held(&request);
        if request.writes() && shared.weather().read_only {
            give(client, &request, &refusal("403 Forbidden", "AccessDenied", "the store may only be read"))?;
            continue;
        }
        match shared.parts(&request) {
            Some(Last::Unanswered) => return pass_on(shared.target, &request).map(drop),
            Some(Last::Refused) => {
                give(
                    client,
                    &request,
                    &refusal("403 Forbidden", "AccessDenied", "the key is no longer valid"),
                )?;
                continue;
            }
            None => {}
        }
        let (fate, mut random) = shared.fate(&request);
        match fate {
            Some(Fault::Fails) => {
                give(client, &request, &refusal("503 Service Unavailable", "SlowDown", "come again"))?;
                continue;
            }
            Some(Fault::BreaksRequest) => return Ok(()),
            Some(Fault::IsSlow) => rest(Duration::from_millis(random.below(SLOWEST_MS))),
            Some(Fault::KeepsHalf) => {
                request.body.truncate(request.body.len() / 2);
                pass_on(shared.target, &request)?;
                return Ok(());
            }
            Some(Fault::ListsLate) => {
                let before = shared.weather().lists.get(&request.target).cloned();
                if let Some(before) = before {
                    give(client, &request, &before)?;
                    continue;
                }
            }
            _ => {}
        }
        let answer = pass_on(shared.target, &request)?;
        if request.lists() {
            shared.weather().lists.insert(request.target.clone(), answer.clone());
        }
        match fate {
            Some(Fault::LosesAnswer) => return Ok(()),
            Some(Fault::BreaksAnswer) if answer.body.len() > 1 => {
                write!(
                    client,
                    "{}\r\ncontent-length: {}\r\n\r\n",
                    answer.head.join("\r\n"),
                    answer.body.len()
                )?;
                return client.write_all(answer.body.get(..answer.body.len() / 2).unwrap_or_default());
            }
            _ => give(client, &request, &answer)?,
        }
    }
    Ok(())
}

fn refusal(status: &str, code: &str, message: &str) -> Answer {
    let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>").into_bytes();
    Answer { head: vec![format!("HTTP/1.1 {status}"), "content-type: application/xml".to_owned()], body }
}

fn give(mut client: &TcpStream, request: &Request, answer: &Answer) -> io::Result<()> {
    let mut bytes = answer.head.join("\r\n").into_bytes();
    // To a question for the head alone the length is that of the object, as the server said.
    if request.method != "HEAD" {
        bytes.extend(format!("\r\ncontent-length: {}", answer.body.len()).bytes());
    }
    bytes.extend(b"\r\n\r\n");
    if request.method != "HEAD" {
        bytes.extend(&answer.body);
    }
    client.write_all(&bytes)
}

/// The first line and the headers; nothing at the connection's end.
fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Vec<String>>> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(Some(head));
        }
        head.push(line.to_owned());
    }
}

fn value_of<'a>(head: &'a [String], name: &str) -> Option<&'a str> {
    head.iter().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

fn without(head: &mut Vec<String>, names: &[&str]) {
    head.retain(|line| {
        let name = line.split_once(':').map(|(name, _)| name);
        !name.is_some_and(|name| names.iter().any(|other| name.eq_ignore_ascii_case(other)))
    });
}

fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let Some(mut head) = read_head(reader)? else { return Ok(None) };
    let length = value_of(&head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let first = head.first().cloned().unwrap_or_default();
    let mut words = first.split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    without(&mut head, &["connection", "content-length", "expect", "te", "keep-alive"]);
    let headers = head.into_iter().skip(1).collect();
    Ok(Some(Request { method, target, headers, body }))
}

fn pass_on(target: SocketAddr, request: &Request) -> io::Result<Answer> {
    let mut server = TcpStream::connect(target)?;
    // With the older version the body ends where the connection does.
    let mut bytes = format!("{} {} HTTP/1.0\r\n", request.method, request.target).into_bytes();
    for header in &request.headers {
        bytes.extend(format!("{header}\r\n").bytes());
    }
    bytes.extend(format!("content-length: {}\r\nconnection: close\r\n\r\n", request.body.len()).bytes());
    bytes.extend(&request.body);
    server.write_all(&bytes)?;
    let mut reader = BufReader::new(server);
    let mut head = read_head(&mut reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut body = Vec::new();
    reader.read_to_end(&mut body)?;
    without(&mut head, &["connection", "transfer-encoding", "keep-alive"]);
    if request.method != "HEAD" {
        without(&mut head, &["content-length"]);
    }
    if let Some(first) = head.first_mut() {
        *first = first.replacen("HTTP/1.0", "HTTP/1.1", 1);
    }
    Ok(Answer { head, body })
}
