//! What the fuzzers call, and what the tests call with the corpus: one function for each decoder. A function panics if what it calls does, or
//! if one of the promises that it states is broken.

use slotkeep_format::{
    IndexReader, IndexWriter, Manifest, RepositoryFile, SeekTable, decode_digest, encode_digest,
};
use slotkeep_model::{NodeAddr, Product, RdbVersion, ReplOffset};
use slotkeep_rdb::{
    Decoder, Digester, DumpPayload, Element, Envelope, Error, Event, Expiry, FieldExpiry, Level, Modules,
    OwnedEvent, Parser, Plan, Policy, Reader, Released, Rewriter, Translation, Translator, Value,
    ValueBuilder, ValueType, dump_payload,
};
use slotkeep_wire::nodes_conf::NodesConf;
use slotkeep_wire::stream::{AbsoluteExpiry, Account, Filter, Gap};
use slotkeep_wire::topology::{ClusterInfo, from_nodes};
use slotkeep_wire::{
    Credentials, Handshake, HandshakeOptions, Info, PayloadHeader, Primary, PrimaryError, PrimaryEvent,
    Request, ServerError, Splitter, StreamStart, Transfer,
};

/// A fuzzer's name and function.
pub type Target = (&'static str, fn(&[u8]));

/// Every function, by the name of its fuzzer.
pub const TARGETS: &[Target] = &[
    ("rdb_raw", rdb_raw),
    ("rdb_element", rdb_element),
    ("rdb_owned", rdb_owned),
    ("rdb_value", rdb_value),
    ("rdb_dump", rdb_dump),
    ("rdb_envelope", rdb_envelope),
    ("rdb_rewrite", rdb_rewrite),
    ("rdb_translate", rdb_translate),
    ("wire_resp", wire_resp),
    ("wire_transfer", wire_transfer),
    ("wire_stream", wire_stream),
    ("wire_handshake", wire_handshake),
    ("wire_primary", wire_primary),
    ("wire_filter", wire_filter),
    ("wire_expiry", wire_expiry),
    ("wire_info", wire_info),
    ("wire_cluster_nodes", wire_cluster_nodes),
    ("format_frames", format_frames),
    ("format_index", format_index),
    ("format_manifest", format_manifest),
    ("format_digest", format_digest),
];

/// How many bytes a value may take here: enough for any input, too little for what lies about its size.
const VALUE_BYTES: u64 = 4 << 20;

/// The length of the chunks that an input is cut into: what its last byte says.
fn step(data: &[u8]) -> usize {
    usize::from(data.last().copied().unwrap_or(0) % 31) + 1
}

/// The events of an RDB as text, parts of byte strings joined.
fn events<'a>(level: Level, chunks: impl Iterator<Item = &'a [u8]>) -> Result<(Vec<String>, u64), Error> {
    let (mut parser, mut digester) = (Parser::new(level), Digester::new());
    let (mut found, mut joined, mut sum) = (Vec::new(), Vec::new(), 0_u64);
    for mut input in chunks {
        while let Some(event) = parser.next(&mut input)? {
            if let Some(digest) = digester.event(&event) {
                sum = sum.wrapping_add(digest.hash as u64);
            }
            match event {
                Event::ValueBytes(bytes) => joined.extend_from_slice(bytes),
                Event::Element(Element::Bytes { part, bytes, last }) => {
                    joined.extend_from_slice(bytes);
                    if last {
                        found.push(format!("{part:?} {}", joined.escape_ascii()));
                        joined.clear();
                    }
                }
                event => {
                    found.push(format!("{} {event:?}", joined.escape_ascii()));
                    joined.clear();
                }
            }
        }
        assert!(input.is_empty(), "a parser takes all of its input");
    }
    parser.finish()?;
    Ok((found, sum))
}

fn in_any_chunks(level: Level, data: &[u8]) {
    let whole = events(level, std::iter::once(data));
    let parts = events(level, data.chunks(step(data)));
    match (whole, parts) {
        (Ok(whole), Ok(parts)) => assert_eq!(whole, parts, "chunks make no difference"),
        (whole, parts) => assert_eq!(whole.is_ok(), parts.is_ok(), "chunks make no difference"),
    }
}

pub fn rdb_raw(data: &[u8]) {
    in_any_chunks(Level::Raw, data);
}

pub fn rdb_element(data: &[u8]) {
    in_any_chunks(Level::Element, data);
    if events(Level::Element, std::iter::once(data)).is_ok() {
        assert!(
            events(Level::Raw, std::iter::once(data)).is_ok(),
            "the raw level reads what elements are read of"
        );
    }
}

