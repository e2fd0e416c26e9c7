//! Assembles a plan: weights, KV pool, stages, then every bucket of every stage, and has `verify` check the result.

use super::lower::cpu::Cpu;
use super::lower::gpu::{Gpu, Machine};
use super::lower::{Backend, Context};
use super::memory::{ALIGN, place};
use super::select::Selector;
use super::{
    Access, Buffer, Form, MAX_BATCH, MAX_CONTEXT, MAX_WORKERS, Placement, Plan, ProgramPlan, Space,
    Split, buckets, in_range, verify,
};
use crate::error::Error;
use crate::graph::{Op, OpGraph, Rows, Value, WeightId};
use crate::target::Target;
use coldpress_kernels::cpu::abi::{KvType, PAGE_TOKENS, TILE_N};
use coldpress_kernels::gpu::abi::StepLayout;
use coldpress_runtime::manifest::{KvLayerPlan, KvPlan, KvWindow, Limits, Stage, StatePlan};
use petgraph::stable_graph::NodeIndex;

/// Most bytes of the weights section and of the KV pool, and most KV pages, that a bundle may ask for.
const MAX_BYTES: u64 = 1 << 44;
const MAX_PAGES: usize = 1 << 28;

/// What a plan is made for, besides the model and the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Sequences that decode together.
    pub max_batch: usize,
    /// Tokens per sequence.
    pub max_context: usize,
    /// KV cache element type.
    pub kv_type: KvType,
    /// Instruction streams.
    pub workers: usize,
}

impl Options {
    fn check(self) -> Result<(), Error> {
        in_range("--max-batch", self.max_batch, MAX_BATCH)?;
        in_range("--ctx-size", self.max_context, MAX_CONTEXT)?;
        in_range("--threads", self.workers, MAX_WORKERS)
    }
}

/// Plans `graph` (after passes) for `target`.
///
/// # Errors
/// `Usage` for options out of range, `DoesNotFit` for a KV pool beyond any machine, `Model` and `Unsupported` naming the
/// weight that cannot be packed or multiplied.
pub fn build(graph: &OpGraph, target: &Target, options: Options) -> Result<Plan, Error> {
    options.check()?;
    match target {
        Target::Cpu(profile) => {
            let backend = Cpu {
                selector: Selector::new(profile, options.workers),
                options,
            };
            assemble(graph, target, options, &backend)
        }
        Target::Cuda(_) | Target::Metal(_) => {
            let machine = match target {
                Target::Metal(profile) => Machine::from(profile),
                Target::Cuda(cuda) => Machine::from(cuda),
                Target::Cpu(_) => return Err(Error::Internal("a CPU is no GPU".into())),
            };
            let step = StepLayout {
                max_rows: narrow(buckets::max_rows(options.max_batch))?,
                slots: narrow(options.max_batch)?,
                pages_per_slot: narrow(options.max_context.div_ceil(PAGE_TOKENS))?,
                tables: narrow(1 + kv_windows(graph, options).len())?,
            };
            let (graph, backend) = Gpu::new(graph, machine, options, step)?;
            assemble(&graph, target, options, &backend)
        }
    }
}

fn assemble(
    graph: &OpGraph,
    target: &Target,
    options: Options,
    backend: &dyn Backend,
) -> Result<Plan, Error> {
    let (placements, weight_bytes) = place_weights(graph, backend)?;
    let by_weight = group(graph, &placements);
    let kv = kv_plan(graph, options)?;
    let (trunk, head) = stages(graph);
    let (hidden, logits) = boundary_values(graph)?;

    let max_rows = buckets::max_rows(options.max_batch);
    let outliving = |value: Value, offset: usize, rows: usize| {
        outliving(value, offset, backend.stride(graph, value), rows)
    };
    let trunk_rows = backend.buckets(graph, Stage::Trunk, &trunk)?;
    let head_rows = backend.buckets(graph, Stage::Head, &head)?;
    // Below the arena of the programs, where no program puts anything else.
    let hidden = outliving(hidden, backend.reserved().next_multiple_of(ALIGN), max_rows);
    let most = head_rows.last().copied().unwrap_or(options.max_batch);
    let logits = outliving(logits, hidden.offset + hidden.stride * max_rows, most);
    let base = (logits.offset + logits.stride * most).next_multiple_of(ALIGN);

    let mut programs = Vec::new();
    let mut arena_bytes = base;
    for (stage, nodes, result, rows_list) in [
        (Stage::Trunk, &trunk, hidden, trunk_rows),
        (Stage::Head, &head, logits, head_rows),
    ] {
        let groups = backend.groups(graph, nodes);
        let mut own = Vec::new();
        for rows in rows_list {
            let pinned: Vec<(Value, usize)> =
                result.value.iter().map(|&v| (v, result.offset)).collect();
            let mut placed = place(graph, &groups, rows, base, &pinned, backend);
            if let (Stage::Head, Some(value)) = (stage, hidden.value) {
                let buffer = Buffer {
                    offset: hidden.offset,
                    stride: hidden.stride,
                };
                placed.buffers.insert(value, buffer);
            }
            arena_bytes = arena_bytes.max(placed.end);
            let context = Context {
                graph,
                placed: &placed,
                placements: &by_weight,
                kv: &kv.layers,
                states: &kv.states,
                hidden,
                rows,
                options,
                backend,
            };
            let mut launches = Vec::new();
            for group in &groups {
                launches.extend(backend.launches(&context, group)?);
            }
            let mut program = ProgramPlan {
                stage,
                rows,
                launches,
            };
            backend.finish(&mut program);
            own.push(program);
        }
        buckets::prune(&mut own, &[options.max_batch, max_rows]);
        programs.append(&mut own);
    }
    let plan = Plan {
        target: target.clone(),
        workers: match target {
            Target::Cpu(_) => options.workers,
            // Thread blocks divide every launch among themselves.
            Target::Cuda(_) | Target::Metal(_) => 1,
        },
        limits: Limits {
            max_batch: narrow(options.max_batch)?,
            max_context: narrow(options.max_context)?,
            max_rows: narrow(max_rows)?,
        },
        weights: placements,
        weight_bytes,
        reserved_bytes: backend.reserved(),
        zeroed_bytes: backend.zeroed(),
        candidates: backend.candidates(),
        arena_bytes,
        hidden,
        logits,
        kv,
        programs,
    };
    verify::check(&plan)?;
    Ok(plan)
}

