//! One Apple GPU through the Metal framework. Memory is shared with the CPU: weights stay where the bundle is mapped, what
//! nobody uses is written in place, everything else goes through command buffers in the order of the calls. All programs of a
//! step, and the copies between them, are one command buffer.
//!
//! With `COLDPRESS_METAL_SYNC=1` in the environment launches run one at a time and a failing one is named.

use super::bandwidth;
use super::commands::{CommandQueue, Reachable};
use super::pipelines::{self, Kernel};
use super::spares::Spares;
use super::steps::Steps;
use super::{MetalInfo, PAGE_BYTES, cores};
use crate::bundle::MappedSection;
use crate::device::accelerator::{Accelerator, BoundLaunch, KernelImage};
use crate::error::Error;
use block2::RcBlock;
use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_metal::{
    MTLBarrierScope, MTLBuffer, MTLComputeCommandEncoder, MTLCreateSystemDefaultDevice, MTLDevice,
    MTLGPUFamily, MTLResourceOptions, MTLSize,
};
use std::ffi::c_void;
use std::ops::Range;
use std::ptr::NonNull;

type Buffer = Retained<ProtocolObject<dyn MTLBuffer>>;
type Device = Retained<ProtocolObject<dyn MTLDevice>>;

const GIB: f64 = (1u64 << 30) as f64;
/// Arguments of launches begin at multiples of this.
const ARGUMENTS_ALIGN: usize = 256;

/// The system's GPU.
fn device() -> Result<Device, String> {
    MTLCreateSystemDefaultDevice().ok_or_else(|| "Metal finds no GPU".to_owned())
}

