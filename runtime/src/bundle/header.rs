//! The bundle header: what can be known about a file without decoding anything else. Little endian, parsed by hand,
//! every number checked against a bound before it is used. Values inside sections are `bundle`'s business.
//!
//! ```text
//! offset
//!  0  [u8; 8]  magic  \x89press\r\n
//!  8  u32      format version
//! 12  u32      header bytes H, this prefix included
//! 16  u64      xxh3-64 of bytes [0, 16) and [24, H)
//! 24  u64      file bytes
//! 32  u32 x 4  producer bytes, targets, sections, zero
//! 48           producer, UTF-8
//!              per target: name, arch, u16 features, each feature, u64 memory bytes, u16 1 if it was planned for a GPU,
//!                then its name, u32 family, u32 cores, u64 memory bytes; a text is u16 bytes, then UTF-8
//!              per section: u32 kind, u32 index, u64 offset, u64 bytes, u64 checksum
//! ```
//! Sections start at multiples of 16384, in file order, and do not overlap; the bytes between them are zero.

use crate::manifest::{PlannedFor, Requirements};
use xxhash_rust::xxh3::Xxh3;

/// First bytes of a bundle. The high bit and the line ending reveal a transfer in text mode, as in PNG.
pub const MAGIC: [u8; 8] = *b"\x89press\r\n";
/// Version of the layout of the header, the sections and the manifest, and of what compiled code and kernels agree on
/// (`coldpress_kernels::cpu::abi`); any change raises it.
pub const FORMAT_VERSION: u32 = 7;
/// Largest header accepted, bytes.
pub const MAX_HEADER_BYTES: u64 = 1 << 20;
/// Most sections accepted.
pub const MAX_SECTIONS: usize = 4096;
/// Sections start at multiples of this many bytes: a page of Apple's machines, a multiple of everybody else's, so that a
/// section that is mapped begins a page.
pub const SECTION_ALIGN: u64 = 16384;
/// Bytes before the producer.
pub(super) const PREFIX_BYTES: usize = 48;

const MAX_TARGETS: usize = 64;
const MAX_FEATURES: usize = 256;
const SECTION_ENTRY_BYTES: usize = 32;

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum SectionKind {
    /// The [`crate::manifest::Manifest`], bincode.
    Manifest = 1,
    /// Packed weights of one target.
    Weights = 2,
    /// Machine code of one target.
    Code = 3,
    /// Generated source, for people.
    Source = 4,
    /// Tokenizer and chat template, bincode.
    Tokenizer = 5,
    /// Prompts and their logits, bincode.
    Golden = 6,
    /// What the compiler considered and why it chose, for `explain`.
    Notes = 7,
}

impl SectionKind {
    fn from_number(number: u32) -> Option<Self> {
        use SectionKind::*;
        [Manifest, Weights, Code, Source, Tokenizer, Golden, Notes]
            .into_iter()
            .find(|&kind| kind as u32 == number)
    }
}

/// One row of the section table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// What it holds.
    pub kind: SectionKind,
    /// Byte offset from the start of the bundle, a multiple of [`SECTION_ALIGN`].
    pub offset: u64,
    /// Bytes, padding excluded.
    pub bytes: u64,
    /// Checksum of the bytes, as `checksum.rs` defines it: xxh3-64 over the digests of chunks.
    pub checksum: u64,
}

/// The header, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What wrote the file: `coldpress 0.1.0`.
    pub producer: String,
    /// What each plan of the manifest needs, in the same order.
    pub targets: Vec<Requirements>,
    /// All sections, in file order.
    pub sections: Vec<Section>,
    /// Bytes of the bundle.
    pub file_bytes: u64,
    /// Bytes of the header.
    pub header_bytes: u64,
}

/// Why bytes are not a header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    /// Fewer bytes than the header, or the file, should have.
    Truncated { expected: u64 },
    /// Written for another version of the runtime.
    Version(u32),
    /// Anything else.
    Malformed(String),
}

fn malformed<T>(why: impl Into<String>) -> Result<T, HeaderError> {
    Err(HeaderError::Malformed(why.into()))
}

/// Checksum of a whole header, its own field excluded.
pub(super) fn header_checksum(bytes: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&bytes[..16]);
    hash.update(&bytes[24..]);
    hash.digest()
}

