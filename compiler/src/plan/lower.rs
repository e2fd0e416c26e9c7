//! Graph nodes to launches, for one program: which micro-kernels a node becomes, with their arguments, and what they
//! touch. The only file that knows both the ops and the micro-kernels' signatures.

use super::memory::Placed;
use super::select::Selector;
use super::{
    Access, Arg, Buffer, Elementwise, Form, Init, Launch, Matmul, MatmulPart, Placement, Space,
    Split, Work,
};
use crate::error::Error;
use crate::graph::{DType, HeadNorm, Op, OpGraph, Part, RopeShape, RopeStyle, Value, WeightId};
use coldpress_kernels::cpu::abi::{KvType, q8_row};
use coldpress_kernels::cpu::tile;
use coldpress_kernels::matmul::Cost;
use coldpress_kernels::quant;
use petgraph::stable_graph::NodeIndex;

/// Everything lowering needs to know besides the node.
pub struct Lowering<'a> {
    /// The graph.
    pub graph: &'a OpGraph,
    /// Where values lie in this program.
    pub placed: &'a Placed,
    /// Where weights lie, by weight id.
    pub placements: &'a [Vec<Placement>],
    /// Offset of each layer's pages in the KV pool.
    pub kv_offsets: &'a [u64],
    /// KV element type.
    pub kv_type: KvType,
    /// Rows of the bucket.
    pub rows: usize,
    /// Picks matmul variants.
    pub selector: &'a Selector<'a>,
}

