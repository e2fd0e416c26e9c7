//! Values to arena offsets: a stage's values live from their producer to their last reader, and values that never live
//! together share memory. An op that may work in place gets its input's memory when nobody reads that input later. A view
//! lies in the rows it is a view of, and has no memory of its own.

use super::Buffer;
use super::lower::Backend;
use crate::graph::{DType, Op, OpGraph, Rows, Value, ValueType};
use coldpress_kernels::cpu::abi::q8_row_bytes;
use coldpress_kernels::experts::route_bytes;
use petgraph::stable_graph::NodeIndex;
use std::collections::BTreeMap;

/// Every buffer starts and strides at a multiple of this.
pub const ALIGN: usize = 64;

/// Where each value of one program lies.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Placed {
    /// Rows of each value that has data.
    pub buffers: BTreeMap<Value, Buffer>,
    /// One past the last byte used.
    pub end: usize,
}

/// Bytes between rows of a value.
pub fn stride(ty: ValueType) -> usize {
    match ty.dtype {
        DType::F32 => (ty.width * 4).next_multiple_of(ALIGN),
        DType::Q8 => q8_row_bytes(ty.width.next_multiple_of(32)),
        DType::KvWritten => 0,
        DType::Routes => route_bytes(ty.width),
    }
}

/// Rows of a value in a step of `rows` rows.
pub fn rows_of(ty: ValueType, rows: usize) -> usize {
    match ty.rows {
        Rows::Step | Rows::Logits => rows,
        Rows::Routed { used } => rows * used,
    }
}

/// The input whose memory output 0 of `op` may take over.
pub fn in_place(op: &Op) -> Option<u16> {
    match op {
        Op::MatMul { residual: true, .. } => Some(1),
        Op::RopeAppend { .. }
        | Op::HeadNorm { .. }
        | Op::Rope { .. }
        | Op::Act(_)
        | Op::Mul
        | Op::Add
        | Op::GatedAct(_)
        | Op::GateRows
        | Op::ExpertScale { .. }
        | Op::Scale(_)
        | Op::Softcap(_) => Some(0),
        _ => None,
    }
}

/// The value that stands for a node's scratch, which lives while the node runs.
pub fn scratch_value(graph: &OpGraph, node: NodeIndex) -> Value {
    Value {
        node,
        port: graph.nodes[node].outputs.len() as u16 + 1,
    }
}

/// A set of values that share one piece of memory, and the launches between which it is live (inclusive).
struct Class {
    values: Vec<Value>,
    stride: usize,
    rows: usize,
    first: usize,
    last: usize,
    pinned: Option<usize>,
}

/// Places the outputs of `groups` (one stage, in launch order; a group's nodes run together) for `rows` rows, at or above
/// `base`. `pinned` values lie at the given offsets, which the caller keeps below `base`.
pub fn place(
    graph: &OpGraph,
    groups: &[Vec<NodeIndex>],
    rows: usize,
    base: usize,
    pinned: &[(Value, usize)],
    backend: &dyn Backend,
) -> Placed {
    let mut classes = classes(graph, groups, rows, pinned, backend);
    for (at, node) in numbered(groups) {
        classes.extend(backend.scratch(graph, node, rows).map(|s| Class {
            values: vec![scratch_value(graph, node)],
            stride: s.buffer.stride,
            rows: s.slots,
            first: at,
            last: at,
            pinned: None,
        }));
    }
    // Long-lived and large first: they shape the arena, the rest fills gaps. Ties in program order.
    let mut order: Vec<usize> = (0..classes.len()).collect();
    let bytes = |c: &Class| c.stride * c.rows;
    order.sort_by_key(|&i| (std::cmp::Reverse(bytes(&classes[i])), classes[i].first));
    let mut taken: Vec<(usize, usize, usize, usize)> = Vec::new();
    let mut placed = Placed {
        end: base,
        ..Placed::default()
    };
    for i in order {
        let class = &mut classes[i];
        let bytes = class.stride * class.rows;
        let offset = match class.pinned {
            Some(offset) => offset,
            None => {
                let mut busy: Vec<(usize, usize)> = taken
                    .iter()
                    .filter(|t| t.2 <= class.last && class.first <= t.3)
                    .map(|t| (t.0, t.1))
                    .collect();
                busy.sort_unstable();
                let mut offset = base;
                for (start, end) in busy {
                    if offset + bytes <= start {
                        break;
                    }
                    offset = offset.max(end);
                }
                taken.push((offset, offset + bytes, class.first, class.last));
                placed.end = placed.end.max(offset + bytes);
                offset
            }
        };
        for &value in &class.values {
            placed.buffers.insert(
                value,
                Buffer {
                    offset,
                    stride: class.stride,
                },
            );
        }
    }
    for (_, node) in numbered(groups) {
        let view = Value { node, port: 0 };
        let (whole, column) = graph.viewed(view);
        if let Some(&Buffer { offset, stride }) =
            placed.buffers.get(&whole).filter(|_| whole != view)
        {
            let offset = offset + column * 4;
            placed.buffers.insert(view, Buffer { offset, stride });
        }
    }
    placed
}

/// Nodes with the number of their group.
fn numbered(groups: &[Vec<NodeIndex>]) -> impl Iterator<Item = (usize, NodeIndex)> {
    let groups = groups.iter().enumerate();
    groups.flat_map(|(at, nodes)| nodes.iter().map(move |&node| (at, node)))
}

fn classes(
    graph: &OpGraph,
    groups: &[Vec<NodeIndex>],
    rows: usize,
    pinned: &[(Value, usize)],
    backend: &dyn Backend,
) -> Vec<Class> {
    let index: BTreeMap<NodeIndex, usize> = numbered(groups).map(|(at, n)| (n, at)).collect();
    let last_use = |value: Value| last_use(graph, &index, value);
    let mut classes: Vec<Class> = Vec::new();
    let mut class_of: BTreeMap<Value, usize> = BTreeMap::new();
    for (at, node) in numbered(groups) {
        let inputs = graph.inputs(node);
        for (port, &ty) in graph.nodes[node].outputs.iter().enumerate() {
            let value = Value {
                node,
                port: port as u16,
            };
            let stride = backend.stride(graph, value);
            if stride == 0 || graph.viewed(value).0 != value {
                continue;
            }
            let last = last_use(value).max(at);
            let taken_over = in_place(&graph.nodes[node].op)
                .filter(|_| port == 0)
                .map(|input| inputs[input as usize])
                .filter(|&input| last_use(input) == at && graph.value_type(input) == ty)
                .and_then(|input| class_of.get(&input).copied());
            let id = taken_over.unwrap_or_else(|| {
                classes.push(Class {
                    values: vec![],
                    stride,
                    rows: rows_of(ty, rows),
                    first: at,
                    last,
                    pinned: None,
                });
                classes.len() - 1
            });
            class_of.insert(value, id);
            classes[id].values.push(value);
            classes[id].last = classes[id].last.max(last);
            if let Some(&(_, offset)) = pinned.iter().find(|p| p.0 == value) {
                classes[id].pinned = Some(offset);
            }
        }
    }
    classes
}

/// Number of the last group that reads `value` or a view of it.
fn last_use(graph: &OpGraph, index: &BTreeMap<NodeIndex, usize>, value: Value) -> usize {
    let readers = graph.consumers(value).into_iter();
    let ends = readers.map(|(node, _)| match graph.nodes[node].op {
        Op::Columns { .. } => last_use(graph, index, Value { node, port: 0 }),
        _ => index.get(&node).copied().unwrap_or(0),
    });
    ends.max().unwrap_or(0)
}
