//! Golden prompts: a few tokens whose logits are computed here by the graph interpreter over the naive reference, so that
//! `verify` can judge the compiled code on the machine it runs on.

use crate::error::Error;
use crate::gguf::Gguf;
use crate::graph::{WeightId, interpret};
use crate::model::Model;
use coldpress_kernels::cpu::abi::KvType;
use coldpress_runtime::manifest::GoldenPrompt;

/// Tokens of the golden prompt: enough for attention over several positions, few enough to interpret in a moment.
const TOKENS: u64 = 4;
/// Logits kept per position.
const KEPT: usize = 64;
/// Allowed normalised error. What int8 activations or an int8 KV cache cost in a deep network stays below the first, f16 KV alone below the
/// second; a wrong scale, head or position stays below neither.
const INT8_NMSE: f64 = 2e-2;
const FLOAT_NMSE: f64 = 1e-4;

/// The golden prompts of a model; none is longer than `context` tokens.
pub fn prompts(
    gguf: &Gguf,
    model: &Model,
    context: u32,
    kv_type: KvType,
) -> Result<Vec<GoldenPrompt>, Error> {
    let vocab = model.info.vocab_size as u64;
    // Spread over the vocabulary by a multiplicative step, the same for every build.
    let tokens: Vec<u32> = (1..=TOKENS.min(u64::from(context)))
        .map(|i| (i * 2_654_435_761 % vocab) as u32)
        .collect();
    let logits = interpret::prompt_logits(&model.graph, gguf, &tokens)?;
    let graph = &model.graph;
    let int8 = kv_type == KvType::Q8_0
        || (0..graph.weights.len() as u32).any(|i| graph.is_integer(WeightId(i)));
    let nmse = if int8 { INT8_NMSE } else { FLOAT_NMSE };
    let mut golden = GoldenPrompt {
        tokens,
        positions: vec![],
        ids: vec![],
        logits: vec![],
        nmse,
    };
    for (position, row) in logits.iter().enumerate() {
        let mut ids: Vec<u32> = (0..row.len() as u32).collect();
        let kept = KEPT.min(ids.len());
        ids.select_nth_unstable_by(kept - 1, |&a, &b| {
            row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b))
        });
        ids.truncate(kept);
        ids.sort_unstable();
        golden.positions.push(position as u32);
        golden
            .logits
            .push(ids.iter().map(|&i| row[i as usize]).collect());
        golden.ids.push(ids);
    }
    Ok(vec![golden])
}
