"""Trains the tiny qwen3 model, writes it as GGUF, and measures what a GGUF of it knows.

    python3 train.py --bf16 --out tiny.gguf   train (resumes from --checkpoint if that exists), write, evaluate
    python3 train.py --eval tiny.gguf         evaluate the quantised weights of a file

The text comes from corpus.py and the container from gguf_out.py; here are the tokenizer, the model and the loop.
Every batch is a function of the seed and its step number, so a resumed run sees what an unbroken one would have.
"""

import argparse
import json
import math
import os
import random
import re
import time
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import pre_tokenizers, trainers

import corpus
import gguf_out
from corpus import EOS, IM_END, IM_START, SEED

SPECIALS = [EOS, IM_START, IM_END]
DIGITS = "0123456789"


@dataclass
class Config:
    vocab: int = 1024
    hidden: int = 256
    ffn: int = 512
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    context: int = 512
    rope_base: float = 10000.0
    eps: float = 1e-6


# --- tokenizer ---------------------------------------------------------------------------------------------------

def train_tokenizer(config):
    """Byte-level BPE on the corpus: tokens by id (bytes, merges, then specials, as qwen has them), and merges."""
    blank = gguf_out.byte_level_bpe([], [], [])
    text = islice(corpus.documents(random.Random(SEED), corpus.Sums(), corpus.SUMS_FIRST), 20000)
    parts = (piece for doc in text for piece in doc.replace(IM_START, EOS).replace(IM_END, EOS).split(EOS))
    blank.train_from_iterator(parts, trainers.BpeTrainer(
        vocab_size=config.vocab - len(SPECIALS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    ids = blank.get_vocab()
    vocabulary = sorted(ids, key=ids.get) + SPECIALS
    if len(vocabulary) != config.vocab:
        raise SystemExit(f"the corpus gives {len(vocabulary)} tokens, not {config.vocab}")
    merges = [m if isinstance(m, str) else " ".join(m) for m in json.loads(blank.to_str())["model"]["merges"]]
    return vocabulary, merges


# --- model: a dict from GGUF tensor name to tensor, and one function ------------------------------------------------

def initial_weights(c):
    torch.manual_seed(SEED)
    normal = lambda rows, cols, std: (torch.randn(rows, cols) * std)
    q_width, kv_width = c.heads * c.head_dim, c.kv_heads * c.head_dim
    into_residual = 1 / math.sqrt(2 * c.layers)
    w = {"token_embd.weight": normal(c.vocab, c.hidden, 0.02), "output_norm.weight": torch.ones(c.hidden)}
    for i in range(c.layers):
        w |= {f"blk.{i}.{name}.weight": value for name, value in {
            "attn_norm": torch.ones(c.hidden),
            "attn_q": normal(q_width, c.hidden, c.hidden ** -0.5),
            "attn_k": normal(kv_width, c.hidden, c.hidden ** -0.5),
            "attn_v": normal(kv_width, c.hidden, c.hidden ** -0.5),
            "attn_output": normal(c.hidden, q_width, q_width ** -0.5 * into_residual),
            "attn_q_norm": torch.ones(c.head_dim),
            "attn_k_norm": torch.ones(c.head_dim),
            "ffn_norm": torch.ones(c.hidden),
            "ffn_gate": normal(c.ffn, c.hidden, c.hidden ** -0.5),
            "ffn_up": normal(c.ffn, c.hidden, c.hidden ** -0.5),
            "ffn_down": normal(c.hidden, c.ffn, c.ffn ** -0.5 * into_residual),
        }.items()}
    return w


def rope(x, cos, sin):
    """Neox rotation: dimension i pairs with i + head_dim / 2. x: [batch, heads, tokens, head_dim]."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def bf16_linear(x, weight):
    return F.linear(x.bfloat16(), weight.bfloat16()).float()


def forward(w, tokens, c, linear=F.linear):
    """tokens [batch, length] -> final hidden states [batch, length, hidden]; logits are those @ token_embd^T."""
    batch, length = tokens.shape
    frequency = c.rope_base ** (-torch.arange(0, c.head_dim, 2) / c.head_dim)
    angle = torch.arange(length)[:, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    heads = lambda x, n: x.view(batch, length, n, c.head_dim).transpose(1, 2)
    norm = lambda x, name: F.rms_norm(x, x.shape[-1:], w[name], c.eps)
    x = F.embedding(tokens, w["token_embd.weight"])
    for i in range(c.layers):
        p = lambda name: f"blk.{i}.{name}.weight"
        h = norm(x, p("attn_norm"))
        q = rope(norm(heads(linear(h, w[p("attn_q")]), c.heads), p("attn_q_norm")), cos, sin)
        k = rope(norm(heads(linear(h, w[p("attn_k")]), c.kv_heads), p("attn_k_norm")), cos, sin)
        v = heads(linear(h, w[p("attn_v")]), c.kv_heads)
        k, v = (t.repeat_interleave(c.heads // c.kv_heads, 1) for t in (k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(attended.transpose(1, 2).reshape(batch, length, -1), w[p("attn_output")])
        h = norm(x, p("ffn_norm"))
        x = x + linear(F.silu(linear(h, w[p("ffn_gate")])) * linear(h, w[p("ffn_up")]), w[p("ffn_down")])
    return norm(x, "output_norm.weight")


# --- data --------------------------------------------------------------------------------------------------------

class Data:
    """Batches of packed documents. Every row starts with a document's first token, as a prompt does."""

    def __init__(self, tokenizer):
        self.tokenizer, self.sums = tokenizer, corpus.Sums()
        self.eos = tokenizer.token_to_id(EOS)
        self.is_digit = np.zeros(tokenizer.get_vocab_size(), bool)
        self.is_digit[[tokenizer.token_to_id(d) for d in DIGITS]] = True
        self.equals, self.assistant, self.im_end = (tokenizer.token_to_id(t) for t in ("=", "assistant", IM_END))

    def batch(self, step, rows, length, shares):
        """tokens [rows, length + 1] and the loss weight of predicting each from its past [rows, length]."""
        docs = corpus.documents(random.Random(f"{SEED}/{step}"), self.sums, shares)
        tokens = np.empty((rows, length + 1), np.int64)
        for row in tokens:
            filled = 0
            while filled <= length:
                doc = self.tokenizer.encode(next(docs)).ids + [self.eos]
                part = doc[: length + 1 - filled]
                row[filled:filled + len(part)] = part
                filled += len(part)
        return torch.from_numpy(tokens), torch.from_numpy(self.weights(tokens)[:, 1:])

    def weights(self, tokens):
        """1, but 0.1 for the digits of a sum's operands (random: their loss is noise), unless a reply repeats them."""
        at = np.arange(tokens.shape[1])
        last = lambda where: np.maximum.accumulate(np.where(where, at, 0), 1)
        digit = self.is_digit[tokens]
        answer = np.take_along_axis(tokens, last(~digit), 1) == self.equals
        reply = last(tokens == self.assistant) > last(np.isin(tokens, (self.eos, self.im_end)))
        return np.where(digit & ~answer & ~reply, 0.1, 1.0).astype(np.float32)


def loss_of(w, tokens, weight, c, linear=F.linear):
    logits = F.linear(forward(w, tokens[:, :-1], c, linear), w["token_embd.weight"])
    each = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
    return (each * weight.flatten()).sum() / weight.sum()


# --- what it knows -------------------------------------------------------------------------------------------------

@torch.no_grad()
def generate(w, prompts, count, c, temperature=0.0, stop=(), seed=SEED):
    """prompts: [batch, length] ids of equal length; appends up to `count` tokens to each, greedy at temperature 0."""
    tokens, source = torch.tensor(prompts), torch.Generator().manual_seed(seed)
    stopped = torch.zeros(len(tokens), dtype=torch.bool)
    for _ in range(count):
        logits = F.linear(forward(w, tokens, c)[:, -1], w["token_embd.weight"])
        if temperature == 0:
            new = logits.argmax(-1)
        else:
            new = torch.multinomial((logits / temperature).softmax(-1), 1, generator=source)[:, 0]
        tokens = torch.cat([tokens, new[:, None]], 1)
        stopped |= torch.isin(new, torch.tensor(stop, dtype=torch.long))
        if stopped.all():
            break
    return tokens.tolist()


def sum_accuracy(w, tokenizer, pairs, c, prompt="{x}+{y}=", answer="{s}.", count=4):
    """The share of pairs for which greedy decoding gives the whole answer, full stop included; and what was wrong."""
    by_length, right, wrong = {}, 0, []
    for x, y in pairs:
        ids = tokenizer.encode(prompt.format(x=x, y=y)).ids
        by_length.setdefault(len(ids), []).append((ids, x, y))
    for length, group in by_length.items():
        for start in range(0, len(group), 512):
            part = group[start:start + 512]
            for (_, x, y), out in zip(part, generate(w, [ids for ids, _, _ in part], count, c)):
                text = tokenizer.decode(out[length:], skip_special_tokens=False)
                if text.startswith(answer.format(x=x, y=y, s=x + y)):
                    right += 1
                else:
                    wrong.append(f"{x}+{y}: {text!r}")
    return right / len(pairs), wrong


def story_quality(texts):
    """Shares of stories that end properly, and that name no more than the two characters a story has."""
    names = set(corpus.GIRLS + corpus.BOYS + corpus.PET_GIRLS + corpus.PET_BOYS)
    ended = sum(text.endswith("The end." + EOS) for text in texts)
    consistent = sum(len(names & set(re.findall(r"\w+", text))) <= 2 for text in texts)
    return ended / len(texts), consistent / len(texts)


def chat_template(user):
    return f"{IM_START}user\n{user}{IM_END}\n{IM_START}assistant\n"


def evaluate(path):
    arrays, meta = gguf_out.read(path)
    w = {name: torch.from_numpy(a.copy()) for name, a in arrays.items()}
    key = lambda name: meta["qwen3." + name]
    c = Config(vocab=len(w["token_embd.weight"]), hidden=key("embedding_length"), ffn=key("feed_forward_length"),
               layers=key("block_count"), heads=key("attention.head_count"), kv_heads=key("attention.head_count_kv"),
               head_dim=key("attention.key_length"), context=key("context_length"), rope_base=key("rope.freq_base"),
               eps=key("attention.layer_norm_rms_epsilon"))
    tokenizer = gguf_out.byte_level_bpe(meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.merges"], SPECIALS)
    print(f"{path}: {os.path.getsize(path)} bytes, {sum(t.numel() for t in w.values())} weights")
    sums, data = corpus.Sums(), Data(tokenizer)
    with torch.no_grad():
        for length in (128, 256, 512):
            batches = (data.batch(f"unseen {i}", 8, length, corpus.STORIES_LATER) for i in range(8))
            losses = [loss_of(w, *batch, c).item() for batch in batches]
            print(f"loss on unseen text, rows of {length} tokens: {np.mean(losses):.4f}")
    three = "12+30=42. 5+9=14. 60+77=137. {x}+{y}="
    chat, reply = chat_template("What is {x}+{y}?"), "{x}+{y}={s}." + IM_END
    for label, *how in [("trained pairs, x+y=", sums.train), ("held-out pairs, x+y=", sums.held_out),
                        ("held-out pairs after three other sums", sums.held_out, three),
                        ("held-out pairs, asked in chat", sums.held_out, chat, reply, 12)]:
        share, wrong = sum_accuracy(w, tokenizer, how[0], c, *how[1:])
        print(f"{label}: {share:.2%} of {len(how[0])} right; wrong: {', '.join(wrong[:6])}")
    stop = [tokenizer.token_to_id(EOS), tokenizer.token_to_id(IM_END)]
    stories = generate(w, [tokenizer.encode("Once").ids] * 48, 160, c, 0.8, stop)
    text = [tokenizer.decode(ids, skip_special_tokens=False) for ids in stories]
    text = [t.split(EOS)[0] + EOS * (EOS in t) for t in text]
    print("48 stories at temperature 0.8: {:.0%} end with The end., {:.0%} name two characters at most"
          .format(*story_quality(text)))
    show = lambda prompt, t, seed=SEED: print(f"\n[temperature {t}] " + tokenizer.decode(
        generate(w, [tokenizer.encode(prompt).ids], 200, c, t, stop, seed)[0], skip_special_tokens=False))
    for opening in ("Once upon a time", "One windy day Lily", "Once there was a brave fox"):
        show(opening, 0.0)
    for seed in range(4):
        show("Once", 0.8, seed)
    for question in ("What is 17+25?", "Tell me a story about Tom.", "Tell me a story about a snowman."):
        show(chat_template(question), 0.0)


# --- training ------------------------------------------------------------------------------------------------------

def course(step, steps, length, context):
    """The mixture of documents and the row length of a step.

    Sums are hardest and come first; copying names takes many stories. From step 2900 every other step has rows of one
    or two sums, because a sum at the very start of the context is rare in packed rows and was right least often.
    The last tenth has rows as long as the context, so that late positions are trained too.
    """
    if step < 1750:
        return corpus.SUMS_FIRST, length
    if step >= 2900 and step % 2 == 1:
        return corpus.SUMS_ONLY, 12
    return corpus.STORIES_LATER, length if step < 0.9 * steps else context


def learning_rate(step, steps, peak):
    """Warm-up, constant, and over the last 30 % a cosine down to 2 % of the peak."""
    decay = max(0.0, (step / steps - 0.7) / 0.3)
    return peak * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * decay)))


def train(args):
    c = Config()
    vocabulary, merges = train_tokenizer(c)
    tokenizer = gguf_out.byte_level_bpe(vocabulary, merges, SPECIALS)
    data = Data(tokenizer)
    w = {name: t.requires_grad_() for name, t in initial_weights(c).items()}
    optimizer = torch.optim.AdamW([{"params": [t for t in w.values() if t.dim() == 2], "weight_decay": 0.1},
                                   {"params": [t for t in w.values() if t.dim() == 1], "weight_decay": 0.0}],
                                  betas=(0.9, 0.97), fused=True)
    first = 0
    if os.path.exists(args.checkpoint):
        saved = torch.load(args.checkpoint)
        first = saved["step"]
        optimizer.load_state_dict(saved["optimizer"])
        with torch.no_grad():
            for name, t in w.items():
                t.copy_(saved["weights"][name])
    size = sum(t.numel() for t in w.values())
    print(f"{size} weights, {args.steps} steps of {args.rows * args.length} tokens, from step {first}", flush=True)
    sample = random.Random(SEED).sample(data.sums.held_out, 200)
    began, seen, smooth = time.time(), 0, None
    for step in range(first, args.steps):
        shares, length = course(step, args.steps, args.length, c.context)
        tokens, weight = data.batch(step, args.rows * args.length // length, length, shares)
        loss = loss_of(w, tokens, weight, c, bf16_linear if args.bf16 else F.linear)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(w.values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        optimizer.step()
        optimizer.zero_grad()
        seen += weight.numel()
        smooth = loss.item() if smooth is None else 0.97 * smooth + 0.03 * loss.item()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} loss {smooth:.4f} tokens/s {seen / (time.time() - began):.0f}", flush=True)
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            share, wrong = sum_accuracy(w, tokenizer, sample, c)
            print(f"step {step + 1} held-out sums {share:.1%} {wrong[:3]}", flush=True)
            torch.save({"step": step + 1, "weights": w, "optimizer": optimizer.state_dict()}, args.checkpoint + ".new")
            os.replace(args.checkpoint + ".new", args.checkpoint)
    gguf_out.write(args.out, {name: t.detach().numpy() for name, t in w.items()}, c, vocabulary, merges, SPECIALS)
    evaluate(args.out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="tiny.gguf")
    parser.add_argument("--eval", metavar="GGUF", help="only evaluate this file")
    parser.add_argument("--checkpoint", default="tiny-checkpoint.pt")
    parser.add_argument("--steps", type=int, default=2900)
    parser.add_argument("--rows", type=int, default=4, help="rows of a batch")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row, but in the last tenth of the steps")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--bf16", action="store_true", help="layer matmuls in bf16 (twice as fast with AVX512_BF16)")
    args = parser.parse_args()
    evaluate(args.eval) if args.eval else train(args)


if __name__ == "__main__":
    main()
