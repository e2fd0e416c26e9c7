//! Steps through the bytes of a GGUF file: integers, strings and metadata values. Every length is checked against the
//! bytes that are left before anything is allocated or sliced. What is read in which order is for read.rs.

use std::fmt::{self, Display};
use std::path::Path;

use super::error::Error;
use super::value::{Array, Value, id};

/// The format sets no limit to arrays in arrays; no known file has more than one level.
const MAX_ARRAY_DEPTH: u32 = 4;

/// A position in a file's bytes. `what` is what is being read, for messages.
pub(super) struct Cursor<'a> {
    pub path: &'a Path,
    pub bytes: &'a [u8],
    /// At most `bytes.len()`.
    pub at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// Refuses `n` things of at least `min_bytes` each when the rest of the file cannot hold them.
    pub fn count(&self, n: u64, min_bytes: u64, what: &dyn Display) -> Result<(), Error> {
        let needs = n.saturating_mul(min_bytes);
        if needs > self.left() {
            return Err(Error::Truncated {
                path: self.path.into(),
                what: what.to_string(),
                offset: self.at as u64,
                needs,
                left: self.left(),
            });
        }
        Ok(())
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: u64, what: &dyn Display) -> Result<&'a [u8], Error> {
        self.count(n, 1, what)?;
        let taken = &self.bytes[self.at..][..n as usize];
        self.at += taken.len();
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self, what: &dyn Display) -> Result<[u8; N], Error> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    pub fn u32(&mut self, what: &dyn Display) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub fn u64(&mut self, what: &dyn Display) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A u64 length and as many bytes.
    pub fn str_bytes(&mut self, what: &dyn Display) -> Result<&'a [u8], Error> {
        let n = self.u64(what)?;
        self.take(n, what)
    }

    /// The value that follows a type id of `ty`.
    pub fn value(&mut self, ty: u32, key: &str) -> Result<Value, Error> {
        let what = Of(key);
        Ok(match ty {
            id::U8 => Value::U8(u8::from_le_bytes(self.array(&what)?)),
            id::I8 => Value::I8(i8::from_le_bytes(self.array(&what)?)),
            id::U16 => Value::U16(u16::from_le_bytes(self.array(&what)?)),
            id::I16 => Value::I16(i16::from_le_bytes(self.array(&what)?)),
            id::U32 => Value::U32(u32::from_le_bytes(self.array(&what)?)),
            id::I32 => Value::I32(i32::from_le_bytes(self.array(&what)?)),
            id::F32 => Value::F32(f32::from_le_bytes(self.array(&what)?)),
            id::BOOL => {
                let [byte] = self.array(&what)?;
                Value::Bool(self.bool(byte, key)?)
            }
            id::STR => Value::Str(self.str_value(key)?),
            id::ARRAY => Value::Array(self.array_value(key, 1)?),
            id::U64 => Value::U64(u64::from_le_bytes(self.array(&what)?)),
            id::I64 => Value::I64(i64::from_le_bytes(self.array(&what)?)),
            id::F64 => Value::F64(f64::from_le_bytes(self.array(&what)?)),
            _ => {
                return Err(Error::metadata(
                    self.path,
                    key,
                    format!("unknown type id {ty}"),
                ));
            }
        })
    }

    fn bool(&self, byte: u8, key: &str) -> Result<bool, Error> {
        match byte {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Error::metadata(
                self.path,
                key,
                format!("byte {byte} is no bool"),
            )),
        }
    }

    fn str_value(&mut self, key: &str) -> Result<String, Error> {
        let at = self.at;
        let bytes = self.str_bytes(&Of(key))?;
        match std::str::from_utf8(bytes) {
            Ok(s) => Ok(s.to_owned()),
            Err(e) => Err(Error::metadata(
                self.path,
                key,
                format!("string at byte {at}: {e}"),
            )),
        }
    }

    fn array_value(&mut self, key: &str, depth: u32) -> Result<Array, Error> {
        let what = Of(key);
        let ty = self.u32(&what)?;
        let n = self.u64(&what)?;
        Ok(match ty {
            id::U8 => Array::U8(self.numbers(n, key, u8::from_le_bytes)?),
            id::I8 => Array::I8(self.numbers(n, key, i8::from_le_bytes)?),
            id::U16 => Array::U16(self.numbers(n, key, u16::from_le_bytes)?),
            id::I16 => Array::I16(self.numbers(n, key, i16::from_le_bytes)?),
            id::U32 => Array::U32(self.numbers(n, key, u32::from_le_bytes)?),
            id::I32 => Array::I32(self.numbers(n, key, i32::from_le_bytes)?),
            id::F32 => Array::F32(self.numbers(n, key, f32::from_le_bytes)?),
            id::BOOL => {
                let bytes = self.take(n, &what)?;
                Array::Bool(
                    bytes
                        .iter()
                        .map(|&byte| self.bool(byte, key))
                        .collect::<Result<_, _>>()?,
                )
            }
            id::STR => {
                // 8: the length of a string.
                self.count(n, 8, &what)?;
                Array::Str(
                    (0..n)
                        .map(|_| self.str_value(key))
                        .collect::<Result<_, _>>()?,
                )
            }
            id::ARRAY if depth >= MAX_ARRAY_DEPTH => {
                let problem = format!("arrays more than {MAX_ARRAY_DEPTH} deep are not supported");
                return Err(Error::metadata(self.path, key, problem));
            }
            id::ARRAY => {
                // 12: type and length of an array.
                self.count(n, 12, &what)?;
                Array::Nested(
                    (0..n)
                        .map(|_| self.array_value(key, depth + 1))
                        .collect::<Result<_, _>>()?,
                )
            }
            id::U64 => Array::U64(self.numbers(n, key, u64::from_le_bytes)?),
            id::I64 => Array::I64(self.numbers(n, key, i64::from_le_bytes)?),
            id::F64 => Array::F64(self.numbers(n, key, f64::from_le_bytes)?),
            _ => {
                return Err(Error::metadata(
                    self.path,
                    key,
                    format!("unknown array type id {ty}"),
                ));
            }
        })
    }

    fn numbers<const N: usize, T>(
        &mut self,
        n: u64,
        key: &str,
        from: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, Error> {
        let bytes = self.take(n.saturating_mul(N as u64), &Of(key))?;
        let (elements, _) = bytes.as_chunks::<N>();
        Ok(elements.iter().map(|&element| from(element)).collect())
    }
}

/// "key NAME", for messages.
struct Of<'a>(&'a str);

impl Display for Of<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}", self.0)
    }
}
