//! The bytes of one GGUF file to its keys and tensors. Every length is checked against the bytes that are left before
//! anything is allocated or sliced; nothing here opens files or knows of shards.
//!
//! Layout (gguf.h): magic, version u32, tensor count i64, key count i64; per key: key, type, value; per tensor: name,
//! dimension count u32, dimensions i64, type u32, offset u64; padding; tensor data. Strings are a u64 length and bytes.

use std::collections::HashSet;
use std::fmt::{self, Display};
use std::path::Path;

use coldpress_kernels::tensor_type::TensorType;

use super::error::Error;
use super::value::{Array, Value, id};

/// `GGUF_DEFAULT_ALIGNMENT` of gguf.h.
pub(super) const DEFAULT_ALIGNMENT: u32 = 32;
/// `GGUF_KEY_GENERAL_ALIGNMENT` of gguf.h.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
/// `GGML_MAX_NAME` of ggml.h counts the closing zero.
const MAX_TENSOR_NAME_BYTES: usize = 63;
/// `GGML_MAX_DIMS` of ggml.h.
const MAX_DIMS: u32 = 4;
/// "can be at most 2^16-1 bytes long": gguf.md on keys.
const MAX_KEY_BYTES: usize = 65535;
/// The format sets no limit to arrays in arrays; no known file has more than one level.
const MAX_ARRAY_DEPTH: u32 = 4;
/// Fewest bytes of a key with its value: length, one character, type, one byte.
const MIN_KEY_BYTES: u64 = 8 + 1 + 4 + 1;
/// Fewest bytes of a tensor description: length, one character, dimension count, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 4 + 8;

/// One file's contents.
pub(super) struct Parsed {
    pub version: u32,
    pub keys: Vec<(String, Value)>,
    pub tensors: Vec<Entry>,
}

/// One tensor of a file.
pub(super) struct Entry {
    pub name: String,
    pub ty: TensorType,
    pub dims: Vec<u64>,
    /// Byte position in the file; the file holds `bytes` bytes from there.
    pub start: usize,
    pub bytes: usize,
}

/// Reads everything but the tensor data. `path` is for messages.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Parsed, Error> {
    let mut cursor = Cursor { path, bytes, at: 0 };
    let version = cursor.version()?;
    let n_tensors = cursor.u64(&"the tensor count")?;
    let n_keys = cursor.u64(&"the key count")?;
    cursor.count(n_keys, MIN_KEY_BYTES, &format_args!("{n_keys} keys"))?;

    let mut keys = Vec::new();
    let mut seen = HashSet::new();
    for index in 0..n_keys {
        let (key, value) = cursor.key(index)?;
        if !seen.insert(key.clone()) {
            return Err(Error::metadata(path, &key, "is there twice"));
        }
        keys.push((key, value));
    }
    let alignment = alignment(path, &keys)?;

    cursor.count(
        n_tensors,
        MIN_TENSOR_BYTES,
        &format_args!("{n_tensors} tensors"),
    )?;
    let mut descriptions = Vec::new();
    let mut seen = HashSet::new();
    for index in 0..n_tensors {
        let description = cursor.tensor(index)?;
        if !seen.insert(description.name.clone()) {
            return Err(Error::tensor(path, &description.name, "is there twice"));
        }
        descriptions.push(description);
    }

    // A file without tensors may end right after its keys.
    let data_start = (cursor.at as u64).next_multiple_of(alignment);
    let tensors = descriptions
        .into_iter()
        .map(|d| d.place(path, data_start, alignment, bytes.len()))
        .collect::<Result<Vec<_>, _>>()?;
    refuse_overlap(path, &tensors)?;
    Ok(Parsed {
        version,
        keys,
        tensors,
    })
}

/// The file's alignment in bytes. As llama.cpp: a u32, any power of two.
fn alignment(path: &Path, keys: &[(String, Value)]) -> Result<u64, Error> {
    let alignment = match keys.iter().find(|(key, _)| key == ALIGNMENT_KEY) {
        None => DEFAULT_ALIGNMENT,
        Some((_, Value::U32(alignment))) => *alignment,
        Some((_, other)) => {
            return Err(Error::Type {
                path: path.into(),
                key: ALIGNMENT_KEY.into(),
                found: other.type_name(),
                expected: "u32",
            });
        }
    };
    if !alignment.is_power_of_two() {
        return Err(Error::metadata(
            path,
            ALIGNMENT_KEY,
            format!("{alignment} is not a power of two"),
        ));
    }
    Ok(u64::from(alignment))
}

/// Two tensors that share bytes are a damaged offset, not a saving.
fn refuse_overlap(path: &Path, tensors: &[Entry]) -> Result<(), Error> {
    let mut by_start: Vec<&Entry> = tensors.iter().collect();
    by_start.sort_by_key(|t| t.start);
    for pair in by_start.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        if first.start + first.bytes > second.start {
            return Err(Error::tensor(
                path,
                &second.name,
                format!(
                    "data starts at byte {}, inside the data of {} (bytes {} to {})",
                    second.start,
                    first.name,
                    first.start,
                    first.start + first.bytes
                ),
            ));
        }
    }
    Ok(())
}

/// A tensor as described, its data not yet located.
struct Description {
    name: String,
    ty: TensorType,
    dims: Vec<u64>,
    bytes: u64,
    /// From the start of the data.
    offset: u64,
}

