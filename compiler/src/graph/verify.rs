//! Checks that a graph is well formed: types, shapes, ports, KV layers, states, one Logits, no cycle. Runs after a model is
//! built and after every pass, so a failure names the pass's mistake, never the user's: files are judged by `model`.

use petgraph::Direction::Incoming;
use petgraph::stable_graph::NodeIndex;

use super::{Op, OpGraph, Source};
use crate::error::Error;

/// Checks the whole graph.
///
/// # Errors
/// `Error::Internal` naming the first offending node, in topological order.
pub fn verify(graph: &OpGraph) -> Result<(), Error> {
    let order = graph.order();
    if order.len() != graph.nodes.node_count() {
        let stuck = graph
            .nodes
            .node_indices()
            .find(|node| !order.contains(node));
        let label = stuck.map_or("?", |node| &graph.nodes[node].label);
        return Err(internal(label, "is on a cycle or behind one"));
    }
    for &node in &order {
        check_node(graph, node)?;
    }
    check_weights(graph)?;
    check_kv(graph, &order)?;
    check_states(graph, &order)?;
    let logits = count(graph, &order, |op| *op == Op::Logits);
    match logits {
        1 => Ok(()),
        _ => Err(Error::Internal(format!("graph has {logits} Logits nodes"))),
    }
}

fn check_node(graph: &OpGraph, index: NodeIndex) -> Result<(), Error> {
    let node = &graph.nodes[index];
    let mut ports: Vec<_> = graph
        .nodes
        .edges_directed(index, Incoming)
        .map(|edge| edge.weight().to)
        .collect();
    ports.sort_unstable();
    if !ports.iter().copied().eq(0..ports.len() as u16) {
        return Err(internal(&node.label, &format!("input ports are {ports:?}")));
    }
    let mut types = Vec::new();
    for input in graph.inputs(index) {
        let producer = &graph.nodes[input.node];
        let Some(&ty) = producer.outputs.get(input.port as usize) else {
            let what = format!("reads output {} of {}", input.port, producer.label);
            return Err(internal(&node.label, &what));
        };
        types.push(ty);
    }
    let inferred = graph.infer(&node.op, &node.label, &types)?;
    if inferred != node.outputs {
        let what = format!("says {:?}, computes {inferred:?}", node.outputs);
        return Err(internal(&node.label, &what));
    }
    Ok(())
}

fn check_weights(graph: &OpGraph) -> Result<(), Error> {
    let mut names: Vec<_> = graph.weights.iter().map(|w| w.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(internal(pair[0], "is the name of two weights"));
    }
    for weight in &graph.weights {
        if let Source::Computed(values) = &weight.source
            && values.len() != weight.n * weight.k
        {
            let what = format!("{} values for [{},{}]", values.len(), weight.n, weight.k);
            return Err(internal(&weight.name, &what));
        }
    }
    Ok(())
}

/// Each KV layer is written once, and read by attention only through that write.
fn check_kv(graph: &OpGraph, order: &[NodeIndex]) -> Result<(), Error> {
    for layer in 0..graph.kv.len() {
        let writes = count(graph, order, |op| written_layer(op) == Some(layer));
        if writes != 1 {
            return Err(Error::Internal(format!(
                "KV layer {layer} is written by {writes} nodes"
            )));
        }
    }
    for &node in order {
        if let Op::Attention { layer, .. } = graph.nodes[node].op {
            let source = &graph.nodes[graph.inputs(node)[1].node];
            if written_layer(&source.op) != Some(layer) {
                let what = format!("reads KV layer {layer} after {}", source.label);
                return Err(internal(&graph.nodes[node].label, &what));
            }
        }
    }
    Ok(())
}

/// Each state is one node's.
fn check_states(graph: &OpGraph, order: &[NodeIndex]) -> Result<(), Error> {
    for state in 0..graph.states.len() {
        let owners = count(graph, order, |op| owned_state(op) == Some(state));
        if owners != 1 {
            return Err(Error::Internal(format!(
                "state {state} belongs to {owners} nodes"
            )));
        }
    }
    Ok(())
}

fn owned_state(op: &Op) -> Option<usize> {
    match op {
        Op::ShortConv { state, .. } | Op::DeltaRule { state, .. } => Some(*state),
        _ => None,
    }
}

