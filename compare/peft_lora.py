"""Writes tests/golden/peft: twenty steps of LoRA training by PEFT on the tiny Llama, and adapters to load or refuse.

    python compare/peft_lora.py --golden tests/golden
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

STEPS, ROWS, LENGTH = 20, 2, 32


def base(golden):
    return AutoModelForCausalLM.from_pretrained(golden / "llama", dtype=torch.float32, attn_implementation="eager")


def trained(golden, out):
    torch.manual_seed(11)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], lora_dropout=0.0, task_type="CAUSAL_LM")
    model = get_peft_model(base(golden), config)
    model.save_pretrained(out / "initial")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.01)
    batches, losses = [], []
    for step in range(STEPS):
        ids = torch.randint(3, 256, (ROWS, LENGTH))
        labels = ids.clone()
        # Uneven, so that a mean over rows differs from one over tokens, and with a gap.
        labels[0, : 4 + step % 7] = -100
        labels[1, 10 : 12 + step % 5] = -100
        batches.append({"ids": ids.tolist(), "labels": labels.tolist()})
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.save_pretrained(out / "final")
    (out / "training.json").write_text(json.dumps({"losses": losses, "batches": batches}) + "\n")
    write_logits(model, out / "final")


def write_logits(model, folder):
    ids = torch.arange(3, 27).unsqueeze(0)
    with torch.no_grad():
        logits = model.eval()(ids).logits[0]
    save_file({"ids": ids[0].to(torch.int32), "logits": logits.contiguous()}, folder / "expected.safetensors")


def patterned(golden, out):
    """rsLoRA, patterns, a subset of the layers, B not zero."""
    torch.manual_seed(12)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "o_proj", "gate_proj"], use_rslora=True, task_type="CAUSAL_LM",
        rank_pattern={"gate_proj": 2}, alpha_pattern={"o_proj": 3}, layers_to_transform=[1],
    )
    model = get_peft_model(base(golden), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(out / "patterned")
    write_logits(model, out / "patterned")


def refused(golden, out):
    """Adapters that hold what is not supported; PEFT makes them, we must refuse them."""
    def save(name, **kwargs):
        folder = out / "refused" / name
        model = get_peft_model(base(golden), LoraConfig(r=1, target_modules=["q_proj"], layers_to_transform=[0], **kwargs))
        model.save_pretrained(folder)

    save("dora", use_dora=True)
    save("bias", bias="all")
    save("whole_modules", modules_to_save=["k_proj"])
    save("lora_bias", lora_bias=True)
    from peft import LoHaConfig

    get_peft_model(base(golden), LoHaConfig(r=1, target_modules=["q_proj"], layers_to_transform=[0])).save_pretrained(out / "refused" / "loha")
    for folder in out.rglob("adapter_config.json"):
        (folder.parent / "README.md").unlink(missing_ok=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--golden", type=Path, default=Path("tests/golden"))
    options = arguments.parse_args()
    torch.set_num_threads(2)
    out = options.golden / "peft"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    trained(options.golden, out)
    patterned(options.golden, out)
    refused(options.golden, out)
    # PEFT writes the folder that it was told as the base's name, which is of this machine.
    for config in out.rglob("adapter_config.json"):
        value = json.loads(config.read_text())
        value["base_model_name_or_path"] = "tiny-llama"
        config.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
