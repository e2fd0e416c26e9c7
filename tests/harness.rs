//! Shared ground of the integration tests: fixtures, temporary folders, random models, running the commands.

use coldpress_compiler::gguf::{Array, Gguf, GgufWriter, Value};
use coldpress_compiler::model;
use coldpress_kernels::tensor_type::TensorType;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The fixtures folder; `None` (after saying so) when it is absent, except in CI where that is a failure.
pub fn fixtures() -> Option<PathBuf> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/fixtures");
    let path =
        PathBuf::from(std::env::var_os("COLDPRESS_FIXTURES").unwrap_or_else(|| default.into()));
    if path.is_dir() {
        return Some(path);
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "fixtures not found at {}",
        path.display()
    );
    eprintln!("skipped: fixtures not found at {}", path.display());
    None
}

/// One entry of the fixtures' index.
#[derive(serde::Deserialize)]
pub struct Fixture {
    pub name: String,
    pub file: String,
    pub arch: String,
    pub quant: String,
    pub tokens: Vec<u32>,
    pub logits: String,
    pub logits_std: f64,
    pub greedy: Vec<u32>,
    pub greedy_margin: Vec<f64>,
    pub native_nmse: f64,
}

#[derive(serde::Deserialize)]
struct Index {
    models: Vec<Fixture>,
}

/// Every fixture of the index.
pub fn index(fixtures: &Path) -> Vec<Fixture> {
    let text = std::fs::read_to_string(fixtures.join("index.json")).expect("index.json");
    serde_json::from_str::<Index>(&text)
        .expect("index.json parses")
        .models
}

/// Raw little-endian f32.
pub fn read_f32(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).expect("golden logits");
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

/// sum((x - ref)^2) / sum(ref^2), in f64.
pub fn nmse(x: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(x.len(), reference.len());
    let square = |v: f64| v * v;
    let error: f64 = x
        .iter()
        .zip(reference)
        .map(|(&a, &b)| square(f64::from(a) - f64::from(b)))
        .sum();
    let norm: f64 = reference.iter().map(|&b| square(f64::from(b))).sum();
    error / norm
}

/// `coldpress` with these arguments.
pub fn coldpress(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_coldpress"))
        .args(args)
        .output()
        .expect("coldpress starts")
}

/// Standard output of a command that must succeed.
pub fn succeed(args: &[&str]) -> String {
    let out = coldpress(args);
    let (stdout, stderr) = (
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr),
    );
    assert!(
        out.status.success(),
        "coldpress {args:?} failed ({:?}):\n{stderr}",
        out.status.code()
    );
    stdout.into_owned()
}

/// Asserts that a command fails with `code` and one `error:` line that contains every `says`.
pub fn fail(args: &[&str], code: i32, says: &[&str]) {
    let out = coldpress(args);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(
        out.status.code(),
        Some(code),
        "coldpress {args:?}:\n{stderr}"
    );
    let errors: Vec<&str> = stderr.lines().filter(|l| l.starts_with("error:")).collect();
    assert_eq!(
        errors.len(),
        1,
        "coldpress {args:?} prints one error line:\n{stderr}"
    );
    for word in says {
        assert!(
            stderr.contains(word),
            "coldpress {args:?} should mention {word:?}:\n{stderr}"
        );
    }
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

/// An `.npy` file of f32: shape and values.
pub fn read_npy(path: &Path) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(path).expect("npy file");
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let length = u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
    let header = std::str::from_utf8(&bytes[10..10 + length]).expect("npy header");
    assert!(
        header.contains("'<f4'") && header.contains("'fortran_order': False"),
        "{header}"
    );
    let shape = header
        .split("'shape': (")
        .nth(1)
        .and_then(|s| s.split(')').next())
        .expect("shape");
    let shape: Vec<usize> = shape
        .split(',')
        .filter_map(|d| d.trim().parse().ok())
        .collect();
    let values: Vec<f32> = bytes[10 + length..]
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    assert_eq!(values.len(), shape.iter().product::<usize>());
    (shape, values)
}

/// Shape of a random model.
#[derive(Clone, Debug)]
pub struct Shape {
    pub arch: &'static str,
    pub layers: usize,
    pub hidden: usize,
    pub ffn: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub tied: bool,
    /// Type of each matrix, by a hash of its name: mixed files are the rule.
    pub types: Vec<TensorType>,
    /// Query and key/value heads of each layer where they differ; empty: all as above.
    pub layer_heads: Vec<(usize, usize)>,
    /// Experts, and how many of them a row uses.
    pub experts: Option<(usize, usize)>,
    /// Further metadata; wins over what the shape says.
    pub extra: Vec<(String, Value)>,
}

