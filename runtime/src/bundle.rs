//! The `.press` file: one header, then sections; everything else reaches a bundle through [`Bundle`] and
//! [`BundleWriter`]. Byte layout: [`header`]. Only this file knows bincode. Running what is inside is `device`'s part.
//!
//! Opening checks the header, the checksum of every section and every number of the manifest, so that damage is an
//! error and never undefined behaviour. **A bundle contains machine code: treat it like an executable.** No check here
//! makes a bundle from a stranger safe to run, just as none makes their program safe. The file must not be changed
//! while it is mapped; replacing it under its name (as [`BundleWriter`] does) is fine.

mod checksum;
mod choice;
pub mod embedded;
pub mod header;
mod machine;
mod mapped;
mod validate;
mod writer;

#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;

pub use header::{Header, Section, SectionKind};
pub use machine::{Machine, TARGETS_BY_CAPABILITY, TARGETS_BY_NAME, target_for};
pub use mapped::MappedSection;
pub use writer::BundleWriter;

use crate::error::Error;
use crate::manifest::{GoldenPrompt, Manifest};
use crate::tokenizer::TokenizerSpec;
use header::{HeaderError, MAX_HEADER_BYTES, SECTION_ALIGN};
use memmap2::{Mmap, MmapOptions};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most bytes one decoded value may take: several times the largest vocabulary.
const VALUE_LIMIT: usize = 512 << 20;
/// Sections below this are checked without threads.
const PARALLEL_BYTES: usize = 32 << 20;
/// Reading memory saturates with few cores.
const MAX_CHECKING_THREADS: usize = 16;

/// The folder a file is written in: where its temporary name has to be for the rename to be one.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A mapped, checked bundle.
#[derive(Debug)]
pub struct Bundle {
    path: PathBuf,
    map: Mmap,
    header: Header,
    manifest: Manifest,
}

