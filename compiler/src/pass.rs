//! Graph rewrites that every target wants: fusing what shares an input or a producer, placing activation quantisation.
//! Passes know ops and weight formats, never a target, a variant or a size; each leaves a graph that `verify` accepts
//! and that computes the same.

mod fuse_gate_up;
mod fuse_qkv;
mod fuse_residual;
mod fuse_rope_append;
mod group_matmuls;
pub mod quantise_activations;
#[cfg(test)]
pub(crate) mod tests;

use crate::error::Error;
use crate::graph::{OpGraph, dump, verify};

/// One rewrite.
pub struct Pass {
    /// Name in dumps and messages.
    pub name: &'static str,
    /// Rewrites the graph in place.
    pub run: fn(&mut OpGraph) -> Result<(), Error>,
}

/// Every pass, in the order they run.
pub const PASSES: &[Pass] = &[
    Pass {
        name: "fuse_qkv",
        run: fuse_qkv::run,
    },
    Pass {
        name: "fuse_gate_up",
        run: fuse_gate_up::run,
    },
    Pass {
        name: "fuse_residual",
        run: fuse_residual::run,
    },
    Pass {
        name: "fuse_rope_append",
        run: fuse_rope_append::run,
    },
    // After all fusing, which decides what reads what.
    Pass {
        name: "quantise_activations",
        run: quantise_activations::run,
    },
];

/// Receives a pass's name and the text of the graph it left.
pub type Dump<'a> = &'a mut dyn FnMut(&str, &str);

/// Runs all passes; after each, dead nodes are removed, the graph is verified, and `dump` is called.
///
/// # Errors
/// `Error::Internal` naming the pass that broke the graph.
pub fn run_all(graph: &mut OpGraph, mut dump: Option<Dump>) -> Result<(), Error> {
    for pass in PASSES {
        run(pass, graph)
            .map_err(|error| Error::Internal(format!("pass {}: {error}", pass.name)))?;
        if let Some(dump) = &mut dump {
            dump(pass.name, &dump::dump(graph));
        }
    }
    Ok(())
}

fn run(pass: &Pass, graph: &mut OpGraph) -> Result<(), Error> {
    (pass.run)(graph)?;
    graph.remove_dead();
    verify::verify(graph)
}
