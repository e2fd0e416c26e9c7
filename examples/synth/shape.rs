//! Dimensions of published models, and which type a quantiser gives each of their tensors.

use coldpress_kernels::tensor_type::TensorType;

/// Dimensions of a published model.
pub struct Shape {
    pub name: &'static str,
    pub architecture: &'static str,
    pub layers: usize,
    pub hidden: u64,
    pub ffn: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub head: u64,
    pub vocab: usize,
    pub context: u32,
    pub rope_base: f32,
    pub eps: f32,
    /// Whether the output is the embedding.
    pub tied: bool,
    /// Experts in place of every feed-forward network.
    pub experts: Option<Experts>,
    /// Frequency factors of Llama 3: the factor of slow frequencies.
    pub rope_factor: Option<f32>,
    /// What Gemma 4's E models have besides; `head` is that of layers with a window.
    pub gemma: Option<Gemma>,
    /// Gated delta nets in place of most attention.
    pub recurrent: Option<Recurrent>,
}

/// Dimensions of Gemma 4's E models.
pub struct Gemma {
    /// Every how many layers one sees all of a sequence, and its head size.
    pub every: usize,
    pub global_head: u64,
    pub window: u32,
    pub window_rope_base: f32,
    /// Layers with K and V of their own, the first ones.
    pub own_kv: usize,
    /// Width of a layer's own embedding of a token.
    pub per_layer: u64,
    pub softcap: f32,
}

impl Shape {
    /// Whether a layer sees a window of a sequence.
    pub fn windowed(&self, layer: usize) -> bool {
        matches!(&self.gemma, Some(gemma) if !(layer + 1).is_multiple_of(gemma.every))
    }

    fn head_of(&self, layer: usize) -> u64 {
        match &self.gemma {
            Some(gemma) if !self.windowed(layer) => gemma.global_head,
            _ => self.head,
        }
    }

    fn owns_kv(&self, layer: usize) -> bool {
        self.gemma.as_ref().is_none_or(|gemma| layer < gemma.own_kv)
    }
}

impl Shape {
    /// The gated delta net that `layer` is, if it is one.
    pub fn recurrent_layer(&self, layer: usize) -> Option<&Recurrent> {
        self.recurrent.as_ref().filter(|r| r.is_recurrent(layer))
    }
}

/// Dimensions of gated delta nets; keys and values have equal heads.
pub struct Recurrent {
    /// Every how many layers one attends.
    pub interval: usize,
    pub key_heads: u64,
    pub heads: u64,
    pub head: u64,
    pub taps: u64,
    /// Elements of an attention head that rotate.
    pub rotated: u64,
}

impl Recurrent {
    /// Elements of the queries, keys and values of a row.
    pub fn width(&self) -> u64 {
        (2 * self.key_heads + self.heads) * self.head
    }

    /// Whether `layer` is a gated delta net.
    pub fn is_recurrent(&self, layer: usize) -> bool {
        !(layer + 1).is_multiple_of(self.interval)
    }
}

/// Dimensions of a mixture of experts.
pub struct Experts {
    pub count: u64,
    pub used: u64,
    pub ffn: u64,
}

