//! Kernels out of cubins: loaded, found by name, and checked against what launches will ask of them.

use super::driver::{check, words};
use super::image;
use crate::device::accelerator::KernelImage;
use crate::error::Error;
use cudarc::driver::sys::{self, CUfunction_attribute_enum as Attribute, CUresult};
use std::ffi::CString;
use std::ptr::null_mut;

/// Dynamic shared memory that needs no permission, bytes.
const FREE_SHARED: u32 = 48 << 10;

/// A kernel ready to launch, as long as its module is loaded.
pub(super) struct Kernel {
    pub(super) name: String,
    pub(super) function: sys::CUfunction,
    /// Bytes of its parameters.
    pub(super) parameters: usize,
}

fn failed(image: &KernelImage<'_>, why: impl std::fmt::Display) -> Error {
    Error::Device(format!("kernel {}: {why}", image.name))
}

/// Loads the module of a kernel into the current context.
pub(super) fn load_module(image: &KernelImage<'_>) -> Result<sys::CUmodule, Error> {
    image::check(image.code).map_err(|why| failed(image, why))?;
    let mut module = null_mut();
    // SAFETY: a cubin that ends within the slice; writes one handle.
    let result = unsafe { sys::cuModuleLoadData(&raw mut module, image.code.as_ptr().cast()) };
    check(result, format_args!("loading kernel {}", image.name))?;
    Ok(module)
}

impl Kernel {
    /// The kernel that `image` names, in the module of its code.
    ///
    /// # Safety
    /// The module is loaded, and outlives what is found.
    pub(super) unsafe fn find(
        image: &KernelImage<'_>,
        module: sys::CUmodule,
    ) -> Result<Self, Error> {
        let name = CString::new(image.name).map_err(|e| failed(image, e))?;
        let mut function = null_mut();
        // SAFETY: writes one handle; the name ends with a zero.
        let result = unsafe { sys::cuModuleGetFunction(&raw mut function, module, name.as_ptr()) };
        check(result, format_args!("loading kernel {}", image.name))?;
        // SAFETY: the function is alive as long as its module.
        let most = unsafe { most_threads(function) }.map_err(|why| failed(image, why))?;
        if most < image.threads {
            let why = format!("{} threads are too many for it", image.threads);
            return Err(failed(image, why));
        }
        if image.shared_bytes > FREE_SHARED {
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = image.shared_bytes;
            // SAFETY: as above.
            let result = unsafe { sys::cuFuncSetAttribute(function, attribute, bytes as i32) };
            let name = image.name;
            check(
                result,
                format_args!("kernel {name} asks for {bytes} bytes of shared memory"),
            )?;
        }
        // SAFETY: as above.
        let parameters = unsafe { parameter_bytes(function) }.map_err(|why| failed(image, why))?;
        Ok(Self {
            name: image.name.to_owned(),
            function,
            parameters,
        })
    }
}

/// Threads that a thread block of a kernel can have.
///
/// # Safety
/// The function is alive.
unsafe fn most_threads(function: sys::CUfunction) -> Result<u32, String> {
    let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
    let mut value = 0;
    // SAFETY: writes one integer; the caller's function.
    match unsafe { sys::cuFuncGetAttribute(&raw mut value, attribute, function) } {
        CUresult::CUDA_SUCCESS => Ok(value.unsigned_abs()),
        error => Err(words(error)),
    }
}

/// Bytes of a kernel's only parameter, a struct; 0 if it has none.
///
/// # Safety
/// The function is alive.
unsafe fn parameter_bytes(function: sys::CUfunction) -> Result<usize, String> {
    let parameter = |index| {
        let (mut offset, mut bytes) = (0, 0);
        // SAFETY: writes two integers; the caller's function.
        match unsafe { sys::cuFuncGetParamInfo(function, index, &raw mut offset, &raw mut bytes) } {
            CUresult::CUDA_SUCCESS => Ok(Some(bytes)),
            CUresult::CUDA_ERROR_INVALID_VALUE => Ok(None),
            error => Err(words(error)),
        }
    };
    match (parameter(0)?, parameter(1)?) {
        (first, None) => Ok(first.unwrap_or(0)),
        _ => Err("it takes several parameters instead of one struct".into()),
    }
}
