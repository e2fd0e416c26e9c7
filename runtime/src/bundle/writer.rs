//! Writes a bundle front to back without holding a section in memory. The file appears under its name only when it is
//! complete: until then it is a temporary file in the same directory, removed on error and on drop.

use super::checksum::Checksum;
use super::header::{self, Header, MAX_SECTIONS, SECTION_ALIGN, Section, SectionKind};
use crate::error::Error;
use crate::manifest::Requirements;
use serde::Serialize;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Bytes kept free for the header; enough for every section the format allows and 60 KiB of text. Not written where
/// unused, so file systems with sparse files do not store it.
const HEADER_ROOM: u64 = 12 * SECTION_ALIGN;
/// The file is written in aligned blocks of the size of a huge page: file systems keep what one call writes in as few
/// pages as it fills, and weights mapped by huge pages stream up to a third faster.
const BLOCK_BYTES: usize = 2 << 20;

/// A bundle being written. Bytes go to the open section through [`io::Write`] or [`BundleWriter::write_bytes`].
pub struct BundleWriter {
    path: PathBuf,
    file: Blocks,
    sections: Vec<Section>,
    open: Option<Checksum>,
    end: u64,
}

impl BundleWriter {
    /// Starts the bundle that will be at `path`; an existing file there stays until [`BundleWriter::finish`].
    ///
    /// # Errors
    /// [`Error::Io`] if no file can be created in the directory.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        let mut builder = tempfile::Builder::new();
        builder.prefix(".press-").suffix(".partial");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let io = |source| failure(&path, source);
        let file = builder.tempfile_in(super::folder_of(&path)).map_err(io)?;
        let file = Blocks::at(file, HEADER_ROOM).map_err(io)?;
        Ok(Self {
            path,
            file,
            sections: Vec::new(),
            open: None,
            end: HEADER_ROOM,
        })
    }

    /// Opens the next section and returns its index. An open section ends first.
    ///
    /// # Errors
    /// [`Error::Io`] from padding, or if there are too many sections.
    pub fn begin_section(&mut self, kind: SectionKind) -> Result<u32, Error> {
        self.end_section();
        let index = self.sections.len();
        if index == MAX_SECTIONS {
            let why = format!("a bundle has at most {MAX_SECTIONS} sections");
            return Err(self.failure(io::Error::other(why)));
        }
        let offset = self.end.next_multiple_of(SECTION_ALIGN);
        let padding = [0; SECTION_ALIGN as usize];
        let padding = &padding[..(offset - self.end) as usize];
        self.file
            .write_all(padding)
            .map_err(|e| failure(&self.path, e))?;
        self.end = offset;
        self.sections.push(Section {
            kind,
            offset,
            bytes: 0,
            checksum: 0,
        });
        self.open = Some(Checksum::new());
        Ok(index as u32)
    }

    /// Closes the open section, if there is one.
    pub fn end_section(&mut self) {
        if let (Some(checksum), Some(section)) = (self.open.take(), self.sections.last_mut()) {
            section.checksum = checksum.digest();
        }
    }

    /// Bytes appended to the open section.
    ///
    /// # Errors
    /// [`Error::Io`] naming the bundle's path: a full disk, no open section.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.write_all(bytes).map_err(|e| self.failure(e))
    }

    /// A whole section from memory; returns its index.
    ///
    /// # Errors
    /// As [`BundleWriter::begin_section`] and [`BundleWriter::write_bytes`].
    pub fn write_section(&mut self, kind: SectionKind, bytes: &[u8]) -> Result<u32, Error> {
        let index = self.begin_section(kind)?;
        self.write_bytes(bytes)?;
        self.end_section();
        Ok(index)
    }

    /// A whole section holding one value, as [`super::Bundle::section_value`] reads it; returns its index.
    ///
    /// # Errors
    /// As [`BundleWriter::write_section`].
    pub fn write_value<T: Serialize>(
        &mut self,
        kind: SectionKind,
        value: &T,
    ) -> Result<u32, Error> {
        let index = self.begin_section(kind)?;
        super::encode_value(value, self).map_err(|e| self.failure(e))?;
        self.end_section();
        Ok(index)
    }

    /// Bytes written so far, room for the header included.
    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// Wraps an error that came out of [`io::Write`] so that it names the bundle's path.
    pub fn failure(&self, source: io::Error) -> Error {
        failure(&self.path, source)
    }

    /// Writes the header, waits until all bytes are on disk, and gives the file its name. `targets` are the
    /// requirements of the manifest's plans, in order. Returns the bytes of the bundle.
    ///
    /// # Errors
    /// [`Error::Io`]; the path then holds what it held before.
    pub fn finish(mut self, producer: &str, targets: &[Requirements]) -> Result<u64, Error> {
        self.end_section();
        let header = header::encode(&Header {
            producer: producer.to_owned(),
            targets: targets.to_vec(),
            sections: std::mem::take(&mut self.sections),
            file_bytes: self.end,
            header_bytes: 0,
        });
        let path = self.path;
        let io = |source| failure(&path, source);
        let header = header
            .filter(|bytes| bytes.len() as u64 <= HEADER_ROOM)
            .ok_or_else(|| io(io::Error::other("the description is too long for a header")))?;
        let mut file = self.file.into_inner().map_err(io)?;
        place_header(file.as_file_mut(), &header).map_err(io)?;
        file.persist(&path).map_err(|e| failure(&path, e.error))?;
        Ok(self.end)
    }
}

/// Gathers bytes into blocks that begin and end at multiples of [`BLOCK_BYTES`] of the file; only the first, which begins
/// where writing does, and the last are shorter.
struct Blocks {
    file: NamedTempFile,
    /// Bytes not yet in the file.
    block: Vec<u8>,
    /// Bytes that `block` still takes.
    room: usize,
}

impl Blocks {
    /// Writing starts `offset` bytes into `file`.
    fn at(mut file: NamedTempFile, offset: u64) -> io::Result<Blocks> {
        file.as_file_mut().seek(SeekFrom::Start(offset))?;
        let used = (offset % BLOCK_BYTES as u64) as usize;
        Ok(Blocks {
            file,
            block: Vec::with_capacity(BLOCK_BYTES),
            room: BLOCK_BYTES - used,
        })
    }

    /// The file, with everything in it.
    fn into_inner(mut self) -> io::Result<NamedTempFile> {
        self.flush()?;
        Ok(self.file)
    }
}

impl Write for Blocks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.room == 0 {
            self.file.write_all(&self.block)?;
            self.block.clear();
            self.room = BLOCK_BYTES;
        }
        let taken = bytes.len().min(self.room);
        self.block.extend_from_slice(&bytes[..taken]);
        self.room -= taken;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.block)?;
        self.block.clear();
        self.file.flush()
    }
}

fn place_header(file: &mut File, header: &[u8]) -> io::Result<()> {
    file.rewind()?;
    file.write_all(header)?;
    file.sync_all()
}

fn failure(path: &Path, source: io::Error) -> Error {
    Error::Io {
        doing: format!("writing {}", path.display()),
        source,
    }
}

impl Write for BundleWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (Some(checksum), Some(section)) = (self.open.as_mut(), self.sections.last_mut()) else {
            return Err(io::Error::other("no section is open"));
        };
        let written = self.file.write(bytes)?;
        checksum.update(&bytes[..written]);
        section.bytes += written as u64;
        self.end += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