impl Shape {
    /// A small qwen3 in F16.
    pub fn small() -> Shape {
        Shape {
            arch: "qwen3",
            layers: 2,
            hidden: 64,
            ffn: 96,
            heads: 4,
            kv_heads: 2,
            head_dim: 32,
            vocab: 300,
            tied: true,
            types: vec![TensorType::F16],
            layer_heads: vec![],
            experts: None,
            extra: vec![],
        }
    }

    /// Writes a model of this shape with random weights that depend only on `seed`.
    pub fn write(&self, path: &Path, seed: u64) {
        self.writer(seed).write(path).expect("model written");
    }

    /// The model, before writing: tests damage it in their own ways.
    pub fn writer(&self, seed: u64) -> GgufWriter<'static> {
        let mut random = Random(seed);
        let mut w = GgufWriter::new();
        self.metadata(&mut w);
        if self.experts.is_some() || !["llama", "qwen2", "qwen3"].contains(&self.arch) {
            for (name, dims) in self.asked_for() {
                self.any(&mut w, &mut random, &name, &dims);
            }
            if let ("llama", Some((count, _))) = (self.arch, self.experts) {
                for layer in 0..self.layers {
                    for s in ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"] {
                        let name = format!("blk.{layer}.{s}.scale");
                        vector(&mut w, &mut random, &name, count, 1.0);
                    }
                }
            }
            return w;
        }
        self.matrix(
            &mut w,
            &mut random,
            "token_embd.weight",
            self.vocab,
            self.hidden,
        );
        if !self.tied {
            self.matrix(
                &mut w,
                &mut random,
                "output.weight",
                self.vocab,
                self.hidden,
            );
        }
        vector(&mut w, &mut random, "output_norm.weight", self.hidden, 1.0);
        for layer in 0..self.layers {
            let name = |s: &str| format!("blk.{layer}.{s}.weight");
            let heads = self.layer_heads.get(layer).copied();
            let (heads, kv_heads) = heads.unwrap_or((self.heads, self.kv_heads));
            let (q, kv) = (heads * self.head_dim, kv_heads * self.head_dim);
            vector(&mut w, &mut random, &name("attn_norm"), self.hidden, 1.0);
            vector(&mut w, &mut random, &name("ffn_norm"), self.hidden, 1.0);
            if self.arch == "qwen3" {
                vector(
                    &mut w,
                    &mut random,
                    &name("attn_q_norm"),
                    self.head_dim,
                    1.0,
                );
                vector(
                    &mut w,
                    &mut random,
                    &name("attn_k_norm"),
                    self.head_dim,
                    1.0,
                );
            }
            if self.arch == "qwen2" {
                for (s, n) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
                    vector(
                        &mut w,
                        &mut random,
                        &format!("blk.{layer}.{s}.bias"),
                        n,
                        0.0,
                    );
                }
            }
            for (s, n, k) in [
                ("attn_q", q, self.hidden),
                ("attn_k", kv, self.hidden),
                ("attn_v", kv, self.hidden),
                ("attn_output", self.hidden, q),
                ("ffn_gate", self.ffn, self.hidden),
                ("ffn_up", self.ffn, self.hidden),
                ("ffn_down", self.hidden, self.ffn),
            ] {
                self.matrix(&mut w, &mut random, &name(s), n, k);
            }
        }
        w
    }

    fn metadata(&self, w: &mut GgufWriter<'static>) {
        w.add("general.architecture", Value::Str(self.arch.into()));
        w.add("general.name", Value::Str("random".into()));
        let key = |k: &str| format!("{}.{k}", self.arch);
        for (k, v) in [
            ("block_count", self.layers),
            ("context_length", 512),
            ("embedding_length", self.hidden),
            ("feed_forward_length", self.ffn),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("rope.dimension_count", self.head_dim),
        ] {
            if !self.extra.iter().any(|(name, _)| *name == key(k)) {
                w.add(key(k), Value::U32(v as u32));
            }
        }
        if let Some((count, used)) = self.experts {
            w.add(key("expert_count"), Value::U32(count as u32));
            w.add(key("expert_used_count"), Value::U32(used as u32));
            let width = Value::U32(self.ffn as u32);
            w.add(key("expert_feed_forward_length"), width);
        }
        w.add(key("rope.freq_base"), Value::F32(10000.0));
        w.add(key("attention.layer_norm_rms_epsilon"), Value::F32(1e-5));
        for (k, v) in &self.extra {
            w.add(k.clone(), v.clone());
        }
        vocabulary(w, self.vocab);
    }

    /// Names and dimensions of the tensors that the architecture asks for, row length first.
    fn asked_for(&self) -> Vec<(String, Vec<usize>)> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut tensors = vec![
            (
                "token_embd.weight".to_string(),
                vec![self.hidden, self.vocab],
            ),
            ("output_norm.weight".to_string(), vec![self.hidden]),
        ];
        // So many that the file may have its layers.
        let mut unread: Vec<_> = (0..self.layers).map(|i| format!("unread.{i}")).collect();
        loop {
            let mut w = GgufWriter::new();
            self.metadata(&mut w);
            for (name, dims) in &tensors {
                let dims: Vec<u64> = dims.iter().map(|&d| d as u64).collect();
                let bytes = 4 * dims.iter().product::<u64>() as usize;
                w.tensor(name.clone(), TensorType::F32, &dims, vec![0; bytes]);
            }
            for name in &unread {
                w.tensor(name.clone(), TensorType::F32, &[1], vec![0; 4]);
            }
            w.write(file.path()).expect("written");
            let error = match model::build(&Gguf::open(file.path()).expect("opens")) {
                Ok(_) => return tensors,
                Err(error) => error.to_string(),
            };
            let (name, why) = error.split_once(": ").expect("a cause");
            if let Some(dims) = why.strip_prefix("missing: expected ") {
                tensors.push((name.into(), serde_json::from_str(dims).expect("dimensions")));
            } else if name.starts_with("unread.") {
                unread.clear();
            } else {
                panic!("{} asks for more than `own_keys` has: {error}", self.arch);
            }
        }
    }

    fn matrix(
        &self,
        w: &mut GgufWriter<'static>,
        random: &mut Random,
        name: &str,
        n: usize,
        k: usize,
    ) {
        self.tensor(w, random, name, &[k, n]);
    }

    /// A tensor of whatever kind its name says.
    fn any(&self, w: &mut GgufWriter<'static>, random: &mut Random, name: &str, dims: &[usize]) {
        let around_zero = [".bias", "sinks.weight", "shexp.weight"];
        let around_zero = around_zero.iter().any(|ending| name.ends_with(ending));
        if dims.len() == 1 || name.ends_with(".bias") {
            let (mean, size) = match (around_zero, self.arch) {
                // So large that clamps bind.
                (true, "gpt-oss") => (0.0, 2.0),
                (true, _) => (0.0, 0.2),
                // Some states fade slowly and some fast.
                (false, _) if name.ends_with("ssm_a") => (-0.5, 0.45),
                (false, _) => (1.0, 0.2),
            };
            let bytes: Vec<u8> = (0..dims.iter().product::<usize>())
                .flat_map(|_| (mean + size * random.uniform()).to_le_bytes())
                .collect();
            let dims: Vec<u64> = dims.iter().map(|&d| d as u64).collect();
            w.tensor(name, TensorType::F32, &dims, bytes);
        } else if name.ends_with("ffn_gate_inp.weight") || name.ends_with("ssm_conv1d.weight") {
            let bytes = random_weights(random, TensorType::F32, dims[1], dims[0]);
            w.tensor(
                name,
                TensorType::F32,
                &[dims[0] as u64, dims[1] as u64],
                bytes,
            );
        } else {
            self.tensor(w, random, name, dims);
        }
    }

    /// A matrix, or several in one tensor; row length first.
    fn tensor(&self, w: &mut GgufWriter<'static>, random: &mut Random, name: &str, dims: &[usize]) {
        let (k, n) = (dims[0], dims[1..].iter().product());
        let wanted = self.types[random.below(self.types.len())];
        // As quantisers do: a row that the type's quant block does not divide falls back.
        let ty = [wanted, TensorType::Q8_0, TensorType::F16]
            .into_iter()
            .find(|t| (k as u64).is_multiple_of(t.block_len()))
            .expect("F16 takes any row");
        let bytes = random_weights(random, ty, n, k);
        let dims: Vec<u64> = dims.iter().map(|&d| d as u64).collect();
        w.tensor(name, ty, &dims, bytes);
    }
}

