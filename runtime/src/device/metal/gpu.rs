//! One Apple GPU through the Metal framework. Memory is shared with the CPU: what nobody uses is written in place, everything
//! else goes through command buffers in the order of the calls. A run is one command buffer, committed at once, so that the
//! GPU has begun when the next is encoded. Kernels are compiled from the bundle's source, which the system caches.
//!
//! With `COLDPRESS_METAL_SYNC=1` in the environment launches run one at a time and a failing one is named.

use super::commands::{Commands, failed};
use super::{MetalInfo, OLDEST_FAMILY};
use crate::device::accelerator::{Accelerator, BoundLaunch, KernelImage};
use crate::error::Error;
use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2_foundation::{NSRange, NSString};
use objc2_metal::{
    MTLBarrierScope, MTLBlitCommandEncoder, MTLBuffer, MTLCommandBuffer, MTLCommandEncoder,
    MTLCompileOptions, MTLComputeCommandEncoder, MTLComputePipelineState,
    MTLCreateSystemDefaultDevice, MTLDevice, MTLDispatchType, MTLGPUFamily, MTLLibrary,
    MTLResourceOptions, MTLResourceUsage, MTLSize,
};
use std::collections::HashMap;

type Buffer = Retained<ProtocolObject<dyn MTLBuffer>>;
type Pipeline = Retained<ProtocolObject<dyn MTLComputePipelineState>>;
type Device = Retained<ProtocolObject<dyn MTLDevice>>;

/// Lanes of a simdgroup that kernels count on.
const LANES: usize = 32;
/// Arguments of launches begin at multiples of this.
const ARGUMENTS_ALIGN: usize = 256;

/// The system's GPU.
fn device() -> Result<Device, String> {
    MTLCreateSystemDefaultDevice().ok_or_else(|| "Metal finds no GPU".to_owned())
}

fn info(device: &ProtocolObject<dyn MTLDevice>) -> Result<MetalInfo, String> {
    let name = device.name().to_string();
    // Newer systems know families that have no name here yet.
    let known = (OLDEST_FAMILY..=OLDEST_FAMILY + 12).rev();
    let mut known = known.filter(|&f| device.supportsFamily(MTLGPUFamily(1000 + f as isize)));
    let family = known.next().ok_or_else(|| {
        format!("{name} is older than Apple M1, or a virtual machine shows less than it is")
    })?;
    Ok(MetalInfo {
        name,
        family,
        memory_bytes: device.recommendedMaxWorkingSetSize(),
    })
}

/// What the system's GPU is.
pub(super) fn detect() -> Result<MetalInfo, String> {
    let device = device()?;
    info(&device)
}

/// An Apple GPU, opened.
pub struct Metal {
    device: Device,
    info: MetalInfo,
    commands: Commands,
    /// All memory that kernels may reach.
    memory: Vec<Buffer>,
    kernels: Vec<Kernel>,
    stepwise: bool,
}

// SAFETY: devices, queues, buffers and pipelines may be used from any thread; `&mut self` keeps command buffers, which may
// not, in one thread at a time.
unsafe impl Send for Metal {}

/// Memory of the machine that the GPU sees.
pub struct SharedMemory {
    what: String,
    buffer: Buffer,
    bytes: u64,
}

// SAFETY: a buffer may be used from any thread; its bytes are reached through `Metal` alone.
unsafe impl Send for SharedMemory {}

impl SharedMemory {
    /// The range as offsets, if it is inside.
    fn range(&self, offset: u64, bytes: u64) -> Result<usize, Error> {
        let end = offset.checked_add(bytes);
        if end.is_none_or(|end| end > self.bytes) {
            return Err(Error::Device(format!(
                "{bytes} bytes at {offset} are outside the {} of {} bytes",
                self.what, self.bytes
            )));
        }
        Ok(offset as usize)
    }
}

/// A kernel, compiled for this GPU.
struct Kernel {
    name: String,
    pipeline: Pipeline,
}

