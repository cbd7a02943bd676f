"""A LoRA training step by torch eager and PEFT: f32, 4 x 128 tokens, r = 8 on q and v, labels on all tokens.

    python compare/train_torch.py --model MODEL [--steps 8] [--threads 2]

MODEL is a folder or a GGUF file, METAL_CANDLE_MODEL if left out. A step is forward, backward, clipping of the gradient
to norm 1 and AdamW. Prints one JSON object; tokens_per_second is the median of the steps after the first --warmup, and
peak_rss_bytes is the greatest resident memory of the process, loading included.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

ROWS, LENGTH = 4, 128


def model_argument(arguments):
    """--model, or METAL_CANDLE_MODEL; what it names must exist."""
    default = os.environ.get("METAL_CANDLE_MODEL")
    arguments.add_argument("--model", type=Path, default=default, help="folder or GGUF file; METAL_CANDLE_MODEL if left out")


def load(path):
    """The model in f32 with the attention that transformers chooses, as its users run it."""
    if path is None or not path.exists():
        sys.exit(f"error: no model at {path}: give --model or set METAL_CANDLE_MODEL to a folder or a GGUF file")
    folder, kwargs = (path.parent, {"gguf_file": path.name}) if path.is_file() else (path, {})
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **kwargs)


def ids(count):
    """The tokens of benches/model.rs."""
    return [100 + i * 7919 % 40000 for i in range(count)]


def peak_rss_bytes():
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def about():
    return {
        "peak_rss_bytes": peak_rss_bytes(), "torch": torch.__version__, "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }


def train(model, steps):
    """Seconds of each step, and each step's loss."""
    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(model, config).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    batch = torch.tensor(ids(ROWS * LENGTH)).reshape(ROWS, LENGTH)
    seconds, losses = [], []
    for _ in range(steps):
        start = time.perf_counter()
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    return seconds, losses


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model_argument(arguments)
    arguments.add_argument("--steps", type=int, default=8, help="timed steps")
    arguments.add_argument("--warmup", type=int, default=2, help="steps before them")
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    seconds, losses = train(load(options.model), options.warmup + options.steps)
    rates = [ROWS * LENGTH / second for second in seconds[options.warmup:]]
    print(json.dumps({"tokens_per_second": statistics.median(rates), "best_tokens_per_second": max(rates), "losses": losses, **about()}))


if __name__ == "__main__":
    main()
