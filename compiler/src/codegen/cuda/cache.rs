//! Cubins kept between compiles: one file each, named by a hash of everything that decides its bytes. Read as hostile input;
//! what is absent or damaged is compiled again, and a cache that cannot be written changes nothing but the time.

use super::nvrtc::{Cubin, Nvrtc, spread};
use crate::error::Error;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// What a file begins with; another version of the fields has another.
const MAGIC: &[u8; 8] = b"CPcubin1";
const SUFFIX: &str = "cubin";
/// What a file is called until it is complete.
const PARTIAL: &str = ".cubin-";
/// Magic, checksum, five numbers, and the length of the warnings.
const HEADER: usize = 8 + 16 + 5 * 4 + 4;
/// A larger file is none of the cache's.
const MAX_BYTES: u64 = 64 << 20;
/// The cache's size in bytes unless told otherwise.
const LIMIT: u64 = 256 << 20;
/// An incomplete file of this age has no writer any more.
const ABANDONED: Duration = Duration::from_secs(3600);

/// A folder of cubins.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
    limit: u64,
}

impl Cache {
    /// The cache in `folder`, which need not exist. It keeps to 256 MiB.
    pub fn new(folder: PathBuf) -> Cache {
        Cache {
            folder,
            limit: LIMIT,
        }
    }

    /// The same cache, kept to `limit` bytes.
    pub fn limited(self, limit: u64) -> Cache {
        Cache { limit, ..self }
    }

    /// As [`Nvrtc::compile_all`], compiling only what is not in the cache.
    ///
    /// # Errors
    /// As [`Nvrtc::compile_all`]; never because of the cache.
    pub fn compile_all(
        &self,
        nvrtc: &Nvrtc,
        kernels: &[(String, String)],
        arch: &str,
        threads: usize,
        progress: impl FnMut(),
    ) -> Result<Vec<Cubin>, Error> {
        let cubins = spread(kernels, threads, progress, |name, source| {
            let key = key(nvrtc.version(), &Nvrtc::options(arch), name, source);
            self.get_or(key, || nvrtc.compile(name, source, arch))
        });
        self.prune();
        cubins
    }

    /// The entry of `key`, made with `make` if there is none.
    fn get_or(
        &self,
        key: u128,
        make: impl FnOnce() -> Result<Cubin, Error>,
    ) -> Result<Cubin, Error> {
        let path = self.folder.join(format!("{key:032x}.{SUFFIX}"));
        if let Some(cubin) = read(&path) {
            return Ok(cubin);
        }
        let cubin = make()?;
        // What cannot be kept is compiled again next time.
        let _ = self.write(&path, &cubin);
        Ok(cubin)
    }

    fn write(&self, path: &Path, cubin: &Cubin) -> std::io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let mut file = tempfile::Builder::new()
            .prefix(PARTIAL)
            .tempfile_in(&self.folder)?;
        file.write_all(&encode(cubin))?;
        file.persist(path)?;
        Ok(())
    }

    /// Removes what was used longest ago until the cache is within its limit, and files nobody completes any more.
    fn prune(&self) {
        let now = SystemTime::now();
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let (path, Ok(meta)) = (entry.path(), entry.metadata()) else {
                continue;
            };
            let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            if !meta.is_file() {
                continue;
            }
            if path.extension().is_some_and(|e| e == SUFFIX) {
                entries.push((used, path, meta.len()));
            } else if entry.file_name().to_string_lossy().starts_with(PARTIAL)
                && now.duration_since(used).is_ok_and(|age| age > ABANDONED)
            {
                let _ = fs::remove_file(path);
            }
        }
        let mut total: u64 = entries.iter().map(|(_, _, bytes)| bytes).sum();
        entries.sort();
        for (_, path, bytes) in entries {
            if total <= self.limit {
                break;
            }
            if fs::remove_file(path).is_ok() {
                total -= bytes;
            }
        }
    }
}

