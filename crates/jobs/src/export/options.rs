//! What an export is asked to do, and what it came to.

use serde::Serialize;
use slotkeep_model::ServerVersion;

use crate::keys::Filter;

/// The form in which a dataset is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One RDB of all keys.
    Rdb,
    /// Commands, for `redis-cli --pipe` or as an append-only file.
    Resp,
    /// A line of JSON a key, with its value.
    Json,
    /// A row a key, without its value.
    Csv,
    /// The same as a Parquet table.
    Parquet,
}

impl Format {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rdb => "rdb",
            Self::Resp => "resp",
            Self::Json => "json",
            Self::Csv => "csv",
            Self::Parquet => "parquet",
        }
    }
}

/// What to write.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// Which keys.
    pub filter: Filter,
    /// In which form.
    pub format: Format,
    /// Whether function libraries are written too, where the form has them. They never are if only some of the keys are wanted.
    pub functions: bool,
    /// The server that is to read it; the one that it comes from if not given.
    pub target: Option<ServerVersion>,
    /// Whether commands build values element by element, instead of `RESTORE` with the encoded value.
    pub commands: bool,
    /// Whether commands replace keys that exist.
    pub replace: bool,
    /// The longest payload of one `RESTORE`, in bytes; longer values go element by element.
    pub max_restore_bytes: usize,
}

impl ExportOptions {
    /// Whether everything is wanted as it is.
    pub(super) fn keeps_all(&self) -> bool {
        self.filter.is_everything() && self.functions && self.target.is_none()
    }

    /// Whether function libraries are wanted.
    pub(super) fn takes_functions(&self) -> bool {
        self.functions && self.filter.is_everything()
    }
}

/// What was written.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ExportReport {
    /// The format.
    pub format: &'static str,
    /// The file, if it is one.
    pub output: Option<String>,
    /// Its bytes.
    pub output_bytes: u64,
    /// Whether an RDB was passed on as the server made it, keys uncounted.
    pub as_stored: bool,
    /// Keys written.
    pub keys: u64,
    /// Of these, keys whose values went element by element.
    pub element_wise: u64,
    /// Of these, keys whose values were translated into another encoding.
    pub translated: u64,
    /// Function libraries written.
    pub functions: u64,
    /// Keys whose module metadata (Redis 8.6) has no form in this.
    pub without_metadata: u64,
    /// Records of modules outside keys, which were left out.
    pub module_records_left_out: u64,
}
