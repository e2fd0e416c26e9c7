//! Pinned host memory where copies arrive while the GPU goes on. What travels the other way, and copies that somebody waits
//! for at once, are `staging`'s.

use super::driver::check;
use crate::error::Error;
use cudarc::driver::sys;
use std::ffi::c_void;
use std::ptr::null_mut;

/// A ring of places: each is used again after [`LANDINGS`] other copies.
pub(super) struct Landings {
    places: Vec<Landing>,
    next: usize,
}

/// Copies that may be on their way at a time.
pub(super) const LANDINGS: usize = 8;

struct Landing {
    base: *mut u8,
    room: usize,
    /// Recorded behind the copy.
    done: sys::CUevent,
}

/// A copy on its way.
#[derive(Debug)]
pub struct Arrival {
    place: usize,
    bytes: usize,
}

impl Landings {
    pub(super) fn new() -> Self {
        Self {
            places: Vec::new(),
            next: 0,
        }
    }

    /// Begins to copy `bytes` bytes from device address `from`, in order with what else is on `stream`.
    ///
    /// # Safety
    /// So many bytes are at `from`; the context is current.
    pub(super) unsafe fn begin(
        &mut self,
        stream: sys::CUstream,
        from: u64,
        bytes: usize,
    ) -> Result<Arrival, Error> {
        if self.places.len() < LANDINGS {
            let mut done = null_mut();
            let flags = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
            // SAFETY: writes one handle.
            let result = unsafe { sys::cuEventCreate(&raw mut done, flags) };
            check(result, "creating an event")?;
            self.places.push(Landing {
                base: null_mut(),
                room: 0,
                done,
            });
            self.next = self.places.len() - 1;
        }
        let index = self.next;
        self.next = (index + 1) % LANDINGS;
        let place = &mut self.places[index];
        // SAFETY: the handle is alive. An event never recorded counts as done.
        let result = unsafe { sys::cuEventSynchronize(place.done) };
        check(result, "waiting for a copy")?;
        if place.room < bytes {
            let room = bytes.next_power_of_two().max(1 << 12);
            let mut base: *mut c_void = null_mut();
            // SAFETY: no copy uses the old memory any more. Writes one pointer.
            let result = unsafe {
                if !place.base.is_null() {
                    let _ = sys::cuMemFreeHost(place.base.cast());
                }
                sys::cuMemHostAlloc(&raw mut base, room, 0)
            };
            (place.base, place.room) = (null_mut(), 0);
            check(result, "allocating pinned host memory")?;
            (place.base, place.room) = (base.cast(), room);
        }
        // SAFETY: the caller's bytes; the destination has room for them and nobody else uses it; both handles are alive.
        unsafe {
            let result = sys::cuMemcpyDtoHAsync_v2(place.base.cast(), from, bytes, stream);
            check(result, "copying from the GPU")?;
            check(sys::cuEventRecord(place.done, stream), "recording an event")?;
        }
        Ok(Arrival {
            place: index,
            bytes,
        })
    }

    /// What is recorded behind the copy.
    pub(super) fn done(&self, arrival: &Arrival) -> sys::CUevent {
        self.places[arrival.place].done
    }

    /// What arrived; the copy is done.
    pub(super) fn bytes(&self, arrival: &Arrival) -> Vec<u8> {
        let place = &self.places[arrival.place];
        assert!(arrival.bytes <= place.room, "a landing was used again");
        // SAFETY: inside the allocation, which the finished copy wrote and nothing writes now.
        unsafe { std::slice::from_raw_parts(place.base, arrival.bytes) }.to_vec()
    }

    /// Gives everything back; nothing on the device uses it any more.
    pub(super) fn free(&mut self) {
        for place in self.places.drain(..) {
            // SAFETY: created in `begin`, given back once. Errors mean that the context is gone, and this with it.
            unsafe {
                let _ = sys::cuEventDestroy_v2(place.done);
                if !place.base.is_null() {
                    let _ = sys::cuMemFreeHost(place.base.cast());
                }
            }
        }
    }
}
