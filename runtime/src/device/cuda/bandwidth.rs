//! How fast a GPU reads its memory: a kernel that does nothing else, over more than any cache holds.

use super::driver::{attribute, check};
use super::program::launch;
use crate::device::accelerator::BoundLaunch;
use crate::error::Error;
use cudarc::driver::sys;
use std::ffi::CStr;
use std::ptr::null_mut;

/// Text, so that it runs on every GPU: the driver compiles it.
const KERNEL: &CStr =
    match CStr::from_bytes_with_nul(concat!(include_str!("read_rate.ptx"), "\0").as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("the kernel holds a zero"),
    };
const THREADS: u32 = 512;
/// Thread blocks that a multiprocessor holds at once.
const RESIDENT: u32 = 4;
const MOST_BYTES: u64 = 1 << 30;
/// Less than this is a measurement of a cache.
const LEAST_BYTES: u64 = 192 << 20;
const PASSES: u32 = 10;
const TRIES: u32 = 5;

/// Bytes per second; none if less than [`LEAST_BYTES`] of the `free` bytes can be had. Takes memory and gives it back.
///
/// # Safety
/// The context of `device` and `stream` is current.
pub(super) unsafe fn measure(
    device: sys::CUdevice,
    stream: sys::CUstream,
    free: u64,
    wait: impl FnMut() -> Result<(), Error>,
) -> Result<Option<f64>, Error> {
    let sms = attribute(
        device,
        sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
    )?;
    let grid = sms * RESIDENT;
    let step = u64::from(grid * THREADS) * 16;
    let bytes = (free / 2).min(MOST_BYTES) / (8 * step) * (8 * step);
    if bytes < LEAST_BYTES {
        return Ok(None);
    }
    let mut owned = Owned::default();
    let doing = "measuring the bandwidth";
    // SAFETY: all of these write one handle, which `owned` gives back; the text ends with a zero.
    let function = unsafe {
        check(
            sys::cuMemAlloc_v2(&raw mut owned.buffer, bytes as usize + 256),
            doing,
        )?;
        check(
            sys::cuMemsetD8Async(owned.buffer, 0x5a, bytes as usize + 256, stream),
            doing,
        )?;
        check(
            sys::cuModuleLoadData(&raw mut owned.module, KERNEL.as_ptr().cast()),
            doing,
        )?;
        for event in &mut owned.events {
            check(sys::cuEventCreate(event, 0), doing)?;
        }
        let mut function = null_mut();
        let name = c"read_rate".as_ptr();
        check(
            sys::cuModuleGetFunction(&raw mut function, owned.module, name),
            doing,
        )?;
        function
    };
    let end = owned.buffer + bytes;
    let bound = BoundLaunch {
        label: String::new(),
        kernel: 0,
        grid: [grid, 1, 1],
        threads: THREADS,
        shared_bytes: 0,
        args: vec![owned.buffer, end, step, end],
        overlaps: false,
    };
    let mut best = f64::INFINITY;
    let mut wait = wait;
    for _ in 0..TRIES {
        let [before, behind] = owned.events;
        // SAFETY: the handles are alive; the kernel takes four numbers and reads between the first two.
        unsafe {
            check(sys::cuEventRecord(before, stream), doing)?;
            for _ in 0..PASSES {
                check(launch(stream, function, &bound, false), doing)?;
            }
            check(sys::cuEventRecord(behind, stream), doing)?;
        }
        wait()?;
        let mut milliseconds = 0.0f32;
        // SAFETY: both events are recorded; writes one number.
        let result = unsafe { sys::cuEventElapsedTime_v2(&raw mut milliseconds, before, behind) };
        check(result, doing)?;
        best = best.min(f64::from(milliseconds) * 1e-3 / f64::from(PASSES));
    }
    Ok((best > 0.0).then(|| bytes as f64 / best))
}

/// What the measurement borrows.
struct Owned {
    buffer: sys::CUdeviceptr,
    module: sys::CUmodule,
    events: [sys::CUevent; 2],
}

impl Default for Owned {
    fn default() -> Self {
        Self {
            buffer: 0,
            module: null_mut(),
            events: [null_mut(); 2],
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: each was made by `measure` or is null, and nothing runs; errors mean that the context is gone.
        unsafe {
            for event in self.events.into_iter().filter(|event| !event.is_null()) {
                let _ = sys::cuEventDestroy_v2(event);
            }
            if !self.module.is_null() {
                let _ = sys::cuModuleUnload(self.module);
            }
            if self.buffer != 0 {
                let _ = sys::cuMemFree_v2(self.buffer);
            }
        }
    }
}