/// Writes the model at `apart` again with gate and value of each layer's experts in one tensor; how many layers.
pub fn join_halves(apart: &Path, joined: &Path) -> usize {
    let gguf = Gguf::open(apart).expect("opens");
    let mut w = GgufWriter::new();
    for (key, value) in gguf.keys() {
        w.add(key, value.clone());
    }
    let mut pairs = 0;
    for t in gguf.tensors() {
        if t.name.ends_with("ffn_up_exps.weight") {
            continue;
        }
        let Some(label) = t.name.strip_suffix("ffn_gate_exps.weight") else {
            w.tensor(t.name.clone(), t.ty, &t.dims, gguf.data(t).to_vec());
            continue;
        };
        let up = gguf.tensor(&format!("{label}ffn_up_exps.weight"));
        let (gate, up) = (gguf.data(t), gguf.data(up.expect("its other half")));
        let expert = gate.len() / t.dims[2] as usize;
        let halves = gate.chunks(expert).zip(up.chunks(expert));
        let bytes: Vec<u8> = halves.flat_map(|(gate, up)| [gate, up].concat()).collect();
        let dims = [t.dims[0], 2 * t.dims[1], t.dims[2]];
        w.tensor(
            format!("{label}ffn_gate_up_exps.weight"),
            t.ty,
            &dims,
            bytes,
        );
        pairs += 1;
    }
    w.write(joined).expect("written");
    pairs
}

