//! What coldpress can stamp: quant formats, kernel families with their variants, legality, cost and naive
//! reference, and the CPU micro-kernels. No IO, no GPU, no knowledge of models or bundles.
//!
//! # A weight's way to a kernel
//!
//! [`tensor_type`] names every type a GGUF file may hold. For those that can be compiled, [`quant`] has a *format*: how
//! its quant blocks come apart, and the *layout* ([`quant::PackedLayout`]) that kernels read in their place: bits, scale
//! groups, zero, min. Formats are about files, layouts about arithmetic; nothing behind packing hears a format's name.
//! [`cpu::tile`] writes a layout as *tiles* of 16 outputs by all of k, one stream of aligned 64-byte vectors in the order
//! in which the micro-kernels read it.
//!
//! # What a family consists of
//!
//! [`matmul`], [`attention`], [`experts`], [`gated`], [`norm`], [`recurrent`] and [`rope`] are one file each that says, without
//! running anything:
//!
//! - the type of its micro-kernels (an `extern "C" fn` that takes pointers, strides and row ranges) and their symbol names;
//! - its legality: shapes the micro-kernels take, and a `Reason` for the others that names the number;
//! - its cost in bytes (and for matmul, which alone has variants, multiply-adds and predicted seconds);
//! - `reference`: the formula in f64, the oracle of the conformance tests.
//!
//! Micro-kernels are in `cpu/<isa>/<family>.rs`, listed by name in each file's `SYMBOLS` and found by [`cpu::lookup`].
//! The plan chooses among them when a model is compiled; emitted code calls them through the contract in [`cpu::abi`].
//! Conformance tests run every symbol this CPU can execute, over every layout and boundary shape.

pub mod attention;
pub mod cpu;
pub mod experts;
pub mod gated;
pub mod gpu;
pub mod matmul;
pub mod norm;
pub mod quant;
pub mod recurrent;
pub mod rope;
pub mod tensor_type;