/// A program's launches; the arguments of all of them are in one buffer.
pub struct Recorded {
    launches: Vec<BoundLaunch>,
    arguments: Buffer,
    /// Where each launch's begin.
    offsets: Vec<usize>,
}

// SAFETY: as `SharedMemory`; nobody writes the arguments after they were made.
unsafe impl Send for Recorded {}

/// Bytes that a command buffer copies where nothing overwrites them.
pub struct Arrival {
    landing: Buffer,
    bytes: usize,
    /// Number of the command buffer.
    ticket: u64,
}

// SAFETY: as `SharedMemory`; the GPU has written it when its command buffer is done.
unsafe impl Send for Arrival {}

impl Metal {
    /// Opens the system's GPU.
    ///
    /// # Errors
    /// [`Error::Device`] if there is none that can run anything.
    pub fn open() -> Result<Self, Error> {
        let device = device().map_err(Error::Device)?;
        let info = info(&device).map_err(Error::Device)?;
        let queue = device.newCommandQueue();
        let queue = queue.ok_or_else(|| Error::Device("Metal makes no command queue".into()))?;
        Ok(Self {
            device,
            info,
            commands: Commands::new(queue),
            memory: Vec::new(),
            kernels: Vec::new(),
            stepwise: std::env::var("COLDPRESS_METAL_SYNC").is_ok_and(|value| value == "1"),
        })
    }

    /// What it is.
    pub fn info(&self) -> &MetalInfo {
        &self.info
    }

    /// A buffer of shared memory.
    fn buffer(&self, what: &str, bytes: u64) -> Result<Buffer, Error> {
        let options = MTLResourceOptions::StorageModeShared;
        let length = usize::try_from(bytes.max(ARGUMENTS_ALIGN as u64));
        let made = length.map(|length| self.device.newBufferWithLength_options(length, options));
        made.ok().flatten().ok_or_else(|| {
            const GIB: f64 = (1u64 << 30) as f64;
            Error::Memory(format!(
                "allocating {:.2} GiB for the {what}: {} may use {:.2} GiB; end what else uses memory, or recompile with a \
                 smaller --max-batch, --ctx-size or --kv-type",
                bytes as f64 / GIB,
                self.info.name,
                self.info.memory_bytes as f64 / GIB
            ))
        })
    }

    /// A buffer that holds `bytes`.
    fn holding(&self, what: &str, bytes: &[u8]) -> Result<Buffer, Error> {
        let buffer = self.buffer(what, bytes.len() as u64)?;
        // SAFETY: the buffer is at least as long, and nobody else has it.
        unsafe {
            buffer
                .contents()
                .cast::<u8>()
                .as_ptr()
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
        };
        Ok(buffer)
    }

    /// Encodes launches `which` into a command buffer of their own, and commits it.
    fn play(&mut self, recorded: &Recorded, which: std::ops::Range<usize>) -> Result<u64, Error> {
        let refused = || Error::Device("Metal makes no compute encoder".into());
        let commands = self.commands.begin()?;
        let encoder = commands
            .computeCommandEncoderWithDispatchType(MTLDispatchType::Concurrent)
            .ok_or_else(refused)?;
        for memory in &self.memory {
            let usage = MTLResourceUsage::Read | MTLResourceUsage::Write;
            encoder.useResource_usage(ProtocolObject::from_ref(&**memory), usage);
        }
        for index in which {
            let launch = &recorded.launches[index];
            encoder.setComputePipelineState(&self.kernels[launch.kernel].pipeline);
            // SAFETY: `prepare` put as many bytes there as the kernel is given, and the length of threadgroup memory is
            // below the device's limit. Addresses among the arguments are the plan's business.
            unsafe {
                encoder.setBuffer_offset_atIndex(
                    Some(&recorded.arguments),
                    recorded.offsets[index],
                    0,
                );
                let shared = (launch.shared_bytes as usize).next_multiple_of(16).max(16);
                encoder.setThreadgroupMemoryLength_atIndex(shared, 0);
            }
            let [width, height, depth] = launch.grid.map(|n| n as usize);
            encoder.dispatchThreadgroups_threadsPerThreadgroup(
                MTLSize {
                    width,
                    height,
                    depth,
                },
                MTLSize {
                    width: launch.threads as usize,
                    height: 1,
                    depth: 1,
                },
            );
            // Dispatches run at the same time unless something is between them.
            encoder.memoryBarrierWithScope(MTLBarrierScope::Buffers);
        }
        encoder.endEncoding();
        Ok(self.commands.commit(commands))
    }

