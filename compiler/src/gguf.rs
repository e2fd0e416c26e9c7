//! GGUF files: metadata and tensors of a model, mapped, with everything checked that a damaged or hostile file could
//! get wrong. The only code that knows the container; what the keys mean is for model.rs, what the bytes of a tensor
//! mean for the quant formats of the kernels crate.

mod error;
mod read;
mod split;
mod value;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use coldpress_kernels::tensor_type::TensorType;
use memmap2::Mmap;

pub use error::Error;
pub use value::{Array, Value};

/// A model's GGUF file, or all files of a split one. Owns the mappings: tensor data is read from disk when touched.
#[derive(Debug)]
pub struct Gguf {
    version: u32,
    paths: Vec<PathBuf>,
    maps: Vec<Mmap>,
    keys: Vec<(String, Value)>,
    key_index: HashMap<String, usize>,
    tensors: Vec<TensorInfo>,
    tensor_index: HashMap<String, usize>,
}

/// One tensor of a [`Gguf`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// GGUF name: `blk.3.ffn_down.weight`.
    pub name: String,
    /// How its weights are stored.
    pub ty: TensorType,
    /// One to four dimensions, none zero, in GGUF order: `dims[0]` is the row length k, rows are contiguous.
    pub dims: Vec<u64>,
    shard: usize,
    start: usize,
    bytes: usize,
}

impl TensorInfo {
    /// Row length: the reduction dimension of a matmul weight, a multiple of the type's quant block length.
    pub fn k(&self) -> u64 {
        self.dims[0]
    }

    /// Number of rows: the product of all dimensions but the first.
    pub fn n(&self) -> u64 {
        self.dims[1..].iter().product()
    }

    /// Bytes of its data: `n()` rows of `ty.row_bytes(k())`.
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }
}

struct Shard {
    path: PathBuf,
    map: Mmap,
    parsed: read::Parsed,
}

impl Shard {
    fn open(path: &Path) -> Result<Shard, Error> {
        let io_error = |source| Error::Io {
            path: path.into(),
            source,
        };
        let file = File::open(path).map_err(io_error)?;
        if file.metadata().map_err(io_error)?.is_dir() {
            return Err(io_error(io::ErrorKind::IsADirectory.into()));
        }
        // SAFETY: the mapping is read-only and private to this process. As with every mapped model file, another
        // process that truncates or rewrites the file meanwhile breaks the reader; the documentation of `open` says so.
        let map = unsafe { Mmap::map(&file) }.map_err(io_error)?;
        let parsed = read::parse(path, &map)?;
        Ok(Shard {
            path: path.into(),
            map,
            parsed,
        })
    }
}

impl Gguf {
    /// Maps the file at `path`; of a split model, any file will do and the others are found beside it by name. The
    /// files must not be changed while the `Gguf` lives.
    ///
    /// # Errors
    /// Every way in which the file or one of its shards is not a well-formed little-endian GGUF of version 2 or 3.
    pub fn open(path: &Path) -> Result<Gguf, Error> {
        let given = Shard::open(path)?;
        let Some(place) = split::place(path, &given.parsed)? else {
            return Gguf::join(vec![given]);
        };
        let mut given = Some(given);
        let mut shards = Vec::new();
        for (no, sibling) in (0..).zip(split::siblings(path, place)?) {
            let shard = match given.take_if(|_| no == place.no) {
                Some(given) => given,
                None => Shard::open(&sibling).map_err(|e| match e {
                    Error::Io {
                        path: missing,
                        source,
                    } if source.kind() == io::ErrorKind::NotFound => Error::MissingShard {
                        path: path.into(),
                        missing,
                    },
                    other => other,
                })?,
            };
            split::check(
                &shard.path,
                split::place(&shard.path, &shard.parsed)?,
                no,
                place,
            )?;
            shards.push(shard);
        }
        let n_tensors: usize = shards.iter().map(|shard| shard.parsed.tensors.len()).sum();
        let stated =
            split::place(&shards[0].path, &shards[0].parsed)?.and_then(|first| first.n_tensors);
        match stated {
            Some(stated) if stated != n_tensors as u64 => Err(Error::split(
                &shards[0].path,
                format!(
                    "states {stated} tensors, its {} files hold {n_tensors}",
                    place.count
                ),
            )),
            _ => Gguf::join(shards),
        }
    }

    /// One model of at least one shard; metadata is the first one's.
    fn join(shards: Vec<Shard>) -> Result<Gguf, Error> {
        let mut gguf = Gguf {
            version: shards[0].parsed.version,
            paths: Vec::new(),
            maps: Vec::new(),
            keys: Vec::new(),
            key_index: HashMap::new(),
            tensors: Vec::new(),
            tensor_index: HashMap::new(),
        };
        for (shard, Shard { path, map, parsed }) in shards.into_iter().enumerate() {
            if shard == 0 {
                let names = parsed.keys.iter().map(|(name, _)| name.clone());
                gguf.key_index = names.zip(0..).collect();
                gguf.keys = parsed.keys;
            }
            for read::Entry {
                name,
                ty,
                dims,
                start,
                bytes,
            } in parsed.tensors
            {
                if gguf
                    .tensor_index
                    .insert(name.clone(), gguf.tensors.len())
                    .is_some()
                {
                    return Err(Error::tensor(
                        &path,
                        &name,
                        "is also in another file of the split model",
                    ));
                }
                gguf.tensors.push(TensorInfo {
                    name,
                    ty,
                    dims,
                    shard,
                    start,
                    bytes,
                });
            }
            gguf.paths.push(path);
            gguf.maps.push(map);
        }
        Ok(gguf)
    }

