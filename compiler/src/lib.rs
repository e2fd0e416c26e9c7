//! GGUF -> model -> graph -> pass -> plan -> pack / codegen -> bundle. Each arrow is a module; nothing points back.

pub mod error;
pub mod gguf;
pub mod tokenizer;