/// Every weight's place in the weights section, in graph order, in each form some node reads it.
fn place_weights(graph: &OpGraph, backend: &dyn Backend) -> Result<(Vec<Placement>, u64), Error> {
    let mut as_tiles = vec![None; graph.weights.len()];
    let mut as_vector = vec![false; graph.weights.len()];
    for node in graph.order() {
        match &graph.nodes[node].op {
            Op::Embed { weight, .. } => as_tiles[weight.0 as usize] = Some(Form::Tiles),
            Op::MatMul { parts, .. } => {
                for part in parts {
                    as_tiles[part.weight.0 as usize] = Some(Form::Tiles);
                    if let Some(bias) = part.bias {
                        as_vector[bias.0 as usize] = true;
                    }
                }
            }
            Op::ExpertMatMul { parts, experts } => {
                for part in parts {
                    as_tiles[part.weight.0 as usize] = Some(Form::Experts(*experts));
                    if let Some(bias) = part.bias {
                        as_vector[bias.0 as usize] = true;
                    }
                }
            }
            Op::RmsNorm { weight, .. } | Op::NormQuantise { weight, .. } => {
                as_vector[weight.0 as usize] = true
            }
            Op::ExpertScale { factors } => as_vector[factors.0 as usize] = true,
            Op::ShortConv { weight, .. } => as_vector[weight.0 as usize] = true,
            Op::DeltaRule { a, dt, .. } => {
                as_vector[a.0 as usize] = true;
                as_vector[dt.0 as usize] = true;
            }
            Op::HeadNorm { norm, .. } => as_vector[norm.weight.0 as usize] = true,
            Op::Attention {
                sinks: Some(sinks), ..
            } => as_vector[sinks.0 as usize] = true,
            Op::RopeTable { inv_freq, .. } => as_vector[inv_freq.0 as usize] = true,
            Op::RopeAppend { q_norm, k_norm, .. } => {
                for norm in [q_norm, k_norm].into_iter().flatten() {
                    as_vector[norm.weight.0 as usize] = true;
                }
            }
            _ => {}
        }
    }
    let mut placements = Vec::new();
    let mut offset = 0u64;
    for (i, w) in graph.weights.iter().enumerate() {
        let as_vector = as_vector[i].then_some(Form::Vector);
        for form in as_tiles[i].into_iter().chain(as_vector) {
            let bytes = match form {
                Form::Tiles => backend.matrix_bytes(w, 1)?,
                Form::Experts(experts) => backend.matrix_bytes(w, experts)?,
                Form::Vector => (w.k as u64)
                    .checked_next_multiple_of(TILE_N as u64)
                    .and_then(|row| row.checked_mul(w.n as u64)?.checked_mul(4)),
            };
            let placed = bytes.and_then(|b| {
                let b = b.checked_next_multiple_of(ALIGN as u64)?;
                Some((b, offset.checked_add(b)?))
            });
            let (bytes, end) =
                placed
                    .filter(|&(_, end)| end <= MAX_BYTES)
                    .ok_or_else(|| Error::Model {
                        what: w.name.clone(),
                        why: "is too large".into(),
                    })?;
            placements.push(Placement {
                weight: WeightId(i as u32),
                form,
                offset,
                bytes,
            });
            offset = end;
        }
    }
    Ok((placements, offset))
}

fn group(graph: &OpGraph, placements: &[Placement]) -> Vec<Vec<Placement>> {
    let mut by_weight = vec![Vec::new(); graph.weights.len()];
    for p in placements {
        by_weight[p.weight.0 as usize].push(p.clone());
    }
    by_weight
}