/// Reads bounded values one after another; offsets are absolute in the header.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], HeaderError> {
        let rest = &self.bytes[self.at..];
        let Some(taken) = rest.get(..bytes) else {
            return malformed(format!(
                "header field at byte {} runs past its end",
                self.at
            ));
        };
        self.at += bytes;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], HeaderError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u16(&mut self) -> Result<u16, HeaderError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, HeaderError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, HeaderError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn count(&mut self, what: &str, most: usize) -> Result<usize, HeaderError> {
        let count = self.u32()? as usize;
        if count > most {
            return malformed(format!("header claims {count} {what}, at most {most}"));
        }
        Ok(count)
    }

    fn text(&mut self, bytes: usize) -> Result<String, HeaderError> {
        let at = self.at;
        match std::str::from_utf8(self.take(bytes)?) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => malformed(format!("header text at byte {at} is not UTF-8")),
        }
    }

    fn short_text(&mut self) -> Result<String, HeaderError> {
        let bytes = self.u16()?;
        self.text(bytes.into())
    }
}

/// Bytes of the header and of the file, from the first [`PREFIX_BYTES`] bytes (or fewer, which is an error).
pub(super) fn parse_prefix(prefix: &[u8]) -> Result<(u64, u64), HeaderError> {
    if !MAGIC.starts_with(&prefix[..prefix.len().min(MAGIC.len())]) || prefix.is_empty() {
        return malformed("not a coldpress bundle (its first bytes differ)");
    }
    let mut reader = Reader {
        bytes: prefix,
        at: MAGIC.len(),
    };
    if prefix.len() < PREFIX_BYTES {
        let known = prefix.get(24..32).and_then(|b| b.try_into().ok());
        let expected = known.map_or(PREFIX_BYTES as u64, u64::from_le_bytes);
        return Err(HeaderError::Truncated { expected });
    }
    let version = reader.u32()?;
    if version != FORMAT_VERSION {
        return Err(HeaderError::Version(version));
    }
    let header_bytes = u64::from(reader.u32()?);
    if header_bytes < PREFIX_BYTES as u64 || header_bytes > MAX_HEADER_BYTES {
        return malformed(format!(
            "header of {header_bytes} bytes; {PREFIX_BYTES} to {MAX_HEADER_BYTES} are allowed"
        ));
    }
    reader.u64()?;
    let file_bytes = reader.u64()?;
    if file_bytes < header_bytes {
        return malformed("the file is said to be shorter than its header");
    }
    Ok((header_bytes, file_bytes))
}

/// Decodes a whole header (exactly the bytes [`parse_prefix`] asked for).
pub(super) fn parse(bytes: &[u8]) -> Result<Header, HeaderError> {
    let (header_bytes, file_bytes) = parse_prefix(bytes)?;
    if (bytes.len() as u64) < header_bytes {
        return Err(HeaderError::Truncated {
            expected: file_bytes,
        });
    }
    let bytes = &bytes[..header_bytes as usize];
    let mut reader = Reader { bytes, at: 16 };
    if reader.u64()? != header_checksum(bytes) {
        return malformed("header checksum differs: the file is damaged");
    }
    reader.u64()?;
    let producer_bytes = reader.count("producer bytes", 1024)?;
    let targets = reader.count("targets", MAX_TARGETS)?;
    let sections = reader.count("sections", MAX_SECTIONS)?;
    if reader.u32()? != 0 {
        return malformed("reserved header field is not zero");
    }
    let producer = reader.text(producer_bytes)?;
    let targets = (0..targets)
        .map(|_| parse_target(&mut reader))
        .collect::<Result<_, _>>()?;
    let mut end = header_bytes;
    let sections = (0..sections)
        .map(|index| {
            let section = parse_section(&mut reader, index, end, file_bytes)?;
            end = section.offset + section.bytes;
            Ok(section)
        })
        .collect::<Result<_, _>>()?;
    if reader.at as u64 != header_bytes {
        return malformed("header is longer than what it describes");
    }
    if end != file_bytes {
        return malformed(format!(
            "the last section ends at byte {end}, the file at {file_bytes}"
        ));
    }
    Ok(Header {
        producer,
        targets,
        sections,
        file_bytes,
        header_bytes,
    })
}

