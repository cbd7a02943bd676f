"""Generation by transformers in f32: prefill of 256 tokens, and greedy decoding of 64 tokens after 16 with a KV cache.

    python compare/decode_torch.py --model MODEL [--runs 5] [--threads 2]

MODEL is a folder or a GGUF file, METAL_CANDLE_MODEL if left out. Prints one JSON object with prefill_tokens_per_second
and decode_tokens_per_second, medians of the runs after one that is not counted. Logits are made for the last position
only; the argmax is taken in the timed loop, `generate` is left out because its own work is not the model's.
"""

import argparse
import json
import statistics
import time

import torch

from train_torch import about, ids, load, model_argument

PREFILL, PROMPT, DECODE = 256, 16, 64


def prefill(model):
    prompt = torch.tensor([ids(PREFILL)])
    start = time.perf_counter()
    model(prompt, use_cache=True, logits_to_keep=1)
    return PREFILL / (time.perf_counter() - start)


def decode(model):
    found = model(torch.tensor([ids(PROMPT)]), use_cache=True, logits_to_keep=1)
    start = time.perf_counter()
    for _ in range(DECODE):
        token = found.logits[:, -1:].argmax(-1)
        found = model(token, past_key_values=found.past_key_values, use_cache=True)
    return DECODE / (time.perf_counter() - start)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model_argument(arguments)
    arguments.add_argument("--runs", type=int, default=5, help="timed runs of each")
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    model = load(options.model).eval()
    result = {}
    with torch.inference_mode():
        for job in (prefill, decode):
            rates = [job(model) for _ in range(options.runs + 1)][1:]
            result[f"{job.__name__}_tokens_per_second"] = statistics.median(rates)
    print(json.dumps({**result, **about()}))


if __name__ == "__main__":
    main()