/// Metadata that makes a small model of an architecture show what it has of its own: windows, bases, scales, and keys
/// without which it is no model. Head size 32.
pub fn own_keys(arch: &str) -> Vec<(String, Value)> {
    let windowed = |window: u32| {
        vec![
            ("attention.sliding_window", Value::U32(window)),
            ("attention.sliding_window_pattern", Value::U32(3)),
            ("rope.freq_base_swa", Value::F32(1000.0)),
            ("rope.scaling.factor", Value::F32(4.0)),
        ]
    };
    let mut keys = match arch {
        "gemma2" | "gemma3" | "olmo2" => windowed(7),
        "gemma4" => windowed(7),
        "gpt-oss" => vec![("attention.sliding_window", Value::U32(7))],
        "qwen2vl" | "qwen3vl" | "qwen3vlmoe" | "qwen35" | "qwen35moe" | "hunyuan-dense"
        | "glm4" => vec![(
            "rope.dimension_sections",
            Value::Array(Array::I32(vec![4, 6, 4, 2])),
        )],
        "granite" => vec![
            ("logit_scale", Value::F32(8.0)),
            ("residual_scale", Value::F32(0.5)),
            ("embedding_scale", Value::F32(3.0)),
            ("attention.scale", Value::F32(0.125)),
        ],
        "mistral3" => vec![
            ("rope.scaling.type", Value::Str("yarn".into())),
            ("rope.scaling.factor", Value::F32(8.0)),
            ("rope.scaling.original_context_length", Value::U32(512)),
            ("rope.scaling.yarn_beta_fast", Value::F32(4.0)),
            ("rope.scaling.yarn_log_multiplier", Value::F32(1.0)),
        ],
        _ => vec![],
    };
    if ["qwen35", "qwen35moe", "qwen3next"].contains(&arch) {
        keys.extend([
            ("full_attention_interval", Value::U32(3)),
            ("ssm.conv_kernel", Value::U32(4)),
            ("ssm.inner_size", Value::U32(4 * 32)),
            ("ssm.state_size", Value::U32(32)),
            ("ssm.time_step_rank", Value::U32(4)),
            ("ssm.group_count", Value::U32(2)),
            ("rope.dimension_count", Value::U32(16)),
        ]);
    }
    if arch == "gemma4" {
        keys.extend([
            ("attention.key_length_swa", Value::U32(16)),
            ("attention.value_length_swa", Value::U32(16)),
            ("rope.dimension_count_swa", Value::U32(16)),
            ("embedding_length_per_layer_input", Value::U32(32)),
            ("attention.shared_kv_layers", Value::U32(3)),
            ("final_logit_softcapping", Value::F32(2.0)),
        ]);
    }
    let full = |(key, value)| (format!("{arch}.{key}"), value);
    keys.into_iter().map(full).collect()
}

