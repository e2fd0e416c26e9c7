//! Command buffers in the order in which they were committed, and waiting for them. Nothing waits for ever: a GPU that is
//! silent for [`PATIENCE`] is reported and given up.

use crate::error::Error;
use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2_foundation::NSError;
use objc2_metal::{
    MTLBlitCommandEncoder, MTLBuffer, MTLCommandBuffer, MTLCommandBufferStatus, MTLCommandEncoder,
    MTLCommandQueue,
};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long the GPU may take for what it was given: a thousand times the longest step.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the caller waits awake: longer than a decode step, whose end must not be missed by a timer's resolution.
const AWAKE: Duration = Duration::from_millis(20);

type Queue = Retained<ProtocolObject<dyn MTLCommandQueue>>;
type Buffer = Retained<ProtocolObject<dyn MTLCommandBuffer>>;

/// A queue, and what it has not been seen to finish.
pub(super) struct Commands {
    queue: Queue,
    /// The oldest first.
    under_way: VecDeque<Buffer>,
    /// Command buffers that have been seen to be done.
    done: u64,
    /// Why the GPU can no longer be used.
    lost: Option<String>,
}

/// An error of the framework, in its words.
pub(super) fn failed(doing: &str, error: &NSError) -> Error {
    Error::Device(format!("{doing}: {}", error.localizedDescription()))
}

impl Commands {
    pub(super) fn new(queue: Queue) -> Self {
        Self {
            queue,
            under_way: VecDeque::new(),
            done: 0,
            lost: None,
        }
    }

    /// A command buffer that comes after all before it.
    pub(super) fn begin(&self) -> Result<Buffer, Error> {
        if let Some(why) = &self.lost {
            return Err(Error::Device(why.clone()));
        }
        let commands = self.queue.commandBuffer();
        commands.ok_or_else(|| Error::Device("Metal makes no command buffer".into()))
    }

    /// Gives it to the GPU; its ticket.
    pub(super) fn commit(&mut self, commands: Buffer) -> u64 {
        commands.commit();
        self.under_way.push_back(commands);
        self.done + self.under_way.len() as u64
    }

    /// Copies bytes between buffers, whose ranges have been checked.
    pub(super) fn copy(
        &mut self,
        from: &ProtocolObject<dyn MTLBuffer>,
        from_offset: usize,
        to: &ProtocolObject<dyn MTLBuffer>,
        to_offset: usize,
        bytes: usize,
    ) -> Result<u64, Error> {
        let commands = self.begin()?;
        let encoder = commands.blitCommandEncoder();
        let encoder = encoder.ok_or_else(|| Error::Device("Metal makes no encoder".into()))?;
        // SAFETY: the caller checked both ranges; a command buffer keeps what it uses alive.
        unsafe {
            encoder.copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size(
                from,
                from_offset,
                to,
                to_offset,
                bytes,
            );
        }
        encoder.endEncoding();
        Ok(self.commit(commands))
    }

    /// Whether the GPU has nothing left to do.
    pub(super) fn are_done(&mut self) -> Result<bool, Error> {
        while let Some(oldest) = self.under_way.front() {
            match oldest.status() {
                MTLCommandBufferStatus::Completed => self.forget_oldest(),
                MTLCommandBufferStatus::Error => {
                    self.wait(self.done + 1, "running kernels")?;
                }
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Waits for everything.
    pub(super) fn wait_for_all(&mut self, doing: &str) -> Result<(), Error> {
        let last = self.done + self.under_way.len() as u64;
        self.wait(last, doing).map(drop)
    }

    /// Waits for the command buffer of a ticket and all before it; how long that one took on the GPU, seconds, 0 if it was
    /// done before.
    pub(super) fn wait(&mut self, ticket: u64, doing: &str) -> Result<f64, Error> {
        if let Some(why) = &self.lost {
            return Err(Error::Device(why.clone()));
        }
        let mut seconds = 0.0;
        while self.done < ticket {
            let Some(oldest) = self.under_way.front() else {
                return Err(Error::Device(format!("{doing}: nothing is under way")));
            };
            let ended = await_end(oldest);
            seconds = oldest.GPUEndTime() - oldest.GPUStartTime();
            if let Err(why) = ended {
                let why =
                    format!("{doing}: {why}; the GPU cannot be used by this process any more");
                self.lost = Some(why.clone());
                return Err(Error::Device(why));
            }
            self.forget_oldest();
        }
        Ok(seconds)
    }

    fn forget_oldest(&mut self) {
        self.under_way.pop_front();
        self.done += 1;
    }
}

/// Polls until a command buffer is done, awake at first.
fn await_end(commands: &ProtocolObject<dyn MTLCommandBuffer>) -> Result<(), String> {
    let started = Instant::now();
    loop {
        match commands.status() {
            MTLCommandBufferStatus::Completed => return Ok(()),
            MTLCommandBufferStatus::Error => {
                let error = commands.error();
                let words = error.map(|e| e.localizedDescription().to_string());
                return Err(words.unwrap_or_else(|| "it failed without a reason".into()));
            }
            _ => {}
        }
        let waited = started.elapsed();
        if waited > PATIENCE {
            return Err(format!("no answer for {} seconds", PATIENCE.as_secs()));
        }
        if waited > AWAKE {
            std::thread::sleep(Duration::from_micros(100));
        } else {
            std::hint::spin_loop();
        }
    }
}