fn written_layer(op: &Op) -> Option<usize> {
    match op {
        Op::KvAppend { layer } | Op::RopeAppend { layer, .. } => Some(*layer),
        _ => None,
    }
}

fn count(graph: &OpGraph, order: &[NodeIndex], which: impl Fn(&Op) -> bool) -> usize {
    order
        .iter()
        .filter(|&&node| which(&graph.nodes[node].op))
        .count()
}

fn internal(label: &str, what: &str) -> Error {
    Error::Internal(format!("node {label}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::super::{Rows, Value, ValueType};
    use super::*;
    use crate::pass::tests::tiny;

    fn find(graph: &OpGraph, label: &str) -> NodeIndex {
        let found = graph.order().into_iter();
        let mut found = found.filter(|&node| graph.nodes[node].label == label);
        found.next().unwrap()
    }

    fn fails(graph: &OpGraph, label: &str, what: &str) {
        let error = verify(graph).unwrap_err().to_string();
        assert!(error.contains(label) && error.contains(what), "{error}");
    }

    #[test]
    fn a_built_graph_passes() {
        verify(&tiny()).unwrap();
    }

    #[test]
    fn broken_graphs_name_the_node() {
        let mut wrong_type = tiny();
        let node = find(&wrong_type, "blk.0.ffn_up");
        wrong_type.nodes[node].outputs[0] = ValueType::f32(Rows::Step, 7);
        fails(&wrong_type, "blk.0.ffn_up", "says");

        let mut wrong_width = tiny();
        let (down, embed) = (
            find(&wrong_width, "blk.0.ffn_down"),
            find(&wrong_width, "token_embd"),
        );
        let x = Value {
            node: embed,
            port: 0,
        };
        wrong_width.set_input(down, 0, x);
        fails(&wrong_width, "blk.0.ffn_down", "wide");

        let mut cyclic = tiny();
        let (norm, down) = (
            find(&cyclic, "blk.0.ffn_norm"),
            find(&cyclic, "blk.0.ffn_down"),
        );
        let x = Value {
            node: down,
            port: 0,
        };
        cyclic.set_input(norm, 0, x);
        fails(&cyclic, "blk.0.", "cycle");

        let mut extra_port = tiny();
        let embed = find(&extra_port, "token_embd");
        let norm = find(&extra_port, "blk.0.ffn_norm");
        let x = Value {
            node: embed,
            port: 0,
        };
        extra_port.set_input(norm, 2, x);
        fails(&extra_port, "blk.0.ffn_norm", "ports are [0, 2]");
    }

    #[test]
    fn views_are_whole_cache_lines_inside_what_they_view() {
        let view = |start: usize, width: usize| {
            let mut graph = tiny();
            let embed = find(&graph, "token_embd");
            let x = Value {
                node: embed,
                port: 0,
            };
            graph.add_one(Op::Columns { start, width }, "view", &[x])
        };
        for (start, width) in [(0, 32), (16, 16), (0, 16)] {
            view(start, width).unwrap();
        }
        for (start, width) in [(16, 32), (8, 16), (0, 8), (32, 0), (usize::MAX - 15, 16)] {
            let error = view(start, width).unwrap_err().to_string();
            assert!(error.contains("view") && error.contains("of 32"), "{error}");
        }
    }

    #[test]
    fn broken_bookkeeping_is_found() {
        let mut unwritten = tiny();
        unwritten.kv.push(unwritten.kv[0]);
        fails(&unwritten, "KV layer", "written by 0");

        let mut twice = tiny();
        let head = find(&twice, "output");
        let x = Value {
            node: head,
            port: 0,
        };
        twice.add(Op::Logits, "again", &[x]).unwrap();
        fails(&twice, "graph", "2 Logits");

        let mut shape = tiny();
        let norm = shape
            .weights
            .iter()
            .position(|w| w.name == "output_norm.weight");
        shape.weights[norm.unwrap()].k = 3;
        fails(&shape, "output_norm", "[1,3]");

        let mut duplicate = tiny();
        duplicate.weights[1].name = duplicate.weights[0].name.clone();
        fails(&duplicate, "<rope_inv_freq>", "two weights");
    }
}
