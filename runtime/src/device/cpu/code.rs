//! Machine code in memory: written while it cannot run, executable once it cannot be written (W^X).

use crate::error::Error;
use coldpress_kernels::cpu::abi::WorkerContext;
use memmap2::{Mmap, MmapOptions};

/// One worker's instruction stream of one program.
pub(super) type Entry = unsafe extern "C" fn(*const WorkerContext);

/// Executable, read-only copy of a code section.
pub(super) struct Code {
    map: Mmap,
}

impl Code {
    /// Copies `bytes` and makes the copy executable.
    pub(super) fn new(bytes: &[u8]) -> Result<Self, Error> {
        if !cfg!(target_arch = "x86_64") {
            // Other architectures keep instruction caches that a copy does not refresh.
            return Err(Error::Device(
                "machine code can be loaded on x86_64 only".into(),
            ));
        }
        let failed = |e| Error::Device(format!("mapping {} bytes of code: {e}", bytes.len()));
        let mut map = MmapOptions::new()
            .len(bytes.len().max(1))
            .map_anon()
            .map_err(failed)?;
        map[..bytes.len()].copy_from_slice(bytes);
        Ok(Self {
            map: map.make_exec().map_err(failed)?,
        })
    }

    /// The function at byte `offset`; `None` outside the code.
    pub(super) fn entry(&self, offset: u64) -> Option<Entry> {
        let byte = self.map.get(usize::try_from(offset).ok()?)?;
        // SAFETY: a non-null address inside executable memory; whoever calls it vouches for the code there.
        Some(unsafe { std::mem::transmute::<*const u8, Entry>(byte) })
    }
}