/// A hash of everything that decides a cubin.
fn key(version: (i32, i32), options: &[String], name: &str, source: &str) -> u128 {
    let mut hash = Xxh3::new();
    let (major, minor) = version;
    for part in [
        &format!("{major}.{minor}"),
        &options.join(" "),
        name,
        source,
    ] {
        // The length keeps two parts from passing for two others.
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.digest128()
}

/// `MAGIC`, checksum of what follows, numbers, warnings, cubin.
fn encode(cubin: &Cubin) -> Vec<u8> {
    let warnings = cubin.warnings.join("\n");
    let mut body = Vec::with_capacity(HEADER + warnings.len() + cubin.bytes.len());
    for number in [
        cubin.registers,
        cubin.spill_bytes,
        cubin.static_shared,
        cubin.constant_bytes,
        cubin.stack_bytes,
        warnings.len() as u32,
    ] {
        body.extend(number.to_le_bytes());
    }
    body.extend(warnings.as_bytes());
    body.extend(&cubin.bytes);
    let mut file = MAGIC.to_vec();
    file.extend(xxh3_128(&body).to_le_bytes());
    file.extend(body);
    file
}

fn decode(file: &[u8]) -> Option<Cubin> {
    let (magic, rest) = file.split_at_checked(MAGIC.len())?;
    let (sum, body) = rest.split_first_chunk::<16>()?;
    if magic != MAGIC || u128::from_le_bytes(*sum) != xxh3_128(body) {
        return None;
    }
    let (numbers, rest) = body.split_at_checked(6 * 4)?;
    let number = |i: usize| {
        let bytes = numbers[4 * i..4 * i + 4].try_into();
        bytes.map_or(0, u32::from_le_bytes)
    };
    let (warnings, bytes) = rest.split_at_checked(number(5) as usize)?;
    Some(Cubin {
        bytes: bytes.to_vec(),
        registers: number(0),
        spill_bytes: number(1),
        static_shared: number(2),
        constant_bytes: number(3),
        stack_bytes: number(4),
        warnings: std::str::from_utf8(warnings)
            .ok()?
            .lines()
            .map(str::to_string)
            .collect(),
    })
}

/// Reads an entry and marks it as used; `None` if it is absent or damaged.
fn read(path: &Path) -> Option<Cubin> {
    // Whatever else has the name (a folder, a pipe) is no entry.
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let file = File::open(path).ok()?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    let cubin = decode(&bytes)?;
    if let Ok(file) = File::options().append(true).open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
    Some(cubin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cubin(size: usize) -> Cubin {
        Cubin {
            bytes: (0..size).map(|i| i as u8).collect(),
            registers: 40,
            spill_bytes: 8,
            static_shared: 1024,
            constant_bytes: 560,
            stack_bytes: 16,
            warnings: vec!["ptxas warning: a".into(), "b".into()],
        }
    }

    fn unreachable() -> Result<Cubin, Error> {
        Err(Error::Internal("compiled".into()))
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = fs::read_dir(folder)
            .expect("folder")
            .map(|e| e.expect("entry").path())
            .collect();
        files.sort();
        files
    }

    #[test]
    fn what_was_made_once_is_read_back() {
        let folder = tempfile::tempdir().expect("folder");
        let cache = Cache::new(folder.path().join("a/b"));
        for made in [
            cubin(1000),
            Cubin {
                warnings: vec![],
                ..cubin(0)
            },
        ] {
            let key = made.bytes.len() as u128;
            assert!(cache.get_or(key, unreachable).is_err());
            let first = cache.get_or(key, || Ok(made.clone())).expect("made");
            let second = cache.get_or(key, unreachable).expect("read");
            assert!(first == made && second == made);
        }
        assert_eq!(files(&cache.folder).len(), 2);
    }

    #[test]
    fn everything_that_decides_is_in_the_key() {
        let options = |arch: &str| Nvrtc::options(arch);
        let keys = [
            key((13, 0), &options("sm_80"), "k", "source"),
            key((13, 1), &options("sm_80"), "k", "source"),
            key((13, 0), &options("sm_90a"), "k", "source"),
            key((13, 0), &options("sm_80"), "k2", "source"),
            key((13, 0), &options("sm_80"), "k", "source "),
            key((13, 0), &options("sm_80"), "ks", "ource"),
        ];
        for (i, a) in keys.iter().enumerate() {
            assert!(keys[..i].iter().all(|b| a != b), "{i}");
        }
    }

    #[test]
    fn damage_is_made_again() {
        let folder = tempfile::tempdir().expect("folder");
        let cache = Cache::new(folder.path().to_path_buf());
        let good = cubin(40);
        cache.get_or(1, || Ok(good.clone())).expect("made");
        let path = files(folder.path()).remove(0);
        let bytes = fs::read(&path).expect("entry");
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_none(), "{length} bytes");
        }
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x20;
            assert!(decode(&bad).is_none(), "byte {at}");
        }
        fs::write(&path, &bytes[..bytes.len() - 1]).expect("damaged");
        assert!(cache.get_or(1, unreachable).is_err());
        assert!(cache.get_or(1, || Ok(good.clone())).expect("made") == good);
        assert_eq!(fs::read(&path).expect("entry"), bytes);
    }

    #[test]
    fn a_folder_that_cannot_be_written_changes_nothing() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("file");
        fs::write(&file, "in the way").expect("written");
        let cache = Cache::new(file);
        assert!(cache.get_or(1, || Ok(cubin(10))).expect("made") == cubin(10));
        cache.prune();
    }

    #[test]
    fn the_oldest_make_room_and_other_files_stay() {
        let folder = tempfile::tempdir().expect("folder");
        let cache = Cache::new(folder.path().to_path_buf());
        fs::write(folder.path().join("notes.txt"), [0; 5000]).expect("written");
        let one = encode(&cubin(1000)).len() as u64;
        for key in 0..4 {
            cache.get_or(key, || Ok(cubin(1000))).expect("made");
            let path = folder.path().join(format!("{key:032x}.{SUFFIX}"));
            let age = Duration::from_secs(4000 - 10 * key as u64);
            let file = File::options().append(true).open(path).expect("entry");
            file.set_modified(SystemTime::now() - age).expect("aged");
        }
        let partial = folder.path().join(".cubin-left");
        fs::write(&partial, "x").expect("written");
        let file = File::options().append(true).open(&partial).expect("left");
        file.set_modified(SystemTime::now() - 2 * ABANDONED)
            .expect("aged");
        fs::write(folder.path().join(".cubin-busy"), "x").expect("written");
        // The oldest is used again, so the second oldest goes first.
        cache.get_or(0, unreachable).expect("read");
        cache.clone().limited(2 * one).prune();
        let left: Vec<String> = files(folder.path())
            .iter()
            .map(|p| p.file_name().expect("name").to_string_lossy().into_owned())
            .collect();
        let entry = |key: u32| format!("{key:032x}.{SUFFIX}");
        let expected = [".cubin-busy".into(), entry(0), entry(3), "notes.txt".into()];
        assert_eq!(left, expected);
        cache.limited(0).prune();
        assert_eq!(files(folder.path()).len(), 2);
    }
}
