//! gemma4: Gemma 4. Layers with and without a window differ in head size, rotation and K/V heads; scores are not scaled, V is
//! normed. E2B and E4B add per-layer embeddings, and their last layers read the cache of earlier ones; the larger ones
//! have no V on global layers, where V is K before its norm, and 26B-A4B has experts beside its network.
//! Facts: llama.cpp src/models/gemma4.cpp.

use super::Architecture;
use super::attention::{Attention, Cached, QkNorm};
use super::decoder::{Branch, Head};
use super::experts::{self, ExpertShape, ExpertWidth, Shared};
use super::ffn::Ffn;
use super::metadata::check_head;
use super::parts::Builder;
use super::per_layer::PerLayer;
use super::rope::{FACTORS, Rope, RopeSpec, Scaling};
use super::window;
use crate::error::Error;
use crate::graph::{Activation, Gating, Op, RopeShape, RopeStyle, Value};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gemma4",
    reads: experts::READS,
    refuses: experts::REFUSES,
    build,
};

/// What layers of one kind, with or without a window, have in common.
#[derive(Clone, Copy)]
struct Kind {
    rope: Rope,
    window: Option<usize>,
}

fn build(b: &mut Builder) -> Result<(), Error> {
    let windowed = window::layers(b.metadata, b.hparams.layers, None)?;
    let window = window::window(b.metadata, 0)?;
    let window = window.ok_or_else(|| b.metadata.wrong(window::WINDOW, "is missing or 0"))?;
    let global = Kind {
        rope: global_rope(b)?,
        window: None,
    };
    let local = Kind {
        rope: local_rope(b)?,
        window: Some(window),
    };
    let kept = kept_layers(b)?;
    let mut x = b.embedding((b.hparams.hidden as f32).sqrt())?;
    let per_layer = PerLayer::new(b, x)?;
    let ffn = Ffn::new(Activation::GeluTanh);
    let experts = b.has_experts()?;
    let mut caches: Vec<Cached> = Vec::new();
    for (layer, windowed) in windowed.into_iter().enumerate() {
        let kind = if windowed { local } else { global };
        let a = Attention {
            head_dim: kind.rope.shape.head_dim,
            window: kind.window,
            scale: 1.0,
            qk_norm: QkNorm::Heads,
            ..b.plain_attention(layer, kind.rope)
        };
        // The last two layers that keep K and V are one with and one without a window; later ones read theirs.
        let shared = match layer < kept {
            true => None,
            false => Some(caches[kept - if windowed { 2 } else { 1 }]),
        };
        let names = ["attn_norm", "post_attention_norm"];
        x = b.branch(
            layer,
            x,
            Branch::AROUND,
            (names, "attn_residual"),
            |b, x| attention(b, layer, x, (&a, kind.rope), shared, &mut caches),
        )?;
        x = match experts {
            false => b.ffn_branch(layer, x, Branch::AROUND, &ffn)?,
            true => mixed_branch(b, layer, x, &ffn)?,
        };
        if let Some(per_layer) = &per_layer {
            x = per_layer.add(b, layer, x, ffn.activation)?;
        }
        let scale = format!("blk.{layer}.layer_output_scale");
        if b.has(&format!("{scale}.weight")) {
            let factor = b.numbers(&format!("{scale}.weight"), 1)?[0];
            x = b.scale(&scale, x, factor)?;
        }
    }
    let head = Head {
        softcap: b.cap("final_logit_softcapping", 30.0)?,
        ..Head::PLAIN
    };
    b.head(x, &head)
}

const EXPERTS: ExpertShape = ExpertShape {
    activation: Activation::GeluTanh,
    gating: Gating::Softmax,
    normalise: true,
    width: ExpertWidth::OwnKey,
    biases: false,
    scales: true,
    shared: Shared::None,
};

/// The network that all rows pass and the experts beside it, each with norms of its own, joined, normed and added. The router
/// reads the residual stream through a norm without a weight, and a vector of its own.
fn mixed_branch(b: &mut Builder, layer: usize, x: Value, ffn: &Ffn) -> Result<Value, Error> {
    let label = |part: &str| format!("blk.{layer}.{part}");
    let dense = b.norm(&label("ffn_norm"), x)?;
    let dense = b.ffn(layer, dense, ffn)?;
    let dense = b.norm(&label("post_ffw_norm_1"), dense)?;
    let hidden = b.hparams.hidden;
    let mut weight = b.numbers(&label("ffn_gate_inp.scale"), hidden)?;
    let shrink = 1.0 / (hidden as f32).sqrt();
    weight.iter_mut().for_each(|w| *w *= shrink);
    let weight = b.computed(&format!("<{}>", label("ffn_gate_inp.scale")), weight);
    let eps = b.hparams.rms_eps;
    let op = Op::RmsNorm { weight, eps };
    let seen = b.graph.add_one(op, label("ffn_gate_inp_norm"), &[x])?;
    let (count, _) = b.expert_counts()?;
    let router = b.part(&label("ffn_gate_inp"), (count, hidden), false)?;
    let logits = b.matmul(&label("ffn_gate_inp"), seen, router)?;
    let mixed = b.norm(&label("pre_ffw_norm_2"), x)?;
    let mixed = b.routed(layer, mixed, logits, &EXPERTS)?;
    let mixed = b.norm(&label("post_ffw_norm_2"), mixed)?;
    let both = b.add(&label("ffn_moe_shared"), dense, mixed)?;
    let normed = b.norm(&label("post_ffw_norm"), both)?;
    b.add(&label("ffn_residual"), normed, x)
}

