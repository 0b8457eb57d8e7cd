#!/usr/bin/env python3
"""Draw the loss curves of runs of train.py.

    python plot.py --runs runs --output loss.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MODELS = {"moe": ("stories-moe", "tab:blue"), "dense": ("stories-dense", "tab:orange")}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--runs", type=Path, required=True)
    ap.add_argument("--output", type=Path, required=True)
    args = ap.parse_args()
    figure, (loss, bits) = plt.subplots(1, 2, figsize=(9, 3.2), dpi=110, layout="constrained")
    for name, (label, colour) in MODELS.items():
        log = args.runs / name / "log.jsonl"
        if not log.exists():
            continue
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        steps = [r for r in rows if "lr" in r]
        loss.plot([r["epoch"] for r in steps], [r["train"] for r in steps], color=colour, lw=1, label=label)
        marks = [r for r in rows if "valid" in r]
        epochs = [r["epoch"] for r in marks]
        bits.plot(epochs, [r["valid"] for r in marks], "--", color=colour, lw=1, label=f"{label}, as it is")
        bits.plot(epochs, [r["valid_average"] for r in marks], "o-", color=colour, ms=3, lw=1.2, label=f"{label}, averaged weights")
    loss.set(title="Training, with dropout and split words", xlabel="passes over the data", ylabel="nats per token")
    bits.set(title="Validation (a quarter of the stories)", xlabel="passes over the data", ylabel="bits per byte")
    for axis in (loss, bits):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(args.output)


if __name__ == "__main__":
    main()
