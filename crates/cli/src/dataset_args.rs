//! Which dataset, and which of its keys: options that `inspect`, `get` and `export` share.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use clap::Args;
use slotkeep_format::manifest::ShardRecord;
use slotkeep_jobs::dataset::Dataset;
use slotkeep_jobs::keys::{Expires, Filter, type_named};
use slotkeep_jobs::{Error, ErrorKind, Result, unescaped};
use slotkeep_model::SlotSet;
use slotkeep_repo::BackupSelector;

use crate::args::{RepoArgs, size};
use crate::output::{Output, bytes};
use crate::session::Session;

/// Opens what the user named: `-` is standard input; a file that exists, or a name with a slash or ending in `.rdb`, is a file; everything
/// else a backup.
pub(crate) async fn open(
    session: &Session,
    output: &Output,
    repo: &RepoArgs,
    source: &OsStr,
) -> Result<Dataset> {
    if source == "-" {
        return Ok(Dataset::of_stdin());
    }
    let path = Path::new(source);
    let name = source.as_bytes();
    if path.is_file() || name.contains(&b'/') || name.ends_with(b".rdb") {
        return Dataset::of_file(path.to_owned());
    }
    let (repository, name) = session.repository(repo).await.map_err(|error| match error.kind() {
        ErrorKind::Usage => error.context(format!("`{}` is no file, so it must be a backup", path.display())),
        _ => error,
    })?;
    let Ok(selector) = source.to_string_lossy().parse::<BackupSelector>();
    let manifest = repository.find(&name, &selector).await?;
    let behind = |shard: &ShardRecord| shard.cut().offset.saturating_sub(shard.offset);
    let log_bytes: u64 = manifest.shards.iter().map(behind).sum();
    if log_bytes > 0 {
        output.note(&format!(
            "This is the dataset of the snapshots; {} of log behind them, which the backup ends with, are not applied (`slotkeep merge` does that).",
            bytes(log_bytes)
        ));
    }
    Ok(Dataset::of_backup(&repository, &manifest))
}

/// Which keys.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Which keys (all if nothing is given)")]
pub(crate) struct FilterArgs {
    /// This very key
    #[arg(long, value_name = "KEY")]
    key: Option<OsString>,
    /// Keys that match, by the rules of KEYS: `*`, `?`, `[a-z]`, `[^a]`, `\` before a character that means itself
    #[arg(long, value_name = "GLOB")]
    pattern: Option<OsString>,
    /// Take --key and --pattern as escaped like `redis-cli` does: `\xff`, `\n`, `\"`, `\\`
    #[arg(long)]
    escaped: bool,
    /// Keys of these types: string, list, set, zset, hash, stream, module, array
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    types: Vec<String>,
    /// Keys of these slots, as in 7 or 0-5460,9000
    #[arg(long, alias = "slot", value_name = "SLOTS")]
    slots: Option<String>,
    /// Keys in these databases
    #[arg(long = "db", value_name = "N", value_delimiter = ',')]
    databases: Vec<u32>,
    /// Keys whose record in the RDB has at least so many bytes; K, M and G stand for 1024, 1024² and 1024³
    #[arg(long, value_name = "BYTES", value_parser = size)]
    min_bytes: Option<u64>,
    /// Keys whose record in the RDB has at most so many bytes
    #[arg(long, value_name = "BYTES", value_parser = size)]
    max_bytes: Option<u64>,
    /// Keys of at least so many elements
    #[arg(long, value_name = "N")]
    min_elements: Option<u64>,
    /// Keys by expiry: yes, no, expired, or a time within which they expire, as in 30s, 15m, 12h, 7d; all counted from the moment of the
    /// backup or file
    #[arg(long, value_name = "WHEN", value_parser = parse_expires)]
    expires: Option<Expires>,
}

impl FilterArgs {
    /// The filter that the options stand for.
    pub(crate) fn filter(&self) -> Result<Filter> {
        let bytes =
            |text: &Option<OsString>| text.as_ref().map(|text| key_bytes(text, self.escaped)).transpose();
        let mut types = Vec::new();
        for name in &self.types {
            types.push(type_named(name).ok_or_else(|| {
                Error::new(ErrorKind::Usage, format!("`{name}` is no type"))
                    .hint("types are string, list, set, zset, hash, stream, module and array")
            })?);
        }
        let slots = self.slots.as_ref().map(|text| parse_slots(text)).transpose()?;
        Ok(Filter {
            key: bytes(&self.key)?,
            pattern: bytes(&self.pattern)?,
            types,
            slots,
            databases: self.databases.clone(),
            min_bytes: self.min_bytes,
            max_bytes: self.max_bytes,
            min_elements: self.min_elements,
            expires: self.expires,
        })
    }
}

/// A key as the user typed it.
pub(crate) fn key_bytes(text: &OsStr, escaped: bool) -> Result<Vec<u8>> {
    if !escaped {
        return Ok(text.as_bytes().to_vec());
    }
    unescaped(text.as_bytes()).ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("`{}` is not escaped as it should be", text.display())).hint(
            "after a backslash stand n, r, t, a quotation mark, a backslash, or x and two hexadecimal digits",
        )
    })
}

fn parse_slots(text: &str) -> Result<SlotSet> {
    let slots: SlotSet = text.parse().map_err(|error: slotkeep_model::slot::SlotSyntaxError| {
        Error::new(ErrorKind::Usage, error.to_string()).hint("for example --slots 0-5460,9000")
    })?;
    if slots.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "no slot was given").hint("for example --slots 0-5460,9000"));
    }
    Ok(slots)
}

fn parse_expires(text: &str) -> Result<Expires, String> {
    let wrong = || "give yes, no, expired, or a time as in 30s, 15m, 12h or 7d".to_owned();
    match text {
        "yes" => return Ok(Expires::Yes),
        "no" => return Ok(Expires::No),
        "expired" => return Ok(Expires::Expired),
        _ => {}
    }
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let unit_ms = match text.get(digits.len()..) {
        Some("s") => 1000,
        Some("m") => 60_000,
        Some("h") => 3_600_000,
        Some("d") => 86_400_000,
        _ => return Err(wrong()),
    };
    let number = digits.parse::<i64>().ok().filter(|number| *number >= 0);
    number.and_then(|number| number.checked_mul(unit_ms)).map(Expires::Within).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_have_units() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("64K"), Ok(65536));
        assert_eq!(size("1GiB"), Ok(1 << 30));
        for wrong in ["", "K", "-1", "1X", "1.5M", "99999999999G"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_expires("15m"), Ok(Expires::Within(900_000)));
        assert_eq!(parse_expires("expired"), Ok(Expires::Expired));
        for wrong in ["", "15", "m", "-1d", "2w", "never"] {
            assert!(parse_expires(wrong).is_err(), "{wrong}");
        }
    }
}