fn records<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> Result<Vec<OwnedEvent>, Error> {
    let (mut reader, mut found) = (Reader::new(VALUE_BYTES), Vec::new());
    for mut input in chunks {
        while let Some(event) = reader.next(&mut input)? {
            found.push(event);
        }
    }
    reader.finish()?;
    Ok(found)
}

/// Values are read, written and read again.
pub fn rdb_owned(data: &[u8]) {
    let whole = records(std::iter::once(data));
    let parts = records(data.chunks(step(data)));
    assert_eq!(whole.is_ok(), parts.is_ok(), "chunks make no difference");
    let Ok(events) = whole else { return };
    for record in events.into_iter().filter_map(|event| match event {
        OwnedEvent::Key(record) => Some(record),
        _ => None,
    }) {
        for version in [version(14), VALKEY] {
            let mut bytes = Vec::new();
            let Ok(value_type) = record.value.encode(version, &mut bytes) else { continue };
            let again = value_of(value_type, version, &bytes).expect("what was written is read");
            let mut once_more = Vec::new();
            assert_eq!(again.encode(version, &mut once_more), Ok(value_type));
            assert!(bytes == once_more, "what was written is read as it was");
        }
    }
}

const VALKEY: RdbVersion = RdbVersion { product: Product::Valkey, number: 80 };

fn version(number: u16) -> RdbVersion {
    RdbVersion { product: Product::Redis, number }
}

fn value_of(value_type: ValueType, version: RdbVersion, bytes: &[u8]) -> Option<Value> {
    let mut builder = ValueBuilder::new(value_type.logical(), VALUE_BYTES);
    let (mut decoder, mut input) = (Decoder::new(value_type, version), bytes);
    while let Some(element) = decoder.next(&mut input).ok()? {
        if let Some(value) = builder.element(&element).ok()? {
            return Some(value);
        }
    }
    None
}

/// The first byte is the type, the second the product.
fn value_in(data: &[u8]) -> Option<(ValueType, RdbVersion, &[u8])> {
    let (&[number, product], bytes) = data.split_first_chunk::<2>()?;
    let version = if product % 2 == 0 { version(14) } else { VALKEY };
    Some((ValueType::from_byte(number, version.product).ok()?, version, bytes))
}

fn elements<'a>(
    value_type: ValueType,
    version: RdbVersion,
    chunks: impl Iterator<Item = &'a [u8]>,
) -> Option<Vec<String>> {
    let (mut decoder, mut found, mut joined) = (Decoder::new(value_type, version), Vec::new(), Vec::new());
    for mut input in chunks {
        while let Some(element) = decoder.next(&mut input).ok()? {
            match element {
                Element::End => return Some(found),
                Element::Bytes { part, bytes, last } => {
                    joined.extend_from_slice(bytes);
                    if last {
                        found.push(format!("{part:?} {}", joined.escape_ascii()));
                        joined.clear();
                    }
                }
                element => found.push(format!("{element:?}")),
            }
        }
    }
    None
}

pub fn rdb_value(data: &[u8]) {
    let Some((value_type, version, bytes)) = value_in(data) else { return };
    let whole = elements(value_type, version, std::iter::once(bytes));
    assert_eq!(whole, elements(value_type, version, bytes.chunks(step(data))), "chunks make no difference");
}

pub fn rdb_dump(data: &[u8]) {
    let body = data.get(..data.len().saturating_sub(8)).unwrap_or_default();
    let unchecked = [body, &[0; 8]].concat();
    for payload in [data, &unchecked] {
        let Ok(parsed) = DumpPayload::parse(payload) else { continue };
        let _ = elements(parsed.value_type, parsed.version, std::iter::once(parsed.value));
        let built = dump_payload(parsed.value_type, parsed.value, parsed.version.number);
        assert_eq!(DumpPayload::parse(&built), Ok(parsed), "what was built is read");
    }
}

pub fn rdb_envelope(data: &[u8]) {
    let check = |step: usize| {
        let mut envelope = Envelope::new();
        data.chunks(step).for_each(|chunk| envelope.feed(chunk));
        envelope.finish()
    };
    assert_eq!(check(step(data)), check(data.len().max(1)), "chunks make no difference");
}

