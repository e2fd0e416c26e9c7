//! The bytes of one GGUF file to its keys and tensors, with every limit of the format and the place of every tensor
//! checked. Nothing here opens files or knows of shards.
//!
//! Layout (gguf.h): magic, version u32, tensor count i64, key count i64; per key: key, type, value; per tensor: name,
//! dimension count u32, dimensions i64, type u32, offset u64; padding; tensor data. Strings are a u64 length and bytes.

use std::collections::HashSet;
use std::path::Path;

use super::cursor::Cursor;
use super::error::Error;
use super::tensor::{Entry, MIN_TENSOR_BYTES, refuse_overlap};
use super::value::Value;

/// `GGUF_DEFAULT_ALIGNMENT` of gguf.h.
pub(super) const DEFAULT_ALIGNMENT: u32 = 32;
/// `GGUF_KEY_GENERAL_ALIGNMENT` of gguf.h.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
/// "can be at most 2^16-1 bytes long": gguf.md on keys.
const MAX_KEY_BYTES: usize = 65535;
/// Fewest bytes of a key with its value: length, one character, type, one byte.
const MIN_KEY_BYTES: u64 = 8 + 1 + 4 + 1;

/// One file's contents.
pub(super) struct Parsed {
    pub version: u32,
    pub keys: Vec<(String, Value)>,
    pub tensors: Vec<Entry>,
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

impl Cursor<'_> {
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
}

#[cfg(test)]
pub(super) mod tests {
    use coldpress_kernels::tensor_type::TensorType;

    use super::super::value::Array;
    use super::super::write::GgufWriter;
    use super::super::write::tests::{bytes, sample};
    use super::*;

    pub fn parse(bytes: &[u8]) -> Result<Parsed, Error> {
        super::parse(Path::new("model.gguf"), bytes)
    }

    pub fn refused(bytes: &[u8]) -> String {
        match parse(bytes) {
            Ok(_) => panic!("not refused"),
            Err(error) => error.to_string(),
        }
    }

    /// A file whose only tensor is described from byte 24 on.
    pub fn one_tensor() -> Vec<u8> {
        let mut writer = GgufWriter::new();
        bytes(writer.tensor(
            "blk.0.attn_q.weight",
            TensorType::Q8_0,
            &[32, 2],
            vec![0; 68],
        ))
    }

    /// `file` with `new` at byte `at`.
    pub fn patched(mut file: Vec<u8>, at: usize, new: &[u8]) -> Vec<u8> {
        file[at..][..new.len()].copy_from_slice(new);
        file
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let file = bytes(&sample());
        let parsed = parse(&file).unwrap();
        let end = parsed
            .tensors
            .iter()
            .map(|t| t.start + t.bytes)
            .max()
            .unwrap();
        assert_eq!(end, file.len());
        for cut in 0..end {
            assert!(parse(&file[..cut]).is_err(), "{cut} of {end} bytes");
        }
    }