    /// Runs launches one at a time, each to its end; how long each took on the GPU.
    fn step_through(&mut self, recorded: &Recorded) -> Result<Vec<f64>, Error> {
        let mut seconds = Vec::with_capacity(recorded.launches.len());
        for index in 0..recorded.launches.len() {
            let launch = &recorded.launches[index];
            let what = format!(
                "launch {index}, {} ({})",
                launch.label, self.kernels[launch.kernel].name
            );
            let ticket = self.play(recorded, index..index + 1)?;
            seconds.push(self.commands.wait(ticket, &what)?);
        }
        Ok(seconds)
    }
}

impl Accelerator for Metal {
    type Buffer = SharedMemory;
    type Recorded = Recorded;
    type Pending = Arrival;

    fn allocate(&mut self, what: &str, bytes: u64) -> Result<SharedMemory, Error> {
        let buffer = self.buffer(what, bytes)?;
        self.memory.push(buffer.clone());
        Ok(SharedMemory {
            what: what.to_owned(),
            buffer,
            bytes,
        })
    }

    fn address(&self, buffer: &SharedMemory) -> u64 {
        buffer.buffer.gpuAddress()
    }

    fn write(&mut self, buffer: &mut SharedMemory, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let at = buffer.range(offset, bytes.len() as u64)?;
        if self.commands.are_done()? {
            // SAFETY: the range was checked, and no command buffer is left that could use it.
            unsafe {
                let to = buffer.buffer.contents().cast::<u8>().as_ptr().add(at);
                to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            }
            return Ok(());
        }
        let from = self.holding("staging memory", bytes)?;
        self.commands
            .copy(&from, 0, &buffer.buffer, at, bytes.len())?;
        Ok(())
    }

