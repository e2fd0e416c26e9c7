//! The graph as a GPU runs it: half-precision weights meet half-precision activations, so their inputs are converted once,
//! by their producer where it can. Then which nodes run as one piece of work.

use super::choices::gate;
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

/// The nodes of a stage in pieces of work: chains of nodes of which each completes the work of the one before. A piece runs
/// where the last of its nodes stood that needs something from outside.
pub(super) fn groups(graph: &OpGraph, nodes: &[NodeIndex]) -> Vec<Vec<NodeIndex>> {
    let place: BTreeMap<NodeIndex, usize> = (0..).zip(nodes).map(|(at, &n)| (n, at)).collect();
    let completes = |node| joins(graph, node).filter(|first| place.contains_key(first));
    let completed: BTreeMap<NodeIndex, NodeIndex> = nodes
        .iter()
        .filter_map(|&node| Some((completes(node)?, node)))
        .collect();
    let firsts = nodes.iter().filter(|&&node| completes(node).is_none());
    let chains = firsts.map(|&first| {
        let chain = std::iter::successors(Some(first), |node| completed.get(node).copied());
        let chain: Vec<NodeIndex> = chain.collect();
        let needs = |node: &&NodeIndex| {
            let mut inputs = graph.inputs(**node).into_iter();
            **node == first || inputs.any(|input| !chain.contains(&input.node))
        };
        let last = chain.iter().rfind(needs).map_or(0, |node| place[node]);
        (last, chain)
    });
    let by_place: BTreeMap<usize, Vec<NodeIndex>> = chains.collect();
    by_place.into_values().collect()
}

/// Whether the work of `node` ends with the sum of what experts made of a row, rows added to it included.
fn sums_experts(graph: &OpGraph, node: NodeIndex) -> bool {
    match graph.nodes[node].op {
        Op::ExpertSum => true,
        Op::Add => added_to(graph, node).is_some(),
        _ => false,
    }
}

/// Rows that a sum of experts' rows may be added to.
const ADDED: usize = 2;

/// How many rows have been added to the sum of experts' rows that ends at `node`.
fn added(graph: &OpGraph, node: NodeIndex) -> usize {
    added_to(graph, node).map_or(0, |before| 1 + added(graph, before))
}

/// The sum of experts' rows to which `add` adds something. Either operand may be it; others, the residual stream among them,
/// have other readers too.
fn added_to(graph: &OpGraph, add: NodeIndex) -> Option<NodeIndex> {
    if graph.nodes[add].op != Op::Add {
        return None;
    }
    let inputs = graph.inputs(add).into_iter();
    let own = inputs.filter(|&input| graph.has_one_consumer(input));
    let mut own = own.map(|input| input.node);
    own.find(|&sum| sums_experts(graph, sum) && added(graph, sum) < ADDED)
}

/// The gate of the rows that `add` adds to a sum of experts' rows, if they are the first and nobody else reads them.
fn gate_of(graph: &OpGraph, add: NodeIndex) -> Option<NodeIndex> {
    let sum = added_to(graph, add).filter(|&sum| added(graph, sum) == 0)?;
    let inputs = graph.inputs(add).into_iter();
    let gated = |value: &Value| {
        let is_gate = graph.nodes[value.node].op == Op::GateRows;
        is_gate && value.node != sum && graph.has_one_consumer(*value)
    };
    inputs.filter(gated).map(|value| value.node).next()
}

/// The matmul by expert whose one part makes gate and value both, side by side, if `node` gates them and nobody else reads
/// them.
pub(super) fn halves(graph: &OpGraph, node: NodeIndex) -> Option<NodeIndex> {
    let (Op::GatedAct(_) | Op::GatedActQuantise(_)) = graph.nodes[node].op else {
        return None;
    };
    let inputs = graph.inputs(node);
    let (&gate, &up) = (inputs.first()?, inputs.get(1)?);
    let ((whole, first), (other, second)) = (graph.viewed(gate), graph.viewed(up));
    let Op::ExpertMatMul { parts, .. } = &graph.nodes[whole.node].op else {
        return None;
    };
    let width = graph.value_type(gate).width;
    let both = whole == other && (first, second) == (0, width);
    let all = both && graph.value_type(whole).width == 2 * width;
    let alone = graph.has_one_consumer(gate) && graph.has_one_consumer(up);
    let plain = parts.len() == 1 && parts[0].bias.is_none();
    let views = graph.consumers(whole).len();
    (plain && all && alone && views == 2).then_some(whole.node)
}

