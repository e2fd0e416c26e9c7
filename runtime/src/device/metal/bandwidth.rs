//! How fast kernels read memory: the yardstick beside every decode speed.

use super::commands::{CommandQueue, Reachable};
use super::pipelines;
use super::steps::Steps;
use crate::error::Error;
use objc2::runtime::ProtocolObject;
use objc2_metal::{MTLComputeCommandEncoder, MTLDevice, MTLResourceOptions, MTLSize};
use std::ptr::NonNull;

const SOURCE: &str = include_str!("read_rate.metal");
/// No cache of these machines holds this much.
const BYTES: usize = 1 << 30;
const THREADS: usize = 1 << 18;
const PASSES: usize = 5;
/// Bytes of the results.
const OUT: usize = 256;

/// Bytes per second, the best of a few passes; none if there is no room for what they read. `memory` is what other kernels
/// reach, which may be under way.
pub(super) fn measure(
    device: &ProtocolObject<dyn MTLDevice>,
    steps: &mut Steps<CommandQueue>,
    memory: &[Reachable],
) -> Result<Option<f64>, Error> {
    // Metal gives more than there is, and fails what is run with it.
    let used = device.currentAllocatedSize() + BYTES;
    if used as u64 > device.recommendedMaxWorkingSetSize() {
        return Ok(None);
    }
    let pipeline = pipelines::single(device, SOURCE, "read_rate")?;
    let buffer =
        |bytes| device.newBufferWithLength_options(bytes, MTLResourceOptions::StorageModePrivate);
    let (Some(words), Some(out)) = (buffer(BYTES), buffer(OUT)) else {
        return Ok(None);
    };
    // Pages that nobody wrote might be one and the same.
    let filled = steps.open(None)?.fill(&words, 0, BYTES, 1);
    filled.map_err(Error::Device)?;
    steps.wait_for_all()?;
    let rounds = (BYTES / 16 / THREADS) as u32;
    let (mut best, side) = (0.0f64, pipeline.most_threads().min(256));
    for _ in 0..PASSES {
        let commands = steps.open(Some("measuring the bandwidth".into()))?;
        let encoder = commands.launches(memory).map_err(Error::Device)?;
        encoder.setComputePipelineState(&pipeline.pipeline);
        // SAFETY: the kernel's arguments; `rounds` is copied, and rounds of all threads are the words that there are.
        unsafe {
            encoder.setBuffer_offset_atIndex(Some(&words), 0, 0);
            encoder.setBuffer_offset_atIndex(Some(&out), 0, 1);
            let rounds = NonNull::from(&rounds).cast();
            encoder.setBytes_length_atIndex(rounds, size_of::<u32>(), 2);
        }
        let line = |width| MTLSize {
            width,
            height: 1,
            depth: 1,
        };
        encoder.dispatchThreads_threadsPerThreadgroup(line(THREADS), line(side));
        let seconds = steps.wait(steps.ticket())?;
        if seconds > 0.0 {
            best = best.max(BYTES as f64 / seconds);
        }
    }
    Ok(Some(best).filter(|&rate| rate > 0.0))
}
