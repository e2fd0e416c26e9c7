//! GGUF -> model -> graph -> pass -> plan -> pack / codegen -> bundle. Each arrow is a module; nothing points back.

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
