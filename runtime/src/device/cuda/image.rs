//! Whether bytes are a whole cubin. The driver is given an address and believes what it finds there, so that a cut or
//! foreign file has to be found before.

/// Bytes of an ELF64 header, of a program header and of a section header.
const HEADER: usize = 64;
const PROGRAM: u64 = 56;
const SECTION: u64 = 64;
const CUDA_MACHINE: u16 = 190;
/// A section that has no bytes in the file.
const NO_BITS: u32 = 8;

/// What is wrong with `bytes` as an ELF file of CUDA machine code: its tables and the contents they name are inside it.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let header = bytes.get(..HEADER).ok_or("its code is cut short")?;
    if !header.starts_with(b"\x7fELF\x02\x01") || u16_at(header, 18) != CUDA_MACHINE {
        return Err("its code is no cubin".into());
    }
    let inside = |offset: u64, bytes_of: u64| {
        let end = offset.checked_add(bytes_of);
        end.is_some_and(|end| end <= bytes.len() as u64)
    };
    let (programs, sections) = (u64_at(header, 32), u64_at(header, 40));
    let (program_count, section_count) = (u16_at(header, 56), u16_at(header, 60));
    let sizes = [54, 58].map(|at| u64::from(u16_at(header, at)));
    let tables = (program_count == 0 || sizes[0] == PROGRAM)
        && sizes[1] == SECTION
        && inside(programs, PROGRAM * u64::from(program_count))
        && inside(sections, SECTION * u64::from(section_count));
    if !tables || section_count == 0 {
        return Err("its code is cut short".into());
    }
    let (table, _) = bytes[sections as usize..].as_chunks::<{ SECTION as usize }>();
    let mut table = table.iter().take(section_count.into());
    let whole = |section: &[u8; SECTION as usize]| {
        u32_at(section, 4) == NO_BITS || inside(u64_at(section, 24), u64_at(section, 32))
    };
    match table.all(whole) {
        true => Ok(()),
        false => Err("its code is cut short".into()),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A header, eight bytes of content, and a table of one section that names them.
    pub(in super::super) fn sample() -> Vec<u8> {
        let mut bytes = vec![0; HEADER + 8 + SECTION as usize];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18] = CUDA_MACHINE as u8;
        bytes[40] = HEADER as u8 + 8;
        bytes[58] = SECTION as u8;
        bytes[60] = 1;
        bytes[HEADER + 8 + 24] = HEADER as u8;
        bytes[HEADER + 8 + 32] = 8;
        bytes
    }

    #[test]
    fn whole_files_pass_and_every_cut_is_found() {
        let whole = sample();
        assert_eq!(check(&whole), Ok(()));
        for length in 0..whole.len() {
            assert!(check(&whole[..length]).is_err(), "{length}");
        }
        for (at, byte) in [
            (0, 0),
            (4, 1),
            (18, 62),
            (40, 200),
            (47, 255),
            (58, 0),
            (60, 2),
        ] {
            let mut damaged = whole.clone();
            damaged[at] = byte;
            assert!(check(&damaged).is_err(), "{at}");
        }
        let mut outside = whole.clone();
        outside[HEADER + 8 + 32] = 255;
        assert!(check(&outside).is_err());
        outside[HEADER + 8 + 4] = NO_BITS as u8;
        assert_eq!(check(&outside), Ok(()));
    }
}
