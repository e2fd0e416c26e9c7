//! Matmuls whose weights are integers read int8 activations: each distinct value is quantised once, by its producer
//! where that is a norm or a gated activation that nobody else needs in f32.

use std::collections::BTreeMap;

use petgraph::stable_graph::NodeIndex;

use crate::error::Error;
use crate::graph::{DType, Op, OpGraph, Value};

pub(super) fn run(graph: &mut OpGraph) -> Result<(), Error> {
    let mut wanted = BTreeMap::<Value, Vec<NodeIndex>>::new();
    for node in graph.order() {
        let Op::MatMul { parts, .. } = &graph.nodes[node].op else {
            continue;
        };
        let x = graph.inputs(node)[0];
        let integers = parts.iter().any(|part| graph.is_integer(part.weight));
        if integers && graph.value_type(x).dtype == DType::F32 {
            wanted.entry(x).or_default().push(node);
        }
    }
    for (x, matmuls) in wanted {
        let int8_only = graph.consumers(x).len() == matmuls.len();
        let producer = &graph.nodes[x.node];
        let fused = match producer.op {
            Op::RmsNorm { weight, eps } => Some(Op::NormQuantise { weight, eps }),
            Op::GatedAct(activation) => Some(Op::GatedActQuantise(activation)),
            _ => None,
        };
        let label = producer.label.clone();
        match fused {
            Some(op) if int8_only => {
                let inputs = graph.inputs(x.node);
                graph.replace(x.node, op, label, &inputs)?;
            }
            _ => {
                let quantised = graph.add_one(Op::Quantise, format!("{label}_q8"), &[x])?;
                for matmul in matmuls {
                    graph.set_input(matmul, 0, quantised);
                }
            }
        }
    }
    Ok(())
}
