//! Matmuls whose weights are integers read int8 activations: each distinct value is quantised once, by its producer
//! where that is a norm or a gated activation that nobody else needs in f32.
//!
//! ```text
//! x = rms_norm(h); y = matmul(x, W); z = matmul(x, V)   ->   x = norm_quantise(h); y = matmul(x, W); z = matmul(x, V)
//! x = add(a, b);   y = matmul(x, W)                     ->   x = add(a, b); x8 = quantise(x); y = matmul(x8, W)
//! ```

use std::collections::BTreeMap;

use petgraph::stable_graph::NodeIndex;

use crate::error::Error;
use crate::graph::{DType, Op, OpGraph, Value, WeightId};

pub(super) fn run(graph: &mut OpGraph) -> Result<(), Error> {
    before_matmuls(graph, OpGraph::is_integer)
}

/// Has every matmul whose weights are `narrow` read quantised activations.
///
/// # Errors
/// `Error::Internal` where an activation cannot be quantised.
pub fn before_matmuls(
    graph: &mut OpGraph,
    narrow: impl Fn(&OpGraph, WeightId) -> bool,
) -> Result<(), Error> {
    let mut wanted = BTreeMap::<Value, Vec<NodeIndex>>::new();
    for node in graph.order() {
        let (Op::MatMul { parts, .. } | Op::ExpertMatMul { parts, .. }) = &graph.nodes[node].op
        else {
            continue;
        };
        let x = graph.inputs(node)[0];
        let reads_narrow = parts.iter().any(|part| narrow(graph, part.weight));
        if reads_narrow && graph.value_type(x).dtype == DType::F32 {
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

#[cfg(test)]
mod tests {
    use super::super::run_all;
    use super::super::tests::{Tiny, apply, assert_lines, tiny};
    use crate::graph::dump::dump;
    use coldpress_kernels::tensor_type::TensorType;

    #[test]
    fn alone_it_quantises_each_value_once() {
        let (_, _, after) = apply("quantise_activations", Tiny::PLAIN);
        assert_lines(
            &after,
            &[
                "%2 q8[R,32] = norm_quantise blk.0.attn_norm (%1) w=blk.0.attn_norm.weight eps=1e-5",
                "f32[R,32] = matmul blk.0.attn_q (%2)",
                "q8[R,32] = quantise blk.0.attn_q8 (",
                "q8[R,64] = quantise blk.0.ffn_gated_q8 (",
                "q8[L,32] = norm_quantise output_norm (",
            ],
        );
        assert_eq!(after.matches(" = quantise ").count(), 2, "{after}");
    }

    #[test]
    fn after_fusing_the_producers_quantise() {
        let mut graph = tiny();
        run_all(&mut graph, None).unwrap();
        let text = dump(&graph);
        assert_lines(
            &text,
            &[
                "q8[R,64] = gated_act_quantise blk.0.ffn_act (",
                "matmul blk.0.ffn_down (",
            ],
        );
        assert_eq!(
            text.matches(" = quantise ").count(),
            1,
            "attention alone:\n{text}"
        );
    }

    #[test]
    fn experts_read_rows_quantised_once() {
        let tiny = Tiny {
            architecture: "olmoe",
            float: "ffn_gate_inp.weight",
            ..Tiny::PLAIN
        };
        let mut graph = tiny.graph();
        run_all(&mut graph, None).unwrap();
        assert_lines(
            &dump(&graph),
            &[
                "f32[R,32] = rms_norm blk.0.ffn_norm (",
                "q8[R,32] = quantise blk.0.ffn_norm_q8 (",
                "f32[R,5] = matmul blk.0.ffn_gate_inp (",
                "q8[2R,64] = gated_act_quantise blk.0.ffn_act_exps (",
                "f32[2R,32] = expert_matmul blk.0.ffn_down_exps (",
            ],
        );
    }

    #[test]
    fn a_value_needed_as_float_too_is_kept() {
        let (_, _, after) = apply(
            "quantise_activations",
            Tiny {
                float: "attn_v.weight",
                ..Tiny::PLAIN
            },
        );
        assert_lines(
            &after,
            &[
                "f32[R,32] = rms_norm blk.0.attn_norm (",
                "f32[R,32] = matmul blk.0.attn_v (%2) w=blk.0.attn_v.weight F32",
            ],
        );
        assert_lines(
            &after,
            &[
                "q8[R,32] = quantise blk.0.attn_norm_q8 (%2)",
                "matmul blk.0.attn_k (",
            ],
        );
    }

    #[test]
    fn float_weights_read_floats() {
        let (_, before, after) = apply(
            "quantise_activations",
            Tiny {
                ty: TensorType::F32,
                ..Tiny::PLAIN
            },
        );
        assert_eq!(before, after);
    }
}
