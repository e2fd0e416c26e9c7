//! The framework's command queue, and how launches and copies are put into a command buffer. When one is given to the GPU
//! and waited for is the business of `steps`. The framework leaves objects to pools, of which a Rust program has none: here
//! are those that every step needs.

use super::steps::{Progress, Queue};
use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_foundation::NSRange;
use objc2_metal::{
    MTLBlitCommandEncoder, MTLBuffer, MTLCommandBuffer, MTLCommandBufferStatus, MTLCommandEncoder,
    MTLCommandQueue, MTLComputeCommandEncoder, MTLDispatchType, MTLResourceUsage,
};

/// A command queue of the framework.
pub(super) struct CommandQueue(pub(super) Retained<ProtocolObject<dyn MTLCommandQueue>>);

type ComputeEncoder = ProtocolObject<dyn MTLComputeCommandEncoder>;

/// A command buffer, and the encoder of the launches put into it last.
pub(super) struct Commands {
    buffer: Retained<ProtocolObject<dyn MTLCommandBuffer>>,
    launches: Option<Retained<ComputeEncoder>>,
}

/// Memory that kernels may reach, and whether they write it.
pub(super) struct Reachable {
    pub(super) buffer: Retained<ProtocolObject<dyn MTLBuffer>>,
    pub(super) written: bool,
}

impl Queue for CommandQueue {
    type Commands = Commands;

    fn begin(&self) -> Result<Commands, String> {
        let buffer = autoreleasepool(|_| self.0.commandBuffer());
        let buffer = buffer.ok_or_else(|| "Metal makes no command buffer".to_owned())?;
        Ok(Commands {
            buffer,
            launches: None,
        })
    }

    fn commit(&self, commands: &mut Commands) {
        autoreleasepool(|_| {
            commands.end_launches();
            commands.buffer.commit();
        });
    }

    fn progress(&self, commands: &Commands) -> Progress {
        let buffer = &commands.buffer;
        match buffer.status() {
            MTLCommandBufferStatus::Completed => {
                Progress::Done(buffer.GPUEndTime() - buffer.GPUStartTime())
            }
            MTLCommandBufferStatus::Error => {
                let words = buffer.error().map(|e| e.localizedDescription().to_string());
                Progress::Failed(words.unwrap_or_else(|| "it failed without a reason".into()))
            }
            _ => Progress::Running,
        }
    }
}

impl Commands {
    /// The encoder of launches; one serves all programs of a step. Kernels reach `memory` by address.
    pub(super) fn launches(&mut self, memory: &[Reachable]) -> Result<&ComputeEncoder, String> {
        let encoder = match self.launches.take() {
            Some(encoder) => encoder,
            None => {
                let concurrent = MTLDispatchType::Concurrent;
                let buffer = &self.buffer;
                let encoder =
                    autoreleasepool(|_| buffer.computeCommandEncoderWithDispatchType(concurrent));
                let encoder = encoder.ok_or("Metal makes no compute encoder")?;
                for memory in memory {
                    let mut usage = MTLResourceUsage::Read;
                    if memory.written {
                        usage |= MTLResourceUsage::Write;
                    }
                    encoder.useResource_usage(ProtocolObject::from_ref(&*memory.buffer), usage);
                }
                encoder
            }
        };
        Ok(self.launches.insert(encoder))
    }

    /// Copies bytes between buffers, whose ranges have been checked.
    pub(super) fn copy(
        &mut self,
        (from, from_offset): (&ProtocolObject<dyn MTLBuffer>, usize),
        (to, to_offset): (&ProtocolObject<dyn MTLBuffer>, usize),
        bytes: usize,
    ) -> Result<(), String> {
        self.blit(|encoder| {
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
        })
    }

    /// Writes `value` to `bytes` bytes of `buffer` from `offset` on, a range that has been checked.
    pub(super) fn fill(
        &mut self,
        buffer: &ProtocolObject<dyn MTLBuffer>,
        offset: usize,
        bytes: usize,
        value: u8,
    ) -> Result<(), String> {
        let range = NSRange::new(offset, bytes);
        self.blit(|encoder| encoder.fillBuffer_range_value(buffer, range, value))
    }

    fn blit(
        &mut self,
        encode: impl FnOnce(&ProtocolObject<dyn MTLBlitCommandEncoder>),
    ) -> Result<(), String> {
        autoreleasepool(|_| {
            self.end_launches();
            let encoder = self.buffer.blitCommandEncoder();
            let encoder = encoder.ok_or("Metal makes no encoder of copies")?;
            encode(&encoder);
            encoder.endEncoding();
            Ok(())
        })
    }

    fn end_launches(&mut self) {
        if let Some(encoder) = self.launches.take() {
            encoder.endEncoding();
        }
    }
}

impl Drop for Commands {
    /// The framework wants every encoder ended, also of a command buffer that nobody commits.
    fn drop(&mut self) {
        self.end_launches();
    }
}
