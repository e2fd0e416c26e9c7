//! Writes GGUF files: version 3, little-endian, one file. For tests and example programs; nothing in the compiler makes
//! GGUFs. Checks that tensor data has the size its shape says and nothing else: read.rs does the judging. Large files are
//! written in pieces, by whoever makes the data: [`GgufWriter::layout`] says where.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::Path;

use coldpress_kernels::tensor_type::TensorType;

use super::read::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT};
use super::value::{Array, Value};

/// A GGUF file in the making. Keys and tensors appear in the order they were added.
#[derive(Clone, Debug, Default)]
pub struct GgufWriter<'a> {
    keys: Vec<(String, Value)>,
    tensors: Vec<Tensor<'a>>,
}

#[derive(Clone, Debug)]
struct Tensor<'a> {
    name: String,
    ty: TensorType,
    dims: Vec<u64>,
    /// None if somebody else writes it.
    bytes: Option<Cow<'a, [u8]>>,
}

impl<'a> GgufWriter<'a> {
    /// A file without keys and tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a metadata key. `general.alignment`, a u32, sets the alignment of the tensor data.
    pub fn add(&mut self, key: impl Into<String>, value: Value) -> &mut Self {
        self.keys.push((key.into(), value));
        self
    }

    /// Adds a tensor; `dims` in GGUF order, the row length first.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        ty: TensorType,
        dims: &[u64],
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> &mut Self {
        self.push(name.into(), ty, dims, Some(bytes.into()))
    }

    /// Adds a tensor whose data the caller writes where [`GgufWriter::layout`] says.
    pub fn space(&mut self, name: impl Into<String>, ty: TensorType, dims: &[u64]) -> &mut Self {
        self.push(name.into(), ty, dims, None)
    }

    fn push(
        &mut self,
        name: String,
        ty: TensorType,
        dims: &[u64],
        bytes: Option<Cow<'a, [u8]>>,
    ) -> &mut Self {
        self.tensors.push(Tensor {
            name,
            ty,
            dims: dims.into(),
            bytes,
        });
        self
    }

    /// Writes the file.
    ///
    /// # Errors
    /// As [`GgufWriter::write_to`], or the file cannot be created.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut out = BufWriter::new(File::create(path)?);
        self.write_to(&mut out)?;
        out.flush()
    }

    /// Writes the file's bytes to `out`.
    ///
    /// # Errors
    /// `InvalidInput` when a tensor's bytes are not as many as its type and dimensions say or when the alignment is no
    /// power of two, or a tensor has none; otherwise what `out` fails with.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let (header, places) = self.layout()?;
        out.write_all(&header)?;
        let mut end = header.len() as u64;
        for (tensor, place) in self.tensors.iter().zip(places) {
            let Some(bytes) = &tensor.bytes else {
                return Err(invalid(format!("tensor {}: has no bytes", tensor.name)));
            };
            pad(out, place.start - end)?;
            out.write_all(bytes)?;
            end = place.end;
        }
        pad(out, end.next_multiple_of(self.alignment()? as u64) - end)
    }

    /// The bytes before the first tensor, and the file range of each tensor's data. What lies between is zero.
    ///
    /// # Errors
    /// As [`GgufWriter::write_to`], but tensors need no bytes.
    pub fn layout(&self) -> io::Result<(Vec<u8>, Vec<Range<u64>>)> {
        let alignment = self.alignment()?;
        let mut header = Vec::new();
        header.extend_from_slice(b"GGUF");
        header.extend_from_slice(&3u32.to_le_bytes());
        header.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        header.extend_from_slice(&(self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            put_str(&mut header, key);
            header.extend_from_slice(&value.type_id().to_le_bytes());
            put_value(&mut header, value);
        }
        let mut offset = 0u64;
        let mut places = Vec::with_capacity(self.tensors.len());
        for tensor in &self.tensors {
            let bytes = tensor.check()?;
            put_str(&mut header, &tensor.name);
            header.extend_from_slice(&(tensor.dims.len() as u32).to_le_bytes());
            for dim in &tensor.dims {
                header.extend_from_slice(&dim.to_le_bytes());
            }
            header.extend_from_slice(&tensor.ty.id().to_le_bytes());
            header.extend_from_slice(&offset.to_le_bytes());
            places.push(offset..offset + bytes);
            offset = (offset + bytes).next_multiple_of(alignment as u64);
        }
        header.resize(header.len().next_multiple_of(alignment), 0);
        let base = header.len() as u64;
        let place = |range: Range<u64>| base + range.start..base + range.end;
        Ok((header, places.into_iter().map(place).collect()))
    }

    fn alignment(&self) -> io::Result<usize> {
        let stated = self.keys.iter().find(|(key, _)| key == ALIGNMENT_KEY);
        match stated {
            None => Ok(DEFAULT_ALIGNMENT as usize),
            Some((_, Value::U32(alignment))) if alignment.is_power_of_two() => {
                Ok(*alignment as usize)
            }
            Some((_, value)) => Err(invalid(format!("{ALIGNMENT_KEY} cannot be {value}"))),
        }
    }
}

