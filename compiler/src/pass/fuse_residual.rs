//! A matmul whose only reader adds something to it adds that itself.

use crate::error::Error;
use crate::graph::{Op, OpGraph, Value};

pub(super) fn run(graph: &mut OpGraph) -> Result<(), Error> {
    for node in graph.order() {
        if graph.nodes[node].op != Op::Add {
            continue;
        }
        let inputs = graph.inputs(node);
        for (product, residual) in [(0, 1), (1, 0)] {
            let (product, residual) = (inputs[product], inputs[residual]);
            let producer = &graph.nodes[product.node];
            let Op::MatMul {
                parts,
                residual: false,
            } = &producer.op
            else {
                continue;
            };
            // The only reader is this Add, so the other operand cannot depend on the matmul.
            if parts.len() != 1 || !graph.has_one_consumer(product) {
                continue;
            }
            let op = Op::MatMul {
                parts: parts.clone(),
                residual: true,
            };
            let label = producer.label.clone();
            let x = graph.inputs(product.node)[0];
            graph.replace(product.node, op, label, &[x, residual])?;
            graph.rewire(Value { node, port: 0 }, product);
            graph.nodes.remove_node(node);
            break;
        }
    }
    Ok(())
}