pub const SHAPES: &[Shape] = &[
    Shape {
        name: "qwen3-0.6b",
        architecture: "qwen3",
        layers: 28,
        hidden: 1024,
        ffn: 3072,
        heads: 16,
        kv_heads: 8,
        head: 128,
        vocab: 151_936,
        context: 40_960,
        rope_base: 1e6,
        eps: 1e-6,
        tied: true,
        experts: None,
        rope_factor: None,
        gemma: None,
        recurrent: None,
    },
    Shape {
        name: "qwen3-8b",
        architecture: "qwen3",
        layers: 36,
        hidden: 4096,
        ffn: 12_288,
        heads: 32,
        kv_heads: 8,
        head: 128,
        vocab: 151_936,
        context: 40_960,
        rope_base: 1e6,
        eps: 1e-6,
        tied: false,
        experts: None,
        rope_factor: None,
        gemma: None,
        recurrent: None,
    },
    Shape {
        name: "qwen3-30b-a3b",
        architecture: "qwen3moe",
        layers: 48,
        hidden: 2048,
        ffn: 6144,
        heads: 32,
        kv_heads: 4,
        head: 128,
        vocab: 151_936,
        context: 40_960,
        rope_base: 1e6,
        eps: 1e-6,
        tied: false,
        experts: Some(Experts {
            count: 128,
            used: 8,
            ffn: 768,
        }),
        rope_factor: None,
        gemma: None,
        recurrent: None,
    },
    Shape {
        name: "llama-3.1-8b",
        architecture: "llama",
        layers: 32,
        hidden: 4096,
        ffn: 14_336,
        heads: 32,
        kv_heads: 8,
        head: 128,
        vocab: 128_256,
        context: 131_072,
        rope_base: 5e5,
        eps: 1e-5,
        tied: false,
        experts: None,
        rope_factor: Some(8.0),
        gemma: None,
        recurrent: None,
    },
    Shape {
        name: "llama-1b",
        architecture: "llama",
        layers: 16,
        hidden: 2048,
        ffn: 8192,
        heads: 32,
        kv_heads: 8,
        head: 64,
        vocab: 128_256,
        context: 131_072,
        rope_base: 5e5,
        eps: 1e-5,
        tied: true,
        experts: None,
        rope_factor: Some(32.0),
        gemma: None,
        recurrent: None,
    },
    Shape {
        name: "gemma4-e4b",
        architecture: "gemma4",
        layers: 42,
        hidden: 2560,
        ffn: 10_240,
        heads: 8,
        kv_heads: 2,
        head: 256,
        vocab: 262_144,
        context: 131_072,
        rope_base: 1e6,
        eps: 1e-6,
        tied: true,
        experts: None,
        rope_factor: None,
        gemma: Some(Gemma {
            every: 6,
            global_head: 512,
            window: 512,
            window_rope_base: 1e4,
            own_kv: 24,
            per_layer: 256,
            softcap: 30.0,
        }),
        recurrent: None,
    },
    Shape {
        name: "qwen3.5-0.8b",
        architecture: "qwen35",
        layers: 24,
        hidden: 1024,
        ffn: 3584,
        heads: 8,
        kv_heads: 2,
        head: 256,
        vocab: 248_320,
        context: 262_144,
        rope_base: 1e7,
        eps: 1e-6,
        tied: true,
        experts: None,
        rope_factor: None,
        gemma: None,
        recurrent: Some(Recurrent {
            interval: 4,
            key_heads: 16,
            heads: 16,
            head: 128,
            taps: 4,
            rotated: 64,
        }),
    },
];

/// What a quantiser makes of a matrix.
#[derive(Clone, Copy)]
pub enum Mix {
    /// One type for all; the output in another.
    Plain(TensorType, TensorType),
    /// llama.cpp's `Q4_K_M`.
    Q4KM,
}

pub const MIXES: &[(&str, Mix)] = &[
    ("q4_k_m", Mix::Q4KM),
    ("q8_0", Mix::Plain(TensorType::Q8_0, TensorType::Q8_0)),
    ("q4_0", Mix::Plain(TensorType::Q4_0, TensorType::Q6_K)),
    ("q6_k", Mix::Plain(TensorType::Q6_K, TensorType::Q6_K)),
    ("f16", Mix::Plain(TensorType::F16, TensorType::F16)),
];

/// Roles that quantisers tell apart.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Output,
    Embedding,
    AttentionV,
    FfnDown,
    /// Those that quantisers leave as they are.
    Router,
    PerLayer,
    PerLayerProjection,
    Convolution,
    Other,
}

