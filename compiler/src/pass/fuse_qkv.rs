//! attn_q, attn_k and attn_v of a layer read one value: one matmul with up to three parts. Weights read as integers and
//! weights read as floats stay apart.
//!
//! ```text
//! q = matmul(x, Wq); k = matmul(x, Wk); v = matmul(x, Wv)   ->   q, k, v = matmul(x, [Wq, Wk, Wv])
//! ```
//!
//! So do the inputs of a gated delta net, in two pairs of about the same size.

use super::group_matmuls::group_matmuls;
use crate::error::Error;
use crate::graph::OpGraph;

pub(super) fn run(graph: &mut OpGraph) -> Result<(), Error> {
    group_matmuls(graph, &["attn_q", "attn_k", "attn_v"], |roles| {
        let letters: String = roles.iter().map(|role| &role["attn_".len()..]).collect();
        format!("attn_{letters}")
    })?;
    group_matmuls(graph, &["attn_qkv", "attn_gate"], |_| {
        "attn_qkv_gate".into()
    })?;
    group_matmuls(graph, &["ssm_beta", "ssm_alpha"], |_| {
        "ssm_beta_alpha".into()
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Tiny, apply, assert_lines};

    #[test]
    fn one_matmul_with_three_parts() {
        let (_, before, after) = apply("fuse_qkv", Tiny::PLAIN);
        assert_lines(
            &before,
            &[
                "f32[R,32] = matmul blk.0.attn_q (%2) w=blk.0.attn_q.weight Q8_0 [32,32] bias=blk.0.attn_q.bias",
                "f32[R,32] = matmul blk.0.attn_k (%2) w=blk.0.attn_k.weight Q8_0 [32,32]",
                "f32[R,32] = matmul blk.0.attn_v (%2) w=blk.0.attn_v.weight Q8_0 [32,32]",
            ],
        );
        assert_lines(
            &after,
            &[
                "%3 f32[R,32], %4 f32[R,32], %5 f32[R,32] = matmul blk.0.attn_qkv (%2) w=blk.0.attn_q.weight Q8_0 [32,32] \
                 bias=blk.0.attn_q.bias w=blk.0.attn_k.weight Q8_0 [32,32] w=blk.0.attn_v.weight Q8_0 [32,32]",
                "= rope blk.0.attn_q_rope (%3, ",
                "= rope blk.0.attn_k_rope (%4, ",
                "%8 kv = kv_append blk.0.attn_kv (%7, %5)",
            ],
        );
    }

    #[test]
    fn inputs_of_a_delta_net_are_two_matmuls() {
        let tiny = Tiny {
            architecture: "qwen35",
            layers: 2,
            ..Tiny::PLAIN
        };
        let (_, before, after) = apply("fuse_qkv", tiny);
        for matmul in ["attn_qkv", "attn_gate", "ssm_beta", "ssm_alpha"] {
            assert_lines(&before, &[&format!("matmul blk.0.{matmul} (")]);
        }
        assert_lines(
            &after,
            &[
                "%3 f32[R,128], %4 f32[R,64] = matmul blk.0.attn_qkv_gate (%2)",
                "%5 f32[R,4], %6 f32[R,4] = matmul blk.0.ssm_beta_alpha (%2)",
                "f32[R,128] = short_conv blk.0.ssm_conv1d (%3)",
                ", %6, %5) state=1 heads=2:4 head_dim=16",
                "matmul blk.1.attn_qkv (",
                "matmul blk.1.attn_gate (",
            ],
        );
    }

    #[test]
    fn float_and_integer_weights_stay_apart() {
        let mixed = |float| {
            apply(
                "fuse_qkv",
                Tiny {
                    float,
                    ..Tiny::PLAIN
                },
            )
            .2
        };
        let text = mixed("attn_v.weight");
        assert_lines(&text, &["matmul blk.0.attn_qk ("]);
        assert_lines(
            &text,
            &["matmul blk.0.attn_v (%2) w=blk.0.attn_v.weight F32 [32,32]"],
        );
        let text = mixed("attn_q.weight");
        assert_lines(&text, &["matmul blk.0.attn_kv ("]);
        assert_lines(&text, &["matmul blk.0.attn_q ("]);
    }
}
