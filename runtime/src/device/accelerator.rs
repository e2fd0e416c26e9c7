//! What a GPU must offer so that `gpu` can run plans on it: memory, kernels and an order in which things happen. Nothing
//! here knows plans, rows or models; `cuda` and `metal` implement it, and tests do without hardware.

use crate::bundle::MappedSection;
use crate::error::Error;

/// A kernel as a bundle holds it.
#[derive(Clone, Copy, Debug)]
pub struct KernelImage<'a> {
    /// Symbol.
    pub name: &'a str,
    /// Its compiled module.
    pub code: &'a [u8],
    /// The source it was compiled from.
    pub source: &'a [u8],
    /// Threads of a thread block.
    pub threads: u32,
    /// Most dynamic shared memory a launch of it asks for, bytes.
    pub shared_bytes: u32,
}

/// A launch whose arguments are final.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundLaunch {
    /// Graph label, for messages: `blk.3.ffn_down`.
    pub label: String,
    /// Index among the loaded kernels.
    pub kernel: usize,
    /// Thread blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a thread block.
    pub threads: u32,
    /// Dynamic shared memory of a thread block, bytes.
    pub shared_bytes: u32,
    /// The kernel's parameters, 8 bytes each: addresses, or values in the low bytes.
    pub args: Vec<u64>,
    /// Whether it may start while the launch before it still runs.
    pub overlaps: bool,
}

/// A GPU, or what stands in for one.
///
/// Writes, zeroing and runs take effect in the order of the calls. All of them may return before that, and what they ask for
/// may be held back until [`Accelerator::submit`], or until somebody waits; [`Accelerator::synchronise`] does, and reports
/// what went wrong since. After an error nothing is known of memory that
/// kernels may have written. What was allocated, loaded and prepared lives as long as the accelerator.
pub trait Accelerator: Send {
    /// Memory on the accelerator.
    type Buffer: Send;
    /// The launches of a program, ready to run.
    type Recorded: Send;
    /// Bytes on their way to the host.
    type Pending: Send;

    /// Takes `bytes` bytes of memory, at an address that is a multiple of 256; what they hold is anything. `what` is for the
    /// message.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is not so much.
    fn allocate(&mut self, what: &str, bytes: u64) -> Result<Self::Buffer, Error>;

    /// `section` as memory that kernels only read, where it is mapped; none where they do not read the host's memory, so that
    /// it has to be copied.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is not so much.
    fn map(&mut self, what: &str, section: &MappedSection) -> Result<Option<Self::Buffer>, Error> {
        let _ = (what, section);
        Ok(None)
    }

    /// The address of its first byte, as kernels see it.
    fn address(&self, buffer: &Self::Buffer) -> u64;

    /// Copies `bytes` into `buffer` from byte `offset` on; `bytes` may be changed when this returns.
    ///
    /// # Errors
    /// [`Error::Device`] if the range is outside the buffer or the copy fails.
    fn write(&mut self, buffer: &mut Self::Buffer, offset: u64, bytes: &[u8]) -> Result<(), Error>;

    /// Copies from byte `offset` of `buffer` on into `bytes`, when everything before is done.
    ///
    /// # Errors
    /// [`Error::Device`] if the range is outside the buffer, the copy or something before it fails.
    fn read(&mut self, buffer: &Self::Buffer, offset: u64, bytes: &mut [u8]) -> Result<(), Error>;

    /// Begins to copy `bytes` bytes from byte `offset` of `buffer` on to the host, in the order of the calls.
    ///
    /// # Errors
    /// [`Error::Device`] if the range is outside the buffer or the device refuses.
    fn read_later(
        &mut self,
        buffer: &Self::Buffer,
        offset: u64,
        bytes: usize,
    ) -> Result<Self::Pending, Error>;

    /// Gives the bytes, when they are there; what was asked for later need not be done.
    ///
    /// # Errors
    /// [`Error::Device`] if the copy or something before it failed, or takes longer than anything should.
    fn arrived(&mut self, pending: Self::Pending) -> Result<Vec<u8>, Error>;

    /// Sets `bytes` bytes of `buffer` from byte `offset` on to zero.
    ///
    /// # Errors
    /// [`Error::Device`] if the range is outside the buffer or the device refuses.
    fn zero(&mut self, buffer: &mut Self::Buffer, offset: u64, bytes: u64) -> Result<(), Error>;

    /// Loads all kernels of a plan; launches name them by their place here. Called once.
    ///
    /// # Errors
    /// [`Error::Device`] with the kernel's name if one does not load.
    fn load_kernels(&mut self, kernels: &[KernelImage<'_>]) -> Result<(), Error>;

    /// Makes launches ready to run, in this order.
    ///
    /// # Errors
    /// [`Error::Device`] with the launch's label if one is not possible.
    fn prepare(&mut self, launches: Vec<BoundLaunch>) -> Result<Self::Recorded, Error>;

    /// Runs launches, each when the one before it is done, unless it overlaps.
    ///
    /// # Errors
    /// [`Error::Device`] if the device refuses.
    fn run(&mut self, recorded: &mut Self::Recorded) -> Result<(), Error>;

    /// Has everything before begin, if it was held back to reach the device in one piece.
    ///
    /// # Errors
    /// [`Error::Device`] if the device refuses.
    fn submit(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Runs launches one at a time and returns how long each took, seconds.
    ///
    /// # Errors
    /// [`Error::Device`] if the device refuses or a launch fails.
    fn run_timed(&mut self, recorded: &mut Self::Recorded) -> Result<Vec<f64>, Error>;

    /// Bytes per second that kernels can read, measured here and now; none if it cannot be told.
    ///
    /// # Errors
    /// [`Error::Device`] if the device refuses or fails.
    fn read_bandwidth(&mut self) -> Result<Option<f64>, Error> {
        Ok(None)
    }

    /// Returns when everything before is done.
    ///
    /// # Errors
    /// [`Error::Device`] if something before failed, or takes longer than anything should.
    fn synchronise(&mut self) -> Result<(), Error>;
}
