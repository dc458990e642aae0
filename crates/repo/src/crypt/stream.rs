//! Decrypting from the beginning to the end.

use age::Decryptor;
use age::stream::StreamReader;
use age::x25519::Identity;
use bytes::{Bytes, BytesMut};
use futures::io::AsyncReadExt;
use futures::stream::{BoxStream, IntoAsyncRead, MapErr, TryStreamExt};

use super::{age_problem, io_problem};
use crate::error::Problem;

/// How much is handed on at a time at the most.
const PIECE_BYTES: usize = 256 << 10;

type Stored = BoxStream<'static, Result<Bytes, object_store::Error>>;
type Source = IntoAsyncRead<MapErr<Stored, fn(object_store::Error) -> std::io::Error>>;

/// The bytes of an object as they come: as they are stored, or decrypted.
pub(crate) enum Opened {
    /// It is not encrypted.
    Plain(Stored),
    /// It is an age file.
    Sealed(Box<StreamReader<Source>>),
}

impl Opened {
    /// Reads the header of an age file.
    pub(crate) async fn sealed(stored: Stored, identity: &Identity) -> Result<Self, Problem> {
        let as_io: fn(object_store::Error) -> std::io::Error = std::io::Error::other;
        let source = stored.map_err(as_io).into_async_read();
        let decryptor = Decryptor::new_async_buffered(source).await.map_err(age_problem)?;
        let identities = std::iter::once(identity as &dyn age::Identity);
        Ok(Self::Sealed(Box::new(decryptor.decrypt_async(identities).map_err(age_problem)?)))
    }

    /// The next bytes, or `None` behind the last ones.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        match self {
            Self::Plain(stored) => Ok(stored.try_next().await?),
            Self::Sealed(reader) => {
                let mut piece = BytesMut::zeroed(PIECE_BYTES);
                let mut filled = 0;
                while let Some(room) = piece.get_mut(filled..).filter(|room| !room.is_empty()) {
                    match reader.read(room).await.map_err(io_problem)? {
                        0 => break,
                        read => filled = filled.saturating_add(read),
                    }
                }
                piece.truncate(filled);
                Ok((filled > 0).then(|| piece.freeze()))
            }
        }
    }
}
