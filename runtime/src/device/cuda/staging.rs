//! Pinned host memory that copies pass through: the copying engine reads it without the driver's help, so that a small
//! upload costs a memcpy and a queued command. A ring of segments; a segment is used again when the copies from it are done.

use super::driver::check;
use crate::error::Error;
use cudarc::driver::sys;
use std::ffi::c_void;
use std::ptr::null_mut;

/// Bytes of a segment, the largest piece.
pub(super) const SEGMENT: usize = 16 << 20;
const SEGMENTS: usize = 3;
/// Pieces start at multiples of this.
const ALIGN: usize = 256;
/// Pieces of this many bytes are copied by several threads.
const PARALLEL: usize = 4 << 20;

/// The ring. Its context is current whenever a method is called.
pub(super) struct Staging {
    base: *mut u8,
    /// Per segment, what is recorded behind the last copy from it.
    done: Vec<sys::CUevent>,
    segment: usize,
    used: usize,
}

impl Staging {
    pub(super) fn new() -> Result<Self, Error> {
        let mut base: *mut c_void = null_mut();
        // SAFETY: writes one pointer.
        let result = unsafe { sys::cuMemHostAlloc(&raw mut base, SEGMENT * SEGMENTS, 0) };
        check(result, "allocating pinned host memory")?;
        let mut staging = Self {
            base: base.cast(),
            done: Vec::new(),
            segment: 0,
            used: 0,
        };
        for _ in 0..SEGMENTS {
            let mut event = null_mut();
            let flags = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
            // SAFETY: writes one handle.
            let result = unsafe { sys::cuEventCreate(&raw mut event, flags) };
            check(result, "creating an event")?;
            staging.done.push(event);
        }
        Ok(staging)
    }

    /// Room for `bytes` bytes, 1 to [`SEGMENT`], which copies on `stream` may use until the next segment is begun.
    fn reserve(&mut self, stream: sys::CUstream, bytes: usize) -> Result<*mut u8, Error> {
        assert!(bytes <= SEGMENT, "{bytes} bytes in a segment of {SEGMENT}");
        if self.used + bytes > SEGMENT {
            // SAFETY: both handles are alive.
            let result = unsafe { sys::cuEventRecord(self.done[self.segment], stream) };
            check(result, "recording an event")?;
            self.segment = (self.segment + 1) % SEGMENTS;
            self.used = 0;
            // SAFETY: the handle is alive. An event never recorded counts as done.
            let result = unsafe { sys::cuEventSynchronize(self.done[self.segment]) };
            check(result, "waiting for an upload")?;
        }
        // SAFETY: inside the allocation: the segment exists and `bytes` fit behind what is used of it.
        let place = unsafe { self.base.add(self.segment * SEGMENT + self.used) };
        self.used = (self.used + bytes).next_multiple_of(ALIGN);
        Ok(place)
    }

    /// Copies `bytes` to device address `to`, in order with what else is on `stream`.
    ///
    /// # Safety
    /// `to` has room for them.
    pub(super) unsafe fn upload(
        &mut self,
        stream: sys::CUstream,
        to: u64,
        bytes: &[u8],
    ) -> Result<(), Error> {
        for (index, piece) in bytes.chunks(SEGMENT).enumerate() {
            let place = self.reserve(stream, piece.len())?;
            // SAFETY: reserved for `piece.len()` bytes, which no copy uses any more.
            copy(piece, unsafe {
                std::slice::from_raw_parts_mut(place, piece.len())
            });
            let to = to + (index * SEGMENT) as u64;
            // SAFETY: the caller's room; the source stays until the event behind it.
            let result =
                unsafe { sys::cuMemcpyHtoDAsync_v2(to, place.cast(), piece.len(), stream) };
            check(result, "copying to the GPU")?;
        }
        Ok(())
    }

    /// Copies from device address `from` into `bytes`; `wait` returns when everything on `stream` is done.
    ///
    /// # Safety
    /// So many bytes are at `from`.
    pub(super) unsafe fn download(
        &mut self,
        stream: sys::CUstream,
        from: u64,
        bytes: &mut [u8],
        mut wait: impl FnMut() -> Result<(), Error>,
    ) -> Result<(), Error> {
        for (index, piece) in bytes.chunks_mut(SEGMENT).enumerate() {
            let place = self.reserve(stream, piece.len())?;
            let from = from + (index * SEGMENT) as u64;
            // SAFETY: the caller's bytes; the destination is reserved for them.
            let result =
                unsafe { sys::cuMemcpyDtoHAsync_v2(place.cast(), from, piece.len(), stream) };
            check(result, "copying from the GPU")?;
            wait()?;
            // SAFETY: as many bytes, which the finished copy wrote and nothing writes now.
            piece.copy_from_slice(unsafe { std::slice::from_raw_parts(place, piece.len()) });
        }
        Ok(())
    }

    /// Gives everything back; nothing on the device uses it any more.
    pub(super) fn free(&mut self) {
        // SAFETY: allocated and created in `new`, given back once: both lists are empty afterwards. Errors mean that the
        // context is gone, and this with it.
        unsafe {
            self.done.drain(..).for_each(|event| {
                let _ = sys::cuEventDestroy_v2(event);
            });
            if !self.base.is_null() {
                let _ = sys::cuMemFreeHost(self.base.cast());
            }
        }
        self.base = null_mut();
    }
}

/// A memcpy, by several threads where one would be slower than the bus.
fn copy(from: &[u8], to: &mut [u8]) {
    let threads = num_cpus::get().clamp(1, 4);
    if from.len() < PARALLEL || threads == 1 {
        return to.copy_from_slice(from);
    }
    let share = from.len().div_ceil(threads);
    std::thread::scope(|scope| {
        for (from, to) in from.chunks(share).zip(to.chunks_mut(share)) {
            scope.spawn(|| to.copy_from_slice(from));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_whole_whoever_makes_them() {
        for bytes in [0, 1, PARALLEL - 1, PARALLEL, PARALLEL + 3] {
            let from: Vec<u8> = (0..bytes).map(|i| (i * 7 % 251) as u8).collect();
            let mut to = vec![0; bytes];
            copy(&from, &mut to);
            assert!(from == to, "{bytes}");
        }
    }
}
