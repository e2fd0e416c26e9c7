//! Maps a coldpress bundle and runs it as a batched decode loop. Knows launches, buffers, slots and tokens;
//! no model name, no quant name, no compiler pass.
//!
//! A program that embeds it opens a bundle, submits requests at any time, and steps. Each step decodes one token of
//! every running request and processes prompt tokens in the rows that are left; what happened comes back as events.
//!
//! ```no_run
//! use coldpress_runtime::engine::{Engine, Event, Request};
//! use coldpress_runtime::sampler::Sampling;
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let mut engine = Engine::open("model.press")?;
//!     let story = engine.submit(Request::text("Once upon a time"))?;
//!     let sum = engine.submit(Request {
//!         max_tokens: Some(8),
//!         sampling: Sampling::greedy(),
//!         ..Request::text("17+25=")
//!     })?;
//!     while !engine.is_idle() {
//!         for event in engine.step()? {
//!             match event {
//!                 Event::Token { id, text, .. } if id == story => print!("{text}"),
//!                 Event::Finished { id, reason, .. } if id == sum => eprintln!("sum: {}", reason.name()),
//!                 _ => {}
//!             }
//!         }
//!     }
//!     Ok(())
//! }
//! ```
//!
//! `examples/embed.rs` is the same with several kinds of sampling. [`engine::Engine::run_to_end`] collects whole answers
//! instead of events. Without the feature `cli` the crate has no command line and none of its dependencies.
//!
//! # What to know before embedding
//!
//! - **A bundle is a program.** It contains machine code, which runs with the rights of the process. Damage is found
//!   and refused on opening; malice is not. Open only bundles you would run as an executable.
//! - **Limits are compiled in.** Sequences that decode together, tokens per sequence and rows per step are the
//!   bundle's ([`manifest::Limits`]); requests beyond the batch wait their turn, a prompt beyond the context is
//!   refused by [`engine::Engine::submit`] with the reason.
//! - **Memory is allocated once.** Activations and KV pages are allocated when a bundle is opened, and their size
//!   is in the manifest ([`manifest::Requirements::memory_bytes`]); weights stay in the mapped file, which must not be
//!   changed while it is open, or are copied to a GPU with memory of its own. Running a step allocates nothing; its events
//!   and texts are small vectors and strings.
//! - **Threads.** The number of workers is compiled in. The caller of a step is one of them, the engine owns the
//!   others; between steps they spin for a moment ([`executor::ExecutorOptions::spin`]), then sleep. An engine is `Send`
//!   and driven through `&mut self`: one at a time, from any thread.
//! - **Determinism.** A request's tokens depend on the request alone (prompt, parameters, seed), never on who shares
//!   the batch, or on how steps cut its prompt.
//!
//! # Modules, from the outside in
//!
//! | module | what belongs there |
//! | --- | --- |
//! | [`engine`] | requests, continuous batching, events |
//! | [`sampler`] | one row of logits to one token |
//! | [`tokenizer`], [`chat`] | text to token ids and back; a conversation to the text of a prompt |
//! | [`executor`], [`kv_cache`] | rows in, logits out; buckets, slots and pages |
//! | [`device`] | memory, code and workers that run one program |
//! | [`bundle`], [`manifest`] | the file, and what it says about itself |
//! | [`cache`] | files that only save time |
//! | [`error`] | one error type, and the exit code of each cause |
//! | `cli` | commands on bundles (feature `cli`) |

pub mod bundle;
pub mod cache;
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
