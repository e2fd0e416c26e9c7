//! Maps a coldpress bundle and runs it as a batched decode loop. Knows launches, buffers, slots and tokens;
//! no model name, no quant name, no compiler pass.

pub mod bundle;
pub mod chat;
#[cfg(feature = "cli")]
pub mod cli;
pub mod device;
pub mod engine;
pub mod error;
pub mod executor;
pub mod kv_cache;
pub mod manifest;
pub mod sampler;
pub mod tokenizer;

pub use error::Error;
