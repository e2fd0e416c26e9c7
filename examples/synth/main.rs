//! Writes a GGUF with the shape of a real model and random weights, to time engines on: as many bytes in the same formats,
//! tensor by tensor, as the published file has. Every processor writes a part; memory use does not grow with the file.
//!
//! `cargo run --release -p coldpress-compiler --example synth -- qwen3-0.6b q4_k_m model.gguf`

mod recipe;
mod shape;

use std::error::Error;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use coldpress_compiler::gguf::{Array, GgufWriter, Value};
use recipe::{Random, Recipe};
use shape::{MIXES, SHAPES, Shape, Tensor, Values, tensors};

const USAGE: &str = "usage: synth SHAPE MIX OUT.gguf [--layers N] [--seed N] [--zeros]
SHAPE: qwen3-0.6b, qwen3-8b, qwen3-30b-a3b, qwen3.5-0.8b, llama-3.1-8b, llama-1b or gemma4-e4b
MIX: q4_k_m, q8_0, q4_0, q6_k or f16
--layers N: only the first N layers; --seed N: other weights
--zeros: no matrices, in a file with holes that takes no room on the disk: for --dry-run";

fn metadata(writer: &mut GgufWriter<'_>, shape: &Shape, mix: &str, layers: usize) {
    let text = |text: &str| Value::Str(text.into());
    let arch = shape.architecture;
    let global_head = shape.gemma.as_ref().map_or(shape.head, |g| g.global_head);
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
        ("attention.key_length", global_head),
        ("attention.value_length", global_head),
        (
            "rope.dimension_count",
            shape.recurrent.as_ref().map_or(global_head, |r| r.rotated),
        ),
        ("vocab_size", shape.vocab as u64),
    ] {
        writer.add(format!("{arch}.{key}"), Value::U32(value as u32));
    }
    if let Some(gemma) = &shape.gemma {
        for (key, value) in [
            ("attention.key_length_swa", shape.head),
            ("attention.value_length_swa", shape.head),
            ("rope.dimension_count_swa", shape.head),
            ("attention.sliding_window", gemma.window.into()),
            (
                "attention.shared_kv_layers",
                layers.saturating_sub(gemma.own_kv) as u64,
            ),
            ("embedding_length_per_layer_input", gemma.per_layer),
        ] {
            writer.add(format!("{arch}.{key}"), Value::U32(value as u32));
        }
        let windowed = (0..layers).map(|layer| shape.windowed(layer));
        writer.add(
            format!("{arch}.attention.sliding_window_pattern"),
            Value::Array(Array::Bool(windowed.collect())),
        );
        for (key, value) in [
            ("rope.freq_base_swa", gemma.window_rope_base),
            ("final_logit_softcapping", gemma.softcap),
        ] {
            writer.add(format!("{arch}.{key}"), Value::F32(value));
        }
    }
    if let Some(experts) = &shape.experts {
        for (key, value) in [
            ("expert_count", experts.count),
            ("expert_used_count", experts.used),
            ("expert_feed_forward_length", experts.ffn),
        ] {
            writer.add(format!("{arch}.{key}"), Value::U32(value as u32));
        }
    }
    if let Some(recurrent) = &shape.recurrent {
        for (key, value) in [
            ("full_attention_interval", recurrent.interval as u64),
            ("ssm.conv_kernel", recurrent.taps),
            ("ssm.inner_size", recurrent.heads * recurrent.head),
            ("ssm.state_size", recurrent.head),
            ("ssm.time_step_rank", recurrent.heads),
            ("ssm.group_count", recurrent.key_heads),
        ] {
            writer.add(format!("{arch}.{key}"), Value::U32(value as u32));
        }
        let sections = Array::I32(vec![11, 11, 10, 0]);
        let key = format!("{arch}.rope.dimension_sections");
        writer.add(key, Value::Array(sections));
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
    let (mut layers, mut seed, mut zeros) = (shape.layers, 0, false);
    let mut flags = flags.iter();
    while let Some(flag) = flags.next() {
        let mut value = || flags.next().ok_or(USAGE);
        match flag.as_str() {
            "--layers" => layers = value()?.parse::<usize>()?.clamp(1, shape.layers),
            "--seed" => seed = value()?.parse()?,
            "--zeros" => zeros = true,
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
    let mut pieces = pieces(&tensors, places, seed);
    if zeros {
        pieces.retain(|piece| matches!(piece.tensor.values, Values::Given(_)));
    }
    write(&file, &pieces, &recipes).map_err(|e| format!("{out}: {e}"))?;
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
