"""One training step (4 x 128 tokens, LoRA r = 8 on q and v, f32, eager), prefill and decode by torch. Prints JSON.

    python compare/torch_job.py --model FOLDER --job train|generate
"""

import argparse
import json
import resource
import statistics
import time

import torch
from transformers import AutoModelForCausalLM

ROWS, LENGTH, PREFILL, DECODE = 4, 128, 256, 64


def ids(count):
    return [100 + i * 7919 % 40000 for i in range(count)]


def train(model):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)
    batch = torch.tensor(ids(ROWS * LENGTH)).reshape(ROWS, LENGTH)
    rates = []
    for _ in range(6):
        start = time.perf_counter()
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rates.append(ROWS * LENGTH / (time.perf_counter() - start))
    return {"training": statistics.median(rates[1:])}


@torch.inference_mode()
def generate(model):
    prefill, decode = [], []
    prompt = torch.tensor([ids(PREFILL)])
    for _ in range(6):
        start = time.perf_counter()
        model(prompt, use_cache=True, logits_to_keep=1)
        prefill.append(PREFILL / (time.perf_counter() - start))
    for _ in range(4):
        found = model(torch.tensor([ids(16)]), use_cache=True, logits_to_keep=1)
        start = time.perf_counter()
        for _ in range(DECODE):
            token = found.logits[:, -1:].argmax(-1)
            found = model(token, past_key_values=found.past_key_values, use_cache=True)
        decode.append(DECODE / (time.perf_counter() - start))
    return {"prefill": statistics.median(prefill[1:]), "decode": statistics.median(decode[1:])}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", required=True)
    arguments.add_argument("--job", choices=["train", "generate"], required=True)
    options = arguments.parse_args()
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    result = train(model.train()) if options.job == "train" else generate(model.eval())
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result))


if __name__ == "__main__":
    main()
