"""A store, or a fit, that was stopped at an unlucky moment: what was whole stays so, and no other work goes on in it."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killed import contents
from languages import LanguageCase
from test_store import case_of
from test_store_files import FIRST, MORE, answers, build, its_curvature, one_case  # noqa: F401 (two fixtures)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import inflib
from inflib import CrossEntropy, NextToken, StoreNote, TrainIndex, ekfac, kfac, load, load_index, save
from inflib.files import lock
from inflib.index import building, folder, manifest

pytestmark = pytest.mark.usefixtures("float64")


class Died(BaseException):
    """What a kill is to the code that it ends."""


def die(*_: Any, **__: Any) -> None:
    raise Died


@pytest.fixture
def store(case: LanguageCase, curvature: Any, tmp_path: Path) -> Path:
    return build(case, curvature, tmp_path / "store").folder


def stopped_append(case: LanguageCase, curvature: Any, store: Path, at: str = "_join", **options: Any) -> None:
    with pytest.MonkeyPatch.context() as patched, pytest.raises(Died):
        patched.setattr(building, at, die)
        build(case, curvature, store, append=True, **options)


# --- what was whole stays so ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["_filled", "_write"])
def test_a_store_answers_as_before_until_what_is_appended_is_whole(
    case: LanguageCase, curvature: Any, store: Path, tmp_path: Path, at: str
) -> None:
    before = answers(store, case)
    stopped_append(case, curvature, store, at)
    with pytest.warns(StoreNote, match=r"6 examples are being appended .* these are the 6 from before"):
        assert torch.equal(answers(store, case), before)
    assert len(build(case, curvature, store)) == 6  # those that it was begun with
    with pytest.raises(ValueError, match=r"not complete; .* give it up, remove growing.json and shards/000000000006"):
        build(case, curvature, store, append=True, data=case_of(seed=2).batches([3, 3]))
    whole = contents(build(case, curvature, store, append=True).folder)
    for append in (False, True):
        build(case, curvature, tmp_path / "other", append=append)
    assert whole == contents(tmp_path / "other")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_index(store, case.model)


def test_an_append_that_was_stopped_can_be_given_up(case: LanguageCase, curvature: Any, store: Path) -> None:
    before = contents(store)
    stopped_append(case, curvature, store)  # with every shard written
    (store / "growing.json").unlink()
    for path in [*store.rglob("*06.npy*"), *store.rglob("*09.npy*")]:
        path.unlink()
    build(case, curvature, store)
    assert contents(store) == before


def test_an_append_without_room_changes_nothing(
    case: LanguageCase, curvature: Any, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(store)
    monkeypatch.setattr(building, "free", lambda _: 10)
    with pytest.raises(OSError, match="10 are free"):
        build(case, curvature, store, append=True)
    assert contents(store) == before


def test_a_lost_shard_that_is_made_again_with_other_roundings_is_the_stores(
    case: LanguageCase, curvature: Any, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill, shard = building.fill, store / "shards" / "000000000004.npy"
    before = answers(store, case)

    def rounded_up(records: np.ndarray, *rest: Any) -> None:
        fill(records, *rest)
        for name in records.dtype.names or ():
            if "scale" in records[name].dtype.names:
                records[name]["scale"] = np.nextafter(records[name]["scale"], np.float32(np.inf))

    shard.unlink()
    monkeypatch.setattr(building, "fill", rounded_up)
    with monkeypatch.context() as patched, pytest.raises(Died):
        patched.setattr(building, "_join", die)
        build(case, curvature, store)
    build(case, curvature, store)
    came = answers(store, case)
    assert not torch.equal(came, before) and torch.allclose(came, before)
    assert sorted(path.name for path in store.iterdir()) == sorted(
        ["axes.safetensors", "curvature.safetensors", "manifest.json", "shards"]
    )


def test_a_copy_is_of_the_store_as_it_was_opened(
    case: LanguageCase, curvature: Any, store: Path, tmp_path: Path
) -> None:
    before, opened = contents(store), load_index(store, case.model)
    stopped_append(case, curvature, store)
    save(opened, tmp_path / "during")
    build(case, curvature, store, append=True)
    (tmp_path / "after.0123456789abcdef.part").mkdir()  # what a copy left that was killed
    save(opened, tmp_path / "after")
    assert contents(tmp_path / "during") == contents(tmp_path / "after") == before
    assert not list(tmp_path.glob("*.part"))
    half = build(case, curvature, tmp_path / "half", part=(0, 2))
    with pytest.raises(ValueError, match=r"is not complete: shards/000000000004\.npy was not written when"):
        save(half, tmp_path / "copy of a half")


def test_a_note_without_its_shard_is_none(case: LanguageCase, curvature: Any, store: Path, tmp_path: Path) -> None:
    half = build(case, curvature, tmp_path / "half", part=(0, 2)).folder
    (half / "shards" / "000000000000.npy").unlink()
    build(case, curvature, half, part=(1, 2))
    with pytest.raises(ValueError, match=r"is not complete: shards/000000000000\.npy was not written"):
        load_index(half, case.model)
    build(case, curvature, half, part=(0, 2))
    assert contents(half) == contents(store)


# --- joined by another process meanwhile ----------------------------------------------------------------------------------


def joined_at_look(number: int, join: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let another process join the shards right before the n-th look at the notes."""
    look, looks = manifest.noted, [0]

    def looking(*arguments: Any) -> Any:
        looks[0] += 1
        if looks[0] == number:
            join()
        return look(*arguments)

    monkeypatch.setattr(manifest, "noted", looking)
    monkeypatch.setattr(building, "noted", looking)


