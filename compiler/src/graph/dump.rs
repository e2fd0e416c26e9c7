//! Stable text of a graph, one node per line in topological order, for `--emit`, golden tests and reading. Values are
//! numbered as they appear; nothing is parsed back.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{
    Activation, DType, Gating, HeadNorm, Op, OpGraph, Part, RopeShape, RopeStyle, Rows, Source,
    Value, ValueType, WeightId,
};

/// The whole graph: KV layers, states, then nodes.
/// `%12 f32[R,3072] = matmul blk.0.ffn_gate (%10) w=blk.0.ffn_gate.weight Q4_K [3072,1024]`
pub fn dump(graph: &OpGraph) -> String {
    let mut text = String::new();
    for (layer, kv) in graph.kv.iter().enumerate() {
        let _ = write!(text, "kv {layer}: {} x {}", kv.kv_heads, kv.head_dim);
        if let Some(window) = kv.window {
            let _ = write!(text, " window {window}");
        }
        text.push('\n');
    }
    for (state, layer) in graph.states.iter().enumerate() {
        let _ = writeln!(text, "state {state}: {} per slot", layer.floats);
    }
    let mut numbers = BTreeMap::<Value, usize>::new();
    for index in graph.order() {
        let node = &graph.nodes[index];
        let outputs: Vec<_> = graph
            .outputs(index)
            .into_iter()
            .map(|value| {
                let number = numbers.len();
                numbers.insert(value, number);
                format!("%{number} {}", type_text(graph.value_type(value)))
            })
            .collect();
        if !outputs.is_empty() {
            let _ = write!(text, "{} = ", outputs.join(", "));
        }
        let inputs: Vec<_> = graph
            .inputs(index)
            .iter()
            .map(|input| match numbers.get(input) {
                Some(number) => format!("%{number}"),
                None => "?".into(),
            })
            .collect();
        let _ = write!(
            text,
            "{} {} ({})",
            name(&node.op),
            node.label,
            inputs.join(", ")
        );
        arguments(&mut text, graph, &node.op);
        text.push('\n');
    }
    text
}

/// `f32[R,1024]`, `q8[L,1024]`, `f32[8R,768]` for rows that use 8 experts each, `routes[R,8]`, `kv`.
pub fn type_text(ty: ValueType) -> String {
    let rows: String = match ty.rows {
        Rows::Step => "R".into(),
        Rows::Logits => "L".into(),
        Rows::Routed { used } => format!("{used}R"),
    };
    match ty.dtype {
        DType::F32 => format!("f32[{rows},{}]", ty.width),
        DType::Q8 => format!("q8[{rows},{}]", ty.width),
        DType::KvWritten => "kv".into(),
        DType::Routes => format!("routes[{rows},{}]", ty.width),
    }
}

/// Lower-case name of an op, without its parameters.
pub fn name(op: &Op) -> &'static str {
    match op {
        Op::Embed { .. } => "embed",
        Op::RmsNorm { .. } => "rms_norm",
        Op::MatMul { .. } => "matmul",
        Op::Route(_) => "route",
        Op::ExpertMatMul { .. } => "expert_matmul",
        Op::ExpertScale { .. } => "expert_scale",
        Op::ExpertSum => "expert_sum",
        Op::RopeTable { .. } => "rope_table",
        Op::HeadNorm { .. } => "head_norm",
        Op::Rope { .. } => "rope",
        Op::KvAppend { .. } => "kv_append",
        Op::RopeAppend { .. } => "rope_append",
        Op::Attention { .. } => "attention",
        Op::ShortConv { .. } => "short_conv",
        Op::DeltaRule { .. } => "delta_rule",
        Op::Act(_) => "act",
        Op::Mul => "mul",
        Op::Add => "add",
        Op::GatedAct(_) => "gated_act",
        Op::GateRows => "gate_rows",
        Op::Scale(_) => "scale",
        Op::Columns { .. } => "columns",
        Op::Softcap(_) => "softcap",
        Op::Quantise => "quantise",
        Op::NormQuantise { .. } => "norm_quantise",
        Op::GatedActQuantise(_) => "gated_act_quantise",
        Op::SelectRows => "select_rows",
        Op::Logits => "logits",
    }
}