fn rewrite<'a>(policy: Policy<'_>, chunks: impl Iterator<Item = &'a [u8]>) -> Result<Vec<u8>, Error> {
    let (mut rewriter, mut out) = (Rewriter::new(policy), Vec::new());
    for mut input in chunks {
        while !input.is_empty() {
            rewriter.feed(&mut input, &mut out)?;
        }
    }
    rewriter.finish(&mut out)?;
    Ok(out)
}

fn policy(target: RdbVersion) -> Policy<'static> {
    let mut policy = Policy { modules: Modules::All, functions: target.number >= 10, ..Policy::new(target) };
    policy.translation.limit_bytes = VALUE_BYTES;
    policy.translation.released = Released::Own(b"heir".to_vec());
    policy
}

/// What is written can be read, and says the same.
pub fn rdb_rewrite(data: &[u8]) {
    // A CRC64 of zero is not checked, so that not every change is found by it.
    let body = data.get(..data.len().saturating_sub(8)).unwrap_or_default();
    let rdb = [body, &[0; 8]].concat();
    let source = rdb.first_chunk().and_then(RdbVersion::from_magic);
    let before = events(Level::Element, std::iter::once(&rdb[..]));
    for target in [version(7), version(9), version(11), version(14), VALKEY] {
        let new = rewrite(policy(target), std::iter::once(&rdb[..]));
        let parts = rewrite(policy(target), rdb.chunks(step(data)));
        match (&new, &parts) {
            (Ok(new), Ok(parts)) => assert!(new == parts, "chunks make no difference"),
            _ => assert_eq!(new.is_ok(), parts.is_ok(), "chunks make no difference"),
        }
        let Ok(new) = new else { continue };
        assert!(events(Level::Raw, std::iter::once(&new[..])).is_ok(), "what was written is read");
        if let (Ok((_, sum)), true) = (&before, source == Some(target)) {
            let (_, after) =
                events(Level::Element, std::iter::once(&new[..])).expect("what was written is read");
            assert_eq!(*sum, after, "nothing has changed");
        }
        let again =
            rewrite(policy(target), std::iter::once(&new[..])).expect("what was written is rewritten");
        assert!(again == new, "a second time changes nothing");
    }
    let moved = Policy { expiry: Expiry::Shift(-1), ..policy(version(12)) };
    let _ = rewrite(moved, std::iter::once(&rdb[..]));
}

/// A value of one type is that of another, for all that older types have.
pub fn rdb_translate(data: &[u8]) {
    let Some((value_type, version_of, bytes)) = value_in(data) else { return };
    let before = value_of(value_type, version_of, bytes);
    for (target, field_expiry) in [
        (version(6), FieldExpiry::Drop),
        (version(7), FieldExpiry::Drop),
        (version(9), FieldExpiry::Keep),
        (version(10), FieldExpiry::Drop),
        (version(13), FieldExpiry::Shift(5)),
        (version(14), FieldExpiry::Keep),
        (VALKEY, FieldExpiry::Keep),
    ] {
        let released = Released::Own(b"heir".to_vec());
        let translation = Translation { target, limit_bytes: VALUE_BYTES, field_expiry, released };
        let Ok(Plan::Translate(to)) = translation.plan(value_type) else { continue };
        let run = |chunks: std::slice::Chunks<'_, u8>| {
            let (mut translator, mut out) =
                (Translator::new(&translation, value_type, version_of, to), Vec::new());
            for mut input in chunks {
                if translator.feed(&mut input, &mut out).ok()? {
                    return Some(out);
                }
            }
            None
        };
        let whole = run(bytes.chunks(bytes.len().max(1)));
        assert!(whole == run(bytes.chunks(step(data))), "chunks make no difference");
        let (Some(out), Some(before)) = (whole, &before) else { continue };
        let after = value_of(to, target, &out).expect("what was written is read");
        let same_kind = !matches!(before, Value::Stream(_)) && field_expiry == FieldExpiry::Keep;
        if same_kind && !has_early_expiry(before) {
            assert_eq!(format!("{after:?}"), format!("{before:?}"), "the value is the same");
        }
    }
}

/// Whether a field expires before 1970, which only Valkey can say.
fn has_early_expiry(value: &Value) -> bool {
    let Value::Hash(fields) = value else { return false };
    fields.iter().any(|field| field.expiry_ms.is_some_and(|expiry_ms| expiry_ms < 1))
}

