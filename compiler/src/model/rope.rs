//! Rotary frequencies: base, linear and YaRN scaling, and frequency factors, folded into one table of angular
//! frequencies and one magnitude per kind of layer. What llama.cpp spreads over load_hparams, llama_context and ggml's
//! rope_yarn.
//!
//! Not here: the rotation itself, which multiplies the table by the position.

use super::metadata::Metadata;
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Op, RopeShape, RopeStyle, Value};

/// A rotary table of a graph.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rope {
    pub table: Value,
    pub shape: RopeShape,
}

/// How layers of one kind rotate.
#[derive(Clone, Debug)]
pub(super) struct RopeSpec {
    pub shape: RopeShape,
    /// Radians per position of pair i are `base^(-2i / rot_dim)`, before scaling.
    pub base: f32,
    pub scaling: Scaling,
    /// Factor of cos and sin besides YaRN's own.
    pub magnitude: f32,
    /// Each frequency is divided by its factor, `[rot_dim / 2]`.
    pub factors: Option<Vec<f32>>,
    /// Which coordinate of a position each pair turns by, where positions of images have several.
    pub sections: Option<Sections>,
}

/// How rotary pairs are shared out among time, height, width and one more coordinate. In text the first three are the
/// position and the last is 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sections {
    /// Pairs of each coordinate; the pattern repeats.
    pub pairs: [usize; 4],
    /// Whether the first three take turns, instead of having a run each.
    pub in_turn: bool,
}

impl Sections {
    /// Whether this pair turns in text.
    fn turns(&self, pair: usize) -> bool {
        let [time, height, width, last] = self.pairs;
        let at = pair % (time + height + width + last);
        match self.in_turn {
            true => at < 3 * self.pairs[at % 3],
            false => at < time + height + width,
        }
    }
}

/// Tensor of the frequency factors of Llama 3, and of the proportional rotation of Gemma 4.
pub(super) const FACTORS: &str = "rope_freqs.weight";
/// Tensors of the frequency factors of LongRoPE (Ding et al. 2024), within and beyond the original context.
const SHORT_FACTORS: &str = "rope_factors_short.weight";
const LONG_FACTORS: &str = "rope_factors_long.weight";
const BASE: &str = "rope.freq_base";
const TYPE: &str = "rope.scaling.type";
const ORIGINAL_CONTEXT: &str = "rope.scaling.original_context_length";

/// Rotary frequencies of a kind of layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Frequencies {
    /// Radians per position of each rotary pair.
    pub inv_freq: Vec<f32>,
    /// Factor of cos and sin.
    pub mscale: f32,
}

/// How positions beyond the training context are brought back into it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scaling {
    None,
    /// Every frequency divided by `factor`.
    Linear {
        factor: f64,
    },
    /// YaRN (Peng et al. 2023): slow frequencies divided by `factor`, fast ones kept, a ramp between.
    Yarn {
        factor: f64,
        original_context: f64,
        beta_fast: f64,
        beta_slow: f64,
        /// How much of the magnitude the model's scores already have (`mscale_all_dim`); 0 for none.
        log_multiplier: f64,
    },
}

impl RopeSpec {
    /// What metadata says of layers without a window.
    ///
    /// # Errors
    /// A scaling type that is not implemented, or values no frequency can be computed from.
    pub fn read(metadata: Metadata, shape: RopeShape, context: usize) -> Result<RopeSpec, Error> {
        Ok(RopeSpec {
            shape,
            base: base(metadata, BASE)?.unwrap_or(10_000.0),
            scaling: scaling(metadata, context)?,
            magnitude: metadata.f32("rope.scaling.attn_factor")?.unwrap_or(1.0),
            factors: None,
            sections: None,
        })
    }

