//! Rotary frequencies: base, linear and YaRN scaling, and frequency factors, folded into one table of angular
//! frequencies and one magnitude. What llama.cpp spreads over load_hparams, llama_context and ggml's rope_yarn.
//!
//! Not here: the rotation itself, which multiplies the table by the position.

use coldpress_kernels::quant;

use super::metadata::Metadata;
use crate::error::Error;

/// Whether an architecture has a `rope_freqs.weight` tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FreqFactors {
    /// It has none.
    None,
    /// Llama 3: each frequency is divided by its factor.
    Optional,
}

/// Tensor of the frequency factors, `[rot_dim / 2]`.
pub(super) const FACTORS: &str = "rope_freqs.weight";

/// Rotary frequencies of a model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Frequencies {
    /// Radians per position of each rotary pair.
    pub inv_freq: Vec<f32>,
    /// Factor of cos and sin.
    pub mscale: f32,
}

/// How positions beyond the training context are brought back into it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scaling {
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
    },
}

/// Reads the scaling keys and computes the table. `factors` divides the frequencies, one element per pair.
///
/// # Errors
/// A scaling type that is not implemented, or values no frequency can be computed from.
pub(super) fn frequencies(
    metadata: Metadata,
    rot_dim: usize,
    context: usize,
    factors: Option<&[f32]>,
) -> Result<Frequencies, Error> {
    const BASE: &str = "rope.freq_base";
    let base = metadata.f32(BASE)?.unwrap_or(10_000.0);
    // YaRN divides by ln(base), so 1 is no more usable than a negative number.
    if base <= 1.0 {
        return Err(metadata.wrong(BASE, &format!("is {base}; must be greater than 1")));
    }
    let scaling = scaling(metadata, context)?;
    const ATTN_FACTOR: &str = "rope.scaling.attn_factor";
    let attn_factor = metadata.f32(ATTN_FACTOR)?.unwrap_or(1.0);
    let (inv_freq, mscale) = table(f64::from(base), rot_dim, scaling, factors);
    if let Some(pair) = inv_freq.iter().position(|frequency| !frequency.is_finite()) {
        let why = format!("gives rotary pair {pair} the frequency {}", inv_freq[pair]);
        return Err(Error::Model {
            what: "rope frequencies".into(),
            why,
        });
    }
    Ok(Frequencies {
        inv_freq,
        mscale: (mscale * f64::from(attn_factor)) as f32,
    })
}

/// Values of a frequency factor tensor.
///
/// # Errors
/// A type that cannot be read, or a factor that is 0, negative or not finite.
pub(super) fn factors(metadata: Metadata) -> Result<Option<Vec<f32>>, Error> {
    let Some(tensor) = metadata.gguf.tensor(FACTORS) else {
        return Ok(None);
    };
    let format = quant::format(tensor.ty).ok_or_else(|| Error::Unsupported {
        what: FACTORS.into(),
        why: format!(
            "{} is no type for a vector (supported: F32, F16, BF16)",
            tensor.ty
        ),
    })?;
    let mut values = vec![0.0; (tensor.n() * tensor.k()) as usize];
    quant::dequantise_row(format, metadata.gguf.data(tensor), &mut values);
    match values
        .iter()
        .position(|&factor| !(factor.is_finite() && factor > 0.0))
    {
        Some(at) => Err(Error::Model {
            what: FACTORS.into(),
            why: format!("element {at} is {}, must be positive", values[at]),
        }),
        None => Ok(Some(values)),
    }
}

fn scaling(metadata: Metadata, context: usize) -> Result<Scaling, Error> {
    const TYPE: &str = "rope.scaling.type";
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
        "linear" => Ok(Scaling::Linear { factor }),
        "yarn" => {
            const ORIGINAL: &str = "rope.scaling.original_context_length";
            let original = metadata.gguf.u32(&metadata.key(ORIGINAL))?;
            let original = original
                .filter(|&tokens| tokens != 0)
                .map_or(context, |tokens| tokens as usize);
            // llama.cpp's defaults; the keys that would change them are refused by check.rs.
            Ok(Scaling::Yarn {
                factor,
                original_context: original as f64,
                beta_fast: 32.0,
                beta_slow: 1.0,
            })
        }
        other => Err(Error::Unsupported {
            what: metadata.key(TYPE),
            why: format!("{other} is not implemented (supported: none, linear, yarn)"),
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
        Scaling::Yarn { factor, .. } if factor > 1.0 => 0.1 * factor.ln() + 1.0,
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
        frequencies(metadata, rot_dim, 1024, None)
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
        let divided = frequencies(metadata, 8, 1024, Some(&[1.0, 2.0, 4.0, 8.0])).unwrap();
        assert_close(&divided.inv_freq, &[0.5, 0.025, 0.00125, 0.0000625]);
    }

    #[test]
    fn unusable_values_are_named() {
        let says = |keys: &[(&str, Value)]| read(keys, 8).unwrap_err().to_string();
        assert_eq!(
            says(&scaling("longrope", 2.0)),
            "llama.rope.scaling.type: longrope is not implemented (supported: none, linear, yarn)"
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