pub fn wire_resp(data: &[u8]) {
    let read = |step: usize| {
        let (mut decoder, mut values) = (slotkeep_wire::Decoder::new(), Vec::new());
        for chunk in data.chunks(step) {
            decoder.feed(chunk);
            loop {
                match decoder.next() {
                    Ok(Some(value)) => values.push(format!("{value:?}")),
                    Ok(None) => break,
                    Err(_) => return (values, true),
                }
            }
        }
        (values, false)
    };
    assert_eq!(read(step(data)), read(data.len().max(1)), "chunks make no difference");
    let text = String::from_utf8_lossy(data);
    let _ = ServerError::classify(&text);
}

/// The first line is the payload's header.
pub fn wire_transfer(data: &[u8]) {
    let Some(end) = data.iter().position(|&byte| byte == b'\n') else { return };
    let (line, payload) = data.split_at(end);
    let Some(header) = PayloadHeader::parse(line) else { return };
    let read = |step: usize| {
        let (mut transfer, mut bytes) = (Transfer::new(header), Vec::new());
        for mut input in payload.get(1..).unwrap_or_default().chunks(step) {
            loop {
                match transfer.next(&mut input) {
                    Ok(Some(slotkeep_wire::Chunk::Bytes(chunk))) => bytes.extend_from_slice(chunk),
                    Ok(Some(slotkeep_wire::Chunk::End)) => return (bytes, true),
                    Ok(None) => break,
                    Err(_) => return (Vec::new(), false),
                }
            }
        }
        (bytes, false)
    };
    let (whole, parts) = (read(data.len().max(1)), read(step(data)));
    assert_eq!(whole.1, parts.1, "chunks make no difference");
    if whole.1 {
        assert!(whole == parts, "chunks make no difference");
    }
}

pub fn wire_stream(data: &[u8]) {
    let read = |step: usize| {
        let offset = ReplOffset(0);
        let mut splitter = Splitter::new(StreamStart { offset, db: None, in_transaction: false });
        let mut found = Vec::new();
        for mut input in data.chunks(step) {
            loop {
                match splitter.next(&mut input) {
                    Ok(Some(command)) => found.push(format!("{command:?}")),
                    Ok(None) => break,
                    Err(_) => return (found, None),
                }
            }
        }
        (found, Some((splitter.offset(), splitter.safe_cut(), splitter.db())))
    };
    assert_eq!(read(step(data)), read(data.len().max(1)), "chunks make no difference");
}

pub fn wire_handshake(data: &[u8]) {
    let read = |step: usize| {
        let mut handshake = Handshake::new(HandshakeOptions::new(Request::Full));
        let (mut events, mut sent) = (Vec::new(), Vec::new());
        for chunk in data.chunks(step) {
            while let Some(bytes) = handshake.to_send() {
                sent.extend(bytes);
            }
            if handshake.feed(chunk).is_err() {
                return None;
            }
            while let Some(event) = handshake.poll() {
                events.push(format!("{event:?}"));
            }
        }
        while let Some(bytes) = handshake.to_send() {
            sent.extend(bytes);
        }
        let done = handshake.is_done();
        Some((events, done, handshake.take_rest(), sent))
    };
    let (whole, parts) = (read(data.len().max(1)), read(step(data)));
    assert_eq!(whole.is_some(), parts.is_some(), "chunks make no difference");
    assert_eq!(whole, parts, "chunks make no difference");
}

/// The password that a replica has to show.
const PASSWORD: &str = "pass";

/// What parts what a replica says before the snapshot from what it says after it: a byte that no command of it holds.
const SNAPSHOT: u8 = 0xfe;

/// Feeds a part and gives its events, those of which only the last of a row counts, once.
fn listen(primary: &mut Primary, said: &[u8], step: usize) -> Result<Vec<PrimaryEvent>, PrimaryError> {
    let mut events: Vec<PrimaryEvent> = Vec::new();
    for chunk in said.chunks(step) {
        primary.feed(chunk)?;
        while let Some(event) = primary.poll() {
            match (events.last_mut(), &event) {
                (Some(PrimaryEvent::Alive), PrimaryEvent::Alive) => {}
                (Some(last @ PrimaryEvent::Acknowledged { .. }), PrimaryEvent::Acknowledged { .. }) => {
                    *last = event
                }
                _ => events.push(event),
            }
        }
    }
    Ok(events)
}

