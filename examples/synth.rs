//! Writes a GGUF with the shape of a real model and random weights, to time engines on: as many bytes in the same formats,
//! tensor by tensor, as the published file has. Every processor writes a part; memory use does not grow with the file.
//!
//! `cargo run --release -p coldpress-compiler --example synth -- qwen3-0.6b q4_k_m model.gguf`

use std::error::Error;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use coldpress_compiler::gguf::{Array, GgufWriter, Value};
use coldpress_kernels::quant::{self, QuantFormat, Unpacked, dequantise_row};
use coldpress_kernels::tensor_type::TensorType;
use half::f16;

const USAGE: &str = "usage: synth SHAPE MIX OUT.gguf [--layers N] [--seed N]
SHAPE: qwen3-0.6b, qwen3-8b, llama-3.1-8b or llama-1b; MIX: q4_k_m, q8_0, q4_0, q6_k or f16
--layers N: only the first N layers; --seed N: other weights";

/// Dimensions of a published model.
struct Shape {
    name: &'static str,
    architecture: &'static str,
    layers: usize,
    hidden: u64,
    ffn: u64,
    heads: u64,
    kv_heads: u64,
    head: u64,
    vocab: usize,
    context: u32,
    rope_base: f32,
    eps: f32,
    /// Whether the output is the embedding.
    tied: bool,
    /// Frequency factors of Llama 3: the factor of slow frequencies.
    rope_factor: Option<f32>,
}

const SHAPES: &[Shape] = &[
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
        rope_factor: None,
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
        rope_factor: None,
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
        rope_factor: Some(8.0),
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
        rope_factor: Some(32.0),
    },
];

/// What a quantiser makes of a matrix.
#[derive(Clone, Copy)]
enum Mix {
    /// One type for all; the output in another.
    Plain(TensorType, TensorType),
    /// llama.cpp's `Q4_K_M`.
    Q4KM,
}

