//! The GPU kernels that are not matmuls, run by the shim under several schedules against the naive references. Each family
//! has a file; here is what they share.

use crate::simt::{ARCH, Buffer, Dialect, Simt, SimtArg, Source};
use coldpress_compiler::codegen::cuda::render;
use coldpress_kernels::gpu::abi::{ActForm, Q8_GROUP, TILE_K};
use coldpress_kernels::gpu::{
    Geometry, Kernel, attention, embed, experts, logits, recurrent, rope, rows,
};

/// Partial attention, its division and its merging.
mod attention_ops;
/// A paged cache filled and read from outside.
mod cache;
/// The division of a step's attention, for more rows than a test could attend to.
mod division;
/// Token embeddings out of packed matrices.
mod embed_ops;
/// Routers, sums over experts, factors and gates.
mod expert_ops;
/// Candidates and log-sum-exp of logits.
mod logits_ops;
/// What Apple GPUs do differently.
mod metal_ops;
/// Short convolutions and delta rules.
mod recurrent_ops;
/// RoPE, head norms and the cache.
mod rope_ops;
/// Norms, element-wise functions, gathered rows.
mod row_ops;

const FORMS: [ActForm; 3] = [ActForm::F32, ActForm::F16, ActForm::Q8];

/// Schedules that every launch is run under.
const SEEDS: [u64; 3] = [1, 2, 3];

/// A process that runs `kernels`, and the kernels.
struct Device {
    simt: Simt,
}

impl Device {
    /// `None` without a compiler.
    fn of(kernels: &[Kernel]) -> Option<Device> {
        Device::in_dialect(Dialect::Cuda, kernels)
    }

    /// The same of another language.
    fn in_dialect(dialect: Dialect, kernels: &[Kernel]) -> Option<Device> {
        let mut sources: Vec<Source> = Vec::new();
        for kernel in kernels {
            if sources.iter().all(|s| s.name != kernel.name) {
                sources.push(Source::in_dialect(dialect, kernel));
            }
        }
        Simt::build(&sources, ARCH).map(|simt| Device { simt })
    }

    fn f32s(&self, values: &[f32]) -> Buffer {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.simt.upload(&bytes)
    }

    fn u32s(&self, values: &[u32]) -> Buffer {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.simt.upload(&bytes)
    }

    /// Rows of `width` floats, `stride` bytes apart, NaN between them.
    fn rows(&self, values: &[f32], width: usize, stride: usize) -> Buffer {
        let buffer = self.simt.alloc(values.len() / width * stride);
        for (row, values) in values.chunks_exact(width).enumerate() {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            self.simt.write(&buffer, (row * stride) as u64, &bytes);
        }
        buffer
    }

    fn launch(&self, kernel: &Kernel, geometry: Geometry, args: Vec<SimtArg>, seed: u64) {
        self.simt
            .launch(&kernel.name, geometry, &args, seed)
            .unwrap_or_else(|e| panic!("{} under schedule {seed}: {e}", kernel.name));
    }

    fn read(&self, buffer: &Buffer) -> Vec<u8> {
        self.simt.read(buffer, 0, buffer.bytes)
    }

    fn read_f32(&self, buffer: &Buffer) -> Vec<f32> {
        let words = self.read_u32(buffer);
        words.into_iter().map(f32::from_bits).collect()
    }

    fn read_u32(&self, buffer: &Buffer) -> Vec<u32> {
        let bytes = self.read(buffer);
        let words = bytes.as_chunks().0;
        words.iter().map(|&b| u32::from_le_bytes(b)).collect()
    }
}

/// Floats in -scale..scale that look random and repeat after a prime.
fn values(seed: usize, len: usize, scale: f32) -> Vec<f32> {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0;
    (0..len).map(|i| value(i) * scale).collect()
}

