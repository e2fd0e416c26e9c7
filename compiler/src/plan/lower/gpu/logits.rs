//! The step's logits: what sampling wants of them is sorted out on the GPU, so that rows as long as the vocabulary stay
//! there unless somebody asks.

use super::{LIVE, Lowering, number};
use crate::error::Error;
use crate::graph::{Op, OpGraph, Value};
use crate::plan::memory::scratch_value;
use crate::plan::{Access, Launch, Space, Split};
use coldpress_kernels::gpu::logits::{self, CANDIDATES, PiecesArgs, RowsArgs};
use coldpress_runtime::manifest::{CandidatePlan, GridArg};
use petgraph::stable_graph::NodeIndex;

/// Where the largest logits of each row lie in the arena: ids, values, and the logarithm of the sum of exponentials.
#[derive(Clone, Copy)]
pub(super) struct Sorted {
    first: usize,
    rows: usize,
    vocab: usize,
}

impl Sorted {
    /// For head programs of up to `rows` rows, from `first` on; none for a vocabulary that no kernel takes.
    pub(super) fn new(graph: &OpGraph, first: usize, rows: usize) -> Option<Sorted> {
        let mut order = graph.order().into_iter();
        let node = order.find(|&n| graph.nodes[n].op == Op::Logits)?;
        let vocab = graph.value_type(graph.inputs(node)[0]).width;
        logits::legal(vocab).ok()?;
        Some(Sorted { first, rows, vocab })
    }

    /// Bytes of ids, and of values, of all rows.
    fn list_bytes(self) -> usize {
        self.rows * CANDIDATES * 4
    }

    pub(super) fn bytes(self) -> usize {
        (2 * self.list_bytes() + self.rows * 4).next_multiple_of(64)
    }

    pub(super) fn scratch_bytes(self, rows: usize) -> usize {
        logits::scratch_bytes(self.vocab, rows).next_multiple_of(64)
    }

    pub(super) fn plan(self) -> CandidatePlan {
        CandidatePlan {
            count: CANDIDATES as u32,
            ids_offset: self.first as u64,
            values_offset: (self.first + self.list_bytes()) as u64,
        }
    }
}

impl Lowering<'_> {
    pub(super) fn sort_logits(
        &self,
        label: &str,
        input: Value,
        node: NodeIndex,
    ) -> Result<Vec<Launch>, Error> {
        let Some(sorted) = self.gpu.candidates else {
            return Ok(vec![]);
        };
        let (rows, vocab) = (self.rows, sorted.vocab);
        let scratch = scratch_value(self.graph, node);
        let at = self.buffer(scratch)?;
        let left = Access {
            space: Space::Arena,
            value: Some(scratch),
            offset: at.offset,
            stride: at.stride,
            rows: 1,
            width: at.stride,
            write: true,
            split: Split::Whole,
        };
        let args = PiecesArgs {
            logits: self.arena(input)?,
            live: LIVE,
            scratch: GridArg::Arena(at.offset as u64),
            vocab: number(vocab),
            stride: self.row_stride(input)?,
        };
        let what = (logits::pieces(), logits::pieces_geometry(vocab, rows));
        let accesses = vec![self.reads(input)?, left];
        let bytes = (rows * vocab * 4) as u64;
        let pieces = self.grid(label, what, args.list(), accesses, bytes);
        let plan = sorted.plan();
        let args = RowsArgs {
            scratch: GridArg::Arena(at.offset as u64),
            live: LIVE,
            ids: GridArg::Arena(plan.ids_offset),
            values: GridArg::Arena(plan.values_offset),
            log_sums: GridArg::Arena(plan.values_offset + sorted.list_bytes() as u64),
            vocab: number(vocab),
        };
        let what = (logits::rows(), logits::rows_geometry(rows));
        let found = Access {
            write: false,
            ..left
        };
        let bytes = 2 * logits::scratch_bytes(vocab, rows) as u64;
        Ok(vec![
            pieces,
            self.grid(label, what, args.list(), vec![found], bytes),
        ])
    }
}