impl Tensor<'_> {
    /// Bytes of its data.
    fn check(&self) -> io::Result<u64> {
        let (k, rows) = self.dims.split_first().unwrap_or((&1, &[]));
        let bytes = rows
            .iter()
            .try_fold(self.ty.row_bytes(*k).unwrap_or(u64::MAX), |bytes, &dim| {
                bytes.checked_mul(dim)
            });
        let given = self.bytes.as_ref().map(|bytes| bytes.len() as u64);
        match bytes.filter(|&bytes| bytes < 1 << 48) {
            Some(bytes) if given.is_none_or(|given| given == bytes) => Ok(bytes),
            _ => Err(invalid(format!(
                "tensor {}: {} bytes are not {:?} of {}",
                self.name,
                given.unwrap_or(0),
                self.dims,
                self.ty
            ))),
        }
    }
}

fn pad(out: &mut dyn Write, bytes: u64) -> io::Result<()> {
    io::copy(&mut io::Read::take(io::repeat(0), bytes), out).map(drop)
}

fn invalid(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, problem)
}

fn put_str(out: &mut Vec<u8>, s: &str) {
    out.extend_from_slice(&(s.len() as u64).to_le_bytes());
    out.extend_from_slice(s.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I8(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::Str(v) => put_str(out, v),
        Value::Array(v) => put_array(out, v),
        Value::U64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F64(v) => out.extend_from_slice(&v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend_from_slice(&array.type_id().to_le_bytes());
    out.extend_from_slice(&(array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend_from_slice(v),
        Array::I8(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::U16(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I16(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::U32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::F32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|&v| u8::from(v))),
        Array::Str(v) => v.iter().for_each(|v| put_str(out, v)),
        Array::Nested(v) => v.iter().for_each(|v| put_array(out, v)),
        Array::U64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::F64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::Gguf;
    use super::*;

    /// One key of every value type and every array type, at the ends of their ranges.
    pub fn every_value() -> Vec<(&'static str, Value)> {
        let array = Value::Array;
        vec![
            ("u8", Value::U8(u8::MAX)),
            ("i8", Value::I8(i8::MIN)),
            ("u16", Value::U16(u16::MAX)),
            ("i16", Value::I16(i16::MIN)),
            ("u32", Value::U32(u32::MAX)),
            ("i32", Value::I32(i32::MIN)),
            ("f32", Value::F32(f32::MIN_POSITIVE)),
            ("bool", Value::Bool(true)),
            ("str", Value::Str("größe ▁".into())),
            ("u64", Value::U64(u64::MAX)),
            ("i64", Value::I64(i64::MIN)),
            ("f64", Value::F64(f64::MAX)),
            ("u8s", array(Array::U8(vec![0, u8::MAX]))),
            ("i8s", array(Array::I8(vec![i8::MIN, i8::MAX]))),
            ("u16s", array(Array::U16(vec![1, u16::MAX]))),
            ("i16s", array(Array::I16(vec![i16::MIN, -1]))),
            ("u32s", array(Array::U32(vec![1, u32::MAX]))),
            ("i32s", array(Array::I32(vec![i32::MIN, 7]))),
            ("f32s", array(Array::F32(vec![-0.0, 1.5, f32::INFINITY]))),
            ("bools", array(Array::Bool(vec![true, false]))),
            (
                "strs",
                array(Array::Str(vec![String::new(), "\u{0}a".into()])),
            ),
            ("u64s", array(Array::U64(vec![1, u64::MAX]))),
            ("i64s", array(Array::I64(vec![i64::MIN, 1]))),
            ("f64s", array(Array::F64(vec![0.1, f64::NEG_INFINITY]))),
            ("empty", array(Array::Str(Vec::new()))),
            (
                "nested",
                array(Array::Nested(vec![
                    Array::U32(vec![1, 2]),
                    Array::Nested(vec![Array::Str(vec!["x".into()])]),
                ])),
            ),
        ]
    }

    /// A small file with every value type and three tensors, of which the last fills its padding.
    pub fn sample() -> GgufWriter<'static> {
        let mut writer = GgufWriter::new();
        for (key, value) in every_value() {
            writer.add(key, value);
        }
        writer
            .tensor("a.weight", TensorType::Q8_0, &[64, 3], vec![1; 204])
            .tensor("b.bias", TensorType::F32, &[1], vec![2; 4])
            .tensor("c.weight", TensorType::F16, &[2, 2, 2, 4], vec![3; 64]);
        writer
    }

    /// The bytes of a file that `write` would make.
    pub fn bytes(writer: &GgufWriter) -> Vec<u8> {
        let mut bytes = Vec::new();
        writer.write_to(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sample.gguf");
        sample().write(&path).unwrap();
        let gguf = Gguf::open(&path).unwrap();
        let expected = every_value();
        let found: Vec<_> = gguf
            .keys()
            .map(|(key, value)| (key, value.clone()))
            .collect();
        assert_eq!(found, expected);

        let shapes: Vec<_> = gguf
            .tensors()
            .iter()
            .map(|t| (t.name.as_str(), t.ty, t.k(), t.n(), t.bytes()))
            .collect();
        assert_eq!(
            shapes,
            [
                ("a.weight", TensorType::Q8_0, 64, 3, 204),
                ("b.bias", TensorType::F32, 1, 1, 4),
                ("c.weight", TensorType::F16, 2, 16, 64),
            ]
        );
        for (index, tensor) in gguf.tensors().iter().enumerate() {
            let data = gguf.data(gguf.tensor(&tensor.name).unwrap());
            assert_eq!(data, vec![index as u8 + 1; tensor.bytes() as usize]);
            assert_eq!(data.as_ptr() as usize % 32, 0, "{}", tensor.name);
        }
        assert_eq!(gguf.total_bytes(), 204 + 4 + 64);
        assert_eq!((gguf.version(), gguf.paths()), (3, &[path][..]));
    }

    #[test]
    fn what_is_written_in_pieces_is_the_same_file() {
        let mut apart = GgufWriter::new();
        let mut whole = GgufWriter::new();
        for (name, ty, dims, bytes) in [
            ("a", TensorType::Q8_0, vec![64, 3], vec![1; 204]),
            ("b", TensorType::F32, vec![5], vec![2; 20]),
        ] {
            apart.space(name, ty, &dims);
            whole.tensor(name, ty, &dims, bytes);
        }
        let (header, places) = apart.layout().unwrap();
        let mut file = vec![0; bytes(&whole).len()];
        file[..header.len()].copy_from_slice(&header);
        for (place, byte) in places.into_iter().zip([1, 2]) {
            file[place.start as usize..place.end as usize].fill(byte);
        }
        assert_eq!(file, bytes(&whole));
        assert!(apart.write_to(&mut Vec::new()).is_err());
        apart.space("c", TensorType::Q8_0, &[33]);
        assert!(apart.layout().is_err());
    }

    #[test]
    fn alignment_is_followed() {
        for alignment in [1, 2, 64, 4096] {
            let mut writer = sample();
            writer.add(ALIGNMENT_KEY, Value::U32(alignment));
            let file = tempfile::NamedTempFile::new().unwrap();
            writer.write(file.path()).unwrap();
            let gguf = Gguf::open(file.path()).unwrap();
            for (index, tensor) in gguf.tensors().iter().enumerate() {
                let data = gguf.data(tensor);
                assert!(data.iter().all(|&b| b == index as u8 + 1), "{alignment}");
            }
        }
    }

    #[test]
    fn data_of_the_wrong_size_is_refused() {
        for dims in [&[32u64][..], &[64, 1], &[33, 2], &[32, u64::MAX], &[]] {
            let mut writer = GgufWriter::new();
            writer.tensor("w", TensorType::Q8_0, dims, vec![0; 34]);
            let written = writer.write_to(&mut Vec::new());
            match dims {
                [32] => written.unwrap(),
                _ => assert_eq!(written.unwrap_err().kind(), io::ErrorKind::InvalidInput),
            }
        }
    }
}
