//! Large pages for mapped weights. A worker that streams weights in pages of 4 KiB spends a tenth and more of its time on
//! finding them; Linux maps a file's cached pages in 2 MiB pages where the cache holds them in one piece. It does when it
//! reads a file into a mapping that asks for that, as bundles do, but a file that has just been written or copied lies in the
//! cache in small pieces, and stays so: then the cache gives the weights up, once, and reads them again.
//!
//! Everything here is a hint: contents never change, and where the system does not go along it is only slower.

use rustix::fs::{Advice as FileAdvice, fadvise};
use rustix::mm::{Advice, madvise};
use std::fs::File;
use std::num::NonZeroU64;
use std::path::Path;
use std::time::Instant;

/// Bytes of a large page.
const LARGE: usize = 2 << 20;
/// Below this the caches hold what finds the pages.
const WORTH: usize = 16 * LARGE;
/// What is read again to see whether it helps.
const SAMPLE: usize = 16 * LARGE;
/// Seconds that reading all weights again may take.
const LONGEST: f64 = 10.0;

/// Has `weights`, part of a read-only mapping of the file at `path` that asks for large pages, mapped in them.
pub(super) fn enlarge(path: &Path, weights: &[u8]) {
    let begin = weights.as_ptr().align_offset(LARGE).min(weights.len());
    let length = (weights.len() - begin) / LARGE * LARGE;
    if length < WORTH {
        return;
    }
    let whole = &weights[begin..begin + length];
    let Some(mapped) = Mapped::of(whole) else {
        return;
    };
    if mapped.large >= length / 8 * 7 {
        return;
    }
    let Ok(file) = File::open(path) else {
        return;
    };
    let (sample, rest) = whole.split_at(SAMPLE);
    let before = Instant::now();
    read_again(&file, mapped.offset, sample);
    let seconds = before.elapsed().as_secs_f64();
    let now = Mapped::of(whole).map_or(0, |now| now.large);
    if pays(rest.len(), (mapped.large, now), seconds) {
        read_again(&file, mapped.offset + SAMPLE as u64, rest);
    }
}

/// Whether to read `rest` bytes again when `large` bytes were in large pages before and after [`SAMPLE`] bytes were, in
/// `seconds`: the file's system has shown that it can, and nobody waits long.
fn pays(rest: usize, large: (usize, usize), seconds: f64) -> bool {
    let able = large.0 > 0 || large.1 > 0;
    rest > 0 && able && rest as f64 / SAMPLE as f64 * seconds <= LONGEST
}

/// Has the cache give up `part` of a mapped file, from byte `offset` of the file on, and read it into the mapping again.
fn read_again(file: &File, offset: u64, part: &[u8]) {
    advise(part, Advice::LinuxDontNeed);
    // What another process has mapped stays.
    let _ = fadvise(
        file,
        offset,
        NonZeroU64::new(part.len() as u64),
        FileAdvice::DontNeed,
    );
    advise(part, Advice::LinuxPopulateRead);
}

/// Advice on whole pages of a mapped file, which older systems may not know.
fn advise(pages: &[u8], advice: Advice) {
    // SAFETY: the pages are a read-only mapping of a file, so whatever is dropped is read from the file again.
    let _ = unsafe { madvise(pages.as_ptr().cast_mut().cast(), pages.len(), advice) };
}

/// What the system says of a mapping.
#[derive(Debug, PartialEq, Eq)]
struct Mapped {
    /// The byte of the file that the asked-for memory begins with.
    offset: u64,
    /// Bytes that are mapped in large pages.
    large: usize,
}

