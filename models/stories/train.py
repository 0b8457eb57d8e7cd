#!/usr/bin/env python3
"""Train the two small story models (stories-moe and stories-dense) on a CPU.

    python train.py --model moe   --corpus DIR --out runs     # tokeniser + training
    python train.py --model dense --corpus DIR --out runs
    python train.py --model moe   --corpus DIR --out runs --eval

The corpus folder (or $FRUGAL_CORPUS) holds stories-train.txt and stories-valid.txt; every story ends
with a line `<|endoftext|>`. Only the first is trained on, only the second is reported on.

The corpus is small (3.7 MB), so the models see it many times and the recipe is chosen for data
efficiency: Muon for the matrices, strong weight decay, dropout, BPE-dropout on the input side, a
long linear cool-down and an average of the weights.

Everything is seeded, and a run that is killed continues from its last checkpoint when the same
command is given again (`--fresh` starts over).
"""

import argparse
import json
import math
import os
import random
import re
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent
EOT = "<|endoftext|>"
EOT_ID = 0  # the only special token; it opens a story and closes it


# --------------------------------------------------------------------------------------------------
# Corpus and tokeniser
# --------------------------------------------------------------------------------------------------


def read_stories(path):
    text = Path(path).read_text(encoding="utf-8")
    return [s for s in (part.strip() for part in text.split(EOT)) if s]


def restore_names(stories):
    """Capitalise the names that the training file's rule-made letter case left in lower case.

    A word counts as a name when, away from a sentence's start, it is written with a capital at
    least four times out of five. Only the training text is looked at, and only it is changed.
    """
    upper, lower = {}, {}
    for s in stories:
        for m in re.finditer(r"(?<=[a-z,] )([A-Z][a-z]{2,})\b", s):
            upper[m[1]] = upper.get(m[1], 0) + 1
        for m in re.finditer(r"\b([a-z]{3,})\b", s):
            lower[m[1]] = lower.get(m[1], 0) + 1
    names = {w for w, n in upper.items() if n >= 5 and n >= 4 * lower.get(w.lower(), 0)}
    fixable = {w.lower() for w in names if lower.get(w.lower())}
    if not fixable:
        return stories
    pattern = re.compile(r"\b(" + "|".join(sorted(fixable)) + r")\b")
    return [pattern.sub(lambda m: m[1].capitalize(), s) for s in stories]