/// Queries over K and V of this layer, which are kept, or over those of an earlier one.
fn attention(
    b: &mut Builder,
    layer: usize,
    x: Value,
    (a, rope): (&Attention, Rope),
    shared: Option<Cached>,
    caches: &mut Vec<Cached>,
) -> Result<Value, Error> {
    let label = |part: &str| format!("blk.{layer}.{part}");
    let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
    let (q, own) = match shared {
        Some(cached) => {
            if (cached.shape.head_dim, cached.shape.window) != (a.head_dim, a.window) {
                let why = "reads the cache of a layer of another kind".into();
                return Err(Error::Model {
                    what: label("attn"),
                    why,
                });
            }
            // Some converters keep what is not used.
            for part in ["attn_k.weight", "attn_v.weight", "attn_k_norm.weight"] {
                b.ignore(label(part));
            }
            (b.linear(&label("attn_q"), x, q, false)?, None)
        }
        None if b.has(&label("attn_qkv.weight")) || b.has(&label("attn_v.weight")) => {
            let [q, k, v] = b.qkv(layer, x, [q, kv, kv], false)?;
            (q, Some((k, v)))
        }
        None => {
            let q = b.linear(&label("attn_q"), x, q, false)?;
            let k = b.linear(&label("attn_k"), x, kv, false)?;
            (q, Some((k, k)))
        }
    };
    let q = b.head_norm(&label("attn_q_norm"), q, a.heads)?;
    let q = b.rotate(&label("attn_q_rope"), q, a.heads, &rope)?;
    let cached = match (own, shared) {
        (None, Some(cached)) => cached,
        (None, None) => return Err(Error::Internal(format!("{}: no keys", label("attn")))),
        (Some((k, v)), _) => {
            let ones = b.ones(a.head_dim);
            // Both norms may read the same rows: the one that may not work in place comes first.
            let v = b.norm_heads(&label("attn_v_norm"), v, a.kv_heads, ones)?;
            let k = b.head_norm(&label("attn_k_norm"), k, a.kv_heads)?;
            let k = b.rotate(&label("attn_k_rope"), k, a.kv_heads, &rope)?;
            let cached = b.cache(layer, a, k, v)?;
            caches.push(cached);
            cached
        }
    };
    b.attend(layer, q, a, &cached)
}

/// Layers that keep K and V of their own.
fn kept_layers(b: &Builder) -> Result<usize, Error> {
    const KEY: &str = "attention.shared_kv_layers";
    let shared = b.metadata.gguf.u32(&b.metadata.key(KEY))?.unwrap_or(0) as usize;
    let layers = b.hparams.layers;
    match layers.checked_sub(shared) {
        Some(kept) if shared == 0 || kept >= 2 => Ok(kept),
        _ => {
            let why = format!("{shared} of {layers} layers leave no two to share");
            Err(b.metadata.wrong(KEY, &why))
        }
    }
}

/// Layers without a window: metadata's base and scaling, with factors that stop some pairs from turning.
fn global_rope(b: &mut Builder) -> Result<Rope, Error> {
    let spec = b.rope_spec(RopeStyle::Neox)?;
    let factors = b.frequency_factors(FACTORS, spec.shape.rot_dim / 2)?;
    b.rope("", &RopeSpec { factors, ..spec })
}

/// Layers with a window: head size, rotated elements and base of their own.
fn local_rope(b: &mut Builder) -> Result<Rope, Error> {
    let spec = b.rope_spec(RopeStyle::Neox)?;
    let head_dim = b.metadata.size("attention.key_length_swa")?;
    let value_dim = b.metadata.size("attention.value_length_swa")?;
    if value_dim != head_dim {
        let why = format!("{value_dim} differs from the key length {head_dim}");
        return Err(b.metadata.wrong("attention.value_length_swa", &why));
    }
    let rot_dim = b.metadata.optional_size("rope.dimension_count_swa")?;
    let rot_dim = rot_dim.unwrap_or(spec.shape.rot_dim);
    check_head(b.metadata, head_dim, rot_dim)?;
    let shape = RopeShape {
        head_dim,
        rot_dim,
        ..spec.shape
    };
    let base = b.rope_base("rope.freq_base_swa")?.unwrap_or(10_000.0);
    let scaling = Scaling::None;
    let local = RopeSpec {
        shape,
        base,
        scaling,
        ..spec
    };
    b.rope(".swa", &local)
}
