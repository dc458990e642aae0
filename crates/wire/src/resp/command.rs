//! Commands, as clients and replication streams write them: an array of bulk strings.

use core::fmt;

/// Appends the command made of `parts` (its name first) to `out`.
pub fn write_command(out: &mut Vec<u8>, parts: &[&[u8]]) {
    write_header(out, b'*', parts.len());
    for part in parts {
        write_bulk(out, part);
    }
}

fn write_header(out: &mut Vec<u8>, kind: u8, count: usize) {
    out.push(kind);
    out.extend_from_slice(count.to_string().as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn write_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    write_header(out, b'$', bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// One command, built argument by argument.
///
/// `Debug` shows the name and the number of arguments only, for arguments may be secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct Command {
    name: String,
    arg_count: usize,
    encoded_args: Vec<u8>,
}

impl Command {
    /// A command without arguments so far.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), arg_count: 0, encoded_args: Vec::new() }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<[u8]>) -> Self {
        self.push(argument);
        self
    }

    /// Adds arguments, in order.
    #[must_use]
    pub fn args<A: AsRef<[u8]>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        for argument in arguments {
            self.push(argument);
        }
        self
    }

    /// Adds a number, written in decimal.
    #[must_use]
    pub fn arg_number(self, number: impl fmt::Display) -> Self {
        self.arg(number.to_string())
    }

    /// Adds an argument in place.
    pub fn push(&mut self, argument: impl AsRef<[u8]>) {
        self.arg_count = self.arg_count.saturating_add(1);
        write_bulk(&mut self.encoded_args, argument.as_ref());
    }

    /// The command's name, as given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Appends the command to `out` as it goes over the wire.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        write_header(out, b'*', self.arg_count.saturating_add(1));
        write_bulk(out, self.name.as_bytes());
        out.extend_from_slice(&self.encoded_args);
    }

    /// The command as it goes over the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_args.len().saturating_add(self.name.len() + 32));
        self.encode_into(&mut out);
        out
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({} with {} arguments)", self.name, self.arg_count)
    }
}