def train_tokenizer(stories, vocab_size):
    """Byte-level BPE with GPT-2's pre-tokeniser, so that GGUF's `pre = "gpt-2"` describes it exactly."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        stories,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[EOT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    assert tok.token_to_id(EOT) == EOT_ID
    return tok


def load_tokenizer(path):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


class NoisyEncoder:
    """Encodes stories; now and then a word is cut into smaller pieces than the tokeniser would cut it.

    This is BPE-dropout (Provilkov et al., 2020). The tokenizers package has it too, but unseeded and
    therefore not repeatable. Here each distinct word gets a few seeded alternative cuts once, and each
    occurrence picks one with probability `rate`.
    """

    ALTERNATIVES = 6
    MERGE_DROP = 0.25

    def __init__(self, tok, stories, seed):
        rng = random.Random(seed)
        spec = json.loads(tok.to_str())["model"]
        self.vocab = spec["vocab"]
        self.ranks = {tuple(m if isinstance(m, list) else m.split(" ")): i for i, m in enumerate(spec["merges"])}
        ids, self.stories, words = {}, [], []
        for s in stories:
            row = []
            for w, _ in tok.pre_tokenizer.pre_tokenize_str(s):
                if w not in ids:
                    ids[w] = len(words)
                    words.append(w)
                row.append(ids[w])
            self.stories.append(np.array(row, dtype=np.int32))
        self.exact = [self._cut(w, 0.0, rng) for w in words]
        self.noisy = [[self._cut(w, self.MERGE_DROP, rng) for _ in range(self.ALTERNATIVES)] for w in words]

    def _cut(self, word, drop, rng):
        parts = list(word)
        while len(parts) > 1:
            best = None
            for i in range(len(parts) - 1):
                r = self.ranks.get((parts[i], parts[i + 1]))
                if r is not None and (best is None or r < best[0]) and (drop == 0 or rng.random() >= drop):
                    best = (r, i)
            if best is None:
                break
            i = best[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return [self.vocab[p] for p in parts]

    def encode(self, rate, rng):
        """All stories as token arrays: EOT, text, EOT."""
        out = []
        for row in self.stories:
            ids = [EOT_ID]
            pick = rng.random(len(row)) < rate
            for w, noisy in zip(row.tolist(), pick.tolist()):
                ids += self.noisy[w][rng.integers(self.ALTERNATIVES)] if noisy else self.exact[w]
            ids.append(EOT_ID)
            out.append(np.array(ids, dtype=np.int64))
        return out


def make_batches(docs, tokens_per_batch, context, rng):
    """One epoch of (inputs, targets). Stories of like length share a batch, so little is padding.

    A story is never joined to another: positions start at 0, exactly as they do at inference.
    """
    pieces = []
    for d in docs:
        for at in range(0, len(d) - 1, context):
            pieces.append(d[at : at + context + 1])
    order = rng.permutation(len(pieces))
    batches, pool_size = [], 512
    for p in range(0, len(order), pool_size):
        pool = sorted(order[p : p + pool_size], key=lambda i: len(pieces[i]))
        at = 0
        while at < len(pool):
            n, longest = 0, 0
            while at + n < len(pool):
                longest = max(longest, len(pieces[pool[at + n]]) - 1)
                if n and longest * (n + 1) > tokens_per_batch:
                    break
                n += 1
            batches.append([pieces[i] for i in pool[at : at + n]])
            at += n
    rng.shuffle(batches)
    return batches


def collate(rows):
    width = max(len(r) for r in rows) - 1
    x = torch.full((len(rows), width), EOT_ID, dtype=torch.long)
    y = torch.full((len(rows), width), -1, dtype=torch.long)  # -1: padding, no loss
    for i, r in enumerate(rows):
        t = torch.from_numpy(r)
        x[i, : len(r) - 1] = t[:-1]
        y[i, : len(r) - 1] = t[1:]
    return x, y


# --------------------------------------------------------------------------------------------------
# Model
# --------------------------------------------------------------------------------------------------


@dataclass
class Config:
    """A Llama/Mixtral decoder that GGUF's `llama` architecture describes completely.

    Attention is full in every layer: that architecture has no per-layer sliding window in llama.cpp,
    and a model that llama.cpp cannot run as trained would leave no reference to compare with.
    """

    name: str = "stories-moe"
    vocab: int = 2048
    context: int = 512
    layers: int = 6
    width: int = 256
    heads: int = 8
    kv_heads: int = 4
    ff: int = 128  # inner width of one expert (or of the whole block, when experts == 0)
    experts: int = 8
    experts_used: int = 2
    rope_base: float = 10000.0
    eps: float = 1e-5

    @property
    def head_dim(self):
        return self.width // self.heads


MODELS = {
    "moe": dict(name="stories-moe", ff=128, experts=8, experts_used=2),
    "dense": dict(name="stories-dense", ff=384, experts=0, experts_used=0),
}


class RMSNorm(nn.Module):
    def __init__(self, n, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(n)), eps

    def forward(self, x):
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps)


def rope_tables(cfg):
    inv = cfg.rope_base ** (-torch.arange(0, cfg.head_dim, 2).float() / cfg.head_dim)
    angle = torch.outer(torch.arange(cfg.context).float(), inv)
    return torch.polar(torch.ones_like(angle), angle)


def rotate(x, turn):
    """RoPE on adjacent pairs (2i, 2i+1): the layout llama.cpp uses for `llama`, so export permutes nothing."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2)


