//! The graph as a GPU runs it: half-precision weights meet half-precision activations, so their inputs are converted once,
//! by their producer where it can. Then which nodes run as one piece of work.

use crate::error::Error;
use crate::graph::{DType, Op, OpGraph, Value, WeightId};
use crate::pass::quantise_activations::before_matmuls;
use coldpress_kernels::gpu::abi::Q8_GROUP;
use coldpress_kernels::gpu::attention;
use coldpress_kernels::tensor_type::TensorType;
use petgraph::stable_graph::NodeIndex;
use std::collections::{BTreeMap, BTreeSet};

/// A copy of `graph` in which, if the GPU multiplies `halves`, matmuls of F16 and BF16 weights read activations in a form of
/// their own; other float weights read f32 rows. Weights and KV layers keep their numbers.
pub(super) fn adapt(graph: &OpGraph, halves: bool) -> Result<OpGraph, Error> {
    let mut graph = graph.clone();
    if !halves {
        return Ok(graph);
    }
    before_matmuls(&mut graph, |graph, weight: WeightId| {
        let w = graph.weight(weight);
        matches!(w.ty, TensorType::F16 | TensorType::BF16) && w.k.is_multiple_of(Q8_GROUP)
    })?;
    Ok(graph)
}

/// The nodes of a stage in pieces of work: chains of nodes of which each completes the work of the one before. A piece runs
/// where its first node stood: the others need nothing else.
pub(super) fn groups(graph: &OpGraph, nodes: &[NodeIndex]) -> Vec<Vec<NodeIndex>> {
    let here: BTreeSet<NodeIndex> = nodes.iter().copied().collect();
    let completes = |node| joins(graph, node).filter(|first| here.contains(first));
    let completed: BTreeMap<NodeIndex, NodeIndex> = nodes
        .iter()
        .filter_map(|&node| Some((completes(node)?, node)))
        .collect();
    let firsts = nodes.iter().filter(|&&node| completes(node).is_none());
    let chain = |&first: &NodeIndex| {
        std::iter::successors(Some(first), |node| completed.get(node).copied()).collect()
    };
    firsts.map(chain).collect()
}

/// The node whose work `node` completes: a gate/up matmul with the gating that alone reads it, rotation with the attention
/// that alone reads its queries, attention with the conversion that alone reads it, a residual matmul with the norm of its
/// rows that matmuls read.
fn joins(graph: &OpGraph, node: NodeIndex) -> Option<NodeIndex> {
    let inputs = graph.inputs(node);
    let first = inputs.first()?.node;
    let alone = |value: &Value| value.node == first && graph.has_one_consumer(*value);
    let outputs = graph.outputs(first);
    match (&graph.nodes[first].op, &graph.nodes[node].op) {
        (Op::MatMul { parts, residual }, Op::GatedAct(_) | Op::GatedActQuantise(_)) => {
            let [gate, up] = parts.as_slice() else {
                return None;
            };
            let (gate_w, up_w) = (graph.weight(gate.weight), graph.weight(up.weight));
            let alike = gate_w.ty == up_w.ty && gate_w.n == up_w.n;
            let plain = !residual && gate.bias.is_none() && up.bias.is_none();
            (alike && plain && inputs == outputs && inputs.iter().all(alone)).then_some(first)
        }
        (Op::MatMul { residual: true, .. }, Op::NormQuantise { .. }) => {
            let is_norm = |n: NodeIndex| matches!(graph.nodes[n].op, Op::NormQuantise { .. });
            let is_matmul = |n: NodeIndex| matches!(graph.nodes[n].op, Op::MatMul { .. });
            let norms = graph.consumers(inputs[0]).into_iter().map(|c| c.0);
            let readers = graph.consumers(Value { node, port: 0 });
            // A second norm of the same rows runs by itself.
            let is_first = norms.into_iter().find(|&n| is_norm(n)) == Some(node);
            (is_first && readers.iter().all(|&(reader, _)| is_matmul(reader))).then_some(first)
        }
        (Op::RopeAppend { layer, .. }, Op::Attention { layer: own, .. }) => {
            (layer == own && inputs == outputs && alone(&inputs[0])).then_some(first)
        }
        (&Op::Attention { layer, .. }, Op::Quantise) => {
            let any_form = attention::leaves_any_form(graph.kv[layer].head_dim);
            (any_form && inputs.iter().all(alone)).then_some(first)
        }
        _ => None,
    }
}

/// The node that completes the work of `node`, if one does.
pub(super) fn completed_by(graph: &OpGraph, node: NodeIndex) -> Option<NodeIndex> {
    let consumers = graph.consumers(*graph.outputs(node).first()?);
    let mut consumers = consumers.into_iter().map(|(consumer, _)| consumer);
    consumers.find(|&second| joins(graph, second) == Some(node))
}

/// What is added to the mean square of a value's rows by the matmuls that read them, if their norm is left to those.
pub(super) fn pending_norm(graph: &OpGraph, value: Value) -> Option<f32> {
    match graph.nodes[value.node].op {
        Op::NormQuantise { eps, .. } => joins(graph, value.node).map(|_| eps),
        _ => None,
    }
}

/// Whether a value never reaches memory: its piece of work computes it on the way.
pub(super) fn passes_through(graph: &OpGraph, value: Value) -> bool {
    let consumers = graph.consumers(value);
    let [(consumer, _)] = consumers.as_slice() else {
        return false;
    };
    graph.value_type(value).dtype == DType::F32
        && joins(graph, *consumer) == Some(value.node)
        && pending_norm(
            graph,
            Value {
                node: *consumer,
                port: 0,
            },
        )
        .is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pass::run_all;
    use crate::pass::tests::Tiny;

    fn prepared(ty: TensorType) -> OpGraph {
        let mut graph = Tiny { ty, ..Tiny::PLAIN }.graph();
        run_all(&mut graph, None).expect("passes");
        adapt(&graph, true).expect("adapts")
    }

    #[test]
    fn gating_norms_and_conversions_join_their_producers() {
        for ty in [TensorType::Q8_0, TensorType::F16] {
            let graph = prepared(ty);
            let order = graph.order();
            let groups = groups(&graph, &order);
            let pairs: Vec<&Vec<NodeIndex>> = groups.iter().filter(|g| g.len() > 1).collect();
            assert_eq!(pairs.len(), 3, "{ty:?}");
            for pair in pairs {
                let value = graph.outputs(pair[0])[0];
                let normed = graph.outputs(pair[1])[0];
                // Rows are kept for the next residual, too.
                let kept = pending_norm(&graph, normed).is_some();
                assert_eq!(passes_through(&graph, value), !kept, "{ty:?}");
                let norm = matches!(graph.nodes[pair[1]].op, Op::NormQuantise { .. });
                assert_eq!(norm, kept, "{ty:?}");
            }
            let mut all: Vec<NodeIndex> = groups.concat();
            all.sort_unstable();
            let mut expected = order;
            expected.sort_unstable();
            assert_eq!(all, expected, "every node runs once");
        }
    }

    #[test]
    fn only_f32_weights_read_floats() {
        for (ty, floats) in [(TensorType::F32, true), (TensorType::F16, false)] {
            let graph = prepared(ty);
            for node in graph.order() {
                if let Op::MatMul { .. } = graph.nodes[node].op {
                    let x = graph.value_type(graph.inputs(node)[0]);
                    assert_eq!(x.dtype == DType::F32, floats, "{}", graph.nodes[node].label);
                }
            }
        }
    }
}
