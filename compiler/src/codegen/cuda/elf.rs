//! The sections of a cubin, which is a 64-bit little-endian ELF file. Only what other modules here look at; what the
//! sections hold is theirs. Bytes may come from a cache on disk: every offset is checked.

/// One section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section<'a> {
    /// `.text.matmul_n8`.
    pub name: &'a str,
    /// Contents; empty for a section that only reserves memory.
    pub bytes: &'a [u8],
    /// Bytes it takes on the device.
    pub size: u64,
}

const HEADER: usize = 64;
const SECTION_HEADER: usize = 64;
/// A section that has a size and no contents.
const NOBITS: u32 = 8;

/// All sections of `file` in its order; `None` if it is no such file or damaged.
pub fn sections(file: &[u8]) -> Option<Vec<Section<'_>>> {
    if file.len() < HEADER || file[..6] != *b"\x7fELF\x02\x01" {
        return None;
    }
    let table = usize::try_from(u64_at(file, 40)?).ok()?;
    let (entry, count) = (u16_at(file, 58)?, u16_at(file, 60)?);
    if usize::from(entry) != SECTION_HEADER {
        return None;
    }
    let header = |index: u16| {
        let at = table.checked_add(usize::from(index) * SECTION_HEADER)?;
        file.get(at..at.checked_add(SECTION_HEADER)?)
    };
    let names = contents(file, header(u16_at(file, 62)?)?)?;
    (0..count)
        .map(|index| {
            let header = header(index)?;
            let name = names.get(u32_at(header, 0)? as usize..)?;
            let end = name.iter().position(|&b| b == 0)?;
            Some(Section {
                name: std::str::from_utf8(&name[..end]).ok()?,
                bytes: contents(file, header)?,
                size: u64_at(header, 32)?,
            })
        })
        .collect()
}

fn contents<'a>(file: &'a [u8], header: &[u8]) -> Option<&'a [u8]> {
    // The first entry of a table is all zeros.
    if matches!(u32_at(header, 4)?, 0 | NOBITS) {
        return Some(&[]);
    }
    let start = usize::try_from(u64_at(header, 24)?).ok()?;
    let size = usize::try_from(u64_at(header, 32)?).ok()?;
    file.get(start..start.checked_add(size)?)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A file of these sections, each with its contents.
    pub fn file(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let (mut names, mut data) = (vec![0u8], Vec::new());
        let mut headers = vec![[0u8; SECTION_HEADER]];
        let mut add = |name: &str, bytes: &[u8], names: &mut Vec<u8>| {
            let mut header = [0u8; SECTION_HEADER];
            header[0..4].copy_from_slice(&(names.len() as u32).to_le_bytes());
            header[4] = 1;
            header[24..32].copy_from_slice(&((HEADER + data.len()) as u64).to_le_bytes());
            names.extend(name.bytes().chain([0]));
            // The last section holds the names themselves.
            let bytes = if bytes.is_empty() { &*names } else { bytes };
            header[32..40].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
            data.extend_from_slice(bytes);
            headers.push(header);
        };
        for (name, bytes) in sections {
            add(name, bytes, &mut names);
        }
        add(".shstrtab", &[], &mut names);
        let mut file = vec![0u8; HEADER];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[40..48].copy_from_slice(&((HEADER + data.len()) as u64).to_le_bytes());
        file[58..60].copy_from_slice(&(SECTION_HEADER as u16).to_le_bytes());
        file[60..62].copy_from_slice(&(headers.len() as u16).to_le_bytes());
        file[62..64].copy_from_slice(&(headers.len() as u16 - 1).to_le_bytes());
        file.extend(data);
        headers.iter().for_each(|h| file.extend_from_slice(h));
        file
    }

    #[test]
    fn sections_have_their_names_and_bytes() {
        let file = file(&[(".text.k", &[1, 2, 3]), (".nv.info", &[9; 40])]);
        let found = sections(&file).expect("reads");
        let names: Vec<&str> = found.iter().map(|s| s.name).collect();
        assert_eq!(names, ["", ".text.k", ".nv.info", ".shstrtab"]);
        assert_eq!(found[1].bytes, [1, 2, 3]);
        assert_eq!((found[2].bytes.len(), found[2].size), (40, 40));
    }

    #[test]
    fn damage_is_refused_and_never_a_panic() {
        let good = file(&[(".text.k", &[7; 32])]);
        for length in 0..good.len() {
            assert_eq!(sections(&good[..length]), None, "{length} bytes");
        }
        for at in 0..good.len() {
            for value in [0, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = sections(&bad);
            }
        }
    }
}