class Dropout:
    """Dropout that reads its mask from a bank at a random place.

    Drawing a fresh mask for every call took a fifteenth of the training time; the bank is redrawn
    every epoch.
    """

    def __init__(self):
        self.bank, self.rate = None, 0.0

    def redraw(self, rate, size=1 << 24):
        self.rate = rate
        self.bank = torch.empty(size).bernoulli_(1 - rate).div_(1 - rate)

    def __call__(self, x, training):
        if not training or self.rate == 0:
            return x
        at = int(torch.randint(len(self.bank) - x.numel(), ()))
        return x * self.bank[at : at + x.numel()].view_as(x)


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        kv = cfg.kv_heads * cfg.head_dim
        self.q = nn.Linear(cfg.width, cfg.width, bias=False)
        self.k = nn.Linear(cfg.width, kv, bias=False)
        self.v = nn.Linear(cfg.width, kv, bias=False)
        self.o = nn.Linear(cfg.width, cfg.width, bias=False)

    def forward(self, x, turn, mask):
        c, (B, T, _) = self.cfg, x.shape
        q = self.q(x).view(B, T, c.heads, c.head_dim).transpose(1, 2)
        k = self.k(x).view(B, T, c.kv_heads, c.head_dim).transpose(1, 2)
        v = self.v(x).view(B, T, c.kv_heads, c.head_dim).transpose(1, 2)
        q, k = rotate(q * c.head_dim**-0.5, turn).to(v.dtype), rotate(k, turn).to(v.dtype)
        group = c.heads // c.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        # Padding is at the rows' ends only, so the causal mask already hides it from real tokens. At
        # these lengths plain products beat scaled_dot_product_attention twofold on a CPU.
        q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        scores = torch.baddbmm(mask.to(q.dtype).expand(len(q), T, T), q, k.mT)
        out = torch.bmm(torch.softmax(scores, -1, dtype=q.dtype), v).view(B, c.heads, T, c.head_dim)
        return self.o(out.transpose(1, 2).reshape(B, T, c.width))


