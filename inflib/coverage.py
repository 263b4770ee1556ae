"""What a choice of layers covers: the numbers that influence sees, and those that it takes as fixed, and why.

A model's parameters are covered by a chosen layer, or frozen (they ask for no gradient, so they were not trained), or
trained and uncovered: an embedding or a normalisation's scale, which ``layers="all"`` takes in; a layer that shares its
weight with something else; a parameter that the model applies itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .adapters import check_adapters
from .layers import Layer, LayerSpec
from .notes import note
from .selection import chosen


class CoverageNote(UserWarning):
    """Says once which parameters no chosen layer covers: influence does not see what they could learn."""


@dataclass(frozen=True)
class Coverage:
    """What ``layers=`` selects: rows (layer, type, o, i), and numbers left out as (parameter, type, count).

    Prints as a table. ``numbers`` counts {"covered", "frozen", "uncovered"}.
    """

    rows: tuple[tuple[str, str, int, int], ...]
    left_out: tuple[tuple[str, str, int], ...]  # trained, and in no chosen layer
    frozen: tuple[tuple[str, str, int], ...] = ()

    @property
    def numbers(self) -> dict[str, int]:
        """How many of the model's numbers are covered, frozen (not trained), and trained but uncovered."""
        left, frozen = (sum(count for *_, count in some) for some in (self.left_out, self.frozen))
        return {"covered": sum(o * i for *_, o, i in self.rows), "frozen": frozen, "uncovered": left}

    def __repr__(self) -> str:
        names = [*(row[0] for row in self.rows), *(row[0] for row in (*self.left_out, *self.frozen))]
        width = max(map(len, names))
        lines = [f"{'layer':{width}}  type     matrix (o, i)"]
        lines += [f"{name:{width}}  {kind:8} ({o}, {i})" for name, kind, o, i in self.rows]
        lines += [f"{name:{width}}  not covered ({kind}, {count:,} numbers)" for name, kind, count in self.left_out]
        lines += [f"{name:{width}}  frozen ({kind}, {count:,} numbers)" for name, kind, count in self.frozen]
        counts = self.numbers
        trained = counts["covered"] + counts["uncovered"]
        lines.append(
            f"{counts['covered']:,} of {trained:,} numbers covered, {counts['uncovered']:,} uncovered"
            + (f"; {counts['frozen']:,} more are frozen" if counts["frozen"] else "")
        )
        return "\n".join(lines)


def coverage(model: nn.Module, layers: LayerSpec = None) -> Coverage:
    """Which layers ``layers=`` selects, and which numbers none of them covers, as something to print."""
    return _coverage(model, chosen(model, layers)[0])


def _coverage(model: nn.Module, found: dict[str, Layer]) -> Coverage:
    left = uncovered(model, found)
    holders = {f"{n}.{p}" if n else p: m for n, m in model.named_modules() for p in m._parameters}
    parameters = dict(model.named_parameters())
    trained = any(p.requires_grad for p in parameters.values())  # where nothing is, nothing counts as frozen
    rows = [(name, _type(holders[name], parameters[name].dtype), count) for name, count in left.items()]
    frozen = {name for name, p in parameters.items() if trained and not p.requires_grad}
    return Coverage(
        rows=tuple((name, type(layer.modules[0]).__name__, *layer.shape) for name, layer in found.items()),
        left_out=tuple(row for row in rows if row[0] not in frozen),
        frozen=tuple(row for row in rows if row[0] in frozen),
    )


def _type(module: nn.Module, dtype: object) -> str:
    name = type(module).__name__
    return name if getattr(dtype, "is_floating_point", True) else f"{name}, {dtype}".replace("torch.", "")


def uncovered(model: nn.Module, layers: dict[str, Layer]) -> dict[str, int]:
    """{parameter name: how many of its numbers no chosen layer covers}, without those that are covered."""
    covered = {(id(p), layer.group): p.numel() // layer.groups for layer in layers.values() for p in layer.parameters}
    named = list(model.named_parameters())  # once: PEFT's attention makes some anew each time that they are asked for
    left = {id(p): p.numel() for _, p in named}
    for (parameter, _), count in covered.items():
        if parameter in left:
            left[parameter] -= count
    return {name: left[id(p)] for name, p in named if left[id(p)]}


def select_and_say(model: nn.Module, layers: LayerSpec) -> dict[str, Layer]:
    """``select``, with a CoverageNote where layers=None leaves parameters out; adapters must be there and trained."""
    found, reasons = chosen(model, layers)
    check_adapters(model, found)
    text = _note(model, _coverage(model, found), reasons) if layers is None else _left_out(reasons)
    for said in (text, _hooked(found)):
        if said:
            note(said, CoverageNote)
    return found


def _hooked(layers: dict[str, Layer]) -> str:
    """What is said of parameters whose gradients have hooks, that training heeds and influence does not."""
    names = [
        name
        for layer in layers.values()
        for name, p in zip((layer.weight_name, layer.bias_name), layer.parameters, strict=False)
        if name is not None and p._backward_hooks
    ]
    if not names:
        return ""
    return (
        f"{', '.join(names[:4])}{' ...' if names[4:] else ''} have hooks on their gradients (register_hook), which are "
        "not applied: numbers that one holds at 0 count as trained. Leave such layers out with layers="
    )


def _left_out(reasons: list[str]) -> str:
    return ". ".join(f"Left out: {reason}" for reason in reasons)


def _note(model: nn.Module, table: Coverage, reasons: list[str]) -> str:
    parts = []
    if table.left_out:
        parts.append(
            f"{_count(table.left_out)} are not covered by any chosen layer and count as fixed: {_names(table.left_out)}"
            + _more(model, table)
            + (f". {_left_out(reasons)}" if reasons else "")
        )
    if table.frozen:
        parts.append(
            f"{_count(table.frozen)} are frozen (they ask for no gradient, so they were not trained) and left out: "
            f"{_names(table.frozen)}; name layers to include them"
        )
    if not any(p.requires_grad for p in model.parameters()):
        parts.append("nothing in the model asks for a gradient, so every understood layer counts as trained")
    return ". ".join(parts)


def _more(model: nn.Module, table: Coverage) -> str:
    """That layers="all" would cover more than is covered, where it would."""
    left = sum(uncovered(model, chosen(model, "all")[0]).values())
    before = sum(count for *_, count in (*table.left_out, *table.frozen))
    return "; layers='all' takes embeddings and normalisations too" if left < before else ""


def _count(rows: tuple[tuple[str, str, int], ...]) -> str:
    return f"{len(rows)} parameters ({sum(count for *_, count in rows):,} numbers)"


def _names(rows: tuple[tuple[str, str, int], ...]) -> str:
    shown = ", ".join(name if "int" not in kind else f"{name} ({kind})" for name, kind, _ in rows[:8])
    return shown + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
