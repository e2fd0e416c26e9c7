//! Where compiled kernels are kept between runs: one file per library text, GPU and system, in the user's cache folder,
//! beside its checksum. What is absent, damaged or of another system is made again; a folder that cannot be written changes
//! nothing but the time. Plain Rust: what is in the file is the framework's business.
//!
//! The system has a cache of its own (below `getconf DARWIN_USER_CACHE_DIR`), which it may empty whenever it likes; text
//! that it has seen is taken from there, machine code from here.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use xxhash_rust::xxh3::Xxh3;

const SUFFIX: &str = "metalarchive";
const SUM: &str = "sum";
/// Begins the names of folders in which archives are made.
const PARTIAL: &str = ".partial-";
/// After so long nobody is at work in such a folder.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// A larger file is none of ours.
const MAX_BYTES: u64 = 256 << 20;
/// Files kept, those used last.
const MOST: usize = 32;

/// The place of the compiled kernels of one library on one GPU under one system.
pub(super) struct Archive {
    path: PathBuf,
}

impl Archive {
    /// In `folder`, which need not exist; `system` and `gpu` in the system's words.
    pub(super) fn new(folder: &Path, library: &[u8], system: &str, gpu: &str) -> Self {
        let mut hash = Xxh3::new();
        for part in [library, system.as_bytes(), gpu.as_bytes()] {
            // The length keeps two parts from passing for two others.
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let name = format!("{}-{:032x}.{SUFFIX}", plain(gpu), hash.digest128());
        Self {
            path: folder.join(name),
        }
    }

    /// The file, if it is there and whole.
    pub(super) fn read(&self) -> Option<&Path> {
        let kept = fs::read_to_string(self.sum()).ok()?;
        if kept != format!("{:032x}\n", digest(&self.path).ok()?) {
            return None;
        }
        // For those that are used last.
        if let Ok(file) = File::options().append(true).open(&self.path) {
            let _ = file.set_modified(SystemTime::now());
        }
        Some(&self.path)
    }

    /// Has `write` make the file under a temporary name, and gives it its own.
    pub(super) fn replace(
        &self,
        write: impl FnOnce(&Path) -> Result<(), String>,
    ) -> Result<(), String> {
        let words = |e: io::Error| format!("{}: {e}", self.path.display());
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(words)?;
        // A folder, since the framework writes no file that exists.
        let partial = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(folder);
        let partial = partial.map_err(words)?;
        let (file, sum) = (partial.path().join("archive"), partial.path().join(SUM));
        write(&file)?;
        let digest = digest(&file).map_err(words)?;
        fs::write(&sum, format!("{digest:032x}\n")).map_err(words)?;
        // Between the two nothing fits together, which is as good as nothing.
        fs::rename(&file, &self.path).map_err(words)?;
        fs::rename(&sum, self.sum()).map_err(words)?;
        prune(folder);
        Ok(())
    }

    fn sum(&self) -> PathBuf {
        self.path.with_extension(SUM)
    }
}

/// What of a GPU's name may stand in a file's.
fn plain(name: &str) -> String {
    let letters = name.chars().take(40);
    letters
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect()
}

fn digest(path: &Path) -> io::Result<u128> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("is no file"));
    }
    let mut file = File::open(path)?.take(MAX_BYTES + 1);
    let (mut hash, mut total, mut piece) = (Xxh3::new(), 0, vec![0; 1 << 16]);
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            break;
        }
        hash.update(&piece[..read]);
        total += read as u64;
    }
    match total > MAX_BYTES {
        true => Err(io::Error::other("is too large")),
        false => Ok(hash.digest128()),
    }
}

