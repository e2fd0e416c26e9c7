//! Per-head norm and rotation of q and k and the write of k and v to the cache become one RopeAppend.
//!
//! ```text
//! q' = rope(norm(q)); k' = rope(norm(k)); kv = kv_append(k', v)   ->   q', kv = rope_append(q, k, v)
//! ```

use petgraph::stable_graph::NodeIndex;

use crate::error::Error;
use crate::graph::{HeadNorm, Op, OpGraph, RopeShape, Value};

pub(super) fn run(graph: &mut OpGraph) -> Result<(), Error> {
    for append in graph.order() {
        let Op::KvAppend { layer } = graph.nodes[append].op else {
            continue;
        };
        let written = Value {
            node: append,
            port: 0,
        };
        // Several attentions may read one layer; their queries then stay as they are.
        let [(attention, _)] = graph.consumers(written)[..] else {
            continue;
        };
        if !matches!(graph.nodes[attention].op, Op::Attention { .. }) {
            continue;
        }
        let [rotated_k, v] = graph.inputs(append)[..] else {
            continue;
        };
        let rotated_q = graph.inputs(attention)[0];
        let (Some(q), Some(k)) = (rotation(graph, rotated_q), rotation(graph, rotated_k)) else {
            continue;
        };
        if (q.table, q.shape) != (k.table, k.shape) {
            continue;
        }
        let op = Op::RopeAppend {
            layer,
            heads: q.heads,
            shape: q.shape,
            q_norm: q.norm,
            k_norm: k.norm,
        };
        let label = label(graph, append);
        graph.replace(append, op, label, &[q.x, k.x, v, q.table])?;
        graph.set_input(
            attention,
            0,
            Value {
                node: append,
                port: 0,
            },
        );
        graph.set_input(
            attention,
            1,
            Value {
                node: append,
                port: 1,
            },
        );
    }
    Ok(())
}

/// A rotation with one reader, and the per-head norm before it.
struct Rotation {
    x: Value,
    norm: Option<HeadNorm>,
    table: Value,
    heads: usize,
    shape: RopeShape,
}

fn rotation(graph: &OpGraph, rotated: Value) -> Option<Rotation> {
    let Op::Rope { heads, shape } = graph.nodes[rotated.node].op else {
        return None;
    };
    let [x, table] = graph.inputs(rotated.node)[..] else {
        return None;
    };
    if !graph.has_one_consumer(rotated) {
        return None;
    }
    let rotation = Rotation {
        x,
        norm: None,
        table,
        heads,
        shape,
    };
    match graph.nodes[x.node].op {
        Op::HeadNorm { norm, .. } if graph.has_one_consumer(x) => Some(Rotation {
            x: graph.inputs(x.node)[0],
            norm: Some(norm),
            ..rotation
        }),
        _ => Some(rotation),
    }
}

/// `blk.3.attn_kv` becomes `blk.3.attn_rope_kv`.
fn label(graph: &OpGraph, append: NodeIndex) -> String {
    graph.nodes[append].label.replace("attn_kv", "attn_rope_kv")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Tiny, apply, assert_lines};

    #[test]
    fn rotation_and_cache_write_are_one_node() {
        let (_, before, after) = apply("fuse_rope_append", Tiny::PLAIN);
        assert_lines(
            &before,
            &[
                "%6 f32[R,32] = rope blk.0.attn_q_rope (%3, %0) heads=1 head_dim=32 rot=32 interleaved",
                "%7 f32[R,32] = rope blk.0.attn_k_rope (%4, %0) heads=1 head_dim=32 rot=32 interleaved",
                "%8 kv = kv_append blk.0.attn_kv (%7, %5) layer=0",
                "%9 f32[R,32] = attention blk.0.attn (%6, %8) layer=0 heads=1",
            ],
        );
        assert_lines(
            &after,
            &[
                "%6 f32[R,32], %7 kv = rope_append blk.0.attn_rope_kv (%3, %4, %5, %0) layer=0 heads=1 head_dim=32 rot=32 interleaved",
                "%8 f32[R,32] = attention blk.0.attn (%6, %7) layer=0 heads=1",
            ],
        );
        assert!(!after.contains(" = rope "), "{after}");
    }

    #[test]
    fn head_norms_are_absorbed() {
        let qwen3 = Tiny {
            architecture: "qwen3",
            heads: 4,
            kv_heads: 2,
            ..Tiny::PLAIN
        };
        let (_, before, after) = apply("fuse_rope_append", qwen3);
        assert_lines(
            &before,
            &[
                "head_norm blk.0.attn_q_norm (",
                "head_norm blk.0.attn_k_norm (",
            ],
        );
        assert_lines(
            &after,
            &[
                "heads=4 head_dim=8 rot=8 neox q_norm=blk.0.attn_q_norm.weight eps=1e-5 k_norm=blk.0.attn_k_norm.weight eps=1e-5",
            ],
        );
        assert!(!after.contains(" = head_norm "), "{after}");
    }
}
