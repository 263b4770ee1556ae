"""A plan as it is read: a line for each stage, and beneath it what to turn down where a stage would not fit."""

from __future__ import annotations

from dataclasses import dataclass

from ..ahead import in_bytes, in_time

ROOM = 0.9  # of what is free may be planned for


@dataclass(frozen=True)
class Stage:
    """What one stage takes. ``peak`` and ``disk`` in bytes; ``peak`` is above what model and data hold already."""

    name: str
    passes: int
    operations: float
    seconds: float
    peak: int
    disk: int
    most: str  # what takes most of it, and what to turn down


@dataclass(frozen=True)
class Plan:
    """The stages, in order, beside what is free on the model's device."""

    stages: tuple[Stage, ...]
    examples: int
    free: int | None

    def __getitem__(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def too_large(self) -> tuple[Stage, ...]:
        """The stages that would not fit."""
        return tuple(s for s in self.stages if self.free is not None and s.peak > ROOM * self.free)

    def __repr__(self) -> str:
        lines = [f"{'stage':8}{'passes':>8}{'operations':>13}{'time':>12}{'peak memory':>15}{'disk':>15}"]
        for s in self.stages:
            disk = in_bytes(s.disk) if s.disk else "–"
            lines.append(
                f"{s.name:8}{s.passes:8}{s.operations:13.2g}{in_time(s.seconds):>12}{in_bytes(s.peak):>15}{disk:>15}"
            )
        free = "nobody knows how much" if self.free is None else in_bytes(self.free)
        lines.append(f"{self.examples:,} examples; free: {free}")
        lines += [f"{s.name} would not fit: {s.most}" for s in self.too_large]
        return "\n".join(lines)