    /// Table and magnitude of these layers.
    ///
    /// # Errors
    /// Values no frequency can be computed from.
    pub fn frequencies(&self) -> Result<Frequencies, Error> {
        let rot_dim = self.shape.rot_dim;
        let (mut inv_freq, mscale) = table(
            f64::from(self.base),
            rot_dim,
            self.scaling,
            self.factors.as_deref(),
        );
        if let Some(pair) = inv_freq.iter().position(|frequency| !frequency.is_finite()) {
            let why = format!("gives rotary pair {pair} the frequency {}", inv_freq[pair]);
            return Err(Error::Model {
                what: "rope frequencies".into(),
                why,
            });
        }
        if let Some(sections) = &self.sections {
            let pairs = inv_freq.iter_mut().enumerate();
            let still = pairs.filter(|(pair, _)| !sections.turns(*pair));
            still.for_each(|(_, frequency)| *frequency = 0.0);
        }
        Ok(Frequencies {
            inv_freq,
            mscale: (mscale * f64::from(self.magnitude)) as f32,
        })
    }
}

impl Builder<'_> {
    /// How metadata has layers without a window rotate.
    pub fn rope_spec(&self, style: RopeStyle) -> Result<RopeSpec, Error> {
        let h = &self.hparams;
        let shape = RopeShape {
            head_dim: h.head_dim,
            rot_dim: h.rot_dim,
            style,
        };
        RopeSpec::read(self.metadata, shape, h.context)
    }

    /// How metadata shares out rotary pairs among coordinates, if it does.
    pub fn rope_sections(&self, in_turn: bool) -> Result<Option<Sections>, Error> {
        const KEY: &str = "rope.dimension_sections";
        let Some(pairs) = self.metadata.gguf.u32s(&self.metadata.key(KEY))? else {
            return Ok(None);
        };
        let pairs: [u32; 4] = match pairs[..] {
            [all] => [all; 4],
            [time, height, width] => [time, height, width, 0],
            [time, height, width, last] => [time, height, width, last],
            _ => {
                let why = format!("has {} elements instead of 4", pairs.len());
                return Err(self.metadata.wrong(KEY, &why));
            }
        };
        let pairs = pairs.map(|pairs| pairs as usize);
        Ok((pairs[0] > 0 && pairs[1] > 0).then_some(Sections { pairs, in_turn }))
    }

    /// The base at `key`, if the file has it.
    pub fn rope_base(&self, key: &str) -> Result<Option<f32>, Error> {
        base(self.metadata, key)
    }

    /// Puts the table of `spec` into the graph; `kind` tells several tables of a model apart.
    pub fn rope(&mut self, kind: &str, spec: &RopeSpec) -> Result<Rope, Error> {
        let Frequencies { inv_freq, mscale } = spec.frequencies()?;
        let inv_freq = self.computed(&format!("<rope_inv_freq{kind}>"), inv_freq);
        let op = Op::RopeTable { inv_freq, mscale };
        let table = self.graph.add_one(op, format!("rope_table{kind}"), &[])?;
        let shape = spec.shape;
        Ok(Rope { table, shape })
    }

    /// The table of metadata alone.
    pub fn plain_rope(&mut self, style: RopeStyle) -> Result<Rope, Error> {
        let spec = self.rope_spec(style)?;
        self.rope("", &spec)
    }

    /// The table of metadata and of whichever frequency factors the file has: Llama 3's, or LongRoPE's where metadata
    /// says so.
    pub fn factored_rope(&mut self, style: RopeStyle) -> Result<Rope, Error> {
        let spec = self.factored_rope_spec(style)?;
        self.rope("", &spec)
    }

    /// What [`Builder::factored_rope`] makes a table of.
    pub fn factored_rope_spec(&mut self, style: RopeStyle) -> Result<RopeSpec, Error> {
        let mut spec = self.rope_spec(style)?;
        let pairs = spec.shape.rot_dim / 2;
        spec.factors = match self.metadata.str(TYPE)? {
            Some("longrope") => self.factors_by_context(pairs)?,
            _ => self.frequency_factors(FACTORS, pairs)?,
        };
        Ok(spec)
    }

    /// Tokens that the model was trained for before its rotation was scaled.
    pub fn original_context(&self) -> Result<usize, Error> {
        let original = self
            .metadata
            .gguf
            .u32(&self.metadata.key(ORIGINAL_CONTEXT))?;
        Ok(original.map_or(self.hparams.context, |tokens| tokens as usize))
    }

    /// LongRoPE's factors for the context the graph is for, if the file has them.
    pub fn factors_by_context(&mut self, pairs: usize) -> Result<Option<Vec<f32>>, Error> {
        let original = self
            .metadata
            .gguf
            .u32(&self.metadata.key(ORIGINAL_CONTEXT))?;
        let original = original.map_or(self.hparams.context, |tokens| tokens as usize);
        let short = self.frequency_factors(SHORT_FACTORS, pairs)?;
        let long = self.frequency_factors(LONG_FACTORS, pairs)?;
        if short != long {
            self.switches_above = Some(original);
        }
        Ok(if self.context > original { long } else { short })
    }

    /// The frequency factors in the tensor `name`, if the file has it.
    ///
    /// # Errors
    /// Another length than `pairs`, or a factor that is 0 or not finite.
    pub fn frequency_factors(
        &mut self,
        name: &str,
        pairs: usize,
    ) -> Result<Option<Vec<f32>>, Error> {
        if !self.has(name) {
            return Ok(None);
        }
        let factors = self.numbers(name, pairs)?;
        match factors.iter().position(|&factor| factor == 0.0) {
            Some(at) => Err(Error::Model {
                what: name.into(),
                why: format!("element {at} is 0, which nothing can be divided by"),
            }),
            None => Ok(Some(factors)),
        }
    }
}

