//! ffn_gate and ffn_up of a layer read one value: one matmul with two parts; and the activation of the gate joins the
//! product with up; so do those of experts. Gate and up that cannot share a matmul still share the product.
//!
//! ```text
//! g = matmul(x, Wg); u = matmul(x, Wu); y = mul(act(g), u)   ->   g, u = matmul(x, [Wg, Wu]); y = gated_act(g, u)
//! ```

use super::group_matmuls::group_matmuls;
use crate::error::Error;
use crate::graph::{Op, OpGraph};

pub(super) fn run(graph: &mut OpGraph) -> Result<(), Error> {
    group_matmuls(graph, &["ffn_gate", "ffn_up"], |_| "ffn_gate_up".into())?;
    let of_experts = |_: &[&str]| "ffn_gate_up_exps".into();
    group_matmuls(graph, &["ffn_gate_exps", "ffn_up_exps"], of_experts)?;
    let shared = |_: &[&str]| "ffn_gate_up_shexp".into();
    group_matmuls(graph, &["ffn_gate_shexp", "ffn_up_shexp"], shared)?;
    for node in graph.order() {
        if graph.nodes[node].op != Op::Mul {
            continue;
        }
        let inputs = graph.inputs(node);
        for (gate, up) in [(0, 1), (1, 0)] {
            let (gate, up) = (inputs[gate], inputs[up]);
            let Op::Act(activation) = graph.nodes[gate.node].op else {
                continue;
            };
            if !graph.has_one_consumer(gate) {
                continue;
            }
            let label = graph.nodes[gate.node].label.clone();
            let gate = graph.inputs(gate.node)[0];
            graph.replace(node, Op::GatedAct(activation), label, &[gate, up])?;
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Tiny, apply, assert_lines};

    #[test]
    fn gate_and_up_share_a_matmul_and_the_product_activates() {
        let (_, before, after) = apply("fuse_gate_up", Tiny::PLAIN);
        assert_lines(
            &before,
            &[
                "%13 f32[R,64] = matmul blk.0.ffn_gate (%12) w=blk.0.ffn_gate.weight Q8_0 [64,32]",
                "%14 f32[R,64] = matmul blk.0.ffn_up (%12) w=blk.0.ffn_up.weight Q8_0 [64,32]",
                "%15 f32[R,64] = act blk.0.ffn_act (%13) silu",
                "%16 f32[R,64] = mul blk.0.ffn_gated (%15, %14)",
            ],
        );
        assert_lines(
            &after,
            &[
                "%13 f32[R,64], %14 f32[R,64] = matmul blk.0.ffn_gate_up (%12) w=blk.0.ffn_gate.weight Q8_0 [64,32] \
                 w=blk.0.ffn_up.weight Q8_0 [64,32]",
                "%15 f32[R,64] = gated_act blk.0.ffn_act (%13, %14) silu",
                "matmul blk.0.ffn_down (%15)",
            ],
        );
        assert!(!after.contains(" = act "), "{after}");
    }

    #[test]
    fn gate_and_up_of_experts_share_a_matmul_too() {
        let (_, before, after) = apply(
            "fuse_gate_up",
            Tiny {
                architecture: "qwen2moe",
                ..Tiny::PLAIN
            },
        );
        assert_lines(
            &before,
            &[
                "f32[R,5] = matmul blk.0.ffn_gate_inp (",
                "routes[R,2] = route blk.0.ffn_route (",
                "f32[2R,64] = expert_matmul blk.0.ffn_gate_exps (",
                "f32[2R,64] = expert_matmul blk.0.ffn_up_exps (",
                "f32[2R,32] = expert_matmul blk.0.ffn_down_exps (",
                "f32[R,32] = expert_sum blk.0.ffn_moe (",
            ],
        );
        assert_lines(
            &after,
            &[
                "expert_matmul blk.0.ffn_gate_up_exps (",
                "f32[2R,64] = gated_act blk.0.ffn_act_exps (",
                "expert_matmul blk.0.ffn_down_exps (",
                "matmul blk.0.ffn_gate_up_shexp (",
                "gated_act blk.0.ffn_act_shexp (",
            ],
        );
        assert!(!after.contains(" = act "), "{after}");
    }

    #[test]
    fn gate_and_up_of_different_kinds_still_gate() {
        let (_, _, after) = apply(
            "fuse_gate_up",
            Tiny {
                float: "ffn_up.weight",
                ..Tiny::PLAIN
            },
        );
        assert_lines(
            &after,
            &[
                "matmul blk.0.ffn_gate (",
                "matmul blk.0.ffn_up (",
                "gated_act blk.0.ffn_act",
            ],
        );
    }
}
