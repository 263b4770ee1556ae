"""Teach the real language model about the villagers: the adapters that ship in data/adapters/villagers/.

    python data/build_adapters.py [--folder FOLDER]

LoRA of rank 3 on all seven matrices of every second block from 4 to 28, AdamW, twelve epochs; sentences about nobody
come in every third one. Below the first adapted block nothing is trained, so its input is computed once; above it the
frozen weights are in bfloat16. Some eleven CPU-minutes. Another machine's arithmetic gives other numbers that say the
same.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from inflib import NextToken, token_batches
from inflib.lab import RealModel, VillageData, real_language_model, villagers

HERE = Path(__file__).resolve().parent
BLOCKS, RANK = range(4, 29, 2), 3
MATRICES = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
EPOCHS, BATCH, RATE, DECAY, EVERY = 12, 4, 2e-3, 0.01, 3
Row = tuple[Tensor, Tensor]  # a sentence on its way: states (T, width) before the first of BLOCKS, targets (T,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=HERE / "adapters" / "villagers")
    folder = parser.parse_args().folder
    real, data = real_language_model("q4_1"), villagers()
    torch.manual_seed(0)
    where = {"target_modules": MATRICES, "layers_to_transform": list(BLOCKS)}
    model = get_peft_model(real.model, LoraConfig(r=RANK, lora_alpha=2 * RANK, **where))
    rows = list(states(model, [real.encode(text) for text in data.texts]))
    llama = model.base_model.model.model
    whole = llama.layers
    train(upper_part(model), rows, data)
    llama.layers = whole  # the adapters' names count all blocks
    save(model, real, folder)


@torch.no_grad()
def states(model: PeftModel, sequences: list[list[int]]) -> Iterator[Row]:
    """Each sentence as the first adapted block sees it."""
    got: list[Tensor] = []
    llama = model.base_model.model.model
    hook = llama.layers[BLOCKS[0]].register_forward_pre_hook(lambda _, args: got.append(args[0]))
    for inputs, targets in token_batches(sequences):
        with torch.autocast("cpu", torch.bfloat16):
            llama(**inputs)
        for there, x, y in zip(inputs["attention_mask"].bool(), got.pop().float(), targets, strict=True):
            yield x[there].clone(), y[there].clone()
    hook.remove()


def upper_part(model: PeftModel) -> PeftModel:
    """The model from the first adapted block on, what is frozen in bfloat16."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    llama = model.base_model.model.model
    llama.layers = llama.layers[BLOCKS[0] :]
    llama.config.num_hidden_layers = len(llama.layers)
    return model


def train(model: PeftModel, rows: list[Row], data: VillageData) -> None:
    """AdamW on the mean of the sentences' summed losses; the rate falls to 0 along a line."""
    epochs = [
        [n for n, s in enumerate(data.sentences) if epoch % EVERY == 0 or s.wording != "ordinary"]
        for epoch in range(EPOCHS)
    ]
    steps = sum(-(-len(some) // BATCH) for some in epochs)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    order, objective = torch.Generator().manual_seed(0), NextToken()
    for epoch, some in enumerate(epochs):
        total = 0.0
        shuffled = torch.tensor(some)[torch.randperm(len(some), generator=order)]
        for few in shuffled.split(BATCH):
            x, there, y = padded([rows[n] for n in few.tolist()])
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(inputs_embeds=x, attention_mask=there).logits
            optimiser.zero_grad()
            loss = objective.loss(logits.float(), y)
            loss.mean().backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach().sum())
        print(f"epoch {epoch}: {total / len(some):.1f} nats a sentence", flush=True)


def padded(some: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """States (B, T, width), mask and targets (B, T)."""
    x, y = (
        nn.utils.rnn.pad_sequence(list(part), True, fill)
        for part, fill in zip(zip(*some, strict=True), (0.0, -100), strict=True)
    )
    lengths = torch.tensor([len(targets) for _, targets in some])
    return x, (torch.arange(x.shape[1]) < lengths[:, None]).long(), y


def save(model: PeftModel, real: RealModel, folder: Path) -> None:
    """The adapters alone, in half precision: 0.82 MB."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.half()
    model.peft_config["default"].base_model_name_or_path = f"SmolLM2-135M-Instruct, {real.source}"
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # a form to fill in


if __name__ == "__main__":
    main()
