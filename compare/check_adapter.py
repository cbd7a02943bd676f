"""Our logits against transformers' and PEFT's on the same tokens.

    metal-candle eval --model MODEL --adapter ADAPTER --data one.jsonl --train-on all --logits ours.safetensors
    python compare/check_adapter.py --model FOLDER [--adapter ADAPTER] --logits ours.safetensors

one.jsonl must hold one example of the form {"text": …}. Fails if an absolute error is above --tolerance.
"""

import argparse
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", required=True)
    arguments.add_argument("--adapter")
    arguments.add_argument("--logits", required=True)
    arguments.add_argument("--tolerance", type=float, default=2e-4)
    options = arguments.parse_args()
    torch.set_num_threads(2)
    ours = load_file(options.logits)
    ids = ours["ids"].to(torch.int64)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, attn_implementation="eager").eval()
    if options.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, options.adapter).eval()
    with torch.no_grad():
        theirs = model(ids.unsqueeze(0)).logits[0, :-1]
    assert ours["logits"].shape == theirs.shape, (ours["logits"].shape, theirs.shape)
    error = (ours["logits"] - theirs).abs().max().item()
    print(f"{theirs.shape[0]} positions, greatest absolute error {error:.2e}")
    sys.exit(0 if error <= options.tolerance else 1)


if __name__ == "__main__":
    main()