/// The windows whose layers need fewer pages than the context has, ascending.
fn kv_windows(graph: &OpGraph, options: Options) -> Vec<KvWindow> {
    let pages_per_slot = options.max_context.div_ceil(PAGE_TOKENS);
    let mut windows: Vec<usize> = graph.kv.iter().filter_map(|l| l.window).collect();
    windows.sort_unstable();
    windows.dedup();
    let max_rows = buckets::max_rows(options.max_batch) as u64;
    let ring = |window| KvWindow::least_ring(window as u64, max_rows, PAGE_TOKENS as u64);
    let rings = windows.into_iter().map(|window| (window, ring(window)));
    rings
        .filter(|&(_, ring)| ring < pages_per_slot as u64)
        .map(|(window, ring)| KvWindow {
            tokens: window as u32,
            ring: ring as u32,
        })
        .collect()
}

/// Pages for every slot, layer after layer: at full context, or a ring where a layer sees a window. Behind them, each
/// recurrent state of every slot.
fn kv_plan(graph: &OpGraph, options: Options) -> Result<KvPlan, Error> {
    let too_large = || {
        Error::DoesNotFit(format!(
            "the KV cache of {} sequences of {} tokens is larger than any machine (lower --max-batch or --ctx-size)",
            options.max_batch, options.max_context
        ))
    };
    let pages_per_slot = options.max_context.div_ceil(PAGE_TOKENS);
    let pages = pages_per_slot
        .checked_mul(options.max_batch)
        .filter(|&p| p <= MAX_PAGES)
        .ok_or_else(too_large)?;
    let windows = kv_windows(graph, options);
    let mut plan = KvPlan {
        kv_type: options.kv_type,
        page_tokens: PAGE_TOKENS as u32,
        pages: narrow(pages)?,
        pages_per_slot: narrow(pages_per_slot)?,
        windows,
        bytes: 0,
        layers: Vec::new(),
        states: Vec::new(),
    };
    for layer in &graph.kv {
        let of_layer = |w: &KvWindow| layer.window == Some(w.tokens as usize);
        let table = plan.windows.iter().position(of_layer).map_or(0, |w| w + 1);
        let page_bytes = options.kv_type.page_bytes(layer.kv_heads, layer.head_dim) as u64;
        let layer = KvLayerPlan {
            table: narrow(table)?,
            offset: plan.bytes,
            page_bytes,
        };
        plan.layers.push(layer);
        plan.bytes = page_bytes
            .checked_mul(plan.pages_of(layer.table, narrow(options.max_batch)?))
            .and_then(|b| plan.bytes.checked_add(b))
            .filter(|&b| b <= MAX_BYTES)
            .ok_or_else(too_large)?;
    }
    for state in &graph.states {
        let slot_bytes = (state.floats as u64)
            .checked_mul(4)
            .and_then(|bytes| bytes.checked_next_multiple_of(ALIGN as u64))
            .ok_or_else(too_large)?;
        plan.states.push(StatePlan {
            offset: plan.bytes,
            slot_bytes,
        });
        plan.bytes = slot_bytes
            .checked_mul(options.max_batch as u64)
            .and_then(|b| plan.bytes.checked_add(b))
            .filter(|&b| b <= MAX_BYTES)
            .ok_or_else(too_large)?;
    }
    Ok(plan)
}

/// Nodes of the trunk (all rows) and of the head (logits rows), in order.
fn stages(graph: &OpGraph) -> (Vec<NodeIndex>, Vec<NodeIndex>) {
    graph.order().into_iter().partition(|&node| {
        let n = &graph.nodes[node];
        n.op != Op::Logits && n.outputs.first().is_none_or(|o| o.rows != Rows::Logits)
    })
}

/// The value that passes from trunk to head, and the logits.
fn boundary_values(graph: &OpGraph) -> Result<(Value, Value), Error> {
    let input_of = |wanted: &Op| -> Result<Value, Error> {
        let mut found = graph
            .order()
            .into_iter()
            .filter(|&n| graph.nodes[n].op == *wanted);
        match (found.next(), found.next()) {
            (Some(node), None) => Ok(graph.inputs(node)[0]),
            _ => Err(Error::Internal(format!(
                "a graph has exactly one {wanted:?}"
            ))),
        }
    };
    Ok((input_of(&Op::SelectRows)?, input_of(&Op::Logits)?))
}

/// The rows at `offset` in which `value` outlives its program.
fn outliving(value: Value, offset: usize, stride: usize, rows: usize) -> Access {
    Access {
        space: Space::Arena,
        value: Some(value),
        offset,
        stride,
        rows,
        width: stride,
        write: false,
        split: Split::Whole,
    }
}

fn narrow(value: usize) -> Result<u32, Error> {
    u32::try_from(value).map_err(|_| Error::Internal(format!("{value} exceeds 32 bits")))
}