impl Bundle {
    /// Maps and checks the bundle at `path`, which may be an executable that carries one.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Truncated`], [`Error::Bundle`] if it is damaged or something else,
    /// [`Error::Mismatch`] if its format version is not this runtime's.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        if let Some(offset) = embedded::find(path) {
            return Self::open_at(path, offset);
        }
        let (file, bytes) = open_file(path)?;
        let bundle = Self::map(path, &file, 0, bytes)?;
        if bytes > bundle.header.file_bytes {
            return Err(bundle.damaged(format!(
                "{} bytes follow the end of the bundle",
                bytes - bundle.header.file_bytes
            )));
        }
        Ok(bundle)
    }

    /// Maps and checks the bundle that starts at byte `offset` of `path`, a multiple of [`header::SECTION_ALIGN`]; bytes
    /// may follow it.
    ///
    /// # Errors
    /// As [`Bundle::open`].
    pub fn open_at(path: impl AsRef<Path>, offset: u64) -> Result<Self, Error> {
        let path = path.as_ref();
        let (file, bytes) = open_file(path)?;
        if !offset.is_multiple_of(SECTION_ALIGN) {
            return Err(Error::Bundle {
                path: path.to_owned(),
                why: format!("no bundle can start at byte {offset}"),
            });
        }
        Self::map(path, &file, offset, bytes)
    }

    /// The header of the bundle at `path`; nothing else is read, sections are not checked.
    ///
    /// # Errors
    /// As [`Bundle::open`], as far as the header shows.
    pub fn header(path: impl AsRef<Path>) -> Result<Header, Error> {
        let path = path.as_ref();
        let (file, bytes) = open_file(path)?;
        read_header(path, &file, bytes)
    }

    fn map(path: &Path, file: &File, offset: u64, file_bytes: u64) -> Result<Self, Error> {
        let io = |source| reading(path, source);
        let truncated = |bytes, expected| Error::Truncated {
            path: path.to_owned(),
            bytes,
            expected,
        };
        let available = file_bytes
            .checked_sub(offset)
            .filter(|&bytes| bytes > 0)
            .ok_or_else(|| truncated(file_bytes, offset + header::PREFIX_BYTES as u64))?;
        let length = usize::try_from(available).map_err(|e| io(io::Error::other(e)))?;
        // SAFETY: the map is read-only. Another process that shortens the file could still raise SIGBUS, as with any
        // mapped executable; the module documentation forbids it.
        let map = unsafe { MmapOptions::new().offset(offset).len(length).map(file) }.map_err(io)?;
        // What is not in the cache yet is read into large pages, where the system has them.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let header = header::parse(&map[..length.min(MAX_HEADER_BYTES as usize)])
            .map_err(|e| header_error(path, available, e))?;
        if available < header.file_bytes {
            return Err(truncated(available, header.file_bytes));
        }
        let mut bundle = Self {
            path: path.to_owned(),
            map,
            header,
            manifest: Manifest::default(),
        };
        bundle.check_gaps()?;
        bundle.check_sections()?;
        bundle.manifest = bundle.section_value(SectionKind::Manifest)?;
        validate::manifest(&bundle.manifest, &bundle.header)
            .map_err(|why| bundle.damaged(format!("manifest: {why}")))?;
        Ok(bundle)
    }

    fn damaged(&self, why: impl Into<String>) -> Error {
        Error::Bundle {
            path: self.path.clone(),
            why: why.into(),
        }
    }

    /// Bytes between sections are zero, so that no byte of the file is unchecked.
    fn check_gaps(&self) -> Result<(), Error> {
        let mut end = self.header.header_bytes;
        for section in &self.header.sections {
            let gap = &self.map[end as usize..section.offset as usize];
            if let Some(at) = gap.iter().position(|&byte| byte != 0) {
                return Err(self.damaged(format!(
                    "byte {} between sections is not zero: the file is damaged",
                    end + at as u64
                )));
            }
            end = section.offset + section.bytes;
        }
        Ok(())
    }

    fn check_sections(&self) -> Result<(), Error> {
        for (index, section) in self.header.sections.iter().enumerate() {
            if section_digest(&self.map, self.bytes_of(section)) != section.checksum {
                return Err(self.damaged(format!(
                    "checksum of section {index} ({:?}, {} bytes at {}) differs: the file is damaged",
                    section.kind, section.bytes, section.offset
                )));
            }
        }
        Ok(())
    }

    fn bytes_of(&self, section: &Section) -> &[u8] {
        &self.map[section.offset as usize..][..section.bytes as usize]
    }

    /// Where the bundle was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The header of this bundle.
    pub fn file_header(&self) -> &Header {
        &self.header
    }

    /// The manifest; its numbers agree with each other and with the sections.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Bytes of section `index`, mapped, page-aligned. `None` if there is no such section.
    pub fn section_bytes(&self, index: u32) -> Option<&[u8]> {
        let section = self.header.sections.get(index as usize)?;
        Some(self.bytes_of(section))
    }

    /// Bytes of section `index`, which holds a plan's `what`.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no such section.
    pub(crate) fn needed_section(&self, what: &str, index: u32) -> Result<&[u8], Error> {
        let bytes = self.section_bytes(index);
        bytes.ok_or_else(|| Error::Device(format!("the bundle has no {what} section {index}")))
    }

    /// Indices of the sections of one kind, in file order.
    pub fn sections(&self, kind: SectionKind) -> impl Iterator<Item = u32> + '_ {
        let sections = self.header.sections.iter().enumerate();
        sections.filter_map(move |(index, section)| (section.kind == kind).then_some(index as u32))
    }

    /// The value in the only section of `kind`.
    ///
    /// # Errors
    /// [`Error::Bundle`] if there is no such section, more than one, or it does not decode.
    pub fn section_value<T: DeserializeOwned>(&self, kind: SectionKind) -> Result<T, Error> {
        self.optional_value(kind)?
            .ok_or_else(|| self.damaged(format!("has no {kind:?} section")))
    }

    /// As [`Bundle::section_value`], `None` if there is no such section.
    ///
    /// # Errors
    /// [`Error::Bundle`] if there is more than one, or it does not decode.
    pub fn optional_value<T: DeserializeOwned>(
        &self,
        kind: SectionKind,
    ) -> Result<Option<T>, Error> {
        let mut indices = self.sections(kind);
        let Some(bytes) = indices.next().and_then(|index| self.section_bytes(index)) else {
            return Ok(None);
        };
        if indices.next().is_some() {
            return Err(self.damaged(format!("has more than one {kind:?} section")));
        }
        match decode_value(bytes) {
            Ok(value) => Ok(Some(value)),
            Err(why) => Err(self.damaged(format!("{kind:?} section: {why}"))),
        }
    }

    /// Prompts with the logits the compiler expects; empty if the bundle has none.
    ///
    /// # Errors
    /// [`Error::Bundle`] if the section does not decode.
    pub fn golden_prompts(&self) -> Result<Vec<GoldenPrompt>, Error> {
        Ok(self
            .optional_value(SectionKind::Golden)?
            .unwrap_or_default())
    }

    /// What a tokenizer is built from.
    ///
    /// # Errors
    /// [`Error::Bundle`] if the bundle has none, or it does not decode.
    pub fn tokenizer_spec(&self) -> Result<TokenizerSpec, Error> {
        self.section_value(SectionKind::Tokenizer)
    }
}