@pytest.mark.parametrize("look", [0, 1, 2, 3])
def test_shards_that_another_process_joins_while_one_looks_are_seen(
    case: LanguageCase, curvature: Any, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    """The manifest read before, the notes looked for after they are gone."""
    parts = tmp_path / "parts"
    for which in (0, 1):
        with monkeypatch.context() as patched:
            patched.setattr(building, "_join", lambda _, path: building.with_notes(path))
            build(case, curvature, parts, part=(which, 2))
    joined_at_look(max(look, 1), lambda: building._join(tmp_path, parts), monkeypatch)
    if look == 0:
        came = load_index(parts, case.model)
    else:
        monkeypatch.setattr(building, "captured", None)  # nothing is made again
        came = build(case, curvature, parts, part=(0, 2))
    assert contents(parts) == contents(store)
    assert torch.equal(came.norms(), load_index(store, case.model).norms())  # type: ignore[union-attr]


# --- nothing else goes on in it -------------------------------------------------------------------------------------------


def test_another_curvature_does_not_go_on_where_one_was_stopped_that_had_written_itself_alone(
    case: LanguageCase, curvature: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(Died):
        patched.setattr(building, "fit_axes", die)
        build(case, curvature, tmp_path / "store")
    other = kfac(case.model, case.objective, case.train, case.layers, progress=False)
    with pytest.raises(ValueError, match=r"holds a store of other curvature: curvature\.safetensors is not the one"):
        build(case, other, tmp_path / "store")


def test_components_of_other_examples_are_not_gone_on_with(
    case: LanguageCase, curvature: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"components": 2, "sample": 4}
    with monkeypatch.context() as patched, pytest.raises(Died):
        patched.setattr(building.Manifest, "text", die)
        build(case, curvature, tmp_path / "store", **how)
    with pytest.raises(ValueError, match="holds a store of other examples"):
        build(case, curvature, tmp_path / "store", data=case_of(seed=2).batches([*FIRST, *MORE])[:2], **how)
    begun = build(case, curvature, tmp_path / "store", **how)
    assert len(build(case, curvature, begun.folder, append=True, **how)) == 12


class Cooled(NextToken):
    """A loss of one's own that has a number."""

    def __init__(self, temperature: float, weight: Tensor | None = None):
        super().__init__()
        self.temperature, self.weight = temperature, weight

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        return super().loss(outputs / self.temperature, targets)


def test_another_loss_does_not_go_on_in_a_store(case: LanguageCase, curvature: Any, tmp_path: Path) -> None:
    def part(which: int, objective: Any) -> Any:
        data = case.batches([*FIRST, *MORE])[:2]
        return TrainIndex.build(
            case.model, objective, data, curvature, path=tmp_path / "store", shard=3, part=(which, 2), progress=False
        )

    part(0, Cooled(1.0))
    with pytest.raises(ValueError, match=r"store of other objective: .*temperature=1\.0.*temperature=2\.0"):
        part(1, Cooled(2.0))
    part(1, Cooled(1.0))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (CrossEntropy(), CrossEntropy(label_smoothing=0.1)),
        (CrossEntropy(weight=torch.tensor([1.0, 2.0])), CrossEntropy(weight=torch.tensor([1.0, 3.0]))),
        (inflib.Weighted(CrossEntropy()), inflib.Weighted(CrossEntropy(label_smoothing=0.1))),
    ],
    ids=["smoothing", "class weights", "in another"],
)
def test_another_loss_does_not_go_on_in_a_fits_checkpoint(one: Any, other: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = nn.Linear(3, 2), [(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))]
    for _ in range(2):
        ekfac(model, one, data, checkpoint=tmp_path / "fit", progress=False)
    with pytest.raises(ValueError, match=r"was begun with objective = .* this fit has .*expected the same"):
        ekfac(model, other, data, checkpoint=tmp_path / "fit", progress=False)


