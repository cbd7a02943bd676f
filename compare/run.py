"""Our training step, prefill and decode beside torch's and candle's, in turns on one machine: `cargo xtask compare`.

Needs METAL_CANDLE_MODEL (a folder with config.json and model.safetensors in f32: `metal-candle merge` or transformers
write one) and compare/requirements.txt. Prints medians over the rounds and the ratios, as a Markdown table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def last_json(command, **env):
    out = subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads([line for line in out.splitlines() if line.startswith("{")][-1])


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default=os.environ.get("METAL_CANDLE_MODEL"))
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    if not options.model or not Path(options.model, "config.json").exists():
        sys.exit("error: set METAL_CANDLE_MODEL to a folder with config.json and model.safetensors in f32")
    candle = ["cargo", "run", "-q", "--release", "--manifest-path", "compare/candle/Cargo.toml", "--", options.model]
    ours = ["cargo", "bench", "-q", "--bench", "model"]
    torch = [sys.executable, "compare/torch_job.py", "--model", options.model, "--job"]
    jobs = {
        "ours train": lambda: last_json(ours, METAL_CANDLE_MODEL=options.model, METAL_CANDLE_JOB="train"),
        "torch train": lambda: last_json([*torch, "train"]),
        "ours generate": lambda: last_json(ours, METAL_CANDLE_MODEL=options.model, METAL_CANDLE_JOB="generate"),
        "torch generate": lambda: last_json([*torch, "generate"]),
        "candle generate": lambda: last_json(candle),
    }
    found = {name: [] for name in jobs}
    for round_ in range(options.rounds):
        for name, job in jobs.items():
            found[name].append(job())
            print(round_, name, found[name][-1], file=sys.stderr, flush=True)

    def median(name, key):
        values = [run[key] for run in found[name] if key in run]
        return statistics.median(values) if values else None

    print("| job | ours | torch | candle | ours / torch | ours / candle |\n|---|---|---|---|---|---|")
    for key, half in [("training", "train"), ("prefill", "generate"), ("decode", "generate"), ("peak_bytes", "train"), ("peak_bytes", "generate")]:
        a, b, c = (median(f"{who} {half}", key) if f"{who} {half}" in jobs else None for who in ("ours", "torch", "candle"))
        scale, unit = (2**20, "MiB") if key == "peak_bytes" else (1, "tokens/s")
        cell = lambda x: "-" if x is None else f"{x / scale:.0f}"
        ratio = lambda x: "-" if x is None else f"{a / x:.2f}"
        print(f"| {key.replace('_bytes', ' memory')} ({half}), {unit} | {cell(a)} | {cell(b)} | {cell(c)} | {ratio(b)} | {ratio(c)} |")


if __name__ == "__main__":
    main()
