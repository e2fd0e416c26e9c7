//! Joins matmuls of one layer that read the same value into one matmul with several parts. Which ones is for the
//! callers, fuse_qkv.rs and fuse_gate_up.rs.

use std::collections::BTreeMap;

use petgraph::stable_graph::NodeIndex;

use crate::error::Error;
use crate::graph::{Op, OpGraph, Part, Value};

/// What matmuls must have in common to be joined: prefix of the label, inputs, kind of weight, and experts, if it is a
/// matmul by expert.
type Key = (String, Vec<Value>, bool, Option<usize>);

/// Joins single-part matmuls whose label is a layer prefix and one of `roles`, where input, prefix and kind of weight
/// agree: kernels read a matmul's weights either all as integers or all as floats. Parts are in the order of `roles`.
/// The result is labelled by `joined`, which is given the roles it has.
pub(super) fn group_matmuls(
    graph: &mut OpGraph,
    roles: &[&str],
    joined: fn(&[&str]) -> String,
) -> Result<(), Error> {
    let mut groups = BTreeMap::<Key, Vec<(usize, NodeIndex)>>::new();
    for node in graph.order() {
        let (parts, experts) = match &graph.nodes[node].op {
            Op::MatMul {
                parts,
                residual: false,
            } => (parts, None),
            Op::ExpertMatMul { parts, experts } => (parts, Some(*experts)),
            _ => continue,
        };
        let [part] = parts[..] else { continue };
        let label = &graph.nodes[node].label;
        let role = roles
            .iter()
            .position(|role| label.ends_with(&format!(".{role}")));
        if let Some(role) = role {
            let prefix = label[..label.len() - roles[role].len()].to_owned();
            let kind = graph.is_integer(part.weight);
            let key = (prefix, graph.inputs(node), kind, experts);
            groups.entry(key).or_default().push((role, node));
        }
    }
    for ((prefix, inputs, _, experts), mut members) in groups {
        members.sort_unstable();
        let Some(&(_, first)) = members
            .iter()
            .min_by_key(|(_, node)| node)
            .filter(|_| members.len() > 1)
        else {
            continue;
        };
        let mut parts = Vec::<Part>::new();
        for &(_, node) in &members {
            if let Op::MatMul { parts: own, .. } | Op::ExpertMatMul { parts: own, .. } =
                &graph.nodes[node].op
            {
                parts.extend(own);
            }
        }
        let present: Vec<_> = members.iter().map(|&(role, _)| roles[role]).collect();
        let label = format!("{prefix}{}", joined(&present));
        let op = match experts {
            None => Op::MatMul {
                parts,
                residual: false,
            },
            Some(experts) => Op::ExpertMatMul { parts, experts },
        };
        // Consumers of the node that is reused are read before it changes; its old output may get another port.
        let readers: Vec<_> = members
            .iter()
            .map(|&(_, node)| graph.consumers(Value { node, port: 0 }))
            .collect();
        graph.replace(first, op, label, &inputs)?;
        for (port, readers) in (0..).zip(readers) {
            for (consumer, to) in readers {
                graph.set_input(consumer, to, Value { node: first, port });
            }
        }
        for (_, node) in members {
            if node != first {
                graph.nodes.remove_node(node);
            }
        }
    }
    Ok(())
}