# --- the same bits, and nothing left --------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """A perceptron of every position."""

    def __init__(self, *widths: int):
        super().__init__()
        self.first, self.second = nn.Linear(*widths[:2]), nn.Linear(*widths[1:])

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


@pytest.mark.parametrize("positions", [1, 7])
def test_a_store_is_gone_on_with_by_a_curvature_from_its_file_to_the_same_bytes(tmp_path: Path, positions: int) -> None:
    """Products are rounded by how their factors lie in memory, which a file does not say."""
    torch.manual_seed(0)
    model = Tokens(61, 37, 43)
    x, y = torch.randn(32, positions, 61), torch.randint(43, (32, positions))
    data = [(x[k : k + 8], y[k : k + 8]) for k in range(0, 32, 8)]
    for blocks in (None, 2):
        fitted = ekfac(model, NextToken(), data, labels="observed", blocks=blocks, progress=False)
        save(fitted, tmp_path / f"fit {blocks}")
        made = []
        for name, curvature in (("fitted", fitted), ("loaded", load(tmp_path / f"fit {blocks}", model))):
            path = tmp_path / f"{name} {blocks}"
            TrainIndex.build(model, NextToken(), data, curvature, path=path, bits=16, progress=False)
            made.append(contents(path))
        assert made[0] == made[1]


def test_what_a_killed_save_left_beside_a_sum_that_is_whole_is_removed(case: LanguageCase, tmp_path: Path) -> None:
    def fitted() -> list[str]:
        ekfac(case.model, case.objective, case.train, case.layers, checkpoint=tmp_path / "fit", progress=False)
        return sorted(path.name for path in (tmp_path / "fit").iterdir())

    before = fitted()
    (tmp_path / "fit" / "moments.safetensors.0123456789abcdef.part").mkdir()  # killed after the file was moved
    assert fitted() == before


# --- whose lock it is -----------------------------------------------------------------------------------------------------


def test_a_loaders_workers_do_not_hold_a_fits_folder(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    data = TensorDataset(torch.randn(8, 3), torch.randint(2, (8,)))
    loader = DataLoader(data, batch_size=4, num_workers=1, persistent_workers=True, multiprocessing_context="fork")
    for _ in range(2):  # the workers of the first live on
        ekfac(model, CrossEntropy(), loader, checkpoint=tmp_path / "fit", progress=False)
    del loader


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_what_was_forked_from_a_killed_process_does_not_hold_its_lock(tmp_path: Path) -> None:
    orphan = os.pipe()

    def locks_forks_and_dies() -> None:
        assert lock(tmp_path) is not None
        grandchild = os.fork()
        if grandchild == 0:
            time.sleep(60)
            os._exit(0)
        os.write(orphan[1], str(grandchild).encode())
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            locks_forks_and_dies()
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    worker = int(os.read(orphan[0], 20))
    try:
        deadline = time.monotonic() + 5
        while (held := lock(tmp_path)) is None and time.monotonic() < deadline:
            time.sleep(0.01)  # until the worker has let go of its copy
        assert held is not None
        held.release()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_build_interrupted_while_it_tidies_up_is_not_in_its_own_way(
    case: LanguageCase, curvature: Any, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt) as kept:
        patched.setattr(folder.shutil, "rmtree", interrupted)
        build(case, curvature, store)
    assert kept.tb is not None  # as a notebook keeps it, with every frame's variables
    build(case, curvature, store)
    assert not list(store.glob("building*"))
