//! Graph nodes to launches. What all kinds of machine have in common is here; `cpu` and `gpu` know their kernels.

pub mod cpu;
pub mod gpu;

use super::memory::{Placed, rows_of};
use super::{Access, Buffer, Form, Launch, Options, Placement, ProgramPlan, Scratch, Space, Split};
use crate::error::Error;
use crate::graph::{OpGraph, Value, Weight, WeightId};
use coldpress_runtime::manifest::{CandidatePlan, KvLayerPlan, Stage, StatePlan};
use petgraph::stable_graph::NodeIndex;

/// A kind of machine, as `build` asks it.
pub trait Backend {
    /// Bytes at the start of the arena that belong to no value.
    fn reserved(&self) -> usize;

    /// Of these, the first that are zero between launches.
    fn zeroed(&self) -> usize;

    /// Packed bytes of a weight, which is so many equally large matrices on top of each other; `None` where they exceed any
    /// machine.
    fn matrix_bytes(&self, weight: &Weight, matrices: usize) -> Result<Option<u64>, Error>;

    /// Row counts that get a program, ascending; `nodes` are the stage's.
    fn buckets(
        &self,
        graph: &OpGraph,
        stage: Stage,
        nodes: &[NodeIndex],
    ) -> Result<Vec<usize>, Error>;

    /// The nodes of a stage, in order, those together that become one piece of work.
    fn groups(&self, graph: &OpGraph, nodes: &[NodeIndex]) -> Vec<Vec<NodeIndex>>;

    /// Bytes between rows of a value; 0 for a value without memory.
    fn stride(&self, graph: &OpGraph, value: Value) -> usize;

    /// What a node needs besides its values in a step of `rows` rows, its place left open.
    fn scratch(&self, graph: &OpGraph, node: NodeIndex, rows: usize) -> Option<Scratch>;

    /// Launches of one group, in order.
    fn launches(&self, context: &Context<'_>, group: &[NodeIndex]) -> Result<Vec<Launch>, Error>;

    /// Where head programs leave the largest logits of each row, if they do.
    fn candidates(&self) -> Option<CandidatePlan>;

    /// Completes a program whose launches are all there.
    fn finish(&self, program: &mut ProgramPlan);
}

/// Everything lowering needs to know besides the nodes.
pub struct Context<'a> {
    /// The graph.
    pub graph: &'a OpGraph,
    /// Where values lie in this program.
    pub placed: &'a Placed,
    /// Where weights lie, by weight id.
    pub placements: &'a [Vec<Placement>],
    /// Where each layer's pages are in the KV pool, and which table finds them.
    pub kv: &'a [KvLayerPlan],
    /// Where each recurrent state is in the KV pool.
    pub states: &'a [StatePlan],
    /// How the head reads the trunk's rows.
    pub hidden: Access,
    /// Rows of the bucket.
    pub rows: usize,
    /// What the plan is made for.
    pub options: Options,
    /// The kind of machine.
    pub backend: &'a dyn Backend,
}

impl Context<'_> {
    pub(super) fn placement(&self, weight: WeightId, form: Form) -> Result<&Placement, Error> {
        self.placements[weight.0 as usize]
            .iter()
            .find(|p| p.form == form)
            .ok_or_else(|| {
                let name = &self.graph.weights[weight.0 as usize].name;
                Error::Internal(format!("{name} was not packed as {form:?}"))
            })
    }

    pub(super) fn buffer(&self, value: Value) -> Result<Buffer, Error> {
        self.placed.buffers.get(&value).copied().ok_or_else(|| {
            Error::Internal(format!(
                "{}: output {} has no memory",
                self.graph.nodes[value.node].label, value.port
            ))
        })
    }

    /// In-place ops rely on `memory` having given the output its input's place.
    pub(super) fn same_memory(&self, label: &str, a: Value, b: Value) -> Result<(), Error> {
        if self.buffer(a)? == self.buffer(b)? {
            return Ok(());
        }
        Err(Error::Internal(format!(
            "{label}: works in place, but its input is read again later"
        )))
    }

    pub(super) fn read(&self, value: Value, split: Split) -> Result<Access, Error> {
        let at = self.buffer(value)?;
        Ok(Access {
            space: Space::Arena,
            // What a view shows belongs to the value it is a view of.
            value: Some(self.graph.viewed(value).0),
            offset: at.offset,
            stride: at.stride,
            rows: rows_of(self.graph.value_type(value), self.rows),
            width: self.backend.stride(self.graph, value),
            write: false,
            split,
        })
    }

    pub(super) fn write(&self, value: Value, split: Split) -> Result<Access, Error> {
        Ok(Access {
            write: true,
            ..self.read(value, split)?
        })
    }
}
