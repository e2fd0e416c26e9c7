//! Maps a coldpress bundle and runs it as a batched decode loop. Knows launches, buffers, slots and tokens;
//! no model name, no quant name, no compiler pass.

pub mod chat;
pub mod manifest;
pub mod tokenizer;