    fn read(&mut self, buffer: &SharedMemory, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let at = buffer.range(offset, bytes.len() as u64)?;
        self.synchronise()?;
        // SAFETY: the range was checked, and everything that wrote it is done.
        unsafe {
            let from = buffer.buffer.contents().cast::<u8>().as_ptr().add(at);
            from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len());
        }
        Ok(())
    }

    fn read_later(
        &mut self,
        buffer: &SharedMemory,
        offset: u64,
        bytes: usize,
    ) -> Result<Arrival, Error> {
        let at = buffer.range(offset, bytes as u64)?;
        let landing = self.buffer("results", bytes as u64)?;
        let ticket = self.commands.copy(&buffer.buffer, at, &landing, 0, bytes)?;
        Ok(Arrival {
            landing,
            bytes,
            ticket,
        })
    }

    fn arrived(&mut self, pending: Arrival) -> Result<Vec<u8>, Error> {
        self.commands.wait(pending.ticket, RUNNING)?;
        let from = pending.landing.contents().cast::<u8>().as_ptr();
        // SAFETY: the buffer is at least as long, and the copy into it is done.
        Ok(unsafe { std::slice::from_raw_parts(from, pending.bytes) }.to_vec())
    }

    fn zero(&mut self, buffer: &mut SharedMemory, offset: u64, bytes: u64) -> Result<(), Error> {
        let at = buffer.range(offset, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        let commands = self.commands.begin()?;
        let encoder = commands.blitCommandEncoder();
        let encoder = encoder.ok_or_else(|| Error::Device("Metal makes no encoder".into()))?;
        let range = NSRange::new(at, bytes as usize);
        encoder.fillBuffer_range_value(&buffer.buffer, range, 0);
        encoder.endEncoding();
        self.commands.commit(commands);
        Ok(())
    }

    fn load_kernels(&mut self, kernels: &[KernelImage<'_>]) -> Result<(), Error> {
        let mut libraries: HashMap<&[u8], Retained<ProtocolObject<dyn MTLLibrary>>> =
            HashMap::new();
        let most_shared = self.device.maxThreadgroupMemoryLength();
        for image in kernels {
            let library = match libraries.get(image.code) {
                Some(library) => library.clone(),
                None => {
                    let library = compile(&self.device, image)?;
                    libraries.insert(image.code, library.clone());
                    library
                }
            };
            let fails = |why: &dyn std::fmt::Display| {
                Error::Device(format!("loading kernel {}: {why}", image.name))
            };
            let function = library.newFunctionWithName(&NSString::from_str(image.name));
            let function = function.ok_or_else(|| fails(&"it is not in its library"))?;
            let made = self
                .device
                .newComputePipelineStateWithFunction_error(&function);
            let pipeline = made.map_err(|e| fails(&e.localizedDescription()))?;
            let (threads, lanes) = (
                pipeline.maxTotalThreadsPerThreadgroup(),
                pipeline.threadExecutionWidth(),
            );
            if lanes != LANES || threads < image.threads as usize {
                return Err(fails(&format!(
                    "it needs {} threads in simdgroups of {LANES}, {} gives it {threads} in simdgroups of {lanes}",
                    image.threads, self.info.name
                )));
            }
            if image.shared_bytes as usize > most_shared {
                return Err(fails(&format!(
                    "it needs {} bytes of threadgroup memory, {} has {most_shared}",
                    image.shared_bytes, self.info.name
                )));
            }
            self.kernels.push(Kernel {
                name: image.name.to_owned(),
                pipeline,
            });
        }
        Ok(())
    }

    fn prepare(&mut self, launches: Vec<BoundLaunch>) -> Result<Recorded, Error> {
        let mut arguments = Vec::new();
        let mut offsets = Vec::with_capacity(launches.len());
        for launch in &launches {
            if launch.kernel >= self.kernels.len() {
                let why = format!("{}: there is no kernel {}", launch.label, launch.kernel);
                return Err(Error::Device(why));
            }
            arguments.resize(arguments.len().next_multiple_of(ARGUMENTS_ALIGN), 0);
            offsets.push(arguments.len());
            arguments.extend(launch.args.iter().flat_map(|arg| arg.to_ne_bytes()));
        }
        Ok(Recorded {
            arguments: self.holding("arguments of launches", &arguments)?,
            launches,
            offsets,
        })
    }

    fn run(&mut self, recorded: &mut Recorded) -> Result<(), Error> {
        if self.stepwise {
            return self.step_through(recorded).map(drop);
        }
        self.play(recorded, 0..recorded.launches.len()).map(drop)
    }

    fn run_timed(&mut self, recorded: &mut Recorded) -> Result<Vec<f64>, Error> {
        self.synchronise()?;
        self.step_through(recorded)
    }

    fn synchronise(&mut self) -> Result<(), Error> {
        self.commands.wait_for_all(RUNNING)
    }
}

const RUNNING: &str =
    "running kernels (COLDPRESS_METAL_SYNC=1 in the environment names the one that fails)";

/// The library of a kernel's source.
fn compile(
    device: &ProtocolObject<dyn MTLDevice>,
    image: &KernelImage<'_>,
) -> Result<Retained<ProtocolObject<dyn MTLLibrary>>, Error> {
    let text = std::str::from_utf8(image.code)
        .map_err(|_| Error::Device(format!("kernel {}: its source is no text", image.name)))?;
    let options = MTLCompileOptions::new();
    // Also said in the source, for systems that know that.
    #[expect(deprecated, reason = "what replaces it begins with macOS 15")]
    options.setFastMathEnabled(false);
    device
        .newLibraryWithSource_options_error(&NSString::from_str(text), Some(&options))
        .map_err(|e| failed("compiling kernels", &e))
}
