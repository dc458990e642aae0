//! librdb, through its C interface, with the reader of files that it brings and handlers that count.

use std::error::Error;
use std::ffi::{CStr, CString, c_int, c_void};

use librdb_sys as sys;

type Counter = *mut c_void;

/// Counts one call. The user data of all handlers here is the counter.
fn count(counter: Counter) -> sys::RdbRes {
    // SAFETY: `parse` passes a pointer to a `u64` that outlives the parser, and librdb calls from this thread alone.
    unsafe { *counter.cast::<u64>() += 1 };
    sys::RdbRes_RDB_OK
}

unsafe extern "C" fn on_key(
    _: *mut sys::RdbParser,
    counter: Counter,
    _: sys::RdbBulk,
    _: *mut sys::RdbKeyInfo,
) -> sys::RdbRes {
    count(counter)
}

unsafe extern "C" fn on_begin(_: *mut sys::RdbParser, counter: Counter, _: usize) -> sys::RdbRes {
    count(counter)
}

unsafe extern "C" fn on_bytes(_: *mut sys::RdbParser, counter: Counter, _: sys::RdbBulk) -> sys::RdbRes {
    count(counter)
}

unsafe extern "C" fn on_end(_: *mut sys::RdbParser, counter: Counter) -> sys::RdbRes {
    count(counter)
}

unsafe extern "C" fn on_field(
    _: *mut sys::RdbParser,
    counter: Counter,
    _: sys::RdbBulk,
    _: sys::RdbBulk,
    _: i64,
) -> sys::RdbRes {
    count(counter)
}

unsafe extern "C" fn on_score(
    _: *mut sys::RdbParser,
    counter: Counter,
    _: sys::RdbBulk,
    _: f64,
) -> sys::RdbRes {
    count(counter)
}

unsafe extern "C" fn on_entry(
    _: *mut sys::RdbParser,
    counter: Counter,
    _: *mut sys::RdbStreamID,
    _: sys::RdbBulk,
    _: sys::RdbBulk,
    _: i64,
) -> sys::RdbRes {
    count(counter)
}

/// Nothing is said of a working parser.
unsafe extern "C" fn on_message(_: sys::RdbLogLevel, _: *const std::ffi::c_char) {}

/// Reads values as their bytes.
pub(crate) fn raw(path: &str) -> Result<u64, Box<dyn Error>> {
    parse(path, |parser, counter| {
        // SAFETY: all members are optional functions, for which zero is `None`; librdb copies the structure.
        unsafe {
            let mut handlers: sys::RdbHandlersRawCallbacks = std::mem::zeroed();
            handlers.handleNewKey = Some(on_key);
            handlers.handleBegin = Some(on_begin);
            handlers.handleFrag = Some(on_bytes);
            handlers.handleEnd = Some(on_end);
            sys::RDB_createHandlersRaw(parser, &raw mut handlers, counter, None);
        }
    })
}

/// Reads values element by element.
pub(crate) fn elements(path: &str) -> Result<u64, Box<dyn Error>> {
    parse(path, |parser, counter| {
        // SAFETY: as in `raw`.
        unsafe {
            let mut handlers: sys::RdbHandlersDataCallbacks = std::mem::zeroed();
            handlers.handleNewKey = Some(on_key);
            handlers.handleStringValue = Some(on_bytes);
            handlers.handleListItem = Some(on_bytes);
            handlers.handleSetMember = Some(on_bytes);
            handlers.handleHashField = Some(on_field);
            handlers.handleZsetMember = Some(on_score);
            handlers.handleStreamItem = Some(on_entry);
            handlers.handleEndKey = Some(on_end);
            sys::RDB_createHandlersData(parser, &raw mut handlers, counter, None);
        }
    })
}

fn parse(path: &str, register: impl FnOnce(*mut sys::RdbParser, Counter)) -> Result<u64, Box<dyn Error>> {
    let path = CString::new(path)?;
    let mut counter = 0_u64;
    // SAFETY: the parser is used by this thread alone and deleted once, after its last use; path and counter outlive it.
    unsafe {
        let parser = sys::RDB_createParserRdb(std::ptr::null_mut());
        if parser.is_null() {
            return Err("librdb gave no parser".into());
        }
        sys::RDB_setLogger(parser, Some(on_message));
        let reader = sys::RDBX_createReaderFile(parser, path.as_ptr());
        if !reader.is_null() {
            register(parser, (&raw mut counter).cast());
        }
        let status: c_int = sys::RDB_parse(parser) as c_int;
        let outcome = if reader.is_null() || status != sys::RdbStatus_RDB_STATUS_OK as c_int {
            let message = CStr::from_ptr(sys::RDB_getErrorMessage(parser)).to_string_lossy().into_owned();
            Err(format!("librdb: {message}").into())
        } else {
            Ok(counter)
        };
        sys::RDB_deleteParser(parser);
        outcome
    }
}
