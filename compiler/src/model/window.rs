//! Which layers attend through a sliding window, and how wide it is.

use super::metadata::Metadata;
use crate::error::Error;
use crate::gguf::{Array, Value};

/// Tokens of the window, the current one included.
pub(super) const WINDOW: &str = "attention.sliding_window";
/// One bool per layer, or every how many layers one has none.
const PATTERN: &str = "attention.sliding_window_pattern";

/// The window of the file, or `default` where it says nothing; 0 is none.
pub(super) fn window(metadata: Metadata, default: usize) -> Result<Option<usize>, Error> {
    let tokens = metadata.gguf.u32(&metadata.key(WINDOW))?;
    let tokens = tokens.map_or(default, |tokens| tokens as usize);
    Ok(Some(tokens).filter(|&tokens| tokens > 0))
}

/// Whether each layer has a window: as the file says, or all but the last of every `period` layers.
pub(super) fn layers(
    metadata: Metadata,
    layers: usize,
    period: Option<usize>,
) -> Result<Vec<bool>, Error> {
    let key = metadata.key(PATTERN);
    let period = match metadata.gguf.get(&key) {
        None => period.ok_or_else(|| metadata.missing(PATTERN))?,
        Some(Value::Array(_)) => {
            let windowed = each(metadata, &key)?;
            return match windowed.get(..layers) {
                Some(windowed) => Ok(windowed.to_vec()),
                None => {
                    let why = format!("has {} elements for {layers} layers", windowed.len());
                    Err(metadata.wrong(PATTERN, &why))
                }
            };
        }
        Some(_) => metadata.gguf.u32(&key)?.unwrap_or(0) as usize,
    };
    let windowed = |layer: usize| period == 0 || layer % period < period - 1;
    Ok((0..layers).map(windowed).collect())
}

/// Whether each layer has `window`: none has one that there is not.
pub(super) fn layers_with(
    window: Option<usize>,
    metadata: Metadata,
    layers: usize,
    period: usize,
) -> Result<Vec<bool>, Error> {
    match window {
        Some(_) => self::layers(metadata, layers, Some(period)),
        None => Ok(vec![false; layers]),
    }
}

/// An array of bools, or of integers that stand for them.
pub(super) fn each(metadata: Metadata, key: &str) -> Result<Vec<bool>, Error> {
    match metadata.gguf.get(key) {
        Some(Value::Array(Array::Bool(windowed))) => Ok(windowed.clone()),
        _ => {
            let numbers = metadata.gguf.u32s(key)?.unwrap_or_default();
            Ok(numbers.into_iter().map(|number| number != 0).collect())
        }
    }
}
