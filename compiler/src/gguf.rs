//! GGUF files: metadata and tensors of a model, mapped, with everything checked that a damaged or hostile file could
//! get wrong. The only code that knows the container; what the keys mean is for model.rs, what the bytes of a tensor
//! mean for the quant formats of the kernels crate.

mod cursor;
mod error;
mod keys;
mod read;
mod split;
mod tensor;
mod value;
mod write;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use coldpress_kernels::tensor_type::TensorType;
use memmap2::{Mmap, UncheckedAdvice};

pub use error::Error;
pub use value::{Array, Value};
pub use write::GgufWriter;

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
            for tensor::Entry {
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

    /// Tells the system that `data`, a part of a tensor, is not needed soon: its pages no longer count as this process's
    /// memory. Reading it again is slower, not wrong. Bytes of another `Gguf` are left alone.
    pub fn release(&self, data: &[u8]) {
        let start = data.as_ptr() as usize;
        let holds = |map: &&Mmap| map.as_ptr_range().contains(&data.as_ptr());
        let Some(map) = self.maps.iter().find(holds) else {
            return;
        };
        let offset = start - map.as_ptr() as usize;
        // SAFETY: the mapping is shared, read-only and backed by a file, so that pages given up are read from the file
        // again when they are touched.
        let advised =
            unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, data.len()) };
        // Advice that the system does not take leaves everything as it is.
        drop(advised);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_opened_names_the_path() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().join("absent.gguf"), dir.path().into()] {
            let error = Gguf::open(&path).unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{error}");
            assert!(error.to_string().starts_with(path.to_str().unwrap()));
        }
        let empty = dir.path().join("empty.gguf");
        File::create(&empty).unwrap();
        assert!(matches!(Gguf::open(&empty), Err(Error::Truncated { .. })));
    }

    #[test]
    fn released_bytes_can_be_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        let bytes: Vec<u8> = (0..40_000u32).flat_map(|i| i.to_le_bytes()).collect();
        let mut writer = GgufWriter::new();
        writer.tensor("a", TensorType::F32, &[40_000], bytes.clone());
        writer.write(&path).unwrap();
        let gguf = Gguf::open(&path).unwrap();
        let data = gguf.data(&gguf.tensors()[0]);
        assert!(data == bytes);
        gguf.release(&data[5000..5001]);
        gguf.release(&data[100..150_000]);
        gguf.release(&data[..0]);
        gguf.release(&bytes);
        assert!(data == bytes);
    }

    #[test]
    fn fixtures_open() {
        let root = std::env::var_os("COLDPRESS_FIXTURES").map_or_else(
            || {
                PathBuf::from(concat!(
                    env!("CARGO_MANIFEST_DIR"),
                    "/../../shared/fixtures"
                ))
            },
            PathBuf::from,
        );
        if !root.is_dir() {
            assert!(
                std::env::var_os("CI").is_none_or(|ci| ci != "true"),
                "fixtures not found"
            );
            println!("skipped: fixtures not found");
            return;
        }
        let mut opened = 0;
        for (dir, has_tensors) in [("models", true), ("vocab", false)] {
            for entry in std::fs::read_dir(root.join(dir)).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_none_or(|extension| extension != "gguf") {
                    continue;
                }
                let gguf = Gguf::open(&path).unwrap();
                assert!(gguf.str("general.architecture").unwrap().is_some());
                let tokens = gguf.strs("tokenizer.ggml.tokens").unwrap().unwrap();
                assert!(tokens.len() >= 1024);
                assert_eq!(
                    !gguf.tensors().is_empty(),
                    has_tensors,
                    "{}",
                    path.display()
                );
                for tensor in gguf.tensors() {
                    assert_eq!(gguf.tensor(&tensor.name), Some(tensor));
                    let row = tensor.ty.row_bytes(tensor.k()).unwrap();
                    assert_eq!(gguf.data(tensor).len() as u64, row * tensor.n());
                }
                let file_bytes = std::fs::metadata(&path).unwrap().len();
                assert!(gguf.total_bytes() <= file_bytes);
                assert!(!has_tensors || gguf.total_bytes() * 2 > file_bytes);
                opened += 1;
            }
        }
        assert!(opened > 1, "no GGUF files in {}", root.display());
    }
}
