//! Refuses what a file asks for and no builder does: metadata that llama.cpp reads for the architecture and that would
//! change the numbers. What it does not read changes nothing, whatever converters wrote. Tensors nobody used are refused
//! by parts.rs when a builder is done.

use super::Architecture;
use super::metadata::Metadata;
use crate::error::Error;
use crate::gguf::{Gguf, Value};

/// A key without the architecture's prefix, and the values that change nothing (bools count as 0 and 1).
pub(super) type Neutral = (&'static str, &'static [f64]);

/// Keys that llama.cpp reads for every architecture.
const COMMON: &[Neutral] = &[
    ("attention.causal", &[1.0]),
    ("expert_count", &[0.0]),
    ("nextn_predict_layers", &[0.0]),
];

/// What keys of `gguf` ask for that nothing here implements: an `Error::Unsupported` for each.
///
/// # Errors
/// A key whose value is no number, bool or array of numbers.
pub(super) fn refused(gguf: &Gguf, architecture: &Architecture) -> Result<Vec<Error>, Error> {
    let metadata = Metadata {
        gguf,
        architecture: architecture.name,
    };
    let common = COMMON
        .iter()
        .filter(|(suffix, _)| !architecture.reads.contains(suffix));
    let mut refused = Vec::new();
    for &(suffix, neutral) in common.chain(architecture.refuses) {
        let key = metadata.key(suffix);
        let values = match gguf.get(&key) {
            None => continue,
            Some(Value::Bool(value)) => vec![f32::from(u8::from(*value))],
            Some(_) => gguf.f32s(&key)?.unwrap_or_default(),
        };
        let mut others = values.iter().filter(|&&v| !neutral.contains(&f64::from(v)));
        if let Some(value) = others.next() {
            let only: Vec<_> = neutral.iter().map(f64::to_string).collect();
            let (name, only) = (architecture.name, only.join(" or "));
            refused.push(Error::Unsupported {
                what: key,
                why: format!("{value} is not implemented for {name} (only {only})"),
            });
        }
    }
    Ok(refused)
}