    /// The value of a metadata key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.key_index.get(key).map(|&index| &self.keys[index].1)
    }

    /// All metadata, in file order; of a split model, that of the first file.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.keys.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// An integer of any type that fits; `None` when the key is absent.
    ///
    /// # Errors
    /// The value is no integer, or out of range.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, Error> {
        self.int(key, "u32")
    }

    /// An integer of any type that fits; `None` when the key is absent.
    ///
    /// # Errors
    /// The value is no integer, or negative.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, Error> {
        self.int(key, "u64")
    }

    /// A float or integer of any type, rounded to f32; `None` when the key is absent.
    ///
    /// # Errors
    /// The value is no number.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, Error> {
        self.read(key, "f32", |value| value.float().map(|v| v as f32))
    }

    /// A bool; `None` when the key is absent.
    ///
    /// # Errors
    /// The value is no bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        self.read(key, "bool", |value| match value {
            Value::Bool(v) => Some(*v),
            _ => None,
        })
    }

    /// A string; `None` when the key is absent.
    ///
    /// # Errors
    /// The value is no string.
    pub fn str(&self, key: &str) -> Result<Option<&str>, Error> {
        self.read(key, "str", |value| match value {
            Value::Str(v) => Some(v.as_str()),
            _ => None,
        })
    }

    /// An array of integers of any type that fits, or one such integer; `None` when the key is absent.
    ///
    /// # Errors
    /// The value is no integer or array of integers, or one is out of range.
    pub fn u32s(&self, key: &str) -> Result<Option<Vec<u32>>, Error> {
        self.ints(key, "arr[u32]")
    }

    /// An array of integers of any type that fits, or one such integer; `None` when the key is absent.
    ///
    /// # Errors
    /// The value is no integer or array of integers, or one is out of range.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>, Error> {
        self.ints(key, "arr[i32]")
    }

    /// An array of floats or integers rounded to f32, or one such number; `None` when the key is absent.
    ///
    /// # Errors
    /// The value is no number or array of numbers.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>, Error> {
        self.read(key, "arr[f32]", |value| {
            Some(value.floats()?.into_iter().map(|v| v as f32).collect())
        })
    }

    /// An array of bools, or one bool; `None` when the key is absent.
    ///
    /// # Errors
    /// The value is no bool or array of bools.
    pub fn bools(&self, key: &str) -> Result<Option<Vec<bool>>, Error> {
        self.read(key, "arr[bool]", |value| match value {
            Value::Array(Array::Bool(v)) => Some(v.clone()),
            Value::Bool(v) => Some(vec![*v]),
            _ => None,
        })
    }

    /// An array of strings, or one string; `None` when the key is absent.
    ///
    /// # Errors
    /// The value is no string or array of strings.
    pub fn strs(&self, key: &str) -> Result<Option<&[String]>, Error> {
        self.read(key, "arr[str]", |value| match value {
            Value::Array(Array::Str(v)) => Some(v.as_slice()),
            Value::Str(v) => Some(std::slice::from_ref(v)),
            _ => None,
        })
    }

    fn read<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(Error::Type {
                path: self.paths[0].clone(),
                key: key.into(),
                found: value.type_name(),
                expected,
            }),
        }
    }

    fn int<T: TryFrom<i128>>(&self, key: &str, expected: &'static str) -> Result<Option<T>, Error> {
        let Some(int) = self.read(key, expected, Value::int)? else {
            return Ok(None);
        };
        self.fit(key, int, expected).map(Some)
    }

    fn ints<T: TryFrom<i128>>(
        &self,
        key: &str,
        expected: &'static str,
    ) -> Result<Option<Vec<T>>, Error> {
        let Some(ints) = self.read(key, expected, Value::ints)? else {
            return Ok(None);
        };
        let fitted: Result<_, _> = ints
            .into_iter()
            .map(|int| self.fit(key, int, expected))
            .collect();
        fitted.map(Some)
    }

    fn fit<T: TryFrom<i128>>(
        &self,
        key: &str,
        int: i128,
        expected: &'static str,
    ) -> Result<T, Error> {
        T::try_from(int).map_err(|_| {
            Error::metadata(
                &self.paths[0],
                key,
                format!("{int} does not fit {expected}"),
            )
        })
    }

    /// All tensors, in file order, shard after shard.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensor_index
            .get(name)
            .map(|&index| &self.tensors[index])
    }

    /// Exactly the bytes of `t`, a tensor of this `Gguf`. They start at a multiple of the file's alignment, by default
    /// 32 bytes, which a file may set as low as 1.
    ///
    /// # Panics
    /// When `t` is a tensor of another `Gguf` and lies outside this one's files.
    pub fn data(&self, t: &TensorInfo) -> &[u8] {
        &self.maps[t.shard][t.start..][..t.bytes]
    }

    /// Bytes of all tensors together, without metadata and padding.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.iter().map(TensorInfo::bytes).sum()
    }

    /// GGUF version, 2 or 3; of a split model, that of the first file.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The mapped files, shards in order.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }
}
