#!/usr/bin/env python3
"""Write a checkpoint of train.py as a GGUF file, or check such a file against PyTorch.

    python export.py --model moe --runs runs --type q8_0 --output stories-moe-q8_0.gguf
    python export.py --model moe --runs runs --check stories-moe-q8_0.gguf --corpus DIR --reference ref.json
    node check.mjs stories-moe-q8_0.gguf ref.json      # the same continuations with llama.cpp

Nothing is permuted: train.py rotates adjacent pairs, as llama.cpp does for the `llama` architecture,
and keeps the experts stacked [expert, out, in], as GGUF wants them. The output matrix is the embedding,
so there is no `output.weight`; readers fall back to `token_embd.weight`.
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
import torch

from train import EOT_ID, HERE, MODELS, PROMPTS, generate, load_model, load_tokenizer, read_stories

TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}


def tensor_type(name, ndim, wanted):
    """Norms and routers stay float32 (tiny and sensitive); in a 4-bit file the tied embedding stays 8-bit."""
    if ndim < 2 or "ffn_gate_inp" in name:
        return gguf.GGMLQuantizationType.F32
    if wanted == gguf.GGMLQuantizationType.Q4_0 and name == "token_embd.weight":
        return gguf.GGMLQuantizationType.Q8_0
    return wanted


def named_tensors(model):
    c = model.cfg
    yield "token_embd.weight", model.embed
    yield "output_norm.weight", model.norm.weight
    for i, b in enumerate(model.blocks):
        p = f"blk.{i}."
        yield p + "attn_norm.weight", b.attn_norm.weight
        for part in "qkv":
            yield p + f"attn_{part}.weight", getattr(b.attn, part).weight
        yield p + "attn_output.weight", b.attn.o.weight
        yield p + "ffn_norm.weight", b.ffn_norm.weight
        if c.experts:
            yield p + "ffn_gate_inp.weight", b.ffn.router.weight
            for part in ("gate", "up", "down"):
                yield p + f"ffn_{part}_exps.weight", getattr(b.ffn, part)
        else:
            for part in ("gate", "up", "down"):
                yield p + f"ffn_{part}.weight", getattr(b.ffn, part).weight


def export(model, tok, path, wanted, licence):
    c = model.cfg
    qtype, ftype = TYPES[wanted]
    w = gguf.GGUFWriter(str(path), "llama")
    w.add_name(c.name)
    w.add_description("A small language model of children's stories, trained on excerpts of TinyStories.")
    w.add_license(licence)
    w.add_source_url("https://arxiv.org/abs/2305.07759")
    w.add_dataset_count(1)
    w.add_dataset_name(0, "TinyStories (excerpt, CDLA-Sharing-1.0)")
    w.add_dataset_url(0, "https://huggingface.co/datasets/roneneldan/TinyStories")
    w.add_languages(["en"])
    total, _ = model.sizes()
    w.add_size_label(f"{total / 1e6:.1f}M")
    w.add_file_type(ftype)
    if wanted in ("q8_0", "q4_0"):
        w.add_quantization_version(gguf.GGML_QUANT_VERSION)

    w.add_context_length(c.context)
    w.add_embedding_length(c.width)
    w.add_block_count(c.layers)
    w.add_feed_forward_length(c.ff)
    w.add_head_count(c.heads)
    w.add_head_count_kv(c.kv_heads)
    w.add_layer_norm_rms_eps(c.eps)
    w.add_rope_dimension_count(c.head_dim)
    w.add_rope_freq_base(c.rope_base)
    w.add_vocab_size(c.vocab)
    if c.experts:
        w.add_expert_count(c.experts)
        w.add_expert_used_count(c.experts_used)

    spec = json.loads(tok.to_str())["model"]
    tokens = sorted(spec["vocab"], key=spec["vocab"].get)
    assert [spec["vocab"][t] for t in tokens] == list(range(c.vocab))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types([gguf.TokenType.CONTROL if i == EOT_ID else gguf.TokenType.NORMAL for i in range(c.vocab)])
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in spec["merges"]])
    w.add_bos_token_id(EOT_ID)
    w.add_eos_token_id(EOT_ID)
    w.add_add_bos_token(True)
    w.add_add_eos_token(False)

    for name, t in named_tensors(model):
        a = t.detach().float().numpy()
        kind = tensor_type(name, a.ndim, qtype)
        w.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(a), kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def load_gguf_weights(model, path):
    """Put a file's weights (dequantised) into the PyTorch model, to measure what a type costs."""
    tensors = {t.name: t for t in gguf.GGUFReader(str(path)).tensors}
    with torch.no_grad():
        for name, p in named_tensors(model):
            t = tensors.pop(name)
            p.copy_(torch.from_numpy(np.array(gguf.quants.dequantize(t.data, t.tensor_type))).view_as(p))
    assert not tensors, f"unknown tensors: {sorted(tensors)}"


def evaluate_file(model, tok, path, corpus):
    from train import evaluate

    load_gguf_weights(model, path)
    if corpus:
        valid = read_stories(Path(corpus) / "stories-valid.txt")
        docs = [np.array([EOT_ID] + tok.encode(s).ids + [EOT_ID], dtype=np.int64) for s in valid]
        r = evaluate(model, docs, sum(len(s.encode()) for s in valid), bf16=False)
        print(f"{path}: {r['nats_per_token']:.4f} nats/token, {r['bits_per_byte']:.4f} bits/byte")


def greedy_reference(model, tok, n):
    """Greedy continuations of the sample prompts, token ids, with the smallest gap between the best
    two logits: where a reader's rounding differs, only a gap near zero excuses another token."""
    rows = []
    for prompt in PROMPTS:
        ids = [EOT_ID] + tok.encode(prompt).ids
        out = generate(model, ids, n)
        with torch.no_grad():
            x = torch.tensor([out[:-1]])
            h, _ = model(x, torch.ones_like(x, dtype=torch.bool))
            top = model.logits(h[0, len(ids) - 1 :]).topk(2).values
        gaps = (top[:, 0] - top[:, 1]).tolist()
        rows.append(dict(prompt=prompt, prompt_ids=ids, ids=out[len(ids) :], gaps=[round(g, 4) for g in gaps],
                         text=tok.decode(out)))
    return rows


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", choices=MODELS, default="moe")
    ap.add_argument("--runs", type=Path, default=HERE / "runs", help="train.py's --out")
    ap.add_argument("--type", choices=TYPES, default="f16")
    ap.add_argument("--output", type=Path, help="file to write")
    ap.add_argument("--check", type=Path, help="read this file's weights back into PyTorch")
    ap.add_argument("--corpus", type=Path, help="with --check: also print validation bits per byte")
    ap.add_argument("--reference", type=Path, help="with --check: write greedy continuations as JSON, for check.mjs")
    # The corpus's licence (CDLA-Sharing-1.0) leaves results of analysis, such as a trained model, unrestricted.
    ap.add_argument("--licence", default="MIT", help="SPDX expression for general.license")
    ap.add_argument("--tokens", type=int, default=200)
    args = ap.parse_args()

    tok = load_tokenizer(args.runs / "tokenizer.json")
    model, _ = load_model(args.runs / args.model / "best.pt")
    if args.output:
        export(model, tok, args.output, args.type, args.licence)
        print(f"{args.output}: {args.output.stat().st_size:,} bytes")
    if args.check:
        evaluate_file(model, tok, args.check, args.corpus)
        if args.reference:
            args.reference.write_text(json.dumps(greedy_reference(model, tok, args.tokens), indent=1))


if __name__ == "__main__":
    main()
