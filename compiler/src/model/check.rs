//! Refuses what a file asks for and no builder does: metadata that would change the numbers. Tensors nobody used are
//! refused by parts.rs when a builder is done.

use super::metadata::Metadata;
use crate::error::Error;
use crate::gguf::{Gguf, Value};

/// Keys that llama.cpp reads for some architecture and that change results, each with the values that change nothing
/// (bools count as 0 and 1). Not here: `attention.sliding_window` and `use_parallel_residual`, which converters wrote
/// into Mistral and Qwen 1.5 files and llama.cpp does not read for these architectures.
const NEUTRAL: &[(&str, &[f64])] = &[
    ("attention.causal", &[1.0]),
    ("attention.clamp_kqv", &[0.0]),
    ("attention.kv_lora_rank", &[0.0]),
    ("attention.max_alibi_bias", &[0.0]),
    ("attention.output_scale", &[0.0, 1.0]),
    ("attention.q_lora_rank", &[0.0]),
    ("attention.shared_kv_layers", &[0.0]),
    ("attention.temperature_scale", &[0.0]),
    ("attention.value_scale", &[0.0, 1.0]),
    ("attn_logit_softcapping", &[0.0]),
    ("embedding_scale", &[0.0, 1.0]),
    ("expert_count", &[0.0]),
    ("expert_gating_func", &[0.0, 1.0]),
    ("expert_group_count", &[0.0, 1.0]),
    ("expert_group_used_count", &[0.0, 1.0]),
    ("expert_used_count", &[0.0]),
    ("expert_weights_scale", &[0.0, 1.0]),
    ("leading_dense_block_count", &[0.0]),
    ("final_logit_softcapping", &[0.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("nextn_predict_layers", &[0.0]),
    ("residual_scale", &[0.0, 1.0]),
    ("rope.dimension_sections", &[0.0]),
    ("rope.scaling.alpha", &[0.0]),
    ("rope.scaling.yarn_attn_factor", &[1.0]),
    ("rope.scaling.yarn_beta_fast", &[32.0]),
    ("rope.scaling.yarn_beta_slow", &[1.0]),
    ("rope.scaling.yarn_ext_factor", &[-1.0, 1.0]),
    ("rope.scaling.yarn_log_multiplier", &[0.0]),
    ("swiglu_clamp_exp", &[0.0]),
];

/// Checks the keys of `gguf` against [`NEUTRAL`], but for those that the architecture reads.
///
/// # Errors
/// `Error::Unsupported` naming the first key whose value nothing here implements.
pub(super) fn keys(gguf: &Gguf, architecture: &str, read: &[&str]) -> Result<(), Error> {
    for &(suffix, neutral) in NEUTRAL.iter().filter(|(suffix, _)| !read.contains(suffix)) {
        let key = Metadata { gguf, architecture }.key(suffix);
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
                    "{value} is not implemented for {architecture} (only {})",
                    only.join(" or ")
                ),
            });
        }
    }
    Ok(())
}