/// The first byte says whether a password is needed and what snapshot is offered. A replica that has not shown the password gets none.
pub fn wire_primary(data: &[u8]) {
    let Some((&options, data)) = data.split_first() else { return };
    let needs_password = options % 2 == 1;
    let header = if options & 2 == 0 { PayloadHeader::Length(9) } else { PayloadHeader::Mark([b'm'; 40]) };
    let mut parts = data.splitn(2, |&byte| byte == SNAPSHOT);
    let (before, after) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let run = |step: usize| {
        let credentials = needs_password.then(|| Credentials { user: None, password: PASSWORD.to_owned() });
        let mut primary = Primary::new(credentials);
        let mut sent = Vec::new();
        let mut found = listen(&mut primary, before, step);
        sent.extend(primary.to_send());
        if found.is_ok() {
            primary.full_resync(&"a".repeat(40).parse().expect("an id"), ReplOffset(17), &header);
            sent.extend(primary.to_send());
            found = listen(&mut primary, after, step)
                .map(|events| found.into_iter().flatten().chain(events).collect());
            sent.extend(primary.to_send());
        }
        let state = (primary.facts().clone(), primary.acknowledged(), primary.may_stream());
        let failed = primary.connection_closed();
        (found, sent.concat(), state, failed)
    };
    let (whole, parts) = (run(data.len().max(1)), run(step(data)));
    assert_eq!(whole, parts, "chunks make no difference");
    let (found, sent, (.., may_stream), _) = whole;
    let was_offered = sent.windows(11).any(|window| window == b"+FULLRESYNC");
    let shown = before.windows(PASSWORD.len()).any(|window| window == PASSWORD.as_bytes());
    assert!(!was_offered || !needs_password || shown, "nobody gets the data without the password");
    assert!(!may_stream || was_offered, "the stream follows a snapshot");
    let acknowledged = found.iter().flatten().any(|event| matches!(event, PrimaryEvent::Acknowledged { .. }));
    assert!(!acknowledged || was_offered, "only what was sent is acknowledged");
}

/// The commands of a stream, if it is one from beginning to end, and whether it ends between two of them. Line feeds between commands are
/// what gaps are filled with.
fn commands(stream: &[u8]) -> Option<(u64, bool)> {
    let start = StreamStart { offset: ReplOffset(0), db: None, in_transaction: false };
    let (mut splitter, mut input, mut count) = (Splitter::new(start), stream, 0_u64);
    loop {
        while let (true, Some(rest)) = (splitter.is_between_commands(), input.strip_prefix(b"\n")) {
            input = rest;
        }
        match splitter.next(&mut input) {
            Ok(Some(_)) => count += 1,
            Ok(None) => return Some((count, splitter.is_between_commands())),
            Err(_) => return None,
        }
    }
}

/// Chunks make no difference. How much of the command in question was given out before an error, nobody promises.
fn is_the_same<T: PartialEq + std::fmt::Debug, E: PartialEq + std::fmt::Debug>(
    (whole, one): &(Result<T, E>, Vec<u8>),
    (parts, other): &(Result<T, E>, Vec<u8>),
) {
    assert_eq!(whole, parts, "chunks make no difference");
    let alike = if whole.is_ok() { one == other } else { one.starts_with(other) || other.starts_with(one) };
    assert!(alike, "chunks make no difference");
}

/// Commands are passed on byte for byte or left out; a filled gap leaves every offset as it was.
pub fn wire_filter(data: &[u8]) {
    use slotkeep_wire::stream::Reader;
    for reader in [Reader::Engine, Reader::Node, Reader::AofFile] {
        for gap in [Gap::Close, Gap::Fill] {
            let run = |step: usize| {
                let (mut filter, mut out) = (Filter::new(ReplOffset(5), reader, gap), Vec::new());
                let result = data.chunks(step).try_for_each(|chunk| filter.feed(chunk, &mut out));
                let state = (filter.account(), filter.left_out(), filter.in_transaction());
                (result.map(|()| (state, filter.is_between_commands())), out)
            };
            let (whole, parts) = (run(data.len().max(1)), run(step(data)));
            is_the_same(&whole, &parts);
            let (Ok(((account, left_out, _), true)), out) = &whole else { continue };
            assert_eq!(account.sent, ReplOffset(5 + out.len() as u64), "what is given out is counted");
            let (came, _) = commands(data).expect("what is passed on is a stream");
            let (went, ends_well) = commands(out).expect("what is passed on is a stream");
            assert!(ends_well, "whole commands are passed on");
            match gap {
                Gap::Close => assert_eq!(went, came - left_out, "every command goes on or is left out"),
                Gap::Fill => {
                    let both = Account { original: account.original, sent: account.original };
                    assert_eq!(*account, both, "offsets stay as they were");
                    assert_eq!(went, came, "a gap is line feeds and one command without an effect");
                }
            }
            if *left_out == 0 {
                assert!(out == data, "what is passed on is not changed");
            }
        }
    }
}

