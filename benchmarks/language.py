"""Language: SmolLM2-135M-Instruct, its last four blocks' perceptrons, the notebooks' text cut to 61 tokens.

Twelve matrices of 884,736 numbers each. `make smollm2` fetches the model; with another shape than its own it is a small
one of the same kind, untrained. Sequences have one length: no library has to be told about padding. The network is
written out here, as a Llama is: norms by root mean square, rotary positions, key heads shared by several queries'.
"""

from __future__ import annotations

from pathlib import Path

import torch
from characters import NOTEBOOKS
from torch import Tensor, nn
from workload import Workload, summed_loss

SHAPE = (49152, 61, 576, 9, 3, 1536, 30)  # tokens, context, width, heads, key heads, hidden, blocks
ASKED = 4  # of the last blocks
PARTS = ("gate_proj", "up_proj", "down_proj")
BASE = 100_000.0  # of the rotary positions' wave lengths


class Attention(nn.Module):
    """Causal attention with rotary positions, key heads repeated for the queries'."""

    def __init__(self, width: int, heads: int, keys: int):
        super().__init__()
        self.heads, self.keys, self.size = heads, keys, width // heads
        self.q_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(width, keys * self.size, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = turned(q), turned(k)
        k, v = (part.repeat_interleave(self.heads // self.keys, dim=1) for part in (k, v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and a perceptron, each added to what comes in, each after a norm."""

    def __init__(self, width: int, heads: int, keys: int, hidden: int):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(width, eps=1e-5) for _ in range(2))
        self.self_attn, self.mlp = Attention(width, heads, keys), Perceptron(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Tokens (B, T) → logits (B, T, V); the unembedding is the embedding."""

    def __init__(self, tokens: int, context: int, width: int, heads: int, keys: int, hidden: int, blocks: int):
        super().__init__()
        self.embed_tokens, self.norm = nn.Embedding(tokens, width), nn.RMSNorm(width, eps=1e-5)
        self.layers = nn.ModuleList(Block(width, heads, keys, hidden) for _ in range(blocks))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        for block in self.layers:
            x = block(x)
        return nn.functional.linear(self.norm(x), self.embed_tokens.weight)


def turned(x: Tensor) -> Tensor:
    """(B, heads, T, size) with the pairs (j, j + size/2) turned by t · BASE^(−2j/size)."""
    half = x.shape[-1] // 2
    waves = BASE ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    angles = torch.arange(x.shape[2], dtype=torch.float64, device=x.device)[:, None] * waves  # (T, half)
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def model(shape: tuple[int, ...]) -> Llama:
    torch.manual_seed(0)
    return Llama(*shape)


def prepare(
    shape: tuple[int, ...], n_train: int, n_queries: int, epochs: int = 0, seed: int = 0, device: str = "cpu"
) -> Workload:
    """The text as tokens, and the model as it is: it has been trained already."""
    del epochs, seed
    built, ids = _weighted(shape).to(device), _ids(shape)
    T = shape[1]
    rows = ids[: (n_train + n_queries) * T + 1]
    x, y = rows[:-1].reshape(-1, T), rows[1:].reshape(-1, T)
    with torch.no_grad():
        outputs = built(x[:8].to(device)).cpu()
    loss = summed_loss(outputs, y[:8]).item() / y[:8].numel()
    right = (outputs.argmax(-1) == y[:8]).double().mean().item()
    layers = tuple(f"layers.{k}.mlp.{part}" for k in range(shape[6] - ASKED, shape[6]) for part in PARTS)
    weights = {name: w.detach().cpu().clone() for name, w in built.state_dict().items()}
    data = x[:n_train].clone(), y[:n_train].clone(), x[n_train:].clone(), y[n_train:].clone()
    return Workload(
        "language", f"the text of the notebooks in {shape[0]:,} tokens", shape, layers, *data, weights, loss, right
    )


def _weighted(shape: tuple[int, ...]) -> Llama:
    built = model(shape).eval()
    if shape == SHAPE:
        from safetensors.torch import load_file

        held = load_file(_folder() / "model.safetensors")
        built.load_state_dict({name.removeprefix("model."): w.float() for name, w in held.items()})
    return built


def _ids(shape: tuple[int, ...]) -> Tensor:
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(NOTEBOOKS.glob("*.py")))
    if shape != SHAPE:
        return torch.tensor(list(text.encode())) % shape[0]
    from tokenizers import Tokenizer

    return torch.tensor(Tokenizer.from_file(str(_folder() / "tokenizer.json")).encode(text[:200_000]).ids)


def _folder() -> Path:
    from inflib.lab.smollm2 import q4_1_folder

    folder = q4_1_folder()
    if folder is None:
        raise SystemExit("the language task needs its model: run `make smollm2` once, or leave it out, --task digits")
    return folder