fn base(metadata: Metadata, key: &str) -> Result<Option<f32>, Error> {
    let base = metadata.f32(key)?;
    // YaRN divides by ln(base), so 1 is no more usable than a negative number.
    match base {
        Some(base) if base <= 1.0 => {
            Err(metadata.wrong(key, &format!("is {base}; must be greater than 1")))
        }
        base => Ok(base),
    }
}

fn scaling(metadata: Metadata, context: usize) -> Result<Scaling, Error> {
    // The older key is read only when the newer one is absent; without a type, a factor means linear.
    let (key, factor) = match metadata.f32("rope.scaling.factor")? {
        Some(factor) => ("rope.scaling.factor", factor),
        None => (
            "rope.scale_linear",
            metadata.f32("rope.scale_linear")?.unwrap_or(0.0),
        ),
    };
    if factor < 0.0 {
        return Err(metadata.wrong(key, &format!("is {factor}")));
    }
    let factor = match factor {
        0.0 => 1.0,
        factor => f64::from(factor),
    };
    match metadata.str(TYPE)?.unwrap_or("linear") {
        "none" => Ok(Scaling::None),
        // What else LongRoPE does is in its factors.
        "linear" | "longrope" => Ok(Scaling::Linear { factor }),
        "yarn" => {
            let original = metadata.gguf.u32(&metadata.key(ORIGINAL_CONTEXT))?;
            let original = original
                .filter(|&tokens| tokens != 0)
                .map_or(context, |tokens| tokens as usize);
            // llama.cpp's defaults; who reads keys for them replaces them.
            Ok(Scaling::Yarn {
                factor,
                original_context: original as f64,
                beta_fast: 32.0,
                beta_slow: 1.0,
                log_multiplier: 0.0,
            })
        }
        other => Err(Error::Unsupported {
            what: metadata.key(TYPE),
            why: format!("{other} is not implemented (supported: none, linear, yarn, longrope)"),
        }),
    }
}