impl Mix {
    /// The type of a matrix of `layer` among `layers`, as `llama_tensor_get_type` of llama.cpp decides.
    fn ty(self, role: Role, layer: usize, layers: usize) -> TensorType {
        let (all, output) = match self {
            Mix::Plain(all, output) => (all, output),
            Mix::Q4KM => (TensorType::Q4_K, TensorType::Q6_K),
        };
        let eighth = layers / 8;
        let more_bits = layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2;
        let sensitive = matches!(role, Role::AttentionV | Role::FfnDown);
        match (self, role) {
            (_, Role::Output) => output,
            (Mix::Q4KM, _) if sensitive && more_bits => TensorType::Q6_K,
            _ => all,
        }
    }
}

/// One tensor: what it is called, and how its values are made.
pub struct Tensor {
    pub name: String,
    pub ty: TensorType,
    pub dims: Vec<u64>,
    pub values: Values,
}

/// How the values of a tensor are made.
pub enum Values {
    /// Random, with this standard deviation.
    Random(f32),
    Given(Vec<f32>),
}

/// The tensors of the first `layers` layers, and what is before and behind them.
pub fn tensors(shape: &Shape, mix: Mix, layers: usize) -> Vec<Tensor> {
    let mut all = Vec::new();
    let mut matrix = |name: String, role, layer, n: u64, k: u64| {
        let experts = shape.experts.as_ref().filter(|_| name.contains("_exps"));
        all.push(Tensor {
            name,
            ty: match role {
                Role::Router | Role::PerLayer | Role::Convolution => TensorType::F32,
                Role::PerLayerProjection => TensorType::F16,
                role => mix.ty(role, layer, shape.layers),
            },
            dims: [k, n].into_iter().chain(experts.map(|e| e.count)).collect(),
            values: Values::Random(1.0 / (k as f32).sqrt()),
        });
    };
    let (hidden, ffn, vocab) = (shape.hidden, shape.ffn, shape.vocab as u64);
    // llama.cpp takes a shared embedding for the output that it is.
    let embedding = match shape.tied {
        true => Role::Output,
        false => Role::Embedding,
    };
    matrix("token_embd.weight".into(), embedding, 0, vocab, hidden);
    if !shape.tied {
        matrix("output.weight".into(), Role::Output, 0, vocab, hidden);
    }
    if let Some(Gemma { per_layer, .. }) = shape.gemma {
        let all = per_layer * layers as u64;
        let (table, projection) = ("per_layer_token_embd.weight", "per_layer_model_proj.weight");
        matrix(table.into(), Role::Embedding, 0, vocab, all);
        matrix(projection.into(), Role::PerLayerProjection, 0, all, hidden);
        for i in 0..layers {
            for (name, n, k) in [("inp_gate", per_layer, hidden), ("proj", hidden, per_layer)] {
                matrix(format!("blk.{i}.{name}.weight"), Role::PerLayer, i, n, k);
            }
        }
    }
    for i in 0..layers {
        let head = shape.head_of(i);
        let (q, kv) = (shape.heads * head, shape.kv_heads * head);
        // Where some layers are recurrent, the others have gates beside their queries.
        let gates = if shape.recurrent.is_some() { q } else { 0 };
        let own = [
            ("attn_k", Role::Other, kv, hidden),
            ("attn_v", Role::AttentionV, kv, hidden),
        ];
        let own = own.into_iter().filter(|_| shape.owns_kv(i));
        let others = [
            ("attn_q", Role::Other, q + gates, hidden),
            ("attn_output", Role::Other, hidden, q),
        ];
        let mixers = match shape.recurrent_layer(i) {
            None => others.into_iter().chain(own).collect(),
            Some(r) => vec![
                ("attn_qkv", Role::Other, r.width(), hidden),
                ("attn_gate", Role::Other, r.heads * r.head, hidden),
                ("ssm_alpha", Role::Other, r.heads, hidden),
                ("ssm_beta", Role::Other, r.heads, hidden),
                ("ssm_out", Role::Other, hidden, r.heads * r.head),
                ("ssm_conv1d", Role::Convolution, r.width(), r.taps),
            ],
        };
        for (name, role, n, k) in mixers {
            matrix(format!("blk.{i}.{name}.weight"), role, i, n, k);
        }
        let (suffix, ffn) = match &shape.experts {
            Some(experts) => ("_exps", experts.ffn),
            None => ("", ffn),
        };
        for (name, role, n, k) in [
            ("ffn_gate", Role::Other, ffn, hidden),
            ("ffn_up", Role::Other, ffn, hidden),
            ("ffn_down", Role::FfnDown, hidden, ffn),
        ] {
            matrix(format!("blk.{i}.{name}{suffix}.weight"), role, i, n, k);
        }
        if let Some(experts) = &shape.experts {
            let name = format!("blk.{i}.ffn_gate_inp.weight");
            matrix(name, Role::Router, i, experts.count, hidden);
        }
    }
    let mut vector = |name: String, values: Vec<f32>| {
        all.push(Tensor {
            name,
            ty: TensorType::F32,
            dims: vec![values.len() as u64],
            values: Values::Given(values),
        });
    };
    let ones = |n: u64| vec![1.0; n as usize];
    vector("output_norm.weight".into(), ones(hidden));
    for i in 0..layers {
        vector(format!("blk.{i}.attn_norm.weight"), ones(hidden));
        let second = match shape.recurrent {
            Some(_) => "post_attention_norm",
            None => "ffn_norm",
        };
        vector(format!("blk.{i}.{second}.weight"), ones(hidden));
        if let Some(r) = shape.recurrent_layer(i) {
            // Decays of 0.5 to 0.99 for what alpha adds nothing to.
            let decays = (0..r.heads).map(|head| -(head as f32 + 0.2) / r.heads as f32);
            vector(format!("blk.{i}.ssm_a"), decays.collect());
            vector(format!("blk.{i}.ssm_dt.bias"), vec![0.0; r.heads as usize]);
            vector(format!("blk.{i}.ssm_norm.weight"), ones(r.head));
        } else if shape.architecture.starts_with("qwen3") || shape.gemma.is_some() {
            let head = shape.head_of(i);
            vector(format!("blk.{i}.attn_q_norm.weight"), ones(head));
            if shape.owns_kv(i) {
                vector(format!("blk.{i}.attn_k_norm.weight"), ones(head));
            }
        }
        if shape.gemma.is_some() {
            for name in ["post_attention_norm", "post_ffw_norm", "post_norm"] {
                vector(format!("blk.{i}.{name}.weight"), ones(hidden));
            }
            vector(format!("blk.{i}.layer_output_scale.weight"), ones(1));
        }
    }
    if let Some(gemma) = &shape.gemma {
        vector("per_layer_proj_norm.weight".into(), ones(gemma.per_layer));
        // Of global layers; the published files leave fast frequencies alone.
        vector("rope_freqs.weight".into(), ones(gemma.global_head / 2));
    }
    if let Some(factor) = shape.rope_factor {
        vector("rope_freqs.weight".into(), rope_factors(shape, factor));
    }
    all
}

/// Llama 3's frequency factors, as `convert_hf_to_gguf.py` computes them.
fn rope_factors(shape: &Shape, factor: f32) -> Vec<f32> {
    const ORIGINAL_CONTEXT: f32 = 8192.0;
    const LOW: f32 = 1.0;
    const HIGH: f32 = 4.0;
    let factors = (0..shape.head / 2).map(|pair| {
        let exponent = 2.0 * pair as f32 / shape.head as f32;
        let wavelength = 2.0 * std::f32::consts::PI * shape.rope_base.powf(exponent);
        let smooth = (ORIGINAL_CONTEXT / wavelength - LOW) / (HIGH - LOW);
        match wavelength {
            w if w < ORIGINAL_CONTEXT / HIGH => 1.0,
            w if w > ORIGINAL_CONTEXT / LOW => factor,
            _ => 1.0 / ((1.0 - smooth) / factor + smooth),
        }
    });
    factors.collect()
}
