//! A bundle carried by an executable: the launcher, padding to a page, the bundle, and 16 bytes that say where it begins.
//! The launcher maps its own file; nothing is unpacked.

use super::header::SECTION_ALIGN;
use crate::error::Error;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use tempfile::NamedTempFile;

/// Ends the file, after the bundle's offset as a little-endian u64.
const MARK: [u8; 8] = *b"\x89press@\n";
const TRAILER_BYTES: i64 = 16;

/// Where in `path` a bundle begins, if it is an executable that carries one.
pub fn find(path: &Path) -> Option<u64> {
    let mut file = File::open(path).ok()?;
    let end = file.seek(SeekFrom::End(-TRAILER_BYTES)).ok()?;
    let (mut offset, mut mark) = ([0; 8], [0; 8]);
    file.read_exact(&mut offset).ok()?;
    file.read_exact(&mut mark).ok()?;
    let offset = u64::from_le_bytes(offset);
    (mark == MARK && offset > 0 && offset < end && offset.is_multiple_of(SECTION_ALIGN))
        .then_some(offset)
}

/// This process's arguments as `run` of its own bundle, if it carries one: `story -p Once` means `run story -p Once`.
/// A first argument that is a word and no flag is a command (`story inspect`), which gets the bundle as its first.
pub fn arguments() -> Option<Vec<OsString>> {
    let own = std::env::current_exe().ok()?;
    find(&own)?;
    let mut given = std::env::args_os();
    let name = given.next().unwrap_or_default();
    let mut rest: Vec<OsString> = given.collect();
    let command = match rest.first() {
        Some(first) if !first.to_string_lossy().starts_with('-') => rest.remove(0),
        _ => OsString::from("run"),
    };
    Some(
        [name, command, own.into_os_string()]
            .into_iter()
            .chain(rest)
            .collect(),
    )
}

/// Writes `launcher` and `bundle` as one executable at `out`, under a temporary name until it is complete. A launcher
/// that already carries a bundle leaves it behind.
///
/// # Errors
/// [`Error::Io`] naming `out`.
pub fn write(launcher: &Path, bundle: &Path, out: &Path) -> Result<(), Error> {
    assemble(launcher, bundle, out).map_err(|source| Error::Io {
        doing: format!("writing {}", out.display()),
        source,
    })
}

fn assemble(launcher: &Path, bundle: &Path, out: &Path) -> io::Result<()> {
    let mut file = NamedTempFile::with_prefix_in(".press-", super::folder_of(out))?;
    let program = File::open(launcher)?;
    let program_bytes = find(launcher).unwrap_or(program.metadata()?.len());
    io::copy(&mut program.take(program_bytes), &mut file)?;
    let offset = program_bytes.next_multiple_of(SECTION_ALIGN);
    file.write_all(&vec![0; (offset - program_bytes) as usize])?;
    io::copy(&mut File::open(bundle)?, &mut file)?;
    file.write_all(&offset.to_le_bytes())?;
    file.write_all(&MARK)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.as_file()
            .set_permissions(std::fs::Permissions::from_mode(0o755))?;
    }
    file.as_file().sync_all()?;
    file.persist(out).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::sample;

    #[test]
    fn an_executable_opens_as_its_bundle() {
        let folder = tempfile::tempdir().expect("folder");
        let (bundle, launcher, out) = (
            folder.path().join("b.press"),
            folder.path().join("launcher"),
            folder.path().join("story"),
        );
        sample::write(&bundle, &sample::manifest()).expect("bundle");
        std::fs::write(&launcher, b"not really a program").expect("launcher");
        write(&launcher, &bundle, &out).expect("written");
        assert_eq!(find(&out), Some(SECTION_ALIGN));
        assert_eq!(find(&bundle), None);
        let opened = crate::bundle::Bundle::open(&out).expect("opens");
        assert_eq!(
            opened.manifest(),
            crate::bundle::Bundle::open(&bundle)
                .expect("opens")
                .manifest()
        );
        // Built from an executable that carries a bundle, the new one carries only the new bundle.
        let again = folder.path().join("again");
        write(&out, &bundle, &again).expect("written");
        assert_eq!(
            std::fs::read(&out).expect("out"),
            std::fs::read(&again).expect("again")
        );
    }
}
