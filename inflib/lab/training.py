"""Seeded training, and checkpoints that know which weights and which data they stand for.

The recipe is the published MNIST experiment's: Adam at 1e-3, batches of 128, 20 epochs. The same seed on the same
machine gives the same weights bit for bit. Across machines float32 training drifts, so a model that the notebooks
query ships as a file; `data/build_checkpoints.py` is the code that made it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..batches import bar, tensors
from ..objectives import Objective, per_example
from .data import FOLDER, content_sha256

Loss = Objective | Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> (B,)
Inputs = Tensor | Mapping[str, Tensor]  # (N, ...), or several by name, passed to the model as **inputs
TrainingData = tuple[Inputs, Tensor]  # inputs (N, ...), targets (N, ...)


@dataclass(frozen=True)
class History:
    """What a training run did."""

    train_loss: tuple[float, ...]  # each epoch's mean loss in nats, over its batches as they were trained on
    recipe: dict[str, Any]  # the arguments that decide the result


def train(
    model: nn.Module,
    loss: Loss,
    inputs: Inputs,
    targets: Tensor,
    *,
    epochs: int = 20,
    batch_size: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    anneal: bool = False,
    jacobian: float = 0.0,
    seed: int = 0,
    device: torch.device | str | None = None,
    after_epoch: Callable[[int, float], None] | None = None,
    progress: bool = True,
) -> History:
    """Train the model in place with Adam on the mean of the per-example losses; it ends in evaluation mode.

    ``inputs`` (N, ...), or a dict of such tensors, and ``targets`` (N, ...) are shuffled each epoch in an order drawn
    on the CPU from ``seed`` alone; dropout is seeded as well, and the global generators are left as they were.
    ``weight_decay`` is Adam's own, which adds weight_decay · θ to the gradient. ``anneal`` lets the learning rate fall
    to 0 along half a cosine, step by step, so that training ends at rest. ``jacobian`` is the weight of ½ ‖∂f/∂x‖²,
    the model's sensitivity to its inputs (see ``_jacobian_penalty``). ``device=None`` trains where the model is;
    otherwise the model is moved there, and stays. ``after_epoch`` is called with the number of epochs done (from 1)
    and the learning rate then, to keep weights on the way. Raises ValueError for losses that are not (B,) and for a
    loss that diverges.
    """
    for each in tensors(inputs):
        if len(each) != len(targets) or len(targets) == 0:
            raise ValueError(f"{len(each)} inputs and {len(targets)} targets; expected as many of each, at least one.")
    function = loss.loss if isinstance(loss, Objective) else loss
    device = torch.device(device) if device is not None else next(model.parameters()).device
    inputs, targets = _map(inputs, lambda x: x.to(device)), targets.to(device)
    model.to(device).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
    steps = epochs * -(-len(targets) // batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: _half_cosine(k / steps) if anneal else 1.0)
    shuffle = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    with _seeded(seed, device):
        for epoch in bar(range(epochs), epochs, "training", "epoch") if progress else range(epochs):
            order = torch.randperm(len(targets), generator=shuffle, device="cpu").to(device)
            total = torch.zeros((), dtype=torch.float64, device=device)
            for rows in order.split(batch_size):
                total += _step(model, optimiser, function, _map(inputs, itemgetter(rows)), targets[rows], jacobian)
                schedule.step()
            losses.append(total.item() / len(targets))
            if not math.isfinite(losses[-1]):
                raise ValueError(
                    f"the training loss became {losses[-1]} in epoch {epoch + 1} of {epochs}; expected a finite "
                    f"number. Lower the learning rate (lr={lr:g}), and look for non-finite inputs."
                )
            if after_epoch is not None:
                after_epoch(epoch + 1, float(schedule.get_last_lr()[0]))
    optimiser.zero_grad()
    model.eval()
    recipe: dict[str, Any] = dict(epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay, seed=seed)
    used = {name: value for name, value in (("anneal", anneal), ("jacobian", jacobian)) if value}
    return History(tuple(losses), {"optimiser": "Adam", "loss": _name(loss)} | recipe | used)


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, targets: Tensor, *, batch_size: int = 1000) -> float:
    """The share of examples whose largest output is the target class."""
    batches = zip(inputs.split(batch_size), targets.split(batch_size), strict=True)
    return sum(int((model(x).argmax(-1) == y).sum()) for x, y in batches) / len(inputs)


@torch.no_grad()
def mean_loss(model: nn.Module, loss: Loss, inputs: Inputs, targets: Tensor, *, batch_size: int = 1000) -> float:
    """The mean per-example loss in nats."""
    function = loss.loss if isinstance(loss, Objective) else loss
    slices = (slice(at, at + batch_size) for at in range(0, len(targets), batch_size))
    batches = ((_map(inputs, itemgetter(rows)), targets[rows]) for rows in slices)
    return sum(function(_outputs(model, x), y).sum().item() for x, y in batches) / len(targets)


# --- checkpoints -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """The facts that a checkpoint carries beside its weights."""

    weights_sha256: str
    data_sha256: str  # of the training inputs and targets
    recipe: dict[str, Any]  # model, seeds, optimiser: what made it
    metrics: dict[str, float]  # losses in nats and accuracies, as measured when it was saved


def save_checkpoint(
    path: str | Path, model: nn.Module, *, data: TrainingData, recipe: Mapping[str, Any], metrics: Mapping[str, float]
) -> Checkpoint:
    """Write the weights to a safetensors file, with their hash, the hash of the training data and the recipe."""
    weights = {name: w.detach().cpu().contiguous() for name, w in model.state_dict().items()}
    facts = Checkpoint(content_sha256(weights), data_sha256(*data), dict(recipe), dict(metrics))
    # one metadata entry, its keys sorted: the same checkpoint is the same bytes
    save_file(weights, path, metadata={"inflib": json.dumps(vars(facts), sort_keys=True)})
    return facts


def load_checkpoint(path: str | Path, model: nn.Module, *, data: TrainingData | None = None) -> Checkpoint:
    """Load the weights into the model, which ends in evaluation mode, and return the facts about them.

    The file's numbers are converted to the model's dtype and device. With ``data`` (inputs, targets) the checkpoint
    must have been trained on exactly that. Raises FileNotFoundError, or ValueError on a damaged file, weights that
    are not those saved, a model of other shapes, other data; the model is then left as it was.
    """
    path = Path(path)
    weights, facts = _read(path)
    _check_shapes(path, weights, model)
    sha256 = content_sha256(weights)
    if sha256 != facts.weights_sha256:
        raise ValueError(
            f"the weights in {path} have SHA-256 {sha256}; expected {facts.weights_sha256}, recorded when they were "
            f"saved: the file was changed or damaged. {_repair(path)}"
        )
    if data is not None and (came := data_sha256(*data)) != facts.data_sha256:
        raise ValueError(
            f"{path} was trained on data with SHA-256 {facts.data_sha256}; the data given has {came} "
            f"({len(data[1])} examples). Pass the inputs and targets that it was trained on, in their order, or "
            "train the model anew on these."
        )
    model.load_state_dict(weights)
    model.eval()
    return facts


def shipped_checkpoint(name: str) -> Path:
    """The path of a checkpoint that ships with the repository: ``shipped_checkpoint("mnist_mlp")``."""
    return FOLDER / "checkpoints" / f"{name}.safetensors"


def data_sha256(inputs: Inputs, targets: Tensor) -> str:
    """SHA-256 of a training set; floating inputs count as float32, so that a float64 copy is the same data."""
    named = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}
    single = {name: x.float() if x.is_floating_point() else x for name, x in named.items()}
    return content_sha256(single | {"targets": targets})


def _read(path: Path) -> tuple[dict[str, Tensor], Checkpoint]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a checkpoint. {_repair(path)}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as problem:
        raise ValueError(
            f"{path} cannot be read as safetensors ({problem}); {path.stat().st_size:,} bytes came. {_repair(path)}"
        ) from problem
    try:
        return weights, Checkpoint(**json.loads(metadata["inflib"]))
    except (KeyError, TypeError, ValueError) as problem:
        raise ValueError(
            f"{path} does not say what its weights are (metadata: {sorted(metadata) or 'none'}); expected an entry "
            "'inflib' with hashes, recipe and metrics. Write checkpoints with inflib.lab.save_checkpoint."
        ) from problem


def _check_shapes(path: Path, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    came = {name: tuple(w.shape) for name, w in model.state_dict().items()}
    expected = {name: tuple(w.shape) for name, w in weights.items()}
    differing = sorted(name for name in came.keys() | expected.keys() if came.get(name) != expected.get(name))
    if differing:
        name = differing[0]
        raise ValueError(
            f"{path} is for another model: {name} is {came.get(name, 'absent')} in the model and "
            f"{expected.get(name, 'absent')} in the file ({len(differing)} of {len(came.keys() | expected.keys())} "
            "parameters differ). Build the model as the checkpoint's recipe says, or load the checkpoint of this one."
        )


def _repair(path: Path) -> str:
    if path.resolve().parent != FOLDER / "checkpoints":
        return "Save it again with inflib.lab.save_checkpoint."
    return (
        f"Restore it with `git checkout data/checkpoints/{path.name}`, or train it anew with `python "
        "data/build_checkpoints.py`, a language model with `python data/build_text_checkpoints.py` (another machine's "
        "float32 gives slightly other weights)."
    )


# --- the pieces of a training run ------------------------------------------------------------------------------


def _step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    function: Callable,
    inputs: Inputs,
    targets: Tensor,
    jacobian: float,
) -> Tensor:
    """One step of the optimiser on one batch; returns the batch's summed loss, a scalar."""
    if jacobian:
        inputs = _map(inputs, lambda x: x.detach().requires_grad_())
    outputs = _outputs(model, inputs)
    losses = per_example(function(outputs, targets), outputs, "training loss")  # (B,)
    total = losses.mean()
    if jacobian:
        total = total + jacobian * sum(_jacobian_penalty(outputs, x) for x in tensors(inputs))
    optimiser.zero_grad()
    total.backward()
    optimiser.step()
    return losses.detach().sum()