/// Whether of the nodes that read `value` as `alike` do, `node` is the first: one alone can complete its producer.
fn is_first(graph: &OpGraph, value: Value, node: NodeIndex, alike: fn(&Op) -> bool) -> bool {
    let readers = graph.consumers(value).into_iter().map(|c| c.0);
    let mut readers = readers.filter(|&n| alike(&graph.nodes[n].op));
    readers.next() == Some(node)
}

/// The node whose work `node` completes: a gate/up matmul with the gating that alone reads it, rotation with the attention
/// that alone reads its queries, attention with the conversion that alone reads it, a residual matmul with the norm of its
/// rows that matmuls read; a delta rule with the norm of its heads that alone reads it; a norm with the conversion of its
/// rows that others read as they are; factors of experts with the sum over experts, and that with up to two additions, the
/// gate of what is added first, and a norm.
fn joins(graph: &OpGraph, node: NodeIndex) -> Option<NodeIndex> {
    if let Some(first) = halves(graph, node) {
        return Some(first);
    }
    let inputs = graph.inputs(node);
    let first = match &graph.nodes[node].op {
        Op::Add => {
            let sum = added_to(graph, node)?;
            return Some(gate_of(graph, node).unwrap_or(sum));
        }
        Op::GateRows => {
            let readers = graph.consumers(Value { node, port: 0 });
            let &(add, _) = readers.first()?;
            gate_of(graph, add).filter(|&gate| gate == node)?;
            return added_to(graph, add);
        }
        _ => inputs.first()?.node,
    };
    let alone = |value: &Value| value.node == first && graph.has_one_consumer(*value);
    let outputs = graph.outputs(first);
    match (&graph.nodes[first].op, &graph.nodes[node].op) {
        (_, &Op::GatedAct(act) | &Op::GatedActQuantise(act)) if gate(act).is_none() => None,
        (Op::MatMul { parts, residual }, Op::GatedAct(_) | Op::GatedActQuantise(_)) => {
            let [gate, up] = parts.as_slice() else {
                return None;
            };
            let (gate_w, up_w) = (graph.weight(gate.weight), graph.weight(up.weight));
            let alike = gate_w.ty == up_w.ty && gate_w.n == up_w.n;
            let plain = !residual && gate.bias.is_none() && up.bias.is_none();
            (alike && plain && inputs == outputs && inputs.iter().all(alone)).then_some(first)
        }
        (Op::ExpertMatMul { parts, .. }, Op::GatedAct(_) | Op::GatedActQuantise(_)) => {
            let [gate, up] = parts.as_slice() else {
                return None;
            };
            let (gate_w, up_w) = (graph.weight(gate.weight), graph.weight(up.weight));
            let alike = gate_w.ty == up_w.ty && gate_w.n == up_w.n;
            let biased = gate.bias.is_some() == up.bias.is_some();
            let whole = inputs == outputs && inputs.iter().all(alone);
            (alike && biased && whole).then_some(first)
        }
        (Op::MatMul { residual: true, .. }, Op::NormQuantise { .. }) => {
            let is_matmul = |n: NodeIndex| matches!(graph.nodes[n].op, Op::MatMul { .. });
            let readers = graph.consumers(Value { node, port: 0 });
            // A second norm of the same rows runs by itself.
            let is_norm = |op: &Op| matches!(op, Op::NormQuantise { .. });
            let is_first = is_first(graph, inputs[0], node, is_norm);
            (is_first && readers.iter().all(|&(reader, _)| is_matmul(reader))).then_some(first)
        }
        (Op::RmsNorm { .. }, Op::Quantise) => {
            let others = !graph.has_one_consumer(inputs[0]);
            let is_first = is_first(graph, inputs[0], node, |op| *op == Op::Quantise);
            (others && is_first).then_some(first)
        }
        (Op::DeltaRule { heads, .. }, Op::HeadNorm { heads: normed, .. }) => {
            (heads.heads == *normed && alone(&inputs[0])).then_some(first)
        }
        (Op::ExpertScale { .. }, Op::ExpertSum) => alone(&inputs[0]).then_some(first),
        (Op::ExpertSum | Op::Add, Op::RmsNorm { .. } | Op::NormQuantise { .. })
            if sums_experts(graph, first) =>
        {
            let is_norm = |op: &Op| matches!(op, Op::NormQuantise { .. } | Op::RmsNorm { .. });
            // One whose conversion it would leave behind stays with that.
            let converted = completed_by(graph, node).is_some();
            (!converted && is_first(graph, inputs[0], node, is_norm)).then_some(first)
        }
        (Op::RopeAppend { layer, .. }, Op::Attention { layer: own, .. }) => {
            let prepares = attention::prepares(graph.kv[*layer].head_dim);
            let whole = layer == own && inputs == outputs && alone(&inputs[0]);
            (prepares && whole).then_some(first)
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
    let mut readers = consumers.into_iter().flat_map(|(consumer, _)| {
        let view = Value {
            node: consumer,
            port: 0,
        };
        match graph.nodes[consumer].op {
            Op::Columns { .. } => graph.consumers(view).into_iter().map(|c| c.0).collect(),
            _ => vec![consumer],
        }
    });
    readers.find(|&second| joins(graph, second) == Some(node))
}

/// What is added to the mean square of a value's rows by the matmuls that read them, if their norm is left to those.
pub(super) fn pending_norm(graph: &OpGraph, value: Value) -> Option<f32> {
    match graph.nodes[value.node].op {
        Op::NormQuantise { eps, .. } => joins(graph, value.node)
            .filter(|&first| matches!(graph.nodes[first].op, Op::MatMul { .. }))
            .map(|_| eps),
        _ => None,
    }
}

/// Whether a value never reaches memory: its piece of work computes it on the way.
pub(super) fn passes_through(graph: &OpGraph, value: Value) -> bool {
    if let Op::ExpertMatMul { .. } = graph.nodes[value.node].op
        && let Some(second) = completed_by(graph, value.node)
        && halves(graph, second) == Some(value.node)
    {
        return true;
    }
    let consumers = graph.consumers(value);
    let [(consumer, _)] = consumers.as_slice() else {
        return false;
    };
    // Between a sum and what is added to it may be the gate of that.
    let completed = joins(graph, *consumer) == Some(value.node)
        || added_to(graph, *consumer) == Some(value.node);
    graph.value_type(value).dtype == DType::F32
        && completed
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

    /// Labels and ops of pieces of more than one node.
    fn pieces(architecture: &'static str, layers: u64) -> Vec<Vec<String>> {
        let tiny = Tiny {
            architecture,
            layers,
            float: "ffn_gate_inp.weight",
            ..Tiny::PLAIN
        };
        let mut graph = tiny.graph();
        run_all(&mut graph, None).expect("passes");
        let graph = adapt(&graph, true).expect("adapts");
        let order = graph.order();
        let groups = groups(&graph, &order);
        let place = |node| {
            groups
                .iter()
                .position(|g: &Vec<NodeIndex>| g.contains(&node))
        };
        for (at, group) in groups.iter().enumerate() {
            for &node in group {
                for input in graph.inputs(node) {
                    let from = place(input.node).expect("runs once");
                    assert!(from < at || group.contains(&input.node), "{architecture}");
                }
            }
        }
        let name = |node: &NodeIndex| {
            let op = format!("{:?}", graph.nodes[*node].op);
            op.split([' ', '(']).next().unwrap_or_default().to_string()
        };
        let several = groups.iter().filter(|g| g.len() > 1);
        several.map(|g| g.iter().map(name).collect()).collect()
    }

    #[test]
    fn sums_over_experts_take_additions_and_the_norm_along() {
        let olmoe = pieces("olmoe", 2);
        assert!(olmoe.contains(&vec!["RmsNorm".into(), "Quantise".into()]));
        let gated: Vec<String> = vec!["ExpertMatMul".into(), "GatedActQuantise".into()];
        assert!(olmoe.contains(&gated), "{olmoe:?}");
        let summed: Vec<String> = ["ExpertSum", "Add", "NormQuantise"]
            .map(String::from)
            .into();
        assert!(olmoe.contains(&summed), "{olmoe:?}");
        // The last sum is for the head, whose norm is in another stage.
        assert!(olmoe.contains(&summed[..2].to_vec()), "{olmoe:?}");
        let gpt_oss = pieces("gpt-oss", 1);
        let clamped: Vec<String> = vec!["ExpertMatMul".into(), "GatedActQuantise".into()];
        assert!(gpt_oss.contains(&clamped), "{gpt_oss:?}");
        let shared = pieces("qwen2moe", 2);
        let both = ["ExpertSum", "GateRows", "Add", "Add", "NormQuantise"];
        let both: Vec<String> = both.map(String::from).into();
        assert!(shared.contains(&both), "{shared:?}");
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
