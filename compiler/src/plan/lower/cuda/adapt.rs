//! The graph as a GPU runs it: half-precision weights meet half-precision activations, so their inputs are converted once,
//! by their producer where it can. Then which nodes run as one piece of work.

use crate::error::Error;
use crate::graph::{DType, Op, OpGraph, Value, WeightId};
use crate::pass::quantise_activations::before_matmuls;
use coldpress_kernels::gpu::abi::Q8_GROUP;
use coldpress_kernels::gpu::attention;
use coldpress_kernels::tensor_type::TensorType;
use petgraph::stable_graph::NodeIndex;
use std::collections::BTreeMap;

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

/// The nodes of a stage in pieces of work: a gate/up matmul with the gating that alone reads it, attention with the
/// conversion that alone reads it, every other node by itself.
pub(super) fn groups(graph: &OpGraph, nodes: &[NodeIndex]) -> Vec<Vec<NodeIndex>> {
    let place: BTreeMap<NodeIndex, usize> =
        nodes.iter().enumerate().map(|(i, &n)| (n, i)).collect();
    let mut joined: BTreeMap<NodeIndex, NodeIndex> = BTreeMap::new();
    for &node in nodes {
        if let Some(first) = joins(graph, node).filter(|first| place.contains_key(first)) {
            joined.insert(first, node);
        }
    }
    let seconds: Vec<NodeIndex> = joined.values().copied().collect();
    // A group runs where its last node stood: everything it reads is there by then.
    let mut groups = Vec::with_capacity(nodes.len());
    for &node in nodes {
        if joined.contains_key(&node) {
            continue;
        }
        match seconds.contains(&node) {
            true => {
                let firsts = joined.iter().filter(|&(_, &second)| second == node);
                let mut group: Vec<NodeIndex> = firsts.map(|(&first, _)| first).collect();
                group.push(node);
                groups.push(group);
            }
            false => groups.push(vec![node]),
        }
    }
    groups
}

/// The node whose work `node` completes, if it alone reads all that the node leaves.
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
        (&Op::Attention { layer, .. }, Op::Quantise) => {
            let any_form = attention::leaves_any_form(graph.kv[layer].head_dim);
            (any_form && inputs.iter().all(alone)).then_some(first)
        }
        _ => None,
    }
}

/// The node that completes the work of `node`, if one does.
pub(super) fn completed_by(graph: &OpGraph, node: NodeIndex) -> Option<NodeIndex> {
    let out = *graph.outputs(node).first()?;
    let consumers = graph.consumers(out);
    let (second, _) = consumers.first()?;
    (joins(graph, *second) == Some(node)).then_some(*second)
}

/// Whether a value never reaches memory: its group computes it on the way.
pub(super) fn passes_through(graph: &OpGraph, value: Value) -> bool {
    let consumers = graph.consumers(value);
    let [(consumer, _)] = consumers.as_slice() else {
        return false;
    };
    graph.value_type(value).dtype == DType::F32 && joins(graph, *consumer) == Some(value.node)
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
    fn gating_joins_its_matmul_and_conversion_its_attention() {
        for ty in [TensorType::Q8_0, TensorType::F16] {
            let graph = prepared(ty);
            let order = graph.order();
            let groups = groups(&graph, &order);
            let pairs: Vec<&Vec<NodeIndex>> = groups.iter().filter(|g| g.len() > 1).collect();
            assert_eq!(pairs.len(), 2, "{ty:?}");
            for pair in pairs {
                let value = graph.outputs(pair[0])[0];
                assert!(passes_through(&graph, value), "{ty:?}");
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