/// A byte-level BPE vocabulary without merges: the 256 bytes, then padding tokens and an end.
fn vocabulary(w: &mut GgufWriter<'static>, vocab: usize) {
    let mut tokens: Vec<String> = byte_characters();
    while tokens.len() < vocab {
        tokens.push(format!("[PAD{}]", tokens.len()));
    }
    tokens.truncate(vocab);
    let kinds: Vec<i32> = (0..vocab).map(|i| if i < 256 { 1 } else { 3 }).collect();
    w.add("tokenizer.ggml.model", Value::Str("gpt2".into()));
    w.add("tokenizer.ggml.pre", Value::Str("gpt-2".into()));
    w.add("tokenizer.ggml.tokens", Value::Array(Array::Str(tokens)));
    w.add("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds)));
    w.add("tokenizer.ggml.merges", Value::Array(Array::Str(vec![])));
    w.add(
        "tokenizer.ggml.eos_token_id",
        Value::U32(vocab.min(257) as u32 - 1),
    );
}

/// GPT-2's printable stand-in for each byte (as in its `bytes_to_unicode`).
fn byte_characters() -> Vec<String> {
    let printable =
        |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 256;
    (0..256u32)
        .map(|b| {
            let code = if printable(b) {
                b
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code)
                .expect("below the surrogates")
                .to_string()
        })
        .collect()
}

fn vector(w: &mut GgufWriter<'static>, random: &mut Random, name: &str, n: usize, mean: f32) {
    let bytes: Vec<u8> = (0..n)
        .flat_map(|_| (mean + 0.2 * random.uniform()).to_le_bytes())
        .collect();
    w.tensor(name, TensorType::F32, &[n as u64], bytes);
}

/// Random bytes of a quantised matrix with scales that keep activations sane: quants are uniform, so a format's own
/// scale fields decide the size of its weights.
fn random_weights(random: &mut Random, ty: TensorType, n: usize, k: usize) -> Vec<u8> {
    let size = 1.0 / (k as f32).sqrt();
    let half = |x: f32| half::f16::from_f32(x).to_le_bytes();
    let mut out = Vec::new();
    match ty {
        TensorType::F32 => {
            (0..n * k).for_each(|_| out.extend((1.7 * size * random.uniform()).to_le_bytes()))
        }
        TensorType::F16 => (0..n * k).for_each(|_| out.extend(half(1.7 * size * random.uniform()))),
        TensorType::BF16 => (0..n * k).for_each(|_| {
            out.extend(half::bf16::from_f32(1.7 * size * random.uniform()).to_le_bytes())
        }),
        _ => {
            // (offset of each f16 field, its size relative to a weight's), per quant block.
            let fields: &[(usize, f32)] = match ty {
                TensorType::Q8_0 => &[(0, 1.0 / 74.0)],
                TensorType::Q4_0 => &[(0, 1.0 / 4.6)],
                TensorType::Q4_1 => &[(0, 1.0 / 4.6), (2, -1.6)],
                TensorType::Q5_0 => &[(0, 1.0 / 9.2)],
                TensorType::Q5_1 => &[(0, 1.0 / 9.2), (2, -1.6)],
                TensorType::Q4_K => &[(0, 1.0 / 150.0), (2, 1.0 / 20.0)],
                TensorType::Q5_K => &[(0, 1.0 / 300.0), (2, 1.0 / 20.0)],
                TensorType::Q6_K => &[(208, 1.0 / 1400.0)],
                TensorType::Q2_K => &[(80, 1.0 / 14.0), (82, 1.0 / 9.3)],
                TensorType::Q3_K => &[(108, 1.0 / 42.0)],
                TensorType::IQ4_NL => &[(0, 1.0 / 70.0)],
                TensorType::IQ4_XS => &[(0, 1.0 / 1300.0)],
                // No f16: its scale is the exponent in byte 0.
                TensorType::MXFP4 => &[],
                other => panic!("no random weights for {}", other.name()),
            };
            for _ in 0..n * k / ty.block_len() as usize {
                let start = out.len();
                (0..ty.block_bytes()).for_each(|_| out.push(random.next() as u8));
                for &(offset, relative) in fields {
                    let value = size * relative * (1.0 + 0.2 * random.uniform());
                    out[start + offset..start + offset + 2].copy_from_slice(&half(value));
                }
                if ty == TensorType::MXFP4 {
                    let value = size / 5.9 * (1.0 + 0.5 * random.uniform());
                    out[start] = (128.0 + value.log2()).round() as u8;
                }
            }
        }
    }
    out
}

/// xorshift64*: the same numbers everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 24
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// In -1..1.
    pub fn uniform(&mut self) -> f32 {
        (self.next() % 65536) as f32 / 32768.0 - 1.0
    }
}