fn half(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn float(bytes: &[u8], at: usize) -> f32 {
    f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A row of activations as matmuls read it: the values, and how far each may be from what was stored. Padding and sums are
/// checked.
fn read_row(form: ActForm, row: &[u8], width: usize) -> Vec<(f32, f32)> {
    let padded = width.next_multiple_of(TILE_K);
    match form {
        ActForm::F32 => (0..width).map(|k| (float(row, 4 * k), 0.0)).collect(),
        ActForm::F16 => {
            let all = (0..padded).map(|k| half(row, 2 * form.position(k)));
            let all: Vec<f32> = all.collect();
            assert!(all[width..].iter().all(|&v| v.to_bits() == 0), "padding");
            let near = |v: f32| (v, v.abs() / 2047.0 + 3e-8);
            all[..width].iter().map(|&v| near(v)).collect()
        }
        ActForm::Q8 => {
            let q = |k: usize| f32::from(row[form.position(k)] as i8);
            let scale = |g: usize| float(row, padded + 8 * g);
            for g in 0..padded / Q8_GROUP {
                let sum: f32 = (g * Q8_GROUP..(g + 1) * Q8_GROUP).map(q).sum();
                let stored = float(row, padded + 8 * g + 4);
                assert_eq!(stored.to_bits(), (scale(g) * sum).to_bits(), "sum of {g}");
            }
            assert!((width..padded).all(|k| q(k) == 0.0), "padding");
            let value = |k: usize| (q(k) * scale(k / Q8_GROUP), scale(k / Q8_GROUP) * 0.501);
            (0..width).map(value).collect()
        }
    }
}

/// Asserts that a row holds `expected` but for the form's rounding, and relative and absolute errors.
fn assert_row(what: &str, form: ActForm, row: &[u8], expected: &[f32], errors: (f32, f32)) {
    let found = read_row(form, row, expected.len());
    for (k, (&expected, (found, rounding))) in expected.iter().zip(found).enumerate() {
        let allowed = rounding + errors.0 * expected.abs() + errors.1;
        assert!(
            (found - expected).abs() <= allowed,
            "{what}: element {k} is {found}, not {expected}"
        );
    }
}

#[test]
fn templates_take_the_arguments_that_are_documented() {
    use coldpress_kernels::cpu::abi::KvType;
    use coldpress_kernels::quant::Q4_K;
    let heads = coldpress_kernels::recurrent::Heads {
        key_heads: 1,
        heads: 2,
        dim: 64,
        grouped: true,
    };
    let families: [(Kernel, &[&str]); 19] = [
        (recurrent::short_conv(4), recurrent::ShortConvArgs::NAMES),
        (
            recurrent::delta_rule(&heads, true),
            recurrent::DeltaRuleArgs::NAMES,
        ),
        (rows::norm(ActForm::Q8, 64), rows::NormArgs::NAMES),
        (
            rows::elementwise(rows::Op::Add, ActForm::F32),
            rows::ElementwiseArgs::NAMES,
        ),
        (rows::gather_rows(), rows::GatherArgs::NAMES),
        (embed::embed(&Q4_K.layout), embed::EmbedArgs::NAMES),
        (rope::table(), rope::TableArgs::NAMES),
        (rope::append(KvType::F16, 64, true), rope::AppendArgs::NAMES),
        (attention::plan(), attention::PlanArgs::NAMES),
        (
            attention::attention(KvType::F32, 64, 1, true, ActForm::F32),
            attention::AttentionArgs::NAMES,
        ),
        (
            attention::attention(KvType::F16, 64, 1, true, ActForm::Q8),
            attention::AttentionArgs::NAMES,
        ),
        (
            attention::attention(KvType::Q8_0, 64, 1, true, ActForm::F16),
            attention::AttentionArgs::NAMES,
        ),
        (logits::pieces(), logits::PiecesArgs::NAMES),
        (logits::rows(), logits::RowsArgs::NAMES),
        (rows::norm(ActForm::F32, 4096), rows::NormArgs::NAMES),
        (experts::route(8, false, true), experts::RouteArgs::NAMES),
        (experts::scale(), experts::ScaleArgs::NAMES),
        (experts::gate_rows(), experts::GateArgs::NAMES),
        (experts::sum(64, Some(ActForm::Q8)), experts::SumArgs::NAMES),
    ];
    for (kernel, names) in families {
        let body = render::body(&kernel).expect("renders");
        let fields = body.split("struct Params {").nth(1).expect("has arguments");
        let fields = fields.split('}').next().expect("ends");
        let fields = fields.split(';').map(str::trim).filter(|f| !f.is_empty());
        let fields: Vec<&str> = fields
            .map(|f| f.rsplit([' ', '*']).next().expect("a name"))
            .collect();
        assert_eq!(fields, names, "{}", kernel.name);
    }
}
