//! A matmul whose only reader adds something to it adds that itself. One with a bias or several parts does not.
//!
//! ```text
//! p = matmul(x, W); y = add(p, r)   ->   y = matmul(x, W, residual r)
//! ```

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
            // The only reader is this Add, so the other operand cannot depend on the matmul. Accumulators start from one
            // thing, the residual or the bias: a matmul with a bias keeps its Add.
            let plain = parts.len() == 1 && parts[0].bias.is_none();
            if !plain || !graph.has_one_consumer(product) {
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

#[cfg(test)]
mod tests {
    use super::super::tests::{Tiny, apply, assert_lines, tiny};
    use super::*;
    use crate::graph::verify::verify;

    #[test]
    fn projections_add_the_residual_stream() {
        let (_, before, after) = apply("fuse_residual", Tiny::PLAIN);
        assert_lines(
            &before,
            &[
                "%10 f32[R,32] = matmul blk.0.attn_output (%9) w=blk.0.attn_output.weight Q8_0 [32,32]",
                "%11 f32[R,32] = add blk.0.attn_residual (%10, %1)",
            ],
        );
        assert_lines(
            &after,
            &[
                "%10 f32[R,32] = matmul blk.0.attn_output (%9, %1) w=blk.0.attn_output.weight Q8_0 [32,32] +residual",
                "rms_norm blk.0.ffn_norm (%10)",
                "= matmul blk.0.ffn_down (%15, %10) w=blk.0.ffn_down.weight Q8_0 [32,64] +residual",
            ],
        );
        assert!(!after.contains(" = add "), "{after}");
    }

    #[test]
    fn a_product_that_others_read_is_left_alone() {
        let mut graph = tiny();
        let find = |graph: &OpGraph, label: &str| {
            let mut nodes = graph.order().into_iter();
            let node = nodes
                .find(|&node| graph.nodes[node].label == label)
                .unwrap();
            Value { node, port: 0 }
        };
        let (output, norm) = (
            find(&graph, "blk.0.attn_output"),
            find(&graph, "blk.0.ffn_norm"),
        );
        graph.set_input(norm.node, 0, output);
        run(&mut graph).unwrap();
        verify(&graph).unwrap();
        let add = find(&graph, "blk.0.attn_residual");
        assert_eq!(graph.inputs(add.node)[0], output);
    }
}