impl Mapped {
    /// Of the mapping that holds `memory`.
    fn of(memory: &[u8]) -> Option<Mapped> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").ok()?;
        Mapped::find(&smaps, memory.as_ptr() as usize)
    }

    /// Of the mapping that holds the address `at`, among those that `smaps` describes: a line `begin-end access offset ...`
    /// for each, then lines of `Name: value kB` (Linux, Documentation/filesystems/proc.rst).
    fn find(smaps: &str, at: usize) -> Option<Mapped> {
        let mut lines = smaps.lines();
        let offset = lines.find_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (begin, end) = words.next()?.split_once('-')?;
            let hex = |word| usize::from_str_radix(word, 16).ok();
            let (begin, end) = (hex(begin)?, hex(end)?);
            let offset = u64::from_str_radix(words.nth(1)?, 16).ok()?;
            (begin..end)
                .contains(&at)
                .then(|| offset + (at - begin) as u64)
        })?;
        let large = lines
            .take_while(|line| {
                line.split_ascii_whitespace()
                    .next()
                    .is_some_and(|w| w.ends_with(':'))
            })
            .find_map(|line| line.strip_prefix("FilePmdMapped:"))?;
        let large = large
            .trim()
            .strip_suffix("kB")?
            .trim()
            .parse::<usize>()
            .ok()?;
        Some(Mapped {
            offset,
            large: large.checked_mul(1024)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memmap2::Mmap;
    use std::io::Write;

    const SMAPS: &str = "\
7f0000000000-7f0000400000 r--s 00200000 fe:00 5 /a file.press
Size:               4096 kB
FilePmdMapped:      2048 kB
VmFlags: rd mr
7f0000400000-7f0000401000 rw-p 00000000 00:00 0
Size:                  4 kB
7ffc00000000-7ffc00001000 r--p 00000000 00:00 0 [vdso]
FilePmdMapped:         0 kB
";

    #[test]
    fn the_mapping_of_an_address_is_found() {
        let found = |at| Mapped::find(SMAPS, at).map(|m| (m.offset, m.large));
        assert_eq!(found(0x7f00_0000_0000), Some((0x20_0000, 2 << 20)));
        assert_eq!(found(0x7f00_003f_ffff), Some((0x5f_ffff, 2 << 20)));
        // A mapping without the line does not take the next one's.
        assert_eq!(found(0x7f00_0040_0000), None);
        assert_eq!(found(0x7ffc_0000_0fff), Some((0xfff, 0)));
        assert_eq!(found(0x1000), None);
        assert_eq!(Mapped::find("no-such lines\n\n-\n", 0), None);
    }

    #[test]
    fn only_what_can_be_had_soon_is_read_again() {
        let gib = 1 << 30;
        for (rest, large, seconds, expected) in [
            (gib, (0, SAMPLE), 0.025, true),
            // The sample was in large pages already, other parts are not.
            (gib, (SAMPLE, SAMPLE), 0.025, true),
            // A file system without large pages.
            (gib, (0, 0), 0.025, false),
            // 1 GiB is 32 samples: 11 seconds.
            (gib, (0, SAMPLE), 0.35, false),
            (40 * gib, (0, SAMPLE), 0.025, false),
            (0, (0, SAMPLE), 0.025, false),
        ] {
            assert_eq!(
                pays(rest, large, seconds),
                expected,
                "{rest} {large:?} {seconds}"
            );
        }
    }

    #[test]
    fn weights_that_are_read_again_are_the_same() {
        let mut file = tempfile::NamedTempFile::new().expect("temporary file");
        let bytes: Vec<u8> = (0..WORTH + 3 * LARGE)
            .map(|i| ((i * 31) >> 4) as u8)
            .collect();
        // Small pieces, as a copy leaves them.
        for piece in bytes.chunks(5000) {
            file.write_all(piece).expect("room");
        }
        file.as_file().sync_all().expect("written");
        // SAFETY: nobody else knows the file.
        let map = unsafe { Mmap::map(file.as_file()) }.expect("mapped");
        assert!(map[..] == bytes[..]);
        let of_map = Mapped::of(&map).expect("the system says where it is");
        assert_eq!(of_map.offset, 0);
        for begin in [0, 4096, 4097, bytes.len() - 5] {
            enlarge(file.path(), &map[begin..]);
            assert!(map[..] == bytes[..], "from {begin}");
        }
        enlarge(Path::new("/no such file"), &map);
        assert!(map[..] == bytes[..]);
    }
}
