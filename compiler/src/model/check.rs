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

/// Checks the keys of `gguf` against those that every architecture refuses and those that this one does.
///
/// # Errors
/// `Error::Unsupported` naming the first key whose value nothing here implements.
pub(super) fn keys(gguf: &Gguf, architecture: &Architecture) -> Result<(), Error> {
    let name = architecture.name;
    let common = COMMON
        .iter()
        .filter(|(suffix, _)| !architecture.reads.contains(suffix));
    for &(suffix, neutral) in common.chain(architecture.refuses) {
        let metadata = Metadata {
            gguf,
            architecture: name,
        };
        let key = metadata.key(suffix);
        let values = match gguf.get(&key) {
            None => continue,
            Some(Value::Bool(value)) => vec![f32::from(u8::from(*value))],
            Some(_) => gguf.f32s(&key)?.unwrap_or_default(),
        };
        let other = values
            .iter()
            .find(|&&value| !neutral.contains(&f64::from(value)));
        if let Some(value) = other {
            let only: Vec<_> = neutral.iter().map(f64::to_string).collect();
            return Err(Error::Unsupported {
                what: key,
                why: format!(
                    "{value} is not implemented for {name} (only {})",
                    only.join(" or ")
                ),
            });
        }
    }
    Ok(())
}