fn parse_target(reader: &mut Reader<'_>) -> Result<Requirements, HeaderError> {
    let target = reader.short_text()?;
    let arch = reader.short_text()?;
    let features = usize::from(reader.u16()?);
    if features > MAX_FEATURES {
        return malformed(format!(
            "target {target} claims {features} features, at most {MAX_FEATURES}"
        ));
    }
    let features = (0..features)
        .map(|_| reader.short_text())
        .collect::<Result<_, _>>()?;
    let memory_bytes = reader.u64()?;
    let planned_for = match reader.u16()? {
        0 => None,
        1 => Some(PlannedFor {
            gpu: reader.short_text()?,
            family: reader.u32()?,
            cores: reader.u32()?,
            memory_bytes: reader.u64()?,
        }),
        other => {
            return malformed(format!(
                "target {target} was planned for {other} GPUs, at most 1"
            ));
        }
    };
    Ok(Requirements {
        target,
        arch,
        features,
        memory_bytes,
        planned_for,
    })
}

/// `end` is where the previous section (or the header) ended.
fn parse_section(
    reader: &mut Reader<'_>,
    index: usize,
    end: u64,
    file_bytes: u64,
) -> Result<Section, HeaderError> {
    let number = reader.u32()?;
    let Some(kind) = SectionKind::from_number(number) else {
        return malformed(format!("section {index} has unknown kind {number}"));
    };
    if reader.u32()? as usize != index {
        return malformed(format!("section {index} is numbered differently"));
    }
    let (offset, bytes, checksum) = (reader.u64()?, reader.u64()?, reader.u64()?);
    if offset % SECTION_ALIGN != 0 {
        return malformed(format!(
            "section {index} starts at byte {offset}, not a multiple of {SECTION_ALIGN}"
        ));
    }
    if offset < end {
        return malformed(format!(
            "section {index} starts at byte {offset}, before byte {end} where the previous ends"
        ));
    }
    match offset.checked_add(bytes) {
        Some(last) if last <= file_bytes => Ok(Section {
            kind,
            offset,
            bytes,
            checksum,
        }),
        _ => malformed(format!(
            "section {index} ({bytes} bytes at {offset}) is outside the file of {file_bytes} bytes"
        )),
    }
}

/// Encodes a header; `header_bytes` of the argument is ignored. `None` if a text or count is over its bound.
pub(super) fn encode(header: &Header) -> Option<Vec<u8>> {
    let mut out =
        Vec::with_capacity(PREFIX_BYTES + 1024 + header.sections.len() * SECTION_ENTRY_BYTES);
    out.extend(MAGIC);
    out.extend(FORMAT_VERSION.to_le_bytes());
    out.extend([0; 12]);
    out.extend(header.file_bytes.to_le_bytes());
    let counts = [
        header.producer.len(),
        header.targets.len(),
        header.sections.len(),
        0,
    ];
    if counts[0] > 1024 || counts[1] > MAX_TARGETS || counts[2] > MAX_SECTIONS {
        return None;
    }
    for count in counts {
        out.extend((count as u32).to_le_bytes());
    }
    out.extend(header.producer.as_bytes());
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend(u16::try_from(text.len()).ok()?.to_le_bytes());
        out.extend(text.as_bytes());
        Some(())
    };
    for target in &header.targets {
        text(&mut out, &target.target)?;
        text(&mut out, &target.arch)?;
        if target.features.len() > MAX_FEATURES {
            return None;
        }
        out.extend((target.features.len() as u16).to_le_bytes());
        for feature in &target.features {
            text(&mut out, feature)?;
        }
        out.extend(target.memory_bytes.to_le_bytes());
        out.extend(u16::from(target.planned_for.is_some()).to_le_bytes());
        if let Some(gpu) = &target.planned_for {
            text(&mut out, &gpu.gpu)?;
            out.extend(gpu.family.to_le_bytes());
            out.extend(gpu.cores.to_le_bytes());
            out.extend(gpu.memory_bytes.to_le_bytes());
        }
    }
    for (index, section) in header.sections.iter().enumerate() {
        out.extend((section.kind as u32).to_le_bytes());
        out.extend((index as u32).to_le_bytes());
        for number in [section.offset, section.bytes, section.checksum] {
            out.extend(number.to_le_bytes());
        }
    }
    if out.len() as u64 > MAX_HEADER_BYTES {
        return None;
    }
    let header_bytes = out.len() as u32;
    out[12..16].copy_from_slice(&header_bytes.to_le_bytes());
    let checksum = header_checksum(&out);
    out[16..24].copy_from_slice(&checksum.to_le_bytes());
    Some(out)
}