fn info(device: &ProtocolObject<dyn MTLDevice>) -> Result<MetalInfo, String> {
    let name = device.name().to_string();
    // Newer systems know families that have no name here yet.
    let known = (super::OLDEST_FAMILY..=super::OLDEST_FAMILY + 12).rev();
    let mut known = known.filter(|&f| device.supportsFamily(MTLGPUFamily(1000 + f as isize)));
    let family = known.next().ok_or_else(|| {
        format!("{name} is older than Apple M1, or a virtual machine shows less than it is")
    })?;
    Ok(MetalInfo {
        name,
        family,
        cores: cores::of(device.registryID()),
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
    /// First, so that what it still runs is done before anything that it uses goes.
    steps: Steps<CommandQueue>,
    device: Device,
    info: MetalInfo,
    /// All memory that kernels may reach.
    memory: Vec<Reachable>,
    /// What small copies pass through.
    spares: Spares<Buffer>,
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
    /// Whether it may be written: not if it is a mapped file.
    writable: bool,
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

    /// As [`SharedMemory::range`], of bytes that will be written.
    fn written(&self, offset: u64, bytes: u64) -> Result<usize, Error> {
        if !self.writable {
            let what = &self.what;
            return Err(Error::Device(format!("the {what} are mapped to be read")));
        }
        self.range(offset, bytes)
    }
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
    /// Bytes of the buffer.
    room: usize,
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
            steps: Steps::new(CommandQueue(queue)),
            device,
            info,
            memory: Vec::new(),
            spares: Spares::new(),
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
        let made = made.ok().flatten();
        made.ok_or_else(|| self.short_of_memory(&format!("allocating the {what}"), bytes))
    }

    fn short_of_memory(&self, doing: &str, bytes: u64) -> Error {
        let name = &self.info.name;
        Error::Memory(format!(
            "{doing}, {:.2} GiB: {name} may use {:.2} GiB, {:.2} GiB of it in one buffer; end what else uses memory, or \
             recompile with a smaller --max-batch, --ctx-size or --kv-type, or from a smaller file",
            bytes as f64 / GIB,
            self.info.memory_bytes as f64 / GIB,
            self.device.maxBufferLength() as f64 / GIB
        ))
    }

    /// A buffer of at least `bytes` bytes for a copy, and how many it has.
    fn passage(&mut self, what: &str, bytes: usize) -> Result<(usize, Buffer), Error> {
        if let Some(spare) = self.spares.take(bytes, self.steps.done()) {
            return Ok(spare);
        }
        let room = bytes.max(ARGUMENTS_ALIGN).next_power_of_two();
        Ok((room, self.buffer(what, room as u64)?))
    }

    /// Encodes launches `which`, behind everything before.
    fn encode(&mut self, recorded: &Recorded, which: Range<usize>) -> Result<(), Error> {
        let launches = &recorded.launches[which.clone()];
        let part = match launches {
            [] => return Ok(()),
            [one] => format!("{} ({})", one.label, self.kernels[one.kernel].name),
            [first, .., last] => format!("{} to {}", first.label, last.label),
        };
        let commands = self.steps.open(Some(part))?;
        let encoder = commands.launches(&self.memory).map_err(Error::Device)?;
        for (launch, &offset) in launches.iter().zip(&recorded.offsets[which]) {
            encoder.setComputePipelineState(&self.kernels[launch.kernel].pipeline);
            // SAFETY: `prepare` put as many bytes there as the kernel is given, and the length of threadgroup memory is
            // below the device's limit. Addresses among the arguments are the plan's business.
            unsafe {
                encoder.setBuffer_offset_atIndex(Some(&recorded.arguments), offset, 0);
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
        Ok(())
    }

    /// Runs launches one at a time, each to its end; how long each took on the GPU.
    fn step_through(&mut self, recorded: &Recorded) -> Result<Vec<f64>, Error> {
        self.steps.wait_for_all()?;
        let mut seconds = Vec::with_capacity(recorded.launches.len());
        for index in 0..recorded.launches.len() {
            self.encode(recorded, index..index + 1)?;
            seconds.push(self.steps.wait(self.steps.ticket())?);
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
        self.memory.push(Reachable {
            buffer: buffer.clone(),
            written: true,
        });
        Ok(SharedMemory {
            what: what.to_owned(),
            buffer,
            bytes,
            writable: true,
        })
    }

    fn map(&mut self, what: &str, section: &MappedSection) -> Result<Option<SharedMemory>, Error> {
        let pages = match section.pages(PAGE_BYTES) {
            Ok(pages) => pages,
            Err(why) => {
                eprintln!("note: the {what} are copied, which takes their size in memory: {why}");
                return Ok(None);
            }
        };
        // The framework drops the block with the buffer, and the map stays until then.
        let mapped = section.clone();
        let release = RcBlock::new(move |_: NonNull<c_void>, _: usize| {
            let _ = &mapped;
        });
        // SAFETY: whole pages that stay mapped as long as the block lives. They are not written: the buffer is given to
        // kernels to be read, and `writable` keeps copies out.
        let buffer = unsafe {
            self.device
                .newBufferWithBytesNoCopy_length_options_deallocator(
                    NonNull::from(pages).cast::<c_void>(),
                    pages.len(),
                    MTLResourceOptions::StorageModeShared,
                    Some(&release),
                )
        };
        let bytes = section.bytes().len() as u64;
        let buffer =
            buffer.ok_or_else(|| self.short_of_memory(&format!("mapping the {what}"), bytes))?;
        self.memory.push(Reachable {
            buffer: buffer.clone(),
            written: false,
        });
        Ok(Some(SharedMemory {
            what: what.to_owned(),
            buffer,
            bytes,
            writable: false,
        }))
    }

    fn address(&self, buffer: &SharedMemory) -> u64 {
        buffer.buffer.gpuAddress()
    }

    fn write(&mut self, buffer: &mut SharedMemory, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let at = buffer.written(offset, bytes.len() as u64)?;
        if self.steps.are_done()? {
            // SAFETY: the range was checked, and no command buffer is left that could use it.
            unsafe { put(&buffer.buffer, at, bytes) };
            return Ok(());
        }
        let (room, from) = self.passage("staging memory", bytes.len())?;
        // SAFETY: the buffer is at least as long, and nobody else has it.
        unsafe { put(&from, 0, bytes) };
        let commands = self.steps.open(None)?;
        let copied = commands.copy((&from, 0), (&buffer.buffer, at), bytes.len());
        copied.map_err(Error::Device)?;
        self.spares.give(room, self.steps.ticket(), from);
        Ok(())
    }

    fn read(&mut self, buffer: &SharedMemory, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let at = buffer.range(offset, bytes.len() as u64)?;
        self.steps.wait_for_all()?;
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
        let (room, landing) = self.passage("results", bytes)?;
        let commands = self.steps.open(None)?;
        let copied = commands.copy((&buffer.buffer, at), (&landing, 0), bytes);
        copied.map_err(Error::Device)?;
        Ok(Arrival {
            landing,
            room,
            bytes,
            ticket: self.steps.ticket(),
        })
    }

    fn arrived(&mut self, pending: Arrival) -> Result<Vec<u8>, Error> {
        let Arrival {
            landing,
            room,
            bytes,
            ticket,
        } = pending;
        self.steps.wait(ticket)?;
        let from = landing.contents().cast::<u8>().as_ptr();
        // SAFETY: the buffer is at least as long, and the copy into it is done.
        let arrived = unsafe { std::slice::from_raw_parts(from, bytes) }.to_vec();
        self.spares.give(room, ticket, landing);
        Ok(arrived)
    }

    fn zero(&mut self, buffer: &mut SharedMemory, offset: u64, bytes: u64) -> Result<(), Error> {
        let at = buffer.written(offset, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        let commands = self.steps.open(None)?;
        let zeroed = commands.fill(&buffer.buffer, at, bytes as usize, 0);
        zeroed.map_err(Error::Device)
    }

    fn load_kernels(&mut self, kernels: &[KernelImage<'_>]) -> Result<(), Error> {
        self.kernels = autoreleasepool(|_| pipelines::load(&self.device, &self.info, kernels))?;
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
        let buffer = self.buffer("arguments of launches", arguments.len() as u64)?;
        // SAFETY: the buffer is at least as long, and nobody else has it.
        unsafe { put(&buffer, 0, &arguments) };
        Ok(Recorded {
            arguments: buffer,
            launches,
            offsets,
        })
    }

    fn run(&mut self, recorded: &mut Recorded) -> Result<(), Error> {
        if self.stepwise {
            return self.step_through(recorded).map(drop);
        }
        self.encode(recorded, 0..recorded.launches.len())
    }

    fn submit(&mut self) -> Result<(), Error> {
        self.steps.submit();
        Ok(())
    }

    fn run_timed(&mut self, recorded: &mut Recorded) -> Result<Vec<f64>, Error> {
        self.step_through(recorded)
    }

    fn read_bandwidth(&mut self) -> Result<Option<f64>, Error> {
        autoreleasepool(|_| bandwidth::measure(&self.device, &mut self.steps, &self.memory))
    }

    fn synchronise(&mut self) -> Result<(), Error> {
        self.steps.wait_for_all()
    }
}

/// Writes `bytes` to byte `at` of a buffer.
///
/// # Safety
/// The buffer has as many bytes there, and neither the GPU nor another thread uses them.
unsafe fn put(buffer: &ProtocolObject<dyn MTLBuffer>, at: usize, bytes: &[u8]) {
    // SAFETY: the caller's; shared memory is where the CPU sees it.
    unsafe {
        let to = buffer.contents().cast::<u8>().as_ptr().add(at);
        to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
    }
}
