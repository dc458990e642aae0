//! `slotkeep inspect`

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use slotkeep_jobs::inspect::{
    Amount, BigKey, EncodingRow, InspectOptions, Report, Separators, inspect, list_keys,
};
use slotkeep_jobs::{Error, ErrorKind, Result, quoted};

use crate::args::RepoArgs;
use crate::dataset_args::{FilterArgs, open};
use crate::exit;
use crate::output::{Output, Stream, bytes, count, prints_to_terminal, table, table_text};
use crate::progress::ByteDisplay;
use crate::session::Session;

/// The longest key that a table shows, in characters.
const SHOWN_CHARACTERS: usize = 48;

/// Show what a backup or an RDB file holds
///
/// Counts and bytes by type, encoding, database and prefix, when keys expire, and the biggest keys; or with --keys every key as a line
/// of JSON. Bytes are those of the keys' records in the RDB, not of the server's memory.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// The backup: its id, the beginning of its id, or `latest`; or an RDB file, or `-` for one on standard input
    #[arg(default_value = "latest")]
    backup: OsString,
    #[command(flatten)]
    repo: RepoArgs,
    /// List the keys instead, one line of JSON each
    #[arg(long, help_heading = "What to show")]
    keys: bool,
    /// How many of the biggest keys to show
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(..=100_000), help_heading = "What to show")]
    top: u32,
    /// How many prefixes to show
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(..=1000), help_heading = "What to show")]
    prefixes: u32,
    /// What separates the parts of a key; if not given, any of `:` `/` `.` `|` `-` `_` `#`
    #[arg(long, value_name = "TEXT", help_heading = "What to show")]
    by: Option<OsString>,
    #[command(flatten)]
    filter: FilterArgs,
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &InspectArgs) -> Result<u8> {
    let filter = arguments.filter.filter()?;
    let separators = match &arguments.by {
        None => Separators::Usual,
        Some(text) if text.is_empty() => {
            return Err(
                Error::new(ErrorKind::Usage, "--by needs a separator").hint("for example --by : or --by ::")
            );
        }
        Some(text) => Separators::Text(text.as_bytes().to_vec()),
    };
    let dataset = open(session, output, &arguments.repo, &arguments.backup).await?;
    if arguments.keys {
        let (stream, closed) = Stream::new();
        let rows = if prints_to_terminal() { &[] } else { dataset.progress.as_slice() };
        let display = ByteDisplay::start(output, rows);
        let outcome = list_keys(&dataset, &filter, session.now(), session.stop(), stream).await;
        display.finish().await;
        closed.unless_closed(outcome)?;
        return Ok(exit::OK);
    }
    let options = InspectOptions {
        filter,
        biggest: arguments.top as usize,
        prefixes: arguments.prefixes as usize,
        separators,
    };
    let display = ByteDisplay::start(output, &dataset.progress);
    let outcome = inspect(&dataset, &options, session.now(), session.stop()).await;
    display.finish().await;
    output.data(&outcome?, render)?;
    Ok(exit::OK)
}

fn render(report: &Report) -> String {
    let mut text = format!("{}\n{}\n", report.source, headline(report));
    let mut section = |title: &str, rows: String| {
        if !rows.is_empty() {
            text.push_str(&format!("\n{title}\n{rows}\n"));
        }
    };
    if report.total.keys == 0 {
        return text;
    }
    section("By type and encoding in the RDB", types(report));
    if report.shards.len() > 1 {
        let rows = report.shards.iter().map(|shard| (shard.shard.clone(), shard.amount));
        section("By shard", amounts("slots", rows, report.total));
    }
    if report.databases.len() > 1 || report.databases.iter().any(|row| row.db != Some(0)) {
        let name = |db: Option<u32>| db.map_or_else(|| "others".to_owned(), |db| db.to_string());
        let rows = report.databases.iter().map(|row| (name(row.db), row.amount));
        section("By database", amounts("database", rows, report.total));
    }
    let expiry = report.expiry.iter().filter(|row| row.amount.keys > 0);
    section(
        "By time left until they expire",
        amounts("expires", expiry.map(|row| (expiry_name(row.expires).to_owned(), row.amount)), report.total),
    );
    section("By prefix, longer ones below those they begin with", prefixes(report));
    section("The most bytes", biggest(&report.biggest_by_bytes));
    section("The most elements", biggest(&report.biggest_by_elements));
    text
}