/// Removes all archives but those that were used last, and what processes that were killed have left.
fn prune(folder: &Path) {
    let (mut archives, mut leftovers) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let used = entry.metadata().and_then(|m| m.modified());
        let used = used.unwrap_or(SystemTime::UNIX_EPOCH);
        let old = used.elapsed().is_ok_and(|age| age > ABANDONED);
        if path.extension().is_some_and(|e| e == SUFFIX) {
            archives.push((used, path));
        } else if old && entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            leftovers.push(path);
        }
    }
    archives.sort();
    let surplus = archives.len().saturating_sub(MOST);
    for (_, path) in &archives[..surplus] {
        let _ = fs::remove_file(path);
        let _ = fs::remove_file(path.with_extension(SUM));
    }
    for path in leftovers {
        let _ = fs::remove_dir_all(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSTEM: &str = "Version 15.1 (Build 24B83)";

    fn archive(folder: &Path) -> Archive {
        Archive::new(folder, b"kernel void k() {}", SYSTEM, "Apple M4 Max")
    }

    fn keep(archive: &Archive, bytes: &[u8]) {
        let kept = archive.replace(|file| fs::write(file, bytes).map_err(|e| e.to_string()));
        kept.expect("kept");
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        let name = |e: fs::DirEntry| e.file_name().to_string_lossy().into_owned();
        let mut names: Vec<_> = entries.map(|e| name(e.expect("an entry"))).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_kept_is_found_again_and_nothing_else_is() {
        let temporary = tempfile::tempdir().expect("a folder");
        let folder = temporary.path().join("a/b");
        let kept = archive(&folder);
        assert!(kept.read().is_none());
        keep(&kept, b"machine code");
        let path = archive(&folder).read().map(Path::to_owned).expect("kept");
        assert_eq!(fs::read(&path).expect("read"), b"machine code");
        let name = path.file_name().expect("a name").to_string_lossy();
        assert!(name.starts_with("apple-m4-max-"), "{name}");
        let text = b"kernel void k() {}";
        for other in [
            Archive::new(&folder, b"kernel void l() {}", SYSTEM, "Apple M4 Max"),
            Archive::new(&folder, text, "Version 15.2 (Build 24C101)", "Apple M4 Max"),
            Archive::new(&folder, text, SYSTEM, "Apple M4"),
            Archive::new(&folder, text, "", &format!("{SYSTEM}Apple M4 Max")),
        ] {
            assert!(other.read().is_none(), "{}", other.path.display());
        }
        keep(&kept, b"other code");
        assert_eq!(
            fs::read(kept.read().expect("kept")).expect("read"),
            b"other code"
        );
        assert_eq!(names(&folder).len(), 2);
    }

    #[test]
    fn damage_is_as_good_as_nothing_and_is_written_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let kept = archive(folder.path());
        keep(&kept, b"machine code");
        let sum = fs::read(kept.sum()).expect("a sum");
        let damages: [&dyn Fn(); 6] = [
            &|| fs::write(&kept.path, b"machine cod").expect("cut"),
            &|| fs::write(&kept.path, b"machine c0de").expect("changed"),
            &|| fs::remove_file(&kept.path).expect("removed"),
            &|| {
                fs::remove_file(&kept.path).expect("removed");
                fs::create_dir(&kept.path).expect("a folder in its place");
            },
            &|| fs::write(kept.sum(), &sum[..9]).expect("cut"),
            &|| fs::remove_file(kept.sum()).expect("removed"),
        ];
        for (index, damage) in damages.iter().enumerate() {
            damage();
            assert!(kept.read().is_none(), "damage {index}");
            let _ = fs::remove_dir(&kept.path);
            keep(&kept, b"machine code");
            assert!(kept.read().is_some(), "damage {index}");
        }
    }

    #[test]
    fn what_fails_leaves_what_was_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let kept = archive(folder.path());
        keep(&kept, b"machine code");
        let failed = kept.replace(|file| {
            fs::write(file, b"half of").map_err(|e| e.to_string())?;
            Err("the disk is full".into())
        });
        assert_eq!(failed, Err("the disk is full".into()));
        assert_eq!(
            fs::read(kept.read().expect("kept")).expect("read"),
            b"machine code"
        );
        assert_eq!(names(folder.path()).len(), 2);
        let blocked = archive(&kept.path);
        assert!(blocked.read().is_none());
        assert!(blocked.replace(|_| Ok(())).is_err());
    }

    #[test]
    fn the_oldest_make_room_and_other_files_stay() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("notes.txt"), "mine").expect("written");
        let one = |i: usize| Archive::new(folder.path(), &[i as u8], SYSTEM, "Apple M1");
        for i in 0..MOST + 2 {
            keep(&one(i), b"code");
            let file = File::options()
                .append(true)
                .open(&one(i).path)
                .expect("kept");
            let age = Duration::from_secs(10_000 - 10 * i as u64);
            file.set_modified(SystemTime::now() - age).expect("aged");
        }
        // Two beyond the limit went as they came; the oldest left is used again, so the next goes first.
        assert!(one(0).read().is_none() && one(1).read().is_none());
        assert!(one(2).read().is_some());
        keep(&one(MOST + 2), b"code");
        assert!(one(2).read().is_some() && one(3).read().is_none());
        assert_eq!(names(folder.path()).len(), 2 * MOST + 1);
    }

    #[test]
    fn folders_that_nobody_works_in_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let [old, new] = [".partial-old", ".partial-new"].map(|name| folder.path().join(name));
        for partial in [&old, &new] {
            fs::create_dir(partial).expect("a folder");
            fs::write(partial.join("archive"), "half").expect("written");
        }
        let aged = SystemTime::now() - 2 * ABANDONED;
        let file = File::open(&old).expect("a folder");
        file.set_modified(aged).expect("aged");
        keep(&archive(folder.path()), b"code");
        assert!(!old.exists() && new.join("archive").exists());
    }
}
