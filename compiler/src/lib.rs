//! GGUF -> model -> graph -> pass -> plan -> pack / codegen -> bundle. Each arrow is a module; nothing points back.
//!
//! [`compile`] is the pipeline as a list of steps, for the command line ([`cli`]) and for programs alike:
//!
//! ```no_run
//! use std::path::Path;
//!
//! use coldpress_compiler::compile::{self, Options, Silent};
//! use coldpress_compiler::target::TargetProfile;
//!
//! fn main() -> Result<(), coldpress_compiler::error::Error> {
//!     let options = Options {
//!         max_batch: 4,
//!         max_context: Some(2048),
//!         ..Options::new(TargetProfile::native())
//!     };
//!     compile::compile(Path::new("model.gguf"), Path::new("model.press"), &options, &mut Silent)?;
//!     Ok(())
//! }
//! ```
//!
//! # Steps
//!
//! | module | in | out |
//! | --- | --- | --- |
//! | [`gguf`] | a file or its splits | metadata and tensor bytes, every length checked |
//! | [`model`] | metadata | the op graph of one step, as the architecture states it |
//! | [`graph`] | | ops and typing rules; `verify`, `dump`, and `interpret`, the oracle |
//! | [`pass`] | a graph | a graph that computes the same with fewer launches |
//! | [`plan`] | a graph and a [`target`] | buckets, a kernel for every op, memory, barriers; verified by other code |
//! | [`pack`] | weights | the layouts kernels read, tensor by tensor |
//! | [`codegen`] | a plan | machine code that calls micro-kernels, one stream per worker and program |
//! | [`tokenizer`] | metadata | patterns, merges and special tokens as plain data |
//! | [`golden`] | a graph | prompts with reference logits, to check a bundle where it runs |
//! | [`explain`] | a plan | notes on every tensor: from file to instructions |
//! | [`tune`] | the shapes of a graph | measured times of kernels, for the [`target`] of later compiles |
//! | [`bundle`] | all of these | the `.press` file, under its name only when it is complete |
//!
//! # Invariants
//!
//! - Only [`gguf`] knows the container, only `coldpress_runtime::bundle` the bytes of a bundle, only
//!   `coldpress_kernels::quant` the bytes of a quant block.
//! - [`model`] and [`pass`] never see a target. [`codegen`] decides nothing.
//! - Whatever [`plan`] accepts runs: an op without a kernel is an error that names tensor, format and shape.
//! - Bytes from users never panic. The same input gives the same bundle, byte by byte.

pub mod bundle;
pub mod cli;
pub mod codegen;
pub mod compile;
pub mod error;
pub mod explain;
pub mod gguf;
pub mod golden;
pub mod graph;
pub mod model;
pub mod pack;
pub mod pass;
pub mod plan;
pub mod target;
pub mod tokenizer;
pub mod tune;
