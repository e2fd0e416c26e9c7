"""Writes the trained weights as a qwen3 GGUF with a Q4_K_M-like mixture, and reads such a file back.

The metadata keys and tensor names are those llama.cpp's convert_hf_to_gguf.py writes for qwen3. gguf-py has no
K-quant quantisers, so they are here; layouts as ggml-common.h documents them, 256 weights to a super-block.
"""

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

# The pre-tokeniser that `tokenizer.ggml.pre = qwen2` names. Digits are split singly, so a number is its digits.
QWEN2_REGEX = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
               r"|\s*[\r\n]+|\s+(?!\S)|\s+")

CHAT_TEMPLATE = ("{% for message in messages %}"
                 r"{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
                 r"{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def mixture(name):
    """The GGML type of a tensor, by its name: the Q4_K_M idea of more bits where they matter most."""
    if name.endswith("norm.weight"):
        return Type.F32
    if name == "token_embd.weight":
        return Type.Q8_0
    return Type.Q6_K if "attn_v" in name or "ffn_down" in name else Type.Q4_K


def round_to(x, low, high):
    return np.clip(np.rint(x), low, high)


def fit_scale_and_min(x, levels):
    """Per group (last axis), scale >= 0 and min >= 0 so that x ~ scale * q - min with q in 0..levels.

    Tries a few grids around the full range; for each, the weighted least squares scale and min for its quants.
    """
    weight = np.sqrt((x * x).mean(-1, keepdims=True)) + np.abs(x)
    low = np.minimum(x.min(-1, keepdims=True), 0)
    span = np.maximum(x.max(-1, keepdims=True) - low, 1e-12)
    best = np.full(x.shape[:-1], np.inf)
    scale, minimum = span[..., 0] / levels, -low[..., 0]
    sw, sx = weight.sum(-1), (weight * x).sum(-1)
    for shrink in np.arange(-1.0, 1.05, 0.1):
        q = round_to((x - low) * (levels + shrink) / span, 0, levels)
        sq, sqq, sqx = (weight * q).sum(-1), (weight * q * q).sum(-1), (weight * q * x).sum(-1)
        det = np.maximum(sw * sqq - sq * sq, 1e-20)
        d, m = (sw * sqx - sq * sx) / det, (sq * sqx - sqq * sx) / det
        negative = m < 0
        d, m = np.where(negative, sqx / np.maximum(sqq, 1e-20), d), np.where(negative, 0, m)
        error = (weight * (d[..., None] * q - m[..., None] - x) ** 2).sum(-1)
        better = (error < best) & (d > 0)
        best, scale, minimum = np.where(better, error, best), np.where(better, d, scale), np.where(better, m, minimum)
    return scale, minimum


def fit_symmetric_scale(x, levels):
    """Per group, the signed scale for which x ~ scale * q, q in -levels..levels-1, has the least squared error."""
    at = np.abs(x).argmax(-1, keepdims=True)
    peak = np.take_along_axis(x, at, -1)
    peak = np.where(peak == 0, 1e-12, peak)
    best, scale = np.full(x.shape[:-1], np.inf), np.zeros(x.shape[:-1])
    for shrink in np.arange(-0.9, 0.95, 0.1):
        q = round_to(x * -(levels + shrink) / peak, -levels, levels - 1)
        d = (x * x * q * x).sum(-1) / np.maximum((x * x * q * q).sum(-1), 1e-30)
        error = (x * x * (d[..., None] * q - x) ** 2).sum(-1)
        better = error < best
        best, scale = np.where(better, error, best), np.where(better, d, scale)
    return scale


def halves(x):
    """f32 per super-block -> the f16 value and its two bytes."""
    h = x.astype(np.float16)
    return h.astype(np.float32), h.view(np.uint8).reshape(-1, 2)


def quantize_q4_k(w):
    """[rows, k] f32 -> [rows, k / 256 * 144] bytes: d, dmin, 12 bytes of 6-bit scales and mins, 128 of nibbles."""
    x = w.astype(np.float32).reshape(-1, 8, 32)
    scale, minimum = fit_scale_and_min(x, 15)
    d, d_bytes = halves(scale.max(-1) / 63)
    dmin, dmin_bytes = halves(minimum.max(-1) / 63)
    invert = lambda v: np.divide(1, v, out=np.zeros_like(v), where=v > 0)[:, None]
    ls, lm = (round_to(v * invert(s), 0, 63).astype(np.uint8) for v, s in ((scale, d), (minimum, dmin)))
    step, offset = (d[:, None] * ls)[..., None], (dmin[:, None] * lm)[..., None]
    q = round_to(np.divide(x + offset, step, out=np.zeros_like(x), where=step > 0), 0, 15).astype(np.uint8)
    packed = np.concatenate([ls[:, :4] | (ls[:, 4:] >> 4) << 6, lm[:, :4] | (lm[:, 4:] >> 4) << 6,
                             (ls[:, 4:] & 15) | (lm[:, 4:] & 15) << 4], -1)
    q = q.reshape(-1, 4, 2, 32)
    nibbles = (q[:, :, 0] | q[:, :, 1] << 4).reshape(-1, 128)
    return np.concatenate([d_bytes, dmin_bytes, packed, nibbles], -1).reshape(len(w), -1)


def quantize_q6_k(w):
    """[rows, k] f32 -> [rows, k / 256 * 210] bytes: 128 low nibbles, 64 bytes of high bits, 16 i8 scales, d."""
    x = w.astype(np.float32).reshape(-1, 16, 16)
    scale = fit_symmetric_scale(x, 32)
    peak = np.take_along_axis(scale, np.abs(scale).argmax(-1, keepdims=True), -1)[:, 0]
    d, d_bytes = halves(peak / -128)
    s = np.divide(scale, d[:, None], out=np.zeros_like(scale), where=d[:, None] != 0)
    s = round_to(s, -128, 127).astype(np.int8)
    step = (d[:, None] * s)[..., None].astype(np.float32)
    q = round_to(np.divide(x, step, out=np.zeros_like(x), where=step != 0), -32, 31) + 32
    q = q.astype(np.uint8).reshape(-1, 2, 4, 32)  # half, quarter, weight
    low, high = q & 15, q >> 4
    ql = np.concatenate([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], -1).reshape(-1, 128)
    qh = (high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6).reshape(-1, 64)
    return np.concatenate([ql, qh, s.view(np.uint8), d_bytes], -1).reshape(len(w), -1)


QUANTIZE = {Type.Q4_K: quantize_q4_k, Type.Q6_K: quantize_q6_k, Type.Q8_0: lambda w: gguf.quants.quantize(w, Type.Q8_0)}


def relative_error(w, data, type):
    """RMS error of the quantised tensor, as gguf-py dequantises it, over the RMS of the weights."""
    back = gguf.quants.dequantize(data, type)
    return float(np.sqrt(((back - w) ** 2).mean() / (w ** 2).mean()))


def write(path, weights, config, vocabulary, merges, specials):
    """weights: name -> f32 array [out, in]. vocabulary: tokens by id. Prints the error of each quantised type."""
    out = gguf.GGUFWriter(path, "qwen3")
    out.add_type("model")
    out.add_name("coldpress tiny")
    out.add_size_label(f"{sum(w.size for w in weights.values()) / 1e6:.1f}M")
    out.add_block_count(config.layers)
    out.add_context_length(config.context)
    out.add_embedding_length(config.hidden)
    out.add_feed_forward_length(config.ffn)
    out.add_head_count(config.heads)
    out.add_head_count_kv(config.kv_heads)
    out.add_rope_freq_base(config.rope_base)
    out.add_layer_norm_rms_eps(config.eps)
    out.add_key_length(config.head_dim)
    out.add_value_length(config.head_dim)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2")
    out.add_token_list(vocabulary)
    out.add_token_types([gguf.TokenType.CONTROL if t in specials else gguf.TokenType.NORMAL for t in vocabulary])
    out.add_token_merges(merges)
    eos, _, im_end = (vocabulary.index(s) for s in specials)
    out.add_eos_token_id(eos)
    out.add_eot_token_id(im_end)
    out.add_pad_token_id(eos)
    out.add_bos_token_id(eos)
    out.add_add_bos_token(False)
    out.add_chat_template(CHAT_TEMPLATE)
    errors = {}
    for name, w in weights.items():
        type = mixture(name)
        if type == Type.F32:
            out.add_tensor(name, w.astype(np.float32))
            continue
        data = QUANTIZE[type](w)
        errors.setdefault(type.name, []).append(relative_error(w, data, type))
        out.add_tensor(name, data, raw_dtype=type)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    for type, each in errors.items():
        print(f"{type}: {len(each)} tensors, relative RMS error {np.mean(each):.4f} (worst {max(each):.4f})")


def byte_level_bpe(vocabulary, merges, specials):
    """The tokenizer of this model; vocabulary: tokens by id, merges: "left right" by rank."""
    pairs = [tuple(m.split(" ")) for m in merges]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2_REGEX), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return tokenizer


def read(path):
    """The file's weights, dequantised to f32, and its metadata as plain values."""
    reader = gguf.GGUFReader(path)
    weights = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape([int(n) for n in reversed(t.shape)])
               for t in reader.tensors}
    return weights, {key: field.contents() for key, field in reader.fields.items()}
