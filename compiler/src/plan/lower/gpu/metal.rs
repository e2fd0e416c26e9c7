//! Attention on Apple GPUs: heads are rotated and stored first, in place, then attended to.

use super::attention::{Kind, kv_access};
use super::rope::Appended;
use super::{LIVE, Lowering, bits, number, refused};
use crate::error::Error;
use crate::graph::{Op, Value, WeightId};
use crate::plan::{Launch, Options};
use coldpress_kernels::attention::Shape;
use coldpress_kernels::gpu::abi::StepLayout;
use coldpress_kernels::gpu::metal::{self, AttentionArgs};
use coldpress_runtime::manifest::GridArg;
use petgraph::stable_graph::NodeIndex;

impl Lowering<'_> {
    /// Attention of `shape` at `node`, its rows left as `out`; `rotation` as in [`Lowering::attention`], `sinks` as in
    /// [`Op::Attention`].
    pub(super) fn metal_attention(
        &self,
        (node, layer): (NodeIndex, usize),
        sinks: Option<WeightId>,
        rotation: Option<NodeIndex>,
        out: Value,
        (shape, kind): (&Shape, &Kind),
    ) -> Result<Vec<Launch>, Error> {
        let label = self.graph.nodes[node].label.as_str();
        metal::attention_legal(shape).map_err(|why| refused(label, why))?;
        let mut launches = Vec::new();
        let mut queries = self.graph.inputs(node)[0];
        if let Some(rotation) = rotation
            && let &Op::RopeAppend {
                heads,
                shape,
                q_norm,
                k_norm,
                ..
            } = &self.graph.nodes[rotation].op
        {
            let inputs = self.graph.inputs(rotation);
            queries = inputs[0];
            if !self.graph.has_one_consumer(queries) {
                return Err(refused(label, "its queries are read again as they were"));
            }
            let appended = Appended {
                q: Some((queries, heads)),
                kv: Some((inputs[1], inputs[2], layer)),
                table: Some(inputs[3]),
                shape,
                q_norm,
                k_norm,
            };
            launches.extend(self.append(label, &appended, Some(queries))?);
        }
        let (options, step): (&Options, &StepLayout) = (&self.options, &self.gpu.step);
        let kv_type = options.kv_type;
        let form = self.form(out);
        let args = AttentionArgs {
            q: self.arena(queries)?,
            sinks: self.sinks(sinks)?,
            kv: GridArg::Kv(self.kv[layer].offset),
            out: self.arena(out)?,
            positions: GridArg::Step(step.positions()),
            slots: GridArg::Step(step.slot_of_row()),
            page_table: GridArg::Step(step.page_table(self.kv[layer].table)),
            live: LIVE,
            kv_heads: number(shape.kv_heads),
            q_stride: self.row_stride(queries)?,
            out_stride: self.row_stride(out)?,
            pages_per_slot: number(step.pages_per_slot as usize),
            split: number(kind.split),
            window: number(shape.window),
            scale: bits(shape.scale),
            softcap: bits(shape.softcap),
        };
        let kernel = metal::attention(kv_type, shape.head_dim, shape.group(), form);
        let geometry = metal::attention_geometry(shape, self.rows);
        let accesses = vec![
            self.reads(queries)?,
            kv_access(layer, false),
            self.writes(out)?,
        ];
        let bytes = self.rows as u64 * metal::attention_bytes(shape, kv_type, form, 0);
        let what = (kernel, geometry);
        launches.push(self.grid(label, what, args.list(), accesses, bytes));
        Ok(launches)
    }
}
