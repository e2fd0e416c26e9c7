//! What the NVIDIA driver says: whether there is one, which GPUs it has, and its errors in words. The driver's library is
//! loaded when first asked for, so that everything builds, links and starts without it.
//!
//! The loader underneath panics where the library or a symbol is absent. [`detect`] asks for the library first, and uses
//! symbols that every driver of the last ten years has; nothing else is called before the driver is known to be recent enough
//! ([`OLDEST_CUDA`]).

use crate::error::Error;
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};
use std::ffi::{CStr, c_char, c_int};
use std::fmt::{self, Display};

/// Oldest CUDA version of a driver that loads what the compiler makes: major * 1000 + minor * 10.
pub const OLDEST_CUDA: u32 = 13000;
/// The driver's own number for it.
pub const OLDEST_DRIVER: &str = "580";

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    /// What the driver calls it: `NVIDIA H200`.
    pub name: String,
    /// Compute capability: `(9, 0)`.
    pub capability: (u32, u32),
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Streaming multiprocessors.
    pub sms: u32,
    /// CUDA version of the driver: major * 1000 + minor * 10.
    pub cuda: u32,
    /// The driver's own version, `580.65.06`, where the system tells it.
    pub driver: Option<String>,
}

impl GpuInfo {
    /// `13.0`.
    pub fn cuda_version(&self) -> String {
        format!("{}.{}", self.cuda / 1000, self.cuda % 1000 / 10)
    }
}

impl fmt::Display for GpuInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.capability;
        write!(
            f,
            "{}: compute capability {major}.{minor}, {} multiprocessors, {:.1} GiB, driver {} (CUDA {})",
            self.name,
            self.sms,
            self.memory_bytes as f64 / (1u64 << 30) as f64,
            self.driver.as_deref().unwrap_or("of unknown version"),
            self.cuda_version()
        )
    }
}

/// All GPUs, in the driver's order; never empty.
///
/// # Errors
/// Why there are none, in words: no driver, no device, or the driver's own reason.
pub fn detect() -> Result<Vec<GpuInfo>, String> {
    // SAFETY: opens the driver's library, whose initialisers are those of any program that uses CUDA.
    if !unsafe { sys::is_culib_present() } {
        return Err("no NVIDIA driver: libcuda.so.1 was not found".into());
    }
    let asked = |result: CUresult, what: &str| match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        CUresult::CUDA_ERROR_NO_DEVICE => Err("the NVIDIA driver sees no GPU".to_owned()),
        error => Err(format!("the NVIDIA driver {what}: {}", words(error))),
    };
    // SAFETY: the library is there; cuInit takes no pointer and may be called any number of times.
    asked(unsafe { sys::cuInit(0) }, "does not start")?;
    let (mut version, mut count): (c_int, c_int) = (0, 0);
    // SAFETY: writes one integer.
    let result = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    asked(result, "has no version")?;
    // SAFETY: writes one integer.
    let result = unsafe { sys::cuDeviceGetCount(&raw mut count) };
    asked(result, "cannot count GPUs")?;
    let driver = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let driver = driver_version(&driver);
    let gpus = (0..count).map(|ordinal| {
        let gpu = gpu(ordinal, version.unsigned_abs(), driver.clone());
        gpu.map_err(|e| format!("GPU {ordinal}: {e}"))
    });
    let gpus = gpus.collect::<Result<Vec<_>, _>>()?;
    match gpus.is_empty() {
        true => Err("the NVIDIA driver sees no GPU".into()),
        false => Ok(gpus),
    }
}

fn gpu(ordinal: c_int, cuda: u32, driver: Option<String>) -> Result<GpuInfo, Error> {
    let mut device = 0;
    // SAFETY: writes one integer.
    let result = unsafe { sys::cuDeviceGet(&raw mut device, ordinal) };
    check(result, "opening it")?;
    let mut name = [0 as c_char; 256];
    // SAFETY: writes at most 255 characters and a zero.
    let result = unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), 255, device) };
    check(result, "asking its name")?;
    let mut bytes = 0usize;
    // SAFETY: writes one integer.
    let result = unsafe { sys::cuDeviceTotalMem_v2(&raw mut bytes, device) };
    check(result, "asking its memory")?;
    // SAFETY: the array ends with a zero at the latest in its last place, which nothing wrote.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    Ok(GpuInfo {
        name: name.to_string_lossy().into_owned(),
        capability: (
            attribute(
                device,
                Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            )?,
            attribute(
                device,
                Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )?,
        ),
        memory_bytes: bytes as u64,
        sms: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        cuda,
        driver,
    })
}

/// A number the driver knows of a device.
pub(super) fn attribute(device: sys::CUdevice, which: Attribute) -> Result<u32, Error> {
    let mut value: c_int = 0;
    // SAFETY: writes one integer.
    let result = unsafe { sys::cuDeviceGetAttribute(&raw mut value, which, device) };
    check(result, "asking for an attribute")?;
    Ok(value.unsigned_abs())
}

/// The number before `Release Build` or behind `Module`, as the driver's file words it.
fn driver_version(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("NVRM version"))?;
    let number =
        |word: &&str| word.contains('.') && word.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    line.split_whitespace().find(number).map(str::to_owned)
}

/// An error unless `result` is success: what was being done, then the driver's words.
pub(super) fn check(result: CUresult, doing: impl Display) -> Result<(), Error> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        error => Err(Error::Device(format!("{doing}: {}", words(error)))),
    }
}

/// The driver's name of an error and its explanation.
pub(super) fn words(error: CUresult) -> String {
    let (mut name, mut text) = (std::ptr::null(), std::ptr::null());
    // SAFETY: both write a pointer to a constant text, or null for an unknown error.
    unsafe {
        let _ = sys::cuGetErrorName(error, &raw mut name);
        let _ = sys::cuGetErrorString(error, &raw mut text);
    }
    let owned = |text: *const c_char| {
        // SAFETY: not null, so a text that lives as long as the library.
        (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy())
    };
    match (owned(name), owned(text)) {
        (Some(name), Some(text)) => format!("{name}: {text}"),
        (Some(name), None) => name.into_owned(),
        _ => format!("CUDA error {}", error as u32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detection_answers_with_and_without_a_driver() {
        match detect() {
            Ok(gpus) => {
                assert!(gpus.iter().all(|gpu| gpu.capability.0 > 0 && gpu.sms > 0));
                assert!(!gpus.is_empty());
            }
            Err(reason) => assert!(reason.contains("driver"), "{reason}"),
        }
    }

    #[test]
    fn the_driver_version_is_found_in_either_wording() {
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs)\nGCC version: gcc version 12.2.0";
        assert_eq!(driver_version(open).as_deref(), Some("580.65.06"));
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\n";
        assert_eq!(driver_version(closed).as_deref(), Some("535.183.01"));
        assert_eq!(driver_version("GCC version: 12.2.0\n"), None);
    }
}
