//! NVIDIA GPUs as an [`Accelerator`], through the driver API alone: no toolkit, no runtime library. Modules are cubins; a
//! program's launches are captured once into a CUDA graph and played with one call; small uploads pass through pinned
//! memory. Nothing waits for ever: a device that is silent for [`PATIENCE`] is reported and given up.
//!
//! With `COLDPRESS_CUDA_SYNC=1` in the environment launches run one at a time and a failing one is named; otherwise the
//! driver only says that something in a program failed.

mod bandwidth;
mod driver;
mod image;
mod kernel;
mod landing;
mod program;
mod staging;

#[cfg(test)]
mod tests;

pub use driver::{GpuInfo, OLDEST_CUDA, OLDEST_DRIVER, detect};

use super::accelerator::{Accelerator, BoundLaunch, KernelImage};
use crate::error::Error;
use cudarc::driver::sys::{self, CUresult};
use driver::{check, words};
use kernel::Kernel;
use landing::{Arrival, Landings};
use program::{Program, launch};
use staging::Staging;
use std::collections::HashMap;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

/// How long a device may take for what it was given: a thousand times the longest step.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long the caller waits awake: longer than a decode step, whose end must not be missed by a timer's resolution.
const AWAKE: Duration = Duration::from_millis(20);

/// One GPU, opened.
pub struct Cuda {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    info: GpuInfo,
    staging: Option<Staging>,
    landings: Landings,
    allocations: Vec<sys::CUdeviceptr>,
    modules: Vec<sys::CUmodule>,
    kernels: Vec<Kernel>,
    programs: Vec<Program>,
    /// Why the device can no longer be used.
    lost: Option<String>,
    /// Whether launches run one at a time.
    stepwise: bool,
    patience: Duration,
}

// SAFETY: handles of the driver may be used from any thread whose current context is theirs; every method makes it so, and
// `&mut self` keeps them in one thread at a time.
unsafe impl Send for Cuda {}

/// Memory on the GPU.
#[derive(Debug)]
pub struct DeviceMemory {
    what: String,
    address: u64,
    bytes: u64,
}

impl DeviceMemory {
    fn range(&self, offset: u64, bytes: u64) -> Result<u64, Error> {
        let end = offset.checked_add(bytes);
        if end.is_none_or(|end| end > self.bytes) {
            return Err(Error::Device(format!(
                "{bytes} bytes at {offset} are outside the {} of {} bytes",
                self.what, self.bytes
            )));
        }
        Ok(self.address + offset)
    }
}

/// A prepared program.
#[derive(Debug)]
pub struct Recorded(usize);

impl Cuda {
    /// Opens GPU `ordinal` of [`detect`].
    ///
    /// # Errors
    /// [`Error::Device`] with the driver's words; also if the driver is older than [`OLDEST_CUDA`], since what it lacks
    /// cannot be called.
    pub fn open(ordinal: usize) -> Result<Self, Error> {
        let gpus = detect().map_err(Error::Device)?;
        let count = gpus.len();
        let Some(info) = gpus.into_iter().nth(ordinal) else {
            return Err(Error::Device(format!(
                "there is no GPU {ordinal} of {count}"
            )));
        };
        if info.cuda < OLDEST_CUDA {
            return Err(Error::Device(format!(
                "the NVIDIA driver is for CUDA {}; install driver {OLDEST_DRIVER} or later",
                info.cuda_version()
            )));
        }
        let (mut device, mut context) = (0, null_mut());
        // SAFETY: writes one integer; the driver is initialised.
        let result = unsafe { sys::cuDeviceGet(&raw mut device, ordinal as i32) };
        check(result, "opening the GPU")?;
        // SAFETY: writes one handle, given back when `self` is dropped.
        let result = unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, device) };
        check(result, format_args!("opening {}", info.name))?;
        let mut cuda = Self {
            device,
            context,
            stream: null_mut(),
            info,
            staging: None,
            landings: Landings::new(),
            allocations: Vec::new(),
            modules: Vec::new(),
            kernels: Vec::new(),
            programs: Vec::new(),
            lost: None,
            stepwise: std::env::var("COLDPRESS_CUDA_SYNC").is_ok_and(|value| value == "1"),
            patience: PATIENCE,
        };
        cuda.enter()?;
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one handle.
        let result = unsafe { sys::cuStreamCreate(&raw mut cuda.stream, flags) };
        check(result, "creating a stream")?;
        cuda.staging = Some(Staging::new()?);
        Ok(cuda)
    }

    /// What it is.
    pub fn info(&self) -> &GpuInfo {
        &self.info
    }

    /// Makes the context current, unless the device is lost.
    fn enter(&self) -> Result<(), Error> {
        if let Some(why) = &self.lost {
            return Err(Error::Device(why.clone()));
        }
        // SAFETY: the context is retained as long as `self` lives.
        let result = unsafe { sys::cuCtxSetCurrent(self.context) };
        check(result, "making the GPU current")
    }

    fn staging(&mut self) -> Result<&mut Staging, Error> {
        let staging = self.staging.as_mut();
        staging.ok_or_else(|| Error::Device("the GPU was not opened".into()))
    }

    /// Waits until the stream is empty. What fails here leaves the context useless, so the device is lost with it.
    fn wait(&mut self, doing: &str) -> Result<(), Error> {
        let stream = self.stream;
        // SAFETY: the stream is alive and its context current.
        let waited = wait(|| unsafe { sys::cuStreamQuery(stream) }, self.patience);
        self.survived(doing, waited)
    }

    fn survived(&mut self, doing: &str, waited: Result<(), String>) -> Result<(), Error> {
        let lost = match waited {
            Ok(()) => return Ok(()),
            Err(why) => format!("{doing}: {why}; the GPU cannot be used by this process any more"),
        };
        self.lost = Some(lost.clone());
        Err(Error::Device(lost))
    }

    /// Memory that is free now, and all there is.
    fn memory(&self) -> (u64, u64) {
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: writes two integers. Where it fails both stay 0, which the message shows.
        let _ = unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
        (free as u64, total as u64)
    }

    /// Runs launches one at a time, each to its end.
    fn step_through(&mut self, index: usize) -> Result<(), Error> {
        for at in 0..self.programs[index].launches.len() {
            let program = &self.programs[index];
            let bound = &program.launches[at];
            let kernel = &self.kernels[bound.kernel];
            let what = format!("launch {at}, {} ({})", bound.label, kernel.name);
            // SAFETY: `prepare` compared the parameters with the kernel's.
            let result = unsafe { launch(self.stream, kernel.function, bound, false) };
            check(result, &what)?;
            self.wait(&what)?;
        }
        Ok(())
    }
}