fn arguments(text: &mut String, graph: &OpGraph, op: &Op) {
    match op {
        Op::Embed { weight, scale } => {
            matrix(text, graph, *weight);
            if *scale != 1.0 {
                let _ = write!(text, " scale={scale}");
            }
        }
        Op::RmsNorm { weight, eps } | Op::NormQuantise { weight, eps } => {
            let _ = write!(text, " w={} eps={eps:e}", graph.weight(*weight).name);
        }
        Op::MatMul { parts, residual } => {
            matrices(text, graph, parts);
            if *residual {
                text.push_str(" +residual");
            }
        }
        Op::Route(routing) => {
            let gating = match routing.gating {
                Gating::Softmax => "softmax",
                Gating::SoftmaxOfUsed => "softmax_of_used",
            };
            let _ = write!(text, " used={} {gating}", routing.used);
            if routing.normalise {
                text.push_str(" normalised");
            }
        }
        Op::ExpertMatMul { parts, experts } => {
            let _ = write!(text, " experts={experts}");
            matrices(text, graph, parts);
        }
        Op::ExpertScale { factors } => {
            let _ = write!(text, " w={}", graph.weight(*factors).name);
        }
        Op::RopeTable { inv_freq, mscale } => {
            let weight = graph.weight(*inv_freq);
            let _ = write!(text, " w={} [{}]", weight.name, weight.k);
            if let Source::Computed(values) = &weight.source {
                let ends = (values.first(), values.last());
                if let (Some(first), Some(last)) = ends {
                    let _ = write!(text, " {first:e}..{last:e}");
                }
            }
            let _ = write!(text, " mscale={mscale}");
        }
        Op::HeadNorm { norm, heads } => {
            let _ = write!(text, " heads={heads}");
            head_norm(text, graph, "norm", norm);
        }
        Op::Rope { heads, shape } => {
            let _ = write!(text, " heads={heads}");
            rope_shape(text, shape);
        }
        Op::KvAppend { layer } => {
            let _ = write!(text, " layer={layer}");
        }
        Op::RopeAppend {
            layer,
            heads,
            shape,
            q_norm,
            k_norm,
        } => {
            let _ = write!(text, " layer={layer} heads={heads}");
            rope_shape(text, shape);
            for (port, norm) in [("q_norm", q_norm), ("k_norm", k_norm)] {
                if let Some(norm) = norm {
                    head_norm(text, graph, port, norm);
                }
            }
        }
        Op::Attention {
            layer,
            heads,
            scale,
            softcap,
            sinks,
        } => {
            let _ = write!(text, " layer={layer} heads={heads} scale={scale}");
            if let Some(cap) = softcap {
                let _ = write!(text, " softcap={cap}");
            }
            if let Some(sinks) = sinks {
                let _ = write!(text, " sinks={}", graph.weight(*sinks).name);
            }
        }
        Op::ShortConv { state, weight } => {
            let _ = write!(text, " state={state}");
            matrix(text, graph, *weight);
        }
        Op::DeltaRule {
            state,
            heads,
            a,
            dt,
            eps,
        } => {
            let (keys, values, dim) = (heads.key_heads, heads.heads, heads.dim);
            let _ = write!(text, " state={state} heads={keys}:{values} head_dim={dim}");
            if heads.grouped {
                text.push_str(" grouped");
            }
            let (a, dt) = (&graph.weight(*a).name, &graph.weight(*dt).name);
            let _ = write!(text, " a={a} dt={dt} eps={eps:e}");
        }
        Op::Act(act) | Op::GatedAct(act) | Op::GatedActQuantise(act) => {
            let _ = write!(text, " {}", activation(*act));
        }
        Op::Scale(factor) => {
            let _ = write!(text, " factor={factor}");
        }
        Op::Softcap(cap) => {
            let _ = write!(text, " cap={cap}");
        }
        Op::Columns { start, width } => {
            let _ = write!(text, " {start}..{}", start + width);
        }
        Op::Mul
        | Op::Add
        | Op::ExpertSum
        | Op::GateRows
        | Op::Quantise
        | Op::SelectRows
        | Op::Logits => {}
    }
}

fn matrices(text: &mut String, graph: &OpGraph, parts: &[Part]) {
    for Part { weight, bias } in parts {
        matrix(text, graph, *weight);
        if let Some(bias) = bias {
            let _ = write!(text, " bias={}", graph.weight(*bias).name);
        }
    }
}

fn matrix(text: &mut String, graph: &OpGraph, id: WeightId) {
    let weight = graph.weight(id);
    let _ = write!(
        text,
        " w={} {} [{},{}]",
        weight.name, weight.ty, weight.n, weight.k
    );
}

fn head_norm(text: &mut String, graph: &OpGraph, port: &str, norm: &HeadNorm) {
    let name = &graph.weight(norm.weight).name;
    let _ = write!(text, " {port}={name} eps={:e}", norm.eps);
}

fn rope_shape(text: &mut String, shape: &RopeShape) {
    let style = match shape.style {
        RopeStyle::Interleaved => "interleaved",
        RopeStyle::Neox => "neox",
    };
    let _ = write!(
        text,
        " head_dim={} rot={} {style}",
        shape.head_dim, shape.rot_dim
    );
}

fn activation(act: Activation) -> &'static str {
    match act {
        Activation::Silu => "silu",
        Activation::Sigmoid => "sigmoid",
        Activation::GeluTanh => "gelu_tanh",
        Activation::ClampedSwish => "clamped_swish",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pass::tests::tiny;

    #[test]
    fn the_text_is_stable_and_one_line_per_node() {
        let graph = tiny();
        let text = dump(&graph);
        assert_eq!(text, dump(&graph.clone()));
        assert_eq!(
            text.lines().count(),
            graph.kv.len() + graph.states.len() + graph.nodes.node_count()
        );
        for line in [
            "kv 0: 1 x 32",
            "%1 f32[R,32] = embed token_embd () w=token_embd.weight Q8_0 [8,32]",
            "matmul blk.0.attn_q (",
            "logits logits (",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }
}