    #[test]
    fn a_flipped_bit_never_panics() {
        let mut file = bytes(&sample());
        let header = parse(&file).unwrap().tensors[0].start;
        let mut refused = 0;
        for bit in 0..header * 8 {
            file[bit / 8] ^= 1 << (bit % 8);
            refused += usize::from(parse(&file).is_err());
            file[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(refused > header, "only {refused} flips refused");
    }

    #[test]
    fn absurd_counts_are_refused() {
        for count in [u64::MAX, u64::MAX / 8 + 1, 1 << 40, 1 << 32] {
            let new = count.to_le_bytes();
            let says = refused(&patched(one_tensor(), 8, &new));
            assert!(says.contains(&format!("{count} tensors: needs")), "{says}");
            let says = refused(&patched(one_tensor(), 16, &new));
            assert!(says.contains(&format!("{count} keys: needs")), "{says}");
            let says = refused(&patched(one_tensor(), 24, &new));
            assert!(says.starts_with("model.gguf: tensor #0: needs"), "{says}");
            for array in [
                Array::Str(vec!["a".into()]),
                Array::F64(vec![0.0]),
                Array::U8(vec![0]),
                Array::Bool(vec![true]),
                Array::Nested(vec![Array::U8(vec![1])]),
            ] {
                let file = bytes(GgufWriter::new().add("k", Value::Array(array)));
                let says = refused(&patched(file, 24 + 8 + 1 + 4 + 4, &new));
                assert!(says.starts_with("model.gguf: key k: needs"), "{says}");
            }
            let file = bytes(GgufWriter::new().add("k", Value::Str("a".into())));
            let says = refused(&patched(file, 24 + 8 + 1 + 4, &new));
            assert!(says.starts_with("model.gguf: key k: needs"), "{says}");
        }
    }

    #[test]
    fn other_versions_and_files_are_named() {
        let with_version = |version: u32| patched(one_tensor(), 4, &version.to_le_bytes());
        assert_eq!(parse(&with_version(2)).unwrap().version, 2);
        assert!(refused(&with_version(0)).contains("version 0 is not supported"));
        assert!(refused(&with_version(1)).contains("version 1 is not supported; convert"));
        assert!(refused(&with_version(4)).contains("version 4 is not supported"));
        assert!(refused(&with_version(3u32.swap_bytes())).contains("big-endian"));
        let says = refused(&patched(one_tensor(), 0, b"tj\x01t"));
        assert_eq!(
            says,
            "model.gguf: starts with \"tj\\x01t\", not with \"GGUF\""
        );
    }

    #[test]
    fn a_vocabulary_needs_no_tensors_and_no_padding() {
        let file = bytes(GgufWriter::new().add("k", Value::U8(1)));
        let end = 24 + 8 + 1 + 4 + 1;
        assert!(parse(&file[..end]).unwrap().tensors.is_empty());
    }

    #[test]
    fn keys_are_checked() {
        let file = |key: &str, value: Value| bytes(GgufWriter::new().add(key, value));
        assert!(refused(&file("", Value::U8(1))).contains("key #0: is empty"));
        assert!(refused(&file(&"k".repeat(65536), Value::U8(1))).contains("65536 bytes long"));
        parse(&file(&"k".repeat(65535), Value::U8(1))).unwrap();
        let twice = bytes(
            GgufWriter::new()
                .add("k", Value::U8(1))
                .add("k", Value::U8(2)),
        );
        assert!(refused(&twice).contains("key k: is there twice"));

        let k = 24 + 8;
        let says = refused(&patched(file("k", Value::U8(1)), k, b"\xff"));
        assert!(says.contains("key #0: invalid utf-8"), "{says}");
        let says = refused(&patched(file("k", Value::U8(1)), k + 1, &[13]));
        assert!(says.contains("key k: unknown type id 13"), "{says}");
        let says = refused(&patched(file("k", Value::Bool(true)), k + 5, &[2]));
        assert!(says.contains("key k: byte 2 is no bool"), "{says}");
        let strings = Value::Array(Array::Str(vec!["a".into(), "é".into()]));
        let says = refused(&patched(file("k", strings), k + 5 + 12 + 9 + 8, b"\xff"));
        assert!(
            says.contains("key k: string at byte 58: invalid utf-8"),
            "{says}"
        );

        let nest = |depth| (1..depth).fold(Array::U8(vec![1]), |a, _| Array::Nested(vec![a]));
        parse(&file("k", Value::Array(nest(4)))).unwrap();
        let says = refused(&file("k", Value::Array(nest(5))));
        assert!(says.contains("key k: arrays more than 4 deep"), "{says}");
    }

    #[test]
    fn alignment_is_checked() {
        let file = |value: Value| bytes(GgufWriter::new().add("general.alignmenT", value));
        let at = 24 + 8 + ALIGNMENT_KEY.len() - 1;
        let with = |value: Value| patched(file(value), at, b"t");
        parse(&with(Value::U32(64))).unwrap();
        for alignment in [0, 12, u32::MAX] {
            let says = refused(&with(Value::U32(alignment)));
            assert!(
                says.contains(&format!("{alignment} is not a power of two")),
                "{says}"
            );
        }
        assert!(refused(&with(Value::U64(32))).contains("general.alignment: is u64, expected u32"));
    }
}