/// Frequencies and magnitude. ggml's rope_yarn over one position, with llama_context's attention factor: the two
/// cancel to 0.1 ln(factor) + 1 for factors above 1, to 1 otherwise.
fn table(base: f64, rot_dim: usize, scaling: Scaling, factors: Option<&[f32]>) -> (Vec<f32>, f64) {
    let frequency = |pair: usize| {
        let plain = base.powf(-2.0 * pair as f64 / rot_dim as f64);
        let plain = plain / factors.map_or(1.0, |factors| f64::from(factors[pair]));
        match scaling {
            Scaling::None => plain,
            Scaling::Linear { factor } => plain / factor,
            Scaling::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                ..
            } => {
                let bound = |beta: f64| {
                    let turns = original_context / (beta * std::f64::consts::TAU);
                    rot_dim as f64 * turns.ln() / (2.0 * base.ln())
                };
                let low = bound(beta_fast).floor().max(0.0);
                let high = bound(beta_slow).ceil().min(rot_dim as f64 - 1.0);
                let ramp = (pair as f64 - low) / (high - low).max(0.001);
                let keep = 1.0 - ramp.clamp(0.0, 1.0);
                plain / factor * (1.0 - keep) + plain * keep
            }
        }
    };
    let mscale = match scaling {
        Scaling::Yarn {
            factor,
            log_multiplier,
            ..
        } if factor > 1.0 => {
            let magnitude = |part: f64| 0.1 * part * factor.ln() + 1.0;
            magnitude(1.0) / magnitude(log_multiplier)
        }
        _ => 1.0,
    };
    (
        (0..rot_dim / 2)
            .map(|pair| frequency(pair) as f32)
            .collect(),
        mscale,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Gguf, GgufWriter, Value};
    use crate::pass::tests::open;

    fn file(keys: &[(&str, Value)]) -> Gguf {
        let mut writer = GgufWriter::new();
        for (suffix, value) in keys {
            writer.add(format!("llama.{suffix}"), value.clone());
        }
        open(&writer)
    }

    fn read(keys: &[(&str, Value)], rot_dim: usize) -> Result<Frequencies, Error> {
        let gguf = file(keys);
        let metadata = Metadata {
            gguf: &gguf,
            architecture: "llama",
        };
        RopeSpec::read(metadata, shape(rot_dim), 1024)?.frequencies()
    }

    fn shape(rot_dim: usize) -> RopeShape {
        RopeShape {
            head_dim: rot_dim,
            rot_dim,
            style: RopeStyle::Neox,
        }
    }

    fn assert_close(found: &[f32], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (f64::from(*found) / expected - 1.0).abs() < 1e-6,
                "{found} {expected}"
            );
        }
    }

    fn scaling(ty: &str, factor: f32) -> Vec<(&'static str, Value)> {
        vec![
            ("rope.scaling.type", Value::Str(ty.into())),
            ("rope.scaling.factor", Value::F32(factor)),
        ]
    }

    #[test]
    fn plain_and_linear_tables() {
        let plain = read(&[], 8).unwrap();
        assert_close(&plain.inv_freq, &[1.0, 0.1, 0.01, 0.001]);
        assert_eq!(plain.mscale, 1.0);
        let linear = [0.4, 0.04, 0.004, 0.0004];
        assert_close(&read(&scaling("linear", 2.5), 8).unwrap().inv_freq, &linear);
        let untyped = [("rope.scaling.factor", Value::F32(2.5))];
        assert_close(&read(&untyped, 8).unwrap().inv_freq, &linear);
        let old_key = [("rope.scale_linear", Value::F32(2.5))];
        assert_close(&read(&old_key, 8).unwrap().inv_freq, &linear);
        assert_eq!(read(&scaling("none", 2.5), 8).unwrap(), plain);
    }

    /// Expected numbers: `_compute_yarn_parameters` of transformers' modeling_rope_utils.py, evaluated in Python.
    #[test]
    fn yarn_tables() {
        let mut keys = scaling("yarn", 4.0);
        keys.push(("rope.scaling.original_context_length", Value::U32(256)));
        let small = read(&keys, 16).unwrap();
        assert_close(
            &small.inv_freq,
            &[
                1.0,
                2.569350599e-1,
                6.25e-2,
                1.383496476e-2,
                2.5e-3,
                7.905694150e-4,
                2.5e-4,
                7.905694150e-5,
            ],
        );
        assert!((small.mscale - 1.138_629_4).abs() < 1e-6);

        let mut keys = scaling("yarn", 4.0);
        keys.push(("rope.scaling.original_context_length", Value::U32(32768)));
        keys.push(("rope.freq_base", Value::F32(1e6)));
        keys.push(("rope.scaling.attn_factor", Value::F32(0.5)));
        let qwen = read(&keys, 128).unwrap();
        let picked: Vec<_> = [1, 20, 23, 24, 30, 39, 40, 63]
            .map(|i| qwen.inv_freq[i])
            .into();
        assert_close(
            &picked,
            &[
                8.058421878e-1,
                1.333521432e-2,
                6.978305849e-3,
                5.375321491e-3,
                1.064360981e-3,
                6.490394321e-5,
                4.445698525e-5,
                3.102344402e-7,
            ],
        );
        assert!((qwen.mscale - 0.5 * 1.138_629_4).abs() < 1e-6);
        assert_eq!(read(&scaling("yarn", 0.5), 8).unwrap().mscale, 1.0);
    }

    #[test]
    fn factors_divide() {
        let gguf = file(&scaling("linear", 2.0));
        let metadata = Metadata {
            gguf: &gguf,
            architecture: "llama",
        };
        let mut spec = RopeSpec::read(metadata, shape(8), 1024).unwrap();
        spec.factors = Some(vec![1.0, 2.0, 4.0, 8.0]);
        assert_close(
            &spec.frequencies().unwrap().inv_freq,
            &[0.5, 0.025, 0.00125, 0.0000625],
        );
    }

    #[test]
    fn pairs_of_the_last_section_do_not_turn_in_text() {
        let gguf = file(&[]);
        let metadata = Metadata {
            gguf: &gguf,
            architecture: "llama",
        };
        let still = |pairs, in_turn| {
            let mut spec = RopeSpec::read(metadata, shape(24), 1024).unwrap();
            let plain = spec.frequencies().unwrap().inv_freq;
            spec.sections = Some(Sections { pairs, in_turn });
            let table = spec.frequencies().unwrap().inv_freq;
            let pairs = table.iter().zip(&plain).enumerate();
            let still = pairs.filter(|(_, (found, plain))| found != plain);
            still
                .map(|(pair, (found, _))| {
                    assert_eq!(*found, 0.0);
                    pair
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(still([2, 1, 1, 2], false), [4, 5, 10, 11]);
        assert_eq!(still([4, 4, 4, 0], false), [0; 0]);
        assert_eq!(still([4, 4, 4, 0], true), [0; 0]);
        // Of twelve pairs the second coordinate has those below 3 * 2 only.
        assert_eq!(still([6, 2, 4, 0], true), [7, 10]);
    }

    #[test]
    fn unusable_values_are_named() {
        let says = |keys: &[(&str, Value)]| read(keys, 8).unwrap_err().to_string();
        assert_eq!(
            says(&scaling("dynamic", 2.0)),
            "llama.rope.scaling.type: dynamic is not implemented (supported: none, linear, yarn, longrope)"
        );
        assert_eq!(
            says(&scaling("yarn", -2.0)),
            "llama.rope.scaling.factor: is -2"
        );
        let base = [("rope.freq_base", Value::F32(0.0))];
        assert_eq!(
            says(&base),
            "llama.rope.freq_base: is 0; must be greater than 1"
        );
        let base = [("rope.freq_base", Value::F32(f32::NAN))];
        assert_eq!(says(&base), "llama.rope.freq_base: is not finite");
    }
}