impl Description {
    fn place(
        self,
        path: &Path,
        data_start: u64,
        alignment: u64,
        file_bytes: usize,
    ) -> Result<Entry, Error> {
        let Description {
            name,
            ty,
            dims,
            bytes,
            offset,
        } = self;
        if !offset.is_multiple_of(alignment) {
            let problem =
                format!("data offset {offset} is not a multiple of the alignment {alignment}");
            return Err(Error::tensor(path, &name, problem));
        }
        let start = data_start.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_bytes as u64 => {
                // Both fit usize: they are at most the length of a slice.
                let (start, bytes) = (start as usize, bytes as usize);
                Ok(Entry {
                    name,
                    ty,
                    dims,
                    start,
                    bytes,
                })
            }
            (_, Some(end)) => {
                let problem = format!("data ends at byte {end} past the file's {file_bytes}");
                Err(Error::tensor(path, &name, problem))
            }
            (_, None) => {
                let problem = format!(
                    "data of {bytes} bytes at offset {offset} is past the file's {file_bytes}"
                );
                Err(Error::tensor(path, &name, problem))
            }
        }
    }
}

struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    /// At most `bytes.len()`.
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// Refuses `n` things of at least `min_bytes` each when the rest of the file cannot hold them.
    fn count(&self, n: u64, min_bytes: u64, what: &dyn Display) -> Result<(), Error> {
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

    fn take(&mut self, n: u64, what: &dyn Display) -> Result<&'a [u8], Error> {
        self.count(n, 1, what)?;
        let taken = &self.bytes[self.at..][..n as usize];
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &dyn Display) -> Result<[u8; N], Error> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &dyn Display) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &dyn Display) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn str_bytes(&mut self, what: &dyn Display) -> Result<&'a [u8], Error> {
        let n = self.u64(what)?;
        self.take(n, what)
    }

    fn version(&mut self) -> Result<u32, Error> {
        let magic: [u8; 4] = self.array(&"the magic")?;
        if &magic != b"GGUF" {
            return Err(Error::NotGguf {
                path: self.path.into(),
                magic,
            });
        }
        let version = self.u32(&"the version")?;
        match version {
            2 | 3 => Ok(version),
            // gguf.cpp tells byte order the same way: a small number read in the wrong order has no low half.
            _ if version != 0 && version & 0xffff == 0 => Err(Error::BigEndian {
                path: self.path.into(),
            }),
            _ => Err(Error::Version {
                path: self.path.into(),
                version,
            }),
        }
    }

    fn key(&mut self, index: u64) -> Result<(String, Value), Error> {
        let position = format!("#{index}");
        let bytes = self.str_bytes(&format_args!("key {position}"))?;
        let key = match std::str::from_utf8(bytes) {
            Ok("") => return Err(Error::metadata(self.path, &position, "is empty")),
            Ok(key) if key.len() > MAX_KEY_BYTES => {
                let problem = format!(
                    "is {} bytes long, at most {MAX_KEY_BYTES} are allowed",
                    key.len()
                );
                return Err(Error::metadata(self.path, &position, problem));
            }
            Ok(key) => key.to_owned(),
            Err(e) => return Err(Error::metadata(self.path, &position, e.to_string())),
        };
        let ty = self.u32(&format_args!("key {key}: type"))?;
        let value = self.value(ty, &key)?;
        Ok((key, value))
    }

    fn value(&mut self, ty: u32, key: &str) -> Result<Value, Error> {
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

    fn tensor(&mut self, index: u64) -> Result<Description, Error> {
        let position = format!("#{index}");
        let bytes = self.str_bytes(&format_args!("tensor {position}"))?;
        let name = match std::str::from_utf8(bytes) {
            Ok("") => return Err(Error::tensor(self.path, &position, "has no name")),
            Ok(name) if name.len() > MAX_TENSOR_NAME_BYTES => {
                let problem = format!(
                    "name is {} bytes long, at most {MAX_TENSOR_NAME_BYTES} are allowed",
                    name.len()
                );
                return Err(Error::tensor(self.path, &position, problem));
            }
            Ok(name) => name.to_owned(),
            Err(e) => return Err(Error::tensor(self.path, &position, format!("name: {e}"))),
        };
        let what = format!("tensor {name}");
        let n_dims = self.u32(&what)?;
        if n_dims > MAX_DIMS {
            let problem = format!("has {n_dims} dimensions, at most {MAX_DIMS} are allowed");
            return Err(Error::tensor(self.path, &name, problem));
        }
        let mut dims = Vec::with_capacity(MAX_DIMS as usize);
        for _ in 0..n_dims {
            dims.push(self.u64(&what)?);
        }
        if dims.contains(&0) {
            return Err(Error::tensor(
                self.path,
                &name,
                format!("has a zero dimension in {dims:?}"),
            ));
        }
        // ggml takes a tensor without dimensions as one number.
        if dims.is_empty() {
            dims.push(1);
        }
        let type_id = self.u32(&what)?;
        let Some(ty) = TensorType::from_id(type_id) else {
            return Err(Error::TensorType {
                path: self.path.into(),
                tensor: name,
                id: type_id,
            });
        };
        if !dims[0].is_multiple_of(ty.block_len()) {
            let problem = format!(
                "row length {} is not a multiple of {}, the quant block length of {ty}",
                dims[0],
                ty.block_len()
            );
            return Err(Error::tensor(self.path, &name, problem));
        }
        let weights = dims.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim));
        let Some(bytes) = weights.and_then(|n| ty.row_bytes(n)) else {
            let problem = format!("shape {dims:?} of {ty} is too large");
            return Err(Error::tensor(self.path, &name, problem));
        };
        let offset = self.u64(&what)?;
        Ok(Description {
            name,
            ty,
            dims,
            bytes,
            offset,
        })
    }
}

/// "key NAME", for messages.
struct Of<'a>(&'a str);

impl Display for Of<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}", self.0)
    }
}