fn reading(path: &Path, source: io::Error) -> Error {
    Error::Io {
        doing: format!("reading {}", path.display()),
        source,
    }
}

fn open_file(path: &Path) -> Result<(File, u64), Error> {
    let file = File::open(path).map_err(|e| reading(path, e))?;
    let metadata = file.metadata().map_err(|e| reading(path, e))?;
    if !metadata.is_file() {
        return Err(reading(path, io::Error::other("is not a regular file")));
    }
    Ok((file, metadata.len()))
}

fn read_header(path: &Path, file: &File, file_bytes: u64) -> Result<Header, Error> {
    let mut bytes = Vec::new();
    let mut read = |up_to: u64| {
        let more = up_to.saturating_sub(bytes.len() as u64);
        let mut file = file.take(more);
        file.read_to_end(&mut bytes)
            .map_err(|e| reading(path, e))
            .map(|_| bytes.clone())
    };
    let prefix = read(header::PREFIX_BYTES as u64)?;
    let wrong = |e| header_error(path, file_bytes, e);
    let (header_bytes, _) = header::parse_prefix(&prefix).map_err(wrong)?;
    let header = header::parse(&read(header_bytes)?).map_err(wrong)?;
    if file_bytes < header.file_bytes {
        let expected = header.file_bytes;
        return Err(wrong(HeaderError::Truncated { expected }));
    }
    Ok(header)
}

fn header_error(path: &Path, bytes: u64, error: HeaderError) -> Error {
    let path = path.to_owned();
    match error {
        HeaderError::Truncated { expected } => Error::Truncated {
            path,
            bytes,
            expected,
        },
        HeaderError::Version(version) => Error::Mismatch(vec![format!(
            "{} has format version {version}, this runtime reads version {}; \
             recompile with the coldpress of this runtime",
            path.display(),
            header::FORMAT_VERSION
        )]),
        HeaderError::Malformed(why) => Error::Bundle { path, why },
    }
}

/// Checksum of `bytes`, a part of `map`, by as many threads as its size pays for.
fn section_digest(map: &Mmap, bytes: &[u8]) -> u64 {
    let chunks: Vec<&[u8]> = bytes.chunks(checksum::CHUNK_BYTES).collect();
    let threads = (bytes.len() / PARALLEL_BYTES + 1).min(num_cpus::get());
    let next = AtomicUsize::new(0);
    #[cfg(target_os = "linux")]
    let start = map.as_ptr() as usize;
    let check = || {
        let mut digests = Vec::new();
        while let Some((index, chunk)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            chunks.get(index).map(|chunk| (index, chunk))
        } {
            // One call maps the whole chunk instead of one fault per 64 KiB; where it is unknown faults do the work.
            #[cfg(target_os = "linux")]
            let _ = map.advise_range(
                memmap2::Advice::PopulateRead,
                chunk.as_ptr() as usize - start,
                chunk.len(),
            );
            digests.push((index, checksum::chunk_digest(chunk)));
        }
        digests
    };
    let mut digests = vec![0; chunks.len()];
    let mut place = |found: Vec<(usize, u64)>| {
        for (index, digest) in found {
            digests[index] = digest;
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(MAX_CHECKING_THREADS))
            .map(|_| scope.spawn(check))
            .collect();
        place(check());
        for other in others {
            match other.join() {
                Ok(found) => place(found),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    checksum::combine(&digests)
}

fn decode_value<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let config = bincode::config::standard().with_limit::<VALUE_LIMIT>();
    let (value, read) =
        bincode::serde::decode_from_slice(bytes, config).map_err(|e| e.to_string())?;
    if read != bytes.len() {
        return Err(format!("{} bytes follow the value", bytes.len() - read));
    }
    Ok(value)
}

fn encode_value<T: Serialize>(value: &T, out: &mut impl io::Write) -> io::Result<()> {
    // The encoder's error hides the cause of a failed write: keep it aside.
    let mut cause = None;
    let mut out = Tap {
        out,
        cause: &mut cause,
    };
    let result =
        bincode::serde::encode_into_std_write(value, &mut out, bincode::config::standard());
    match (result, cause) {
        (_, Some(cause)) => Err(cause),
        (Err(e), None) => Err(io::Error::other(e.to_string())),
        (Ok(_), None) => Ok(()),
    }
}

/// Passes bytes on and keeps the first error.
struct Tap<'a, W> {
    out: &'a mut W,
    cause: &'a mut Option<io::Error>,
}

impl<W: io::Write> io::Write for Tap<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes).inspect_err(|e| {
            if self.cause.is_none() {
                *self.cause = Some(io::Error::new(e.kind(), e.to_string()));
            }
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