def _jacobian_penalty(outputs: Tensor, inputs: Tensor) -> Tensor:
    """½ ‖∂f/∂x‖² on average over the batch, a scalar, from one random direction of the outputs an example.

    For v uniform on the sphere of C dimensions, E[v vᵀ] = I/C, so that C ‖Jᵀv‖² is ‖J‖² in expectation. Source:
    Hoffman, Roberts & Yaida 2019, "Robust learning with Jacobian regularization".
    """
    v = torch.nn.functional.normalize(torch.randn_like(outputs), dim=-1)  # (B, C), from the seeded global generator
    (pulled,) = torch.autograd.grad((outputs * v).sum(), inputs, create_graph=True)  # Jᵀv (B, ...)
    return 0.5 * outputs.shape[-1] * pulled.flatten(1).square().sum(1).mean()


def _half_cosine(share: float) -> float:
    """From 1 at the start of training to 0 at its end."""
    return 0.5 * (1 + math.cos(math.pi * share))


def _outputs(model: nn.Module, inputs: Inputs) -> Tensor:
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def _map(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """``function`` of the inputs, or of each of them."""
    return {k: function(x) for k, x in inputs.items()} if isinstance(inputs, Mapping) else function(inputs)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators of the CPU and of ``device`` for a while, then put them back as they were."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _name(loss: Loss) -> str:
    return repr(loss) if isinstance(loss, Objective) else getattr(loss, "__name__", type(loss).__name__)