fn headline(report: &Report) -> String {
    let Amount { keys, bytes: size, elements } = report.total;
    let which = if report.filtered { " that were asked for" } else { "" };
    let functions = match report.functions {
        0 => String::new(),
        1 => ", 1 function library".to_owned(),
        more => format!(", {more} function libraries"),
    };
    let mut versions: Vec<&str> = report.shards.iter().map(|shard| shard.rdb_version.as_str()).collect();
    versions.dedup();
    let at = report.at.clone().unwrap_or_else(|| format!("{} ms after 1970", report.at_ms));
    format!(
        "{}{which}, {} elements, {} of records in {}{functions}, as of {at}.\n\
         Bytes are those of the records in the RDB, not of the server's memory.",
        plural(keys, "key", "keys"),
        count(elements),
        bytes(size),
        versions.join(" and "),
    )
}

fn plural(number: u64, one: &str, more: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { more })
}

/// A part of the whole, in percent.
#[expect(clippy::cast_precision_loss, reason = "for people")]
fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return String::new();
    }
    format!("{:.1}", part as f64 * 100.0 / whole as f64)
}

fn cells(amount: Amount, total: Amount) -> [String; 5] {
    [
        count(amount.keys),
        share(amount.keys, total.keys),
        bytes(amount.bytes),
        share(amount.bytes, total.bytes),
        count(amount.elements),
    ]
}

fn amounts(heading: &str, rows: impl Iterator<Item = (String, Amount)>, total: Amount) -> String {
    let mut all = table(&[heading, "keys>", "%>", "bytes>", "%>", "elements>"]);
    for (name, amount) in rows {
        all.add_row([name].into_iter().chain(cells(amount, total)));
    }
    table_text(&all)
}

fn types(report: &Report) -> String {
    let mut rows = table(&["type", "encoding", "keys>", "%>", "bytes>", "%>", "elements>"]);
    for row in &report.types {
        let encodings: Vec<&EncodingRow> =
            report.encodings.iter().filter(|encoding| encoding.r#type == row.r#type).collect();
        let only = if let [only] = encodings.as_slice() { only.encoding } else { "" };
        let names = [row.r#type.to_owned(), only.to_owned()];
        rows.add_row(names.into_iter().chain(cells(row.amount, report.total)));
        if encodings.len() > 1 {
            for encoding in encodings {
                let names = [String::new(), encoding.encoding.to_owned()];
                rows.add_row(names.into_iter().chain(cells(encoding.amount, report.total)));
            }
        }
    }
    table_text(&rows)
}

fn expiry_name(name: &str) -> &str {
    match name {
        "no_expiry" => "never",
        "expired" => "already expired",
        "under_1_minute" => "under 1 minute",
        "under_1_hour" => "under 1 hour",
        "under_1_day" => "under 1 day",
        "under_7_days" => "under 7 days",
        "under_30_days" => "under 30 days",
        "30_days_or_more" => "30 days or more",
        other => other,
    }
}

fn prefixes(report: &Report) -> String {
    let found = &report.prefixes;
    if found.rows.is_empty() {
        return String::new();
    }
    let mut headings = vec!["prefix", "keys>", "%>", "bytes>", "%>"];
    if !found.exact {
        headings.extend(["keys may be more by>", "bytes by>"]);
    }
    let mut rows = table(&headings);
    let mut add = |name: String, amount: Amount, missing: [String; 2]| {
        let [keys, keys_share, size, size_share, _] = cells(amount, report.total);
        let mut row = vec![name, keys, keys_share, size, size_share];
        if !found.exact {
            row.extend(missing);
        }
        rows.add_row(row);
    };
    for row in &found.rows {
        let missing = if row.missing_keys == 0 {
            <[String; 2]>::default()
        } else {
            [count(row.missing_keys), bytes(row.missing_bytes)]
        };
        add(format!("{}{}", "  ".repeat(row.level), shown(&row.prefix)), row.amount, missing);
    }
    if found.others.keys > 0 {
        add("(others)".to_owned(), found.others, <[String; 2]>::default());
    }
    table_text(&rows)
}

fn biggest(keys: &[BigKey]) -> String {
    if keys.is_empty() {
        return String::new();
    }
    let mut rows = table(&["key", "type", "bytes>", "elements>", "expires"]);
    for key in keys {
        let name =
            if key.db == 0 { shown(&key.key) } else { format!("{} (database {})", shown(&key.key), key.db) };
        rows.add_row([
            name,
            key.r#type.to_owned(),
            bytes(key.bytes),
            count(key.elements),
            key.expires_at.clone().unwrap_or_else(|| "never".to_owned()),
        ]);
    }
    table_text(&rows)
}

/// A key as a table shows it: quoted, and cut if it is long.
fn shown(key: &[u8]) -> String {
    let text = quoted(key);
    match text.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}