const MIXES: &[(&str, Mix)] = &[
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
struct Tensor {
    name: String,
    ty: TensorType,
    dims: Vec<u64>,
    values: Values,
}

enum Values {
    /// Random, with this standard deviation.
    Random(f32),
    Given(Vec<f32>),
}

fn tensors(shape: &Shape, mix: Mix, layers: usize) -> Vec<Tensor> {
    let mut all = Vec::new();
    let mut matrix = |name: String, role, layer, n: u64, k: u64| {
        all.push(Tensor {
            name,
            ty: mix.ty(role, layer, shape.layers),
            dims: vec![k, n],
            values: Values::Random(1.0 / (k as f32).sqrt()),
        });
    };
    let (hidden, ffn, vocab) = (shape.hidden, shape.ffn, shape.vocab as u64);
    let (q, kv) = (shape.heads * shape.head, shape.kv_heads * shape.head);
    // llama.cpp takes a shared embedding for the output that it is.
    let embedding = match shape.tied {
        true => Role::Output,
        false => Role::Embedding,
    };
    matrix("token_embd.weight".into(), embedding, 0, vocab, hidden);
    if !shape.tied {
        matrix("output.weight".into(), Role::Output, 0, vocab, hidden);
    }
    for i in 0..layers {
        for (name, role, n, k) in [
            ("attn_q", Role::Other, q, hidden),
            ("attn_k", Role::Other, kv, hidden),
            ("attn_v", Role::AttentionV, kv, hidden),
            ("attn_output", Role::Other, hidden, q),
            ("ffn_gate", Role::Other, ffn, hidden),
            ("ffn_up", Role::Other, ffn, hidden),
            ("ffn_down", Role::FfnDown, hidden, ffn),
        ] {
            matrix(format!("blk.{i}.{name}.weight"), role, i, n, k);
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
        vector(format!("blk.{i}.ffn_norm.weight"), ones(hidden));
        if shape.architecture == "qwen3" {
            vector(format!("blk.{i}.attn_q_norm.weight"), ones(shape.head));
            vector(format!("blk.{i}.attn_k_norm.weight"), ones(shape.head));
        }
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

/// xorshift64*, seeded through splitmix64 so that neighbouring seeds are unrelated.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        let z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((z ^ (z >> 31)) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Makes random weights of one type: random bytes, in which the f16 scales of a quant block are then set so that weights
/// have mean 0 and standard deviation 1 / `unit`. Where they are is found by looking what a format makes of a probe.
struct Recipe {
    ty: TensorType,
    /// Byte offset of the f16 scale, and of the f16 min where there is one.
    scale: Option<usize>,
    min: Option<usize>,
    /// Min for a scale of 1.
    min_per_scale: f32,
    /// Standard deviation with a scale of 1.
    unit: f32,
}

impl Recipe {
    fn new(ty: TensorType) -> Result<Self, Box<dyn Error>> {
        let format = quant::format(ty).ok_or_else(|| format!("{ty} is not supported"))?;
        let mut recipe = Self {
            ty,
            scale: None,
            min: None,
            min_per_scale: 0.0,
            unit: 1.0,
        };
        if ty == TensorType::F16 {
            return Ok(recipe);
        }
        recipe.scale =
            Some(find(format, |u| u.d[0]).ok_or_else(|| format!("{ty} has no f16 scale"))?);
        recipe.min = find(format, |u| u.m[0]).filter(|_| format.layout.min);
        if recipe.min.is_some() {
            let (scaled, _) = recipe.moments(format, 1.0, 0.0);
            let (lowered, _) = recipe.moments(format, 0.0, 1.0);
            recipe.min_per_scale = -scaled / lowered;
        }
        recipe.unit = recipe.moments(format, 1.0, recipe.min_per_scale).1;
        Ok(recipe)
    }

    /// Mean and root mean square of many random weights.
    fn moments(&self, format: &QuantFormat, scale: f32, min: f32) -> (f32, f32) {
        let count = 512;
        let mut bytes = vec![0; count * self.ty.block_bytes() as usize];
        Random::new(7).fill(&mut bytes);
        self.set(&mut bytes, scale, min);
        let mut weights = vec![0.0; count * self.ty.block_len() as usize];
        dequantise_row(format, &bytes, &mut weights);
        let mean = |f: fn(f64) -> f64| {
            let sum: f64 = weights.iter().map(|&w| f(f64::from(w))).sum();
            (sum / weights.len() as f64) as f32
        };
        (mean(|w| w), mean(|w| w * w).sqrt())
    }

    fn set(&self, bytes: &mut [u8], scale: f32, min: f32) {
        let (scale, min) = (f16::from_f32(scale), f16::from_f32(min));
        for bytes in bytes.chunks_exact_mut(self.ty.block_bytes() as usize) {
            for (at, value) in [(self.scale, scale), (self.min, min)] {
                if let Some(at) = at {
                    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
                }
            }
        }
    }

    /// Fills whole quant blocks.
    fn fill(&self, bytes: &mut [u8], deviation: f32, random: &mut Random) {
        random.fill(bytes);
        if self.scale.is_some() {
            let scale = deviation / self.unit;
            return self.set(bytes, scale, scale * self.min_per_scale);
        }
        // f16: 4096 values evenly over a range of this deviation.
        let reach = deviation * 3f32.sqrt();
        let value = |i: u16| f16::from_f32((f32::from(i) / 2047.5 - 1.0) * reach);
        let table: Vec<[u8; 2]> = (0..4096).map(|i| value(i).to_le_bytes()).collect();
        for bytes in bytes.as_chunks_mut::<2>().0 {
            *bytes = table[usize::from(u16::from_le_bytes(*bytes) & 4095)];
        }
    }
}

/// Where in a quant block an f16 is that unpacking leaves as `field`.
fn find(format: &QuantFormat, field: impl Fn(&Unpacked) -> u16) -> Option<usize> {
    const PROBE: u16 = 0x1234;
    let bytes = format.ty.block_bytes() as usize;
    (0..bytes - 1).find(|&at| {
        let mut probe = vec![0; bytes];
        probe[at..at + 2].copy_from_slice(&PROBE.to_le_bytes());
        let mut unpacked = Unpacked::zeros(&format.layout);
        (format.unpack)(&probe, &mut unpacked);
        // A min may be kept with its sign turned.
        field(&unpacked) & 0x7fff == PROBE
    })
}

fn metadata(writer: &mut GgufWriter<'_>, shape: &Shape, mix: &str, layers: usize) {
    let text = |text: &str| Value::Str(text.into());
    let arch = shape.architecture;
    writer.add("general.architecture", text(arch));
    writer.add(
        "general.name",
        text(&format!("{} {mix} random", shape.name)),
    );
    for (key, value) in [
        ("block_count", layers as u64),
        ("context_length", shape.context.into()),
        ("embedding_length", shape.hidden),
        ("feed_forward_length", shape.ffn),
        ("attention.head_count", shape.heads),
        ("attention.head_count_kv", shape.kv_heads),
        ("attention.key_length", shape.head),
        ("attention.value_length", shape.head),
        ("rope.dimension_count", shape.head),
        ("vocab_size", shape.vocab as u64),
    ] {
        writer.add(format!("{arch}.{key}"), Value::U32(value as u32));
    }
    writer.add(
        format!("{arch}.rope.freq_base"),
        Value::F32(shape.rope_base),
    );
    writer.add(
        format!("{arch}.attention.layer_norm_rms_epsilon"),
        Value::F32(shape.eps),
    );
    // Bytes, then tokens that name themselves: any text can be fed, and what is generated can be read.
    let mut tokens = byte_characters();
    tokens.extend((tokens.len()..shape.vocab).map(|id| format!("<{id}>")));
    let end = tokens.len() - 1;
    let kinds = (0..tokens.len()).map(|id| if id == end { 3 } else { 1 });
    let array = Value::Array;
    writer.add("tokenizer.ggml.model", text("gpt2"));
    writer.add("tokenizer.ggml.pre", text("gpt-2"));
    writer.add(
        "tokenizer.ggml.token_type",
        array(Array::I32(kinds.collect())),
    );
    writer.add("tokenizer.ggml.tokens", array(Array::Str(tokens)));
    writer.add("tokenizer.ggml.merges", array(Array::Str(Vec::new())));
    writer.add("tokenizer.ggml.eos_token_id", Value::U32(end as u32));
}

/// GPT-2's printable stand-in for each byte (as in its `bytes_to_unicode`).
fn byte_characters() -> Vec<String> {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut stand_ins = (256u32..).filter_map(char::from_u32);
    let character = |byte: u8| match printable(byte) {
        true => Some(char::from(byte)),
        false => stand_ins.next(),
    };
    (0..=255).filter_map(character).map(String::from).collect()
}

/// Whole quant blocks of one tensor.
struct Piece<'a> {
    tensor: &'a Tensor,
    place: Range<u64>,
    seed: u64,
}

const PIECE: u64 = 8 << 20;

fn pieces(tensors: &[Tensor], places: Vec<Range<u64>>, seed: u64) -> Vec<Piece<'_>> {
    let mut all = Vec::new();
    for (index, (tensor, place)) in tensors.iter().zip(places).enumerate() {
        let unit = tensor.ty.block_bytes();
        let step = (PIECE / unit * unit) as usize;
        for (number, start) in place.clone().step_by(step).enumerate() {
            all.push(Piece {
                tensor,
                place: start..place.end.min(start + step as u64),
                seed: seed << 48 ^ (index as u64) << 24 ^ number as u64,
            });
        }
    }
    all
}

fn write(file: &File, pieces: &[Piece<'_>], recipes: &[Recipe]) -> io::Result<()> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut buffer = vec![0; PIECE as usize];
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let bytes = &mut buffer[..(piece.place.end - piece.place.start) as usize];
            match &piece.tensor.values {
                Values::Given(values) => {
                    let values: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                    bytes.copy_from_slice(&values);
                }
                Values::Random(deviation) => {
                    let recipe = recipes.iter().find(|r| r.ty == piece.tensor.ty);
                    let recipe = recipe.ok_or_else(|| io::Error::other("no recipe"))?;
                    recipe.fill(bytes, *deviation, &mut Random::new(piece.seed));
                }
            }
            file.write_all_at(bytes, piece.place.start)?;
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| match worker.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
    })
}

fn run(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let [shape, mix, out, flags @ ..] = arguments else {
        return Err(USAGE.into());
    };
    let shape = SHAPES
        .iter()
        .find(|s| s.name == shape.to_lowercase())
        .ok_or(USAGE)?;
    let (mix_name, mix) = MIXES
        .iter()
        .find(|(name, _)| *name == mix.to_lowercase())
        .ok_or(USAGE)?;
    let (mut layers, mut seed) = (shape.layers, 0);
    for pair in flags.chunks(2) {
        match pair {
            [flag, value] if flag == "--layers" => {
                layers = value.parse::<usize>()?.clamp(1, shape.layers)
            }
            [flag, value] if flag == "--seed" => seed = value.parse()?,
            _ => return Err(USAGE.into()),
        }
    }
    let started = Instant::now();
    let tensors = tensors(shape, *mix, layers);
    let mut recipes: Vec<Recipe> = Vec::new();
    for tensor in tensors
        .iter()
        .filter(|t| matches!(t.values, Values::Random(_)))
    {
        if recipes.iter().all(|r| r.ty != tensor.ty) {
            recipes.push(Recipe::new(tensor.ty)?);
        }
    }
    let mut writer = GgufWriter::new();
    metadata(&mut writer, shape, mix_name, layers);
    for tensor in &tensors {
        writer.space(&tensor.name, tensor.ty, &tensor.dims);
    }
    let (header, places) = writer.layout()?;
    let end = places.last().map_or(header.len() as u64, |place| place.end);
    let file = File::create(out).map_err(|e| format!("{out}: {e}"))?;
    // Padding is what nobody writes; llama.cpp expects it behind the last tensor too.
    file.set_len(end.next_multiple_of(32))?;
    file.write_all_at(&header, 0)?;
    write(&file, &pieces(&tensors, places, seed), &recipes).map_err(|e| format!("{out}: {e}"))?;
    let seconds = started.elapsed().as_secs_f64();
    let bytes = end as f64;
    eprintln!(
        "{out}: {:.2} GB in {seconds:.1} s, {:.0} MB/s",
        bytes / 1e9,
        bytes / 1e6 / seconds
    );
    Ok(())
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Err(error) = run(&arguments) {
        eprintln!("error: {error}");
        std::process::exit(if error.to_string() == USAGE { 2 } else { 1 });
    }
}
