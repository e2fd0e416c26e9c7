//! One integration binary; modules mirror the rooms they test. Whatever needs a device or the fixtures says so when it
//! skips, and `CI=true` turns a missing fixture into a failure.

/// Generated GPU matmuls on the CPU, against exact sums, and every stamp of a class against the others.
mod cuda_matmul;
/// Whole models compiled for GPUs, executed by the shim.
mod cuda_models;
/// GPU kernels that are not matmuls, on the CPU, against their references.
mod cuda_ops;
/// Damaged and absurd models through the front end, in thousands: refused, never a panic or a wild allocation.
mod fuzz;
/// The script that checks a real GPU, with programs that stand in for coldpress.
#[cfg(unix)]
mod gpu_check;
/// Shared ground: fixtures, temporary folders, random models, running the commands.
mod harness;

/// Bad input through the command line: one clear line, the right exit code, nothing left behind.
mod hostile;
/// The same rows in other company: buckets, chunks, batches, joining and leaving.
mod invariance;
/// Which crate may depend on which.
mod layering;
/// Whole models against exact logits and against the interpreter.
mod logits;
/// Metal sources: address spaces, names, barriers.
mod metal;
/// CUDA source to cubins, on every architecture.
mod nvrtc;
/// What is counted in machine code, against kernels whose instructions are known.
mod sass;
/// Commands that show things: inspect, explain, verify, targets, emit, reproducibility.
mod showing;
/// GPU kernels on the CPU: the device that runs them, and its own tests.
mod simt;
/// The model in examples/tiny: what it was trained to do.
mod tiny;
/// Token ids against the vectors of real vocabularies.
mod tokenizer;
/// Kernels timed on this machine, and compiles that use the times.
mod tune;
/// Packages from PyPI that tests run.
mod wheel;