impl Lowering<'_> {
    /// Launches of one node, in order.
    pub fn node(&self, node: NodeIndex) -> Result<Vec<Launch>, Error> {
        let inputs = self.graph.inputs(node);
        let n = &self.graph.nodes[node];
        let label = n.label.as_str();
        let out = |port: u16| Value { node, port };
        let width = |v: Value| self.graph.value_type(v).width;
        let launches = match &n.op {
            Op::Embed { weight, scale } => vec![self.embed(label, *weight, *scale, out(0))?],
            Op::RopeTable { inv_freq, mscale } => {
                vec![self.rope_table(label, *inv_freq, *mscale, out(0))?]
            }
            Op::RmsNorm { weight, eps } => {
                vec![self.norm(label, "rmsnorm", *weight, *eps, inputs[0], out(0))?]
            }
            Op::NormQuantise { weight, eps } => {
                vec![self.norm(label, "rmsnorm_q8", *weight, *eps, inputs[0], out(0))?]
            }
            Op::MatMul { parts, residual } => self.matmul(label, node, parts, *residual)?,
            Op::HeadNorm { norm, heads } => {
                self.same_memory(label, inputs[0], out(0))?;
                let shape = RopeShape {
                    head_dim: width(inputs[0]) / heads,
                    rot_dim: 0,
                    style: RopeStyle::Neox,
                };
                vec![self.rope(label, out(0), None, *heads, shape, Some(*norm))?]
            }
            Op::Rope { heads, shape } => {
                self.same_memory(label, inputs[0], out(0))?;
                vec![self.rope(label, out(0), Some(inputs[1]), *heads, *shape, None)?]
            }
            Op::KvAppend { layer } => vec![self.kv_append(label, *layer, inputs[0], inputs[1])?],
            Op::RopeAppend {
                layer,
                heads,
                shape,
                q_norm,
                k_norm,
            } => {
                self.same_memory(label, inputs[0], out(0))?;
                let kv_heads = self.graph.kv[*layer].kv_heads;
                vec![
                    self.rope(label, out(0), Some(inputs[3]), *heads, *shape, *q_norm)?,
                    self.rope(label, inputs[1], Some(inputs[3]), kv_heads, *shape, *k_norm)?,
                    self.kv_append(label, *layer, inputs[1], inputs[2])?,
                ]
            }
            Op::Attention {
                layer,
                heads,
                scale,
                softcap,
            } => {
                vec![self.attention(label, *layer, *heads, *scale, *softcap, inputs[0], out(0))?]
            }
            Op::Quantise => {
                vec![self.quantise(label, inputs[0], self.buffer(inputs[0])?, out(0))?]
            }
            Op::GatedActQuantise(act) => {
                let gate = self.buffer(inputs[0])?;
                vec![
                    self.elementwise(
                        label,
                        Elementwise::GatedAct(*act),
                        &inputs,
                        gate,
                        width(out(0)),
                    )?,
                    self.quantise(label, inputs[0], gate, out(0))?,
                ]
            }
            Op::Act(_) | Op::Mul | Op::Add | Op::GatedAct(_) | Op::Scale(_) | Op::Softcap(_) => {
                let op = match n.op {
                    Op::Act(a) => Elementwise::Act(a),
                    Op::Mul => Elementwise::Mul,
                    Op::Add => Elementwise::Add,
                    Op::GatedAct(a) => Elementwise::GatedAct(a),
                    Op::Scale(s) => Elementwise::Scale(s),
                    Op::Softcap(c) => Elementwise::Softcap(c),
                    _ => return Err(Error::Internal(format!("{label}: not element-wise"))),
                };
                vec![self.elementwise(label, op, &inputs, self.buffer(out(0))?, width(out(0)))?]
            }
            Op::SelectRows => vec![self.select_rows(label, inputs[0], out(0))?],
            Op::Logits => vec![],
        };
        Ok(launches)
    }

    fn embed(
        &self,
        label: &str,
        weight: WeightId,
        scale: f32,
        out: Value,
    ) -> Result<Launch, Error> {
        let w = &self.graph.weights[weight.0 as usize];
        let place = self.placement(weight, Form::Tiles)?;
        let to = self.buffer(out)?;
        let layout = self.selector.layout(w)?;
        let args = vec![
            Arg::Weights(place.offset),
            Arg::Step,
            Arg::Arena(to.offset),
            Arg::Const(w.k),
            Arg::Begin,
            Arg::End,
            Arg::Const(to.stride),
            bits(scale),
        ];
        let accesses = vec![self.rows_access(out, to, true)?];
        Ok(self.call(
            label,
            format!("embed_{}_scalar", layout.name()),
            args,
            self.rows,
            accesses,
        ))
    }

    fn rope_table(
        &self,
        label: &str,
        inv_freq: WeightId,
        mscale: f32,
        out: Value,
    ) -> Result<Launch, Error> {
        let half = self.graph.weights[inv_freq.0 as usize].k;
        let to = self.buffer(out)?;
        let args = vec![
            Arg::Step,
            Arg::Weights(self.placement(inv_freq, Form::Vector)?.offset),
            Arg::Arena(to.offset),
            Arg::Const(half),
            bits(mscale),
            Arg::Begin,
            Arg::End,
            Arg::Const(to.stride),
        ];
        Ok(self.call(
            label,
            "rope_table_scalar".into(),
            args,
            self.rows,
            vec![self.rows_access(out, to, true)?],
        ))
    }

    fn norm(
        &self,
        label: &str,
        family: &str,
        weight: WeightId,
        eps: f32,
        input: Value,
        out: Value,
    ) -> Result<Launch, Error> {
        let (from, to) = (self.buffer(input)?, self.buffer(out)?);
        let args = vec![
            Arg::ArenaAt {
                offset: from.offset,
                stride: from.stride,
            },
            Arg::Weights(self.placement(weight, Form::Vector)?.offset),
            Arg::ArenaAt {
                offset: to.offset,
                stride: to.stride,
            },
            Arg::Const(self.graph.value_type(input).width),
            Arg::Count,
            Arg::Const(from.stride),
            Arg::Const(to.stride),
            bits(eps),
        ];
        let accesses = vec![
            self.rows_access(input, from, false)?,
            self.rows_access(out, to, true)?,
        ];
        Ok(self.call(label, self.symbol(family), args, self.rows, accesses))
    }

    fn matmul(
        &self,
        label: &str,
        node: NodeIndex,
        parts: &[Part],
        residual: bool,
    ) -> Result<Vec<Launch>, Error> {
        let inputs = self.graph.inputs(node);
        let input = self.buffer(inputs[0])?;
        let k = self.graph.value_type(inputs[0]).width;
        let mut accesses = vec![self.whole_access(inputs[0], input)?];
        let mut launch = Launch {
            label: label.to_string(),
            work: Work::Matmul(Matmul {
                input,
                k,
                rows: self.rows,
                parts: Vec::new(),
            }),
            barrier: false,
            accesses: Vec::new(),
            reason: String::new(),
            bytes: 0,
            macs: 0,
            seconds: 0.0,
        };
        let mut lowered = Vec::new();
        let (mut cost, mut legal) = (None::<Cost>, usize::MAX);
        for (i, part) in parts.iter().enumerate() {
            let w = &self.graph.weights[part.weight.0 as usize];
            let out = Value {
                node,
                port: i as u16,
            };
            let output = self.buffer(out)?;
            let pick = self.selector.pick(w, self.rows)?;
            let layout = self.selector.layout(w)?;
            let tile_bytes = tile::tile_bytes(&layout, w.k)
                .ok_or_else(|| Error::Internal(format!("{}: k = {} does not tile", w.name, w.k)))?;
            let bias = part
                .bias
                .map(|b| self.placement(b, Form::Vector).map(|p| p.offset))
                .transpose()?;
            let init = match (residual, bias) {
                (true, _) => {
                    let rows = self.buffer(inputs[1])?;
                    accesses.push(self.tiles_access(inputs[1], rows, false, i)?);
                    Init::Rows(rows)
                }
                (false, Some(offset)) => Init::Bias(offset),
                (false, None) => Init::Zero,
            };
            accesses.push(self.tiles_access(out, output, true, i)?);
            let tiles = w.n.div_ceil(16);
            launch.bytes += (tiles * tile_bytes) as u64;
            launch.macs += (w.n * w.k * self.rows) as u64;
            let total = cost.get_or_insert(Cost {
                seconds: 0.0,
                memory_seconds: 0.0,
                arithmetic_seconds: 0.0,
                bytes: 0,
                macs: 0,
            });
            total.seconds += pick.cost.seconds;
            total.memory_seconds += pick.cost.memory_seconds;
            total.arithmetic_seconds += pick.cost.arithmetic_seconds;
            legal = legal.min(pick.legal);
            lowered.push(MatmulPart {
                label: w.name.trim_end_matches(".weight").to_string(),
                weights: self.placement(part.weight, Form::Tiles)?.offset,
                tile_bytes,
                tiles,
                init,
                output,
                stamps: pick.stamps,
            });
        }
        launch.work = Work::Matmul(Matmul {
            input,
            k,
            rows: self.rows,
            parts: lowered,
        });
        launch.accesses = accesses;
        if let Some(cost) = cost {
            launch.seconds = cost.seconds;
            launch.reason = format!("{cost}; cheapest of {legal}");
        }
        Ok(vec![launch])
    }

    fn rope(
        &self,
        label: &str,
        x: Value,
        table: Option<Value>,
        heads: usize,
        shape: RopeShape,
        norm: Option<HeadNorm>,
    ) -> Result<Launch, Error> {
        let buffer = self.buffer(x)?;
        let mut accesses = vec![self.rows_access(x, buffer, true)?];
        let (table_arg, table_stride) = match table {
            Some(t) => {
                let b = self.buffer(t)?;
                accesses.push(self.rows_access(t, b, false)?);
                (Arg::Arena(b.offset), b.stride)
            }
            None => (Arg::Null, 0),
        };
        let weight = match norm {
            Some(n) => Arg::Weights(self.placement(n.weight, Form::Vector)?.offset),
            None => Arg::Null,
        };
        let args = vec![
            Arg::Arena(buffer.offset),
            weight,
            table_arg,
            Arg::Const(heads),
            Arg::Const(shape.head_dim),
            Arg::Const(shape.rot_dim),
            Arg::Const(usize::from(shape.style == RopeStyle::Neox)),
            Arg::Begin,
            Arg::End,
            Arg::Const(buffer.stride),
            Arg::Const(table_stride),
            bits(norm.map_or(0.0, |n| n.eps)),
            Arg::Step,
        ];
        Ok(self.call(label, self.symbol("rope_heads"), args, self.rows, accesses))
    }

    fn kv_append(&self, label: &str, layer: usize, k: Value, v: Value) -> Result<Launch, Error> {
        let (kb, vb) = (self.buffer(k)?, self.buffer(v)?);
        let shape = self.graph.kv[layer];
        let args = vec![
            Arg::Arena(kb.offset),
            Arg::Arena(vb.offset),
            Arg::Kv(self.kv_offsets[layer]),
            Arg::Step,
            Arg::Const(shape.kv_heads),
            Arg::Const(shape.head_dim),
            Arg::Begin,
            Arg::End,
            Arg::Const(kb.stride),
            Arg::Const(vb.stride),
        ];
        let accesses = vec![
            self.rows_access(k, kb, false)?,
            self.rows_access(v, vb, false)?,
            kv_access(layer, true),
        ];
        Ok(self.call(
            label,
            self.kv_symbol("kv_append"),
            args,
            self.rows,
            accesses,
        ))
    }

    #[allow(clippy::too_many_arguments, reason = "the op's own fields")]
    fn attention(
        &self,
        label: &str,
        layer: usize,
        heads: usize,
        scale: f32,
        softcap: Option<f32>,
        q: Value,
        out: Value,
    ) -> Result<Launch, Error> {
        let (from, to) = (self.buffer(q)?, self.buffer(out)?);
        let shape = self.graph.kv[layer];
        let args = vec![
            Arg::Arena(from.offset),
            Arg::Kv(self.kv_offsets[layer]),
            Arg::Arena(to.offset),
            Arg::Step,
            Arg::Const(heads),
            Arg::Const(shape.kv_heads),
            Arg::Const(shape.head_dim),
            Arg::Begin,
            Arg::End,
            Arg::Const(from.stride),
            Arg::Const(to.stride),
            bits(scale),
            Arg::Const(shape.window.unwrap_or(0)),
            bits(softcap.unwrap_or(0.0)),
        ];
        let cells = Split::Cells {
            per_row: shape.kv_heads,
            bytes: heads / shape.kv_heads * shape.head_dim * 4,
        };
        let accesses = vec![
            Access {
                split: cells,
                ..self.rows_access(q, from, false)?
            },
            Access {
                split: cells,
                ..self.rows_access(out, to, true)?
            },
            kv_access(layer, false),
        ];
        Ok(self.call(
            label,
            self.kv_symbol("attention"),
            args,
            self.rows * shape.kv_heads,
            accesses,
        ))
    }

    /// `source` names the value for its width; its f32 rows are read from `from`.
    fn quantise(
        &self,
        label: &str,
        source: Value,
        from: Buffer,
        out: Value,
    ) -> Result<Launch, Error> {
        let to = self.buffer(out)?;
        let args = vec![
            Arg::ArenaAt {
                offset: from.offset,
                stride: from.stride,
            },
            Arg::ArenaAt {
                offset: to.offset,
                stride: to.stride,
            },
            Arg::Const(self.graph.value_type(source).width),
            Arg::Count,
            Arg::Const(from.stride),
            Arg::Const(to.stride),
        ];
        let accesses = vec![
            self.rows_access(source, from, false)?,
            self.rows_access(out, to, true)?,
        ];
        Ok(self.call(label, self.symbol("quantise"), args, self.rows, accesses))
    }

    fn elementwise(
        &self,
        label: &str,
        op: Elementwise,
        inputs: &[Value],
        output: Buffer,
        width: usize,
    ) -> Result<Launch, Error> {
        let mut accesses = Vec::new();
        let mut buffers = Vec::new();
        for &input in &inputs[..op.arity()] {
            let buffer = self.buffer(input)?;
            accesses.push(self.rows_access(input, buffer, false)?);
            buffers.push(buffer);
        }
        let row_bytes = width.next_multiple_of(16) * 4;
        accesses.push(Access {
            space: Space::Arena,
            offset: output.offset,
            stride: output.stride,
            rows: self.rows,
            width: row_bytes,
            write: true,
            split: Split::Rows,
        });
        Ok(Launch {
            label: label.to_string(),
            work: Work::Elementwise {
                op,
                inputs: buffers,
                output,
                width,
                rows: self.rows,
            },
            barrier: false,
            accesses,
            reason: String::new(),
            bytes: 0,
            macs: 0,
            seconds: self.selector.light_seconds(self.rows * row_bytes),
        })
    }

    fn select_rows(&self, label: &str, input: Value, out: Value) -> Result<Launch, Error> {
        let (from, to) = (self.buffer(input)?, self.buffer(out)?);
        let args = vec![
            Arg::Arena(from.offset),
            Arg::Step,
            Arg::Arena(to.offset),
            Arg::Const(self.graph.value_type(input).width),
            Arg::Begin,
            Arg::End,
            Arg::Const(from.stride),
            Arg::Const(to.stride),
        ];
        // The trunk's rows: another program wrote them, and programs never overlap.
        let accesses = vec![self.rows_access(out, to, true)?];
        Ok(self.call(
            label,
            "gather_rows_scalar".into(),
            args,
            self.rows,
            accesses,
        ))
    }

    fn call(
        &self,
        label: &str,
        symbol: String,
        args: Vec<Arg>,
        units: usize,
        accesses: Vec<Access>,
    ) -> Launch {
        let touched = accesses.iter().map(|a| a.width * a.rows).sum();
        Launch {
            label: label.to_string(),
            work: Work::Call {
                symbol,
                args,
                units,
            },
            barrier: false,
            accesses,
            reason: String::new(),
            bytes: 0,
            macs: 0,
            seconds: self.selector.light_seconds(touched),
        }
    }

    fn symbol(&self, family: &str) -> String {
        format!("{family}_{}", self.selector.isa_name())
    }

    fn kv_symbol(&self, family: &str) -> String {
        let kv = match self.kv_type {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::Q8_0 => "q8_0",
        };
        format!("{family}_{kv}_{}", self.selector.isa_name())
    }

    fn placement(&self, weight: WeightId, form: Form) -> Result<&Placement, Error> {
        self.placements[weight.0 as usize]
            .iter()
            .find(|p| p.form == form)
            .ok_or_else(|| {
                let name = &self.graph.weights[weight.0 as usize].name;
                Error::Internal(format!("{name} was not packed as {form:?}"))
            })
    }

    fn buffer(&self, value: Value) -> Result<Buffer, Error> {
        self.placed.buffers.get(&value).copied().ok_or_else(|| {
            Error::Internal(format!(
                "{}: output {} has no memory",
                self.graph.nodes[value.node].label, value.port
            ))
        })
    }

    /// In-place ops rely on `memory` having given the output its input's place.
    fn same_memory(&self, label: &str, a: Value, b: Value) -> Result<(), Error> {
        if self.buffer(a)? == self.buffer(b)? {
            return Ok(());
        }
        Err(Error::Internal(format!(
            "{label}: works in place, but its input is read again later"
        )))
    }

    fn access(&self, value: Value, at: Buffer, write: bool, split: Split) -> Result<Access, Error> {
        let ty = self.graph.value_type(value);
        let width = match ty.dtype {
            DType::F32 => ty.width.next_multiple_of(16) * 4,
            DType::Q8 => q8_row(ty.width.next_multiple_of(32)).bytes,
            DType::KvWritten => {
                return Err(Error::Internal("an ordering value has no memory".into()));
            }
        };
        Ok(Access {
            space: Space::Arena,
            offset: at.offset,
            stride: at.stride,
            rows: self.rows,
            width,
            write,
            split,
        })
    }

    fn rows_access(&self, value: Value, at: Buffer, write: bool) -> Result<Access, Error> {
        self.access(value, at, write, Split::Rows)
    }

    fn whole_access(&self, value: Value, at: Buffer) -> Result<Access, Error> {
        self.access(value, at, false, Split::Whole)
    }

    fn tiles_access(
        &self,
        value: Value,
        at: Buffer,
        write: bool,
        part: usize,
    ) -> Result<Access, Error> {
        self.access(value, at, write, Split::Tiles(part))
    }
}

fn kv_access(layer: usize, write: bool) -> Access {
    Access {
        space: Space::Kv(layer),
        offset: 0,
        stride: 0,
        rows: 0,
        width: 0,
        write,
        split: Split::Whole,
    }
}

fn bits(value: f32) -> Arg {
    Arg::Const(value.to_bits() as usize)
}

/// The packed layout kernels read for a weight matrix, or why there is none.
pub fn packed_layout(weight: &crate::graph::Weight) -> Result<quant::PackedLayout, Error> {
    quant::format(weight.ty).map(|f| f.layout).ok_or_else(|| {
        let supported: Vec<&str> = quant::FORMATS.iter().map(|f| f.ty.name()).collect();
        Error::Unsupported {
            what: weight.name.clone(),
            why: format!(
                "no kernel reads {} (supported: {})",
                weight.ty.name(),
                supported.join(", ")
            ),
        }
    })
}