class SwiGLU(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.gate = nn.Linear(cfg.width, cfg.ff, bias=False)
        self.up = nn.Linear(cfg.width, cfg.ff, bias=False)
        self.down = nn.Linear(cfg.ff, cfg.width, bias=False)

    def forward(self, x, real):
        return self.down(F.silu(self.gate(x)) * self.up(x)), None


class Scatter(torch.autograd.Function):
    """Rows x[order // k]: every token once per expert it goes to, grouped by expert.

    Autograd's own backward for this is an index_add, which is slow on a CPU; the inverse
    permutation turns it into a gather and a sum.
    """

    @staticmethod
    def forward(ctx, x, order, inverse, k):
        ctx.save_for_backward(inverse)
        ctx.k = k
        return x.index_select(0, order // k if k > 1 else order)

    @staticmethod
    def backward(ctx, grad):
        (inverse,) = ctx.saved_tensors
        g = grad.index_select(0, inverse)
        return (g.view(-1, ctx.k, g.shape[-1]).sum(1) if ctx.k > 1 else g), None, None, None


class MoE(nn.Module):
    """Mixtral's block: the router's top 2 of 8, their softmax weights normalised to sum to 1."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.router = nn.Linear(cfg.width, cfg.experts, bias=False)
        self.gate = nn.Parameter(torch.empty(cfg.experts, cfg.ff, cfg.width))
        self.up = nn.Parameter(torch.empty(cfg.experts, cfg.ff, cfg.width))
        self.down = nn.Parameter(torch.empty(cfg.experts, cfg.width, cfg.ff))

    def forward(self, x, real):
        c, shape = self.cfg, x.shape
        x = x.reshape(-1, shape[-1])
        with torch.autocast("cpu", enabled=False):  # routing is cheap and its ties matter: keep it in float32
            logits = self.router(x.float())
            top, chosen = logits.topk(c.experts_used, dim=-1)
            weight = top.softmax(-1)  # = softmax over all experts, top 2, renormalised
            probs = logits.softmax(-1)

        order = chosen.flatten().argsort(stable=True)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order))
        counts = torch.bincount(chosen.flatten(), minlength=c.experts).tolist()
        half = torch.is_autocast_enabled("cpu")
        # Cast the experts once, whole: autocast would cast every slice again.
        dtype = torch.bfloat16 if half else torch.float32
        up = torch.cat((self.gate, self.up), dim=1).to(dtype).unbind(0)
        down = self.down.to(dtype).unbind(0)
        xs = Scatter.apply(x.to(dtype), order, inverse, c.experts_used)
        out = []
        for e, rows in enumerate(xs.split(counts)):
            g, u = F.linear(rows, up[e]).chunk(2, dim=-1)
            out.append(F.linear(F.silu(g) * u, down[e]))
        y = Scatter.apply(torch.cat(out), inverse, order, 1).view(-1, c.experts_used, shape[-1])
        y = (y * weight.unsqueeze(-1)).sum(1)

        # Switch Transformer's balance term: 1 when perfectly even, larger when experts are favoured.
        mask = real.reshape(-1, 1)
        n = mask.sum()
        share = (F.one_hot(chosen, c.experts).sum(1) * mask).sum(0) / (n * c.experts_used)
        balance = c.experts * (share * (probs * mask).sum(0) / n).sum()
        return y.view(shape), (balance, share.detach())


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.attn_norm, self.attn = RMSNorm(cfg.width, cfg.eps), Attention(cfg)
        self.ffn_norm, self.ffn = RMSNorm(cfg.width, cfg.eps), (MoE if cfg.experts else SwiGLU)(cfg)

    def forward(self, x, turn, mask, real, drop):
        x = x + drop(self.attn(self.attn_norm(x), turn, mask).float(), self.training)
        y, routing = self.ffn(self.ffn_norm(x), real)
        return x + drop(y.float(), self.training), routing


class Model(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg, self.drop = cfg, Dropout()
        self.embed = nn.Parameter(torch.empty(cfg.vocab, cfg.width))  # also the output matrix
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.norm = RMSNorm(cfg.width, cfg.eps)
        self.register_buffer("turn", rope_tables(cfg), persistent=False)
        self.register_buffer("mask", torch.full((cfg.context, cfg.context), float("-inf")).triu(1), persistent=False)
        for name, p in self.named_parameters():
            if p.ndim >= 2:
                std = 0.02 if name == "embed" or "router" in name else p.shape[-1] ** -0.5 * 0.6
                if name.endswith(("o.weight", "down", "down.weight")):
                    std /= math.sqrt(2 * cfg.layers)  # the residual stream starts near the embedding
                nn.init.normal_(p, std=std)

    def forward(self, x, real):
        T = x.shape[1]
        h = self.drop(F.embedding(x, self.embed), self.training)
        routing = []
        for b in self.blocks:
            h, r = b(h, self.turn[:T], self.mask[:T, :T], real, self.drop)
            routing.append(r)
        return self.norm(h), routing

    def logits(self, h):
        return F.linear(h, self.embed)

    def loss(self, x, y):
        """Summed nats over real targets, their number, and the routing of each layer."""
        real = y >= 0
        h, routing = self(x, real)
        logits = self.logits(h[real])
        return F.cross_entropy(logits.float(), y[real], reduction="sum"), real.sum(), routing

    def sizes(self):
        total = sum(p.numel() for p in self.parameters())
        c = self.cfg
        idle = (c.experts - c.experts_used) * 3 * c.ff * c.width * c.layers if c.experts else 0
        return total, total - idle


# --------------------------------------------------------------------------------------------------
# Optimiser
# --------------------------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (Jordan et al., 2024); each expert is its own matrix.

    Updates are scaled to the size Adam's would have (0.2 * sqrt(longer side)), so the learning rate
    and the weight decay mean what they mean for Adam.
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0, half=True):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.half = half

    @staticmethod
    def orthogonalise(g, half, steps=5):
        a, b, c = 3.4445, -4.7750, 2.0315
        x = g.bfloat16() if half else g
        flip = x.shape[-2] > x.shape[-1]
        x = x.mT.contiguous() if flip else x
        x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(x.dtype)
        for _ in range(steps):
            s = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)
        return (x.mT if flip else x).to(g.dtype)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            same_shape = {}
            for p in group["params"]:
                if p.grad is not None:
                    same_shape.setdefault(tuple(p.shape[-2:]), []).append(p)
            for (m, n), ps in same_shape.items():
                updates = []
                for p in ps:
                    state = self.state[p]
                    if not state:
                        state["momentum"] = torch.zeros_like(p)
                    buf = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(buf, group["momentum"]).view(-1, m, n))
                update = self.orthogonalise(torch.cat(updates), self.half)
                at = 0
                for p, u in zip(ps, updates):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update[at : at + len(u)].view_as(p), alpha=-group["lr"] * 0.2 * math.sqrt(max(m, n)))
                    at += len(u)


def make_optimisers(model, args):
    matrices, tables, rest = [], [], []
    for name, p in model.named_parameters():
        if name == "embed" or "router" in name:
            tables.append(p)
        elif p.ndim >= 2:
            matrices.append(p)
        else:
            rest.append(p)
    muon = Muon(matrices, lr=args.lr, weight_decay=args.weight_decay, half=args.bf16)
    adam = torch.optim.AdamW(
        [dict(params=tables, weight_decay=args.embed_decay), dict(params=rest, weight_decay=0.0)],
        lr=args.embed_lr, betas=(0.9, 0.98), eps=1e-9,
    )
    for opt in (muon, adam):
        for g in opt.param_groups:
            g["peak"] = g["lr"]
    return [muon, adam]


def schedule(progress, warmup, cooldown):
    """Warm-up, plateau, straight line to zero. All arguments are fractions of the run."""
    if progress < warmup:
        return progress / warmup
    return min(1.0, (1.0 - progress) / cooldown)


# --------------------------------------------------------------------------------------------------
# Evaluation
# --------------------------------------------------------------------------------------------------


def eval_windows(doc, context):
    """(tokens, first target that counts): long stories slide by half a context, no target counted twice."""
    yield doc[: context + 1], 0
    at = context
    while at < len(doc) - 1:
        start = at - context // 2
        yield doc[start : start + context + 1], at - start
        at = start + context


@torch.no_grad()
def evaluate(model, docs, nbytes, bf16, tokens_per_batch=8192):
    """Every token of every story, closing EOT included, given BOS; divided by the bytes of the text alone."""
    model.eval()
    items = sorted((w for d in docs for w in eval_windows(d, model.cfg.context)), key=lambda w: len(w[0]))
    nats, count, share = 0.0, 0, None
    at = 0
    while at < len(items):
        n = 1
        while at + n < len(items) and (n + 1) * len(items[at + n][0]) <= tokens_per_batch:
            n += 1
        x, y = collate([w for w, _ in items[at : at + n]])
        for i, (_, first) in enumerate(items[at : at + n]):
            y[i, :first] = -1
        at += n
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            s, k, routing = model.loss(x, y)
        nats, count = nats + s.item(), count + k.item()
        if routing[0] is not None:
            part = torch.stack([r[1] for r in routing]).double() * k
            share = part if share is None else share + part
    model.train()
    return dict(
        nats_per_token=nats / count,
        bits_per_byte=nats / math.log(2) / nbytes,
        tokens=count,
        share=None if share is None else (share / count).tolist(),
    )


@torch.no_grad()
def generate(model, ids, n, temperature=0.0, top_p=0.95, seed=0):
    """Recomputes the whole prefix for each token: slow, and simple enough to be the reference."""
    model.eval()
    rng = torch.Generator().manual_seed(seed)
    ids = list(ids)
    for _ in range(n):
        x = torch.tensor([ids[-model.cfg.context :]])
        h, _ = model(x, torch.ones_like(x, dtype=torch.bool))
        logits = model.logits(h[0, -1]).float()
        if temperature == 0:
            t = int(logits.argmax())
        else:
            p, i = (logits / temperature).softmax(-1).sort(descending=True)
            p[p.cumsum(0) - p > top_p] = 0
            t = int(i[torch.multinomial(p, 1, generator=rng)])
        if t == EOT_ID:
            ids.append(t)
            break
        ids.append(t)
    return ids


PROMPTS = ["Once upon a time, there was a little girl named Lily.", "One day, a dog named Max", "Tom and Mia", ""]


def report(model, tok, docs, nbytes, bf16):
    total, active = model.sizes()
    print(f"{model.cfg.name}: {total:,} parameters, {active:,} active per token")
    r = evaluate(model, docs, nbytes, bf16)
    print(f"validation: {r['nats_per_token']:.4f} nats/token, {r['bits_per_byte']:.4f} bits/byte, {r['tokens']} tokens, {nbytes} bytes")
    if r["share"]:
        print("share of the validation tokens' routes, per layer and expert (%):")
        for i, row in enumerate(r["share"]):
            print(f"  layer {i}: " + " ".join(f"{100 * v:5.1f}" for v in row))
    for seed, prompt in enumerate(PROMPTS):
        ids = generate(model, [EOT_ID] + tok.encode(prompt).ids, 300, temperature=0.7, seed=seed)
        end = "ended" if ids[-1] == EOT_ID else "cut at 300 tokens"
        print(f"--- seed {seed}, temperature 0.7, top-p 0.95, {len(ids)} tokens, {end}\n{tok.decode(ids)}")
    return r


# --------------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------------


def save(path, obj):
    """Write beside, then rename: a killed run never leaves half a checkpoint."""
    tmp = Path(str(path) + ".tmp")
    torch.save(obj, tmp)
    os.replace(tmp, path)


def load_model(path):
    ck = torch.load(path, map_location="cpu", weights_only=False)
    model = Model(Config(**ck["config"]))
    model.load_state_dict(ck["model"])
    return model, ck


def train(args, tok, run):
    stories = restore_names(read_stories(args.corpus / "stories-train.txt"))
    valid = read_stories(args.corpus / "stories-valid.txt")
    valid_docs = [np.array([EOT_ID] + tok.encode(s).ids + [EOT_ID], dtype=np.int64) for s in valid]
    some = range(0, len(valid), 4)  # a quarter is enough to follow the curve
    some_docs, some_bytes = [valid_docs[i] for i in some], sum(len(valid[i].encode()) for i in some)

    torch.manual_seed(args.seed)
    cfg = Config(vocab=tok.get_vocab_size(), context=args.context, **MODELS[args.model])
    model = Model(cfg)
    optimisers = make_optimisers(model, args)
    encoder = NoisyEncoder(tok, stories, args.seed)
    exact = encoder.encode(0.0, np.random.default_rng(0))
    assert all(d[1:-1].tolist() == tok.encode(s).ids for d, s in zip(exact[:200], stories))
    steps_per_epoch = len(make_batches(exact, args.batch_tokens, cfg.context, np.random.default_rng(0)))
    tokens_per_epoch = sum(len(d) - 1 for d in exact)
    # BPE-dropout makes epochs a little longer; the schedule runs on epochs, so nothing depends on it.
    total, active = model.sizes()
    print(f"{cfg.name}: {total:,} parameters ({active:,} active), vocabulary {cfg.vocab}, "
          f"{tokens_per_epoch:,} tokens and about {steps_per_epoch} steps per epoch, {args.epochs:g} epochs", flush=True)

    average = {k: v.clone() for k, v in model.state_dict().items()}
    state = dict(epoch=0, step=0, seconds=0.0, best=float("inf"))
    last, best, log = run / "last.pt", run / "best.pt", run / "log.jsonl"
    if last.exists() and not args.fresh:
        ck = torch.load(last, map_location="cpu", weights_only=False)
        model.load_state_dict(ck["model"])
        for o, s in zip(optimisers, ck["optimisers"]):
            # Decay and peak rates come from this command line, not from the checkpoint.
            hyper = [{k: g[k] for k in ("peak", "weight_decay")} for g in o.param_groups]
            o.load_state_dict(s)
            for g, h in zip(o.param_groups, hyper):
                g.update(h)
        average, state = ck["average"], ck["state"]
        print(f"resumed after epoch {state['epoch']}", flush=True)
    else:
        log.unlink(missing_ok=True)

    def write(**row):
        with open(log, "a") as f:
            f.write(json.dumps(row) + "\n")

    model.train()
    started, session_start_epoch = time.time(), state["epoch"]
    for epoch in range(state["epoch"], math.ceil(args.epochs)):
        # Each epoch draws from its own seed, so a resumed run continues exactly like an unbroken one.
        rng = np.random.default_rng([args.seed, epoch])
        torch.manual_seed(args.seed * 1000 + epoch)
        level = schedule(epoch / args.epochs, 0, args.cooldown)
        docs = encoder.encode(args.bpe_dropout * level, rng)
        batches = make_batches(docs, args.batch_tokens, cfg.context, rng)
        model.drop.redraw(args.dropout)
        epoch_start, seen, nats, mix = time.time(), 0, 0.0, 0.0
        for i, rows in enumerate(batches):
            progress = (epoch + i / len(batches)) / args.epochs
            if progress >= 1:
                break
            scale = schedule(progress, args.warmup, args.cooldown)
            for o in optimisers:
                for g in o.param_groups:
                    g["lr"] = g["peak"] * scale
            x, y = collate(rows)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
                s, k, routing = model.loss(x, y)
            loss = s / k
            balance = torch.stack([r[0] for r in routing]).mean() if cfg.experts else torch.zeros(())
            (loss + args.balance * cfg.layers * balance).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for o in optimisers:
                o.step()
                o.zero_grad(set_to_none=True)
            state["step"] += 1
            # The average's horizon grows with the run, up to the given decay.
            d = min(args.ema, (1 + state["step"]) / (10 + state["step"]))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.values()), [v for v in model.state_dict().values()], 1 - d)
            seen, nats, mix = seen + int(k), nats + s.item(), mix + balance.item()
            if (i + 1) % args.print_every == 0 or args.max_steps and state["step"] >= args.max_steps:
                now = time.time()
                done = epoch + (i + 1) / len(batches)
                eta = (now - started) / (done - session_start_epoch) * (args.epochs - done)
                print(f"epoch {done:6.2f}/{args.epochs:g} loss {nats / seen:.4f} balance {mix / (i + 1):.3f} "
                      f"lr {scale:.3f} {seen / (now - epoch_start):6.0f} tok/s eta {eta / 60:.1f} min", flush=True)
                write(step=state["step"], epoch=done, train=nats / seen, balance=mix / (i + 1), lr=scale)
            if args.max_steps and state["step"] >= args.max_steps:
                break

        state["epoch"], state["seconds"] = epoch + 1, state["seconds"] + time.time() - epoch_start
        raw = evaluate(model, some_docs, some_bytes, args.bf16)
        live = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(average)
        ema = evaluate(model, some_docs, some_bytes, args.bf16)
        model.load_state_dict(live)
        which = ema if ema["bits_per_byte"] <= raw["bits_per_byte"] else raw
        print(f"== epoch {epoch + 1}: train {nats / seen:.4f} nats, valid {raw['bits_per_byte']:.4f} bits/byte, "
              f"averaged {ema['bits_per_byte']:.4f}, {state['seconds'] / 60:.1f} min", flush=True)
        write(step=state["step"], epoch=epoch + 1, train=nats / seen, valid=raw["bits_per_byte"],
              valid_average=ema["bits_per_byte"], seconds=state["seconds"], share=ema["share"])
        if which["bits_per_byte"] < state["best"]:
            state["best"] = which["bits_per_byte"]
            save(best, dict(config=asdict(cfg), model=dict(average) if which is ema else live, state=dict(state),
                            args={k: str(v) for k, v in vars(args).items()}))
        save(last, dict(config=asdict(cfg), model=live, average=average, state=state,
                        optimisers=[o.state_dict() for o in optimisers]))
        if args.max_steps and state["step"] >= args.max_steps:
            break

    model, _ = load_model(best)
    r = report(model, tok, valid_docs, sum(len(s.encode()) for s in valid), bf16=False)
    (run / "result.json").write_text(json.dumps(dict(r, minutes=state["seconds"] / 60), indent=1))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", choices=MODELS, default="moe")
    ap.add_argument("--corpus", type=Path, default=os.environ.get("FRUGAL_CORPUS"))
    ap.add_argument("--out", type=Path, default=HERE / "runs")
    ap.add_argument("--eval", action="store_true", help="evaluate the best checkpoint instead of training")
    ap.add_argument("--fresh", action="store_true", help="ignore an existing checkpoint")
    ap.add_argument("--vocab", type=int, default=2048)
    ap.add_argument("--context", type=int, default=512)
    ap.add_argument("--epochs", type=float, default=12, help="may be a fraction; may change when a run is resumed, best before the cool-down")
    ap.add_argument("--batch-tokens", type=int, default=4096)
    ap.add_argument("--lr", type=float, default=1e-2, help="peak rate of the matrices (Muon)")
    ap.add_argument("--embed-lr", type=float, default=6e-3, help="peak rate of the rest (AdamW)")
    ap.add_argument("--weight-decay", type=float, default=0.15)
    ap.add_argument("--embed-decay", type=float, default=0.1)
    ap.add_argument("--dropout", type=float, default=0.1)
    ap.add_argument("--bpe-dropout", type=float, default=0.05, help="share of words cut differently; falls with the cool-down")
    ap.add_argument("--balance", type=float, default=0.01)
    ap.add_argument("--warmup", type=float, default=0.02)
    ap.add_argument("--cooldown", type=float, default=0.5)
    ap.add_argument("--ema", type=float, default=0.995)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--no-bf16", dest="bf16", action="store_false", help="train in float32 instead of bfloat16 autocast")
    ap.add_argument("--print-every", type=int, default=20)
    ap.add_argument("--max-steps", type=int, default=0, help="stop early (for measurements)")
    args = ap.parse_args()
    if args.corpus is None:
        ap.error("give --corpus or set FRUGAL_CORPUS")
    args.corpus = Path(args.corpus)
    torch.set_num_threads(args.threads)

    args.out.mkdir(parents=True, exist_ok=True)
    tok_path = args.out / "tokenizer.json"
    if not tok_path.exists():
        train_tokenizer(restore_names(read_stories(args.corpus / "stories-train.txt")), args.vocab).save(str(tok_path))
    tok = load_tokenizer(tok_path)
    run = args.out / args.model
    run.mkdir(exist_ok=True)

    if args.eval:
        model, _ = load_model(run / "best.pt")
        valid = read_stories(args.corpus / "stories-valid.txt")
        docs = [np.array([EOT_ID] + tok.encode(s).ids + [EOT_ID], dtype=np.int64) for s in valid]
        report(model, tok, docs, sum(len(s.encode()) for s in valid), bf16=False)
        return
    (run / "train.pid").write_text(f"{os.getpid()}\n")
    signal.signal(signal.SIGTERM, lambda *_: exit(143))
    train(args, tok, run)


if __name__ == "__main__":
    main()