/// Polls until something is done, awake at first.
fn wait(query: impl Fn() -> CUresult, patience: Duration) -> Result<(), String> {
    let started = Instant::now();
    loop {
        match query() {
            CUresult::CUDA_SUCCESS => return Ok(()),
            CUresult::CUDA_ERROR_NOT_READY => {}
            error => return Err(words(error)),
        }
        let waited = started.elapsed();
        if waited > patience {
            return Err(format!("no answer for {} seconds", patience.as_secs_f32()));
        }
        if waited > AWAKE {
            std::thread::sleep(Duration::from_micros(100));
        } else {
            std::hint::spin_loop();
        }
    }
}

impl Accelerator for Cuda {
    type Buffer = DeviceMemory;
    type Recorded = Recorded;
    type Pending = Arrival;

    fn allocate(&mut self, what: &str, bytes: u64) -> Result<DeviceMemory, Error> {
        self.enter()?;
        let mut address = 0;
        // SAFETY: writes one address, freed when `self` is dropped.
        let result = unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes.max(256) as usize) };
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            const GIB: f64 = (1u64 << 30) as f64;
            let (free, total) = self.memory();
            return Err(Error::Memory(format!(
                "allocating {:.2} GiB for the {what}: {:.2} of {:.2} GiB are free on {}; end what else uses the GPU, or \
                 recompile with a smaller --max-batch, --ctx-size or --kv-type",
                bytes as f64 / GIB,
                free as f64 / GIB,
                total as f64 / GIB,
                self.info.name
            )));
        }
        check(result, format_args!("allocating the {what}"))?;
        self.allocations.push(address);
        Ok(DeviceMemory {
            what: what.to_owned(),
            address,
            bytes,
        })
    }

    fn address(&self, buffer: &DeviceMemory) -> u64 {
        buffer.address
    }

    fn write(&mut self, buffer: &mut DeviceMemory, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let to = buffer.range(offset, bytes.len() as u64)?;
        self.enter()?;
        let stream = self.stream;
        // SAFETY: the range was checked.
        unsafe { self.staging()?.upload(stream, to, bytes) }
    }

    fn read(&mut self, buffer: &DeviceMemory, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let from = buffer.range(offset, bytes.len() as u64)?;
        self.enter()?;
        let Some(mut staging) = self.staging.take() else {
            return Err(Error::Device("the GPU was not opened".into()));
        };
        let stream = self.stream;
        // SAFETY: the range was checked.
        let read = unsafe { staging.download(stream, from, bytes, || self.wait("reading back")) };
        self.staging = Some(staging);
        read
    }

    fn read_later(
        &mut self,
        buffer: &DeviceMemory,
        offset: u64,
        bytes: usize,
    ) -> Result<Arrival, Error> {
        let from = buffer.range(offset, bytes as u64)?;
        self.enter()?;
        // SAFETY: the range was checked.
        unsafe { self.landings.begin(self.stream, from, bytes) }
    }

    fn arrived(&mut self, pending: Arrival) -> Result<Vec<u8>, Error> {
        self.enter()?;
        let event = self.landings.done(&pending);
        // SAFETY: the event lives as long as `landings`, and its context is current.
        let waited = wait(|| unsafe { sys::cuEventQuery(event) }, self.patience);
        self.survived(
            "running kernels (COLDPRESS_CUDA_SYNC=1 in the environment names the one that fails)",
            waited,
        )?;
        Ok(self.landings.bytes(&pending))
    }

    fn zero(&mut self, buffer: &mut DeviceMemory, offset: u64, bytes: u64) -> Result<(), Error> {
        let address = buffer.range(offset, bytes)?;
        self.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the range was checked.
        let result = unsafe { sys::cuMemsetD8Async(address, 0, bytes as usize, self.stream) };
        check(result, format_args!("zeroing the {}", buffer.what))
    }

    fn load_kernels(&mut self, kernels: &[KernelImage<'_>]) -> Result<(), Error> {
        self.enter()?;
        // Several kernels may share a module.
        let mut modules: HashMap<&[u8], sys::CUmodule> = HashMap::new();
        for image in kernels {
            let module = match modules.get(image.code) {
                Some(&module) => module,
                None => {
                    let module = kernel::load_module(image)?;
                    self.modules.push(module);
                    modules.insert(image.code, module);
                    module
                }
            };
            // SAFETY: the module lives as long as `self`.
            self.kernels.push(unsafe { Kernel::find(image, module) }?);
        }
        Ok(())
    }

    fn prepare(&mut self, launches: Vec<BoundLaunch>) -> Result<Recorded, Error> {
        self.enter()?;
        for bound in &launches {
            let kernel = self.kernels.get(bound.kernel);
            let given = 8 * bound.args.len();
            match kernel {
                None => {
                    let why = format!("{}: there is no kernel {}", bound.label, bound.kernel);
                    return Err(Error::Device(why));
                }
                Some(kernel) if kernel.parameters != given => {
                    return Err(Error::Device(format!(
                        "{}: kernel {} takes {} bytes of parameters, {given} are given: the bundle is damaged",
                        bound.label, kernel.name, kernel.parameters
                    )));
                }
                Some(_) => {}
            }
        }
        let functions: Vec<_> = launches
            .iter()
            .map(|l| self.kernels[l.kernel].function)
            .collect();
        let overlap = self.info.capability.0 >= 9;
        let program = Program::capture(self.stream, launches, &functions, overlap)?;
        self.programs.push(program);
        Ok(Recorded(self.programs.len() - 1))
    }

    fn run(&mut self, recorded: &mut Recorded) -> Result<(), Error> {
        self.enter()?;
        if self.stepwise {
            return self.step_through(recorded.0);
        }
        self.programs[recorded.0].play(self.stream)
    }

    fn run_timed(&mut self, recorded: &mut Recorded) -> Result<Vec<f64>, Error> {
        self.enter()?;
        let program = &mut self.programs[recorded.0];
        let function = |bound: &BoundLaunch| self.kernels[bound.kernel].function;
        program.play_timed(self.stream, function)?;
        self.wait("a program with times")?;
        self.programs[recorded.0].times()
    }

    fn read_bandwidth(&mut self) -> Result<Option<f64>, Error> {
        self.enter()?;
        let (device, stream, (free, _)) = (self.device, self.stream, self.memory());
        // SAFETY: the context is current.
        unsafe {
            bandwidth::measure(device, stream, free, || {
                self.wait("measuring the bandwidth")
            })
        }
    }

    fn synchronise(&mut self) -> Result<(), Error> {
        self.enter()?;
        self.wait(
            "running kernels (COLDPRESS_CUDA_SYNC=1 in the environment names the one that fails)",
        )
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // A device that does not answer would block the thread that frees something: its memory ends with the process.
        if self.lost.is_some() || self.enter().is_err() {
            return;
        }
        let stream = self.stream;
        // SAFETY: the stream is alive and its context current.
        if wait(|| unsafe { sys::cuStreamQuery(stream) }, self.patience).is_err() {
            return;
        }
        self.programs.drain(..).for_each(Program::free);
        if let Some(staging) = &mut self.staging {
            staging.free();
        }
        self.landings.free();
        // SAFETY: each was made by this accelerator and is given back once; nothing runs. Errors have no one to tell.
        unsafe {
            self.modules.drain(..).for_each(|module| {
                let _ = sys::cuModuleUnload(module);
            });
            self.allocations.drain(..).for_each(|address| {
                let _ = sys::cuMemFree_v2(address);
            });
            if !self.stream.is_null() {
                let _ = sys::cuStreamDestroy_v2(self.stream);
            }
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}