/// Every command goes on, and its time, once it is absolute, stays as it is.
pub fn wire_expiry(data: &[u8]) {
    let run = |data: &[u8], step: usize, base_ms: u64| {
        let (mut rewriter, mut out) = (AbsoluteExpiry::new(ReplOffset(5)), Vec::new());
        let time_ms = |offset: ReplOffset| base_ms + offset.0;
        let result = data.chunks(step).try_for_each(|chunk| rewriter.feed(chunk, &mut out, time_ms));
        let state = (rewriter.account(), rewriter.rewritten(), rewriter.is_between_commands());
        (result.map(|()| state), out)
    };
    let whole = run(data, data.len().max(1), 1_700_000_000_000);
    is_the_same(&whole, &run(data, step(data), 1_700_000_000_000));
    let (Ok((account, rewritten, true)), out) = whole else { return };
    assert_eq!(account.sent, ReplOffset(5 + out.len() as u64), "what is given out is counted");
    let (came, _) = commands(data).expect("what is rewritten is a stream");
    let (went, ends_well) = commands(&out).expect("what is written is a stream");
    assert!(ends_well && went >= came && went <= came.saturating_add(rewritten), "every command goes on");
    // At another time it means the same.
    let again = |base_ms| run(&out, out.len().max(1), base_ms);
    assert_eq!(again(1_800_000_000_000), again(1_700_000_000_000), "every time is absolute");
}

pub fn wire_info(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let info = Info::parse(&text);
    let _ = (info.server_version(), info.cluster_enabled(), info.keyspace(), info.persistence());
    let _ = (info.memory(), info.replication());
    let _ = ClusterInfo::parse(&text);
}

pub fn wire_cluster_nodes(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = from_nodes(&text, &NodeAddr::new("127.0.0.1", 6379), false);
    if let Ok((conf, myself)) = NodesConf::parse(&text)
        && let Ok(rendered) = conf.render(&myself)
    {
        // The current epoch may have risen to the highest of the nodes'.
        let (conf, myself) = NodesConf::parse(&rendered).expect("what was rendered is read");
        assert_eq!(conf.render(&myself).ok(), Some(rendered), "what was rendered is rendered again");
    }
}

pub fn format_frames(data: &[u8]) {
    let object_bytes = data.len() as u64;
    let _ =
        SeekTable::stored_bytes(data.get(data.len().saturating_sub(9)..).unwrap_or_default(), object_bytes);
    let Ok(table) = SeekTable::parse(data, object_bytes.saturating_mul(1000)) else { return };
    let mut raw = 0_u64;
    for frame in table.frames() {
        assert_eq!(table.frame_at(raw).map(|found| found.number), Some(frame.number));
        raw += u64::from(frame.raw_bytes);
    }
    assert_eq!(raw, table.raw_bytes());
}

/// An index is read, written and read again.
pub fn format_index(data: &[u8]) {
    let read = |data: &[u8], step: usize| {
        let (mut reader, mut entries) = (IndexReader::default(), Vec::new());
        for chunk in data.chunks(step) {
            reader.feed(chunk, |entry| entries.push(entry)).ok()?;
        }
        reader.finish().ok()?;
        Some(entries)
    };
    let entries = read(data, data.len().max(1));
    assert_eq!(entries, read(data, step(data)), "chunks make no difference");
    let Some(entries) = entries else { return };
    let mut writer = IndexWriter::default();
    for entry in &entries {
        writer.push(entry).expect("what was read is written");
    }
    let written = writer.take(usize::MAX);
    assert_eq!(read(&written, written.len()), Some(entries), "what was written is read");
}

pub fn format_manifest(data: &[u8]) {
    if let Ok(manifest) = Manifest::parse(data) {
        let rendered = manifest.render().expect("what was read is rendered");
        assert_eq!(Manifest::parse(&rendered).ok(), Some(manifest), "what is rendered is read");
    }
    let _ = RepositoryFile::parse(data);
}

pub fn format_digest(data: &[u8]) {
    let Ok((digest, hash_version)) = decode_digest(data) else { return };
    let written = encode_digest(&digest, hash_version);
    assert_eq!(decode_digest(&written).ok(), Some((digest, hash_version)), "what was written is read");
}
