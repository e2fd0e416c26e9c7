//! attn_q, attn_k and attn_v of a layer read one value: one matmul with up to three parts. Weights read as integers and
//! weights read as floats stay apart.
//!
//! ```text
//! q = matmul(x, Wq); k = matmul(x, Wk); v = matmul(x, Wv)   ->   q, k, v = matmul(x, [Wq, Wk, Wv])
//! ```

use super::group_matmuls::group_matmuls;
use crate::error::Error;
use crate::graph::OpGraph;

pub(super) fn run(graph: &mut OpGraph) -> Result<(), Error> {
    group_matmuls(graph, &["attn_q", "attn_k", "attn_v"], |roles| {
        let letters: String = roles.iter().map(|role| &role["attn_".len()..]).collect();
        format!("attn_{letters}")
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
