//! How many cores a GPU has, which Metal does not tell: the driver's entry in the system's registry does.

use objc2::rc::Retained;
use objc2::runtime::NSObject;
use objc2_foundation::{NSNumber, NSString};
use std::ffi::c_void;
use std::ptr::null;

#[cfg(target_os = "macos")]
#[link(name = "IOKit", kind = "framework")]
unsafe extern "C" {
    fn IORegistryEntryIDMatching(id: u64) -> *mut c_void;
    fn IOServiceGetMatchingService(port: u32, matching: *mut c_void) -> u32;
    fn IORegistryEntryCreateCFProperty(
        entry: u32,
        key: *const c_void,
        allocator: *const c_void,
        options: u32,
    ) -> *mut c_void;
    fn IOObjectRelease(object: u32) -> i32;
}

/// Cores of the GPU with registry number `id`, if its driver says so.
#[cfg(target_os = "macos")]
pub(super) fn of(id: u64) -> Option<u32> {
    // SAFETY: no more than a number is read; the dictionary it gives is taken over by the next call, also where it fails.
    let entry = unsafe { IOServiceGetMatchingService(0, IORegistryEntryIDMatching(id)) };
    if entry == 0 {
        return None;
    }
    let key = NSString::from_str("gpu-core-count");
    let key: *const NSString = &*key;
    // SAFETY: the entry is ours until it is released below; strings of both frameworks are the same objects.
    let value = unsafe { IORegistryEntryCreateCFProperty(entry, key.cast(), null(), 0) };
    // SAFETY: released once.
    unsafe { IOObjectRelease(entry) };
    // SAFETY: null, or an object that the caller has to release; all of them are Objective-C's as well.
    let value = unsafe { Retained::<NSObject>::from_raw(value.cast()) }?;
    let number = value.downcast::<NSNumber>().ok()?;
    Some(number.unsignedIntValue()).filter(|&cores| cores > 0)
}

/// Other systems of Apple's do not let programs ask.
#[cfg(not(target_os = "macos"))]
pub(super) fn of(_: u64) -> Option<u32> {
    None
}
