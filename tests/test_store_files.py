"""A store's folder: the same bytes however it came to be, and refused by name where they are not what was written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest
import torch
from killed import contents
from languages import LanguageCase
from oracle import assert_close
from test_store import case_of, fit

from inflib import Store, TrainIndex, kfac, load_index
from inflib.files import lock
from inflib.index import building, folder

pytestmark = pytest.mark.usefixtures("float64")

FIRST, MORE = [4, 2], [3, 3]  # examples of each batch


@pytest.fixture(scope="module", name="case")
def one_case() -> LanguageCase:
    torch.set_default_dtype(torch.float64)
    return case_of()


@pytest.fixture(scope="module", name="curvature")
def its_curvature(case: LanguageCase) -> Any:
    return fit(case)


@pytest.fixture(scope="module")
def built(case: LanguageCase, curvature: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(case, curvature, tmp_path_factory.mktemp("built") / "store").folder


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "store"))


def build(
    case: LanguageCase, curvature: Any, path: Path, append: bool = False, data: Any = None, **options: Any
) -> Store:
    if data is None:
        data = case.batches([*FIRST, *MORE])
        data = data[2:] if append else data[:2]
    options = {"axes": 0.6, "shard": 3} | options
    return TrainIndex.build(
        case.model, case.objective, data, curvature, path=path, append=append, progress=False, **options
    )


def answers(path: Path, case: LanguageCase) -> torch.Tensor:
    store = load_index(path, case.model)
    return store.scores(store.prepare(case.model, case.objective, case.asked))


def test_a_dozen_stops_of_each_work_end_in_the_same_bytes() -> None:
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run([sys.executable, script, "--stops", "12"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    works = [line.split(": 12 stops")[0] for line in done.stdout.splitlines()]
    assert works == ["fit", "store", "append", "parts", "copy", "search"]


def test_the_same_call_gives_the_same_bytes_and_a_finished_one_writes_nothing(
    store: Path, case: LanguageCase, curvature: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(case, curvature, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(store)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*.*")}
    monkeypatch.setattr(building, "captured", None)  # no pass over the data
    build(case, curvature, store)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*.*")} == before


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_parts_of_several_processes_are_joined_to_the_bytes_of_one(
    store: Path, case: LanguageCase, curvature: Any, tmp_path: Path, order: tuple[int, ...]
) -> None:
    for which in order:
        with folder.building(tmp_path / "parts", (1 - which, 2)):  # another part is being built at the time
            pass
        build(case, curvature, tmp_path / "parts", part=(which, 2))
        if which != order[-1]:
            with pytest.raises(ValueError, match=r"is not complete: shards/.*was not written yet"):
                load_index(tmp_path / "parts", case.model)
    assert contents(tmp_path / "parts") == contents(store)


def test_shards_of_two_folders_are_joined_by_their_notes(
    store: Path, case: LanguageCase, curvature: Any, tmp_path: Path
) -> None:
    for which in range(2):
        build(case, curvature, tmp_path / str(which), part=(which, 2))
    for path in (tmp_path / "1" / "shards").iterdir():
        shutil.copy(path, tmp_path / "0" / "shards")
    assert torch.equal(answers(tmp_path / "0", case), answers(store, case))
    build(case, curvature, tmp_path / "0")
    assert contents(tmp_path / "0") == contents(store)


def test_new_examples_are_appended_once_and_numbered_on(
    store: Path, case: LanguageCase, curvature: Any, tmp_path: Path
) -> None:
    whole = build(case, curvature, tmp_path / "whole", data=case.batches([*FIRST, *MORE]))
    grown = build(case, curvature, store, append=True)
    assert len(grown) == len(whole) == 12
    assert_close(answers(store, case), answers(tmp_path / "whole", case), 1e-12)
    before = contents(store)
    build(case, curvature, store, append=True)  # they are there already
    build(case, curvature, store)  # and so are those that it was begun with
    assert contents(store) == before


def test_nothing_is_appended_to_a_store_that_is_not_complete(
    case: LanguageCase, curvature: Any, tmp_path: Path
) -> None:
    build(case, curvature, tmp_path / "half", part=(0, 2))
    with pytest.raises(ValueError, match="is not complete; expected it to be, before other examples are appended"):
        build(case, curvature, tmp_path / "half", append=True)


def test_no_more_than_one_shard_is_held(
    case: LanguageCase, curvature: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, held = building._write, []

    def watched(*args: Any) -> None:
        assert all(reference() is None for reference in held), "an earlier shard is still in memory"
        write(*args)
        held.append(weakref.ref(args[-1]))

    monkeypatch.setattr(building, "_write", watched)
    build(case, curvature, tmp_path / "store", data=case.batches([2] * 6), shard=2)
    assert len(held) == 6


# --- what is refused ------------------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_and_one_that_died_is_not_in_the_way(
    case: LanguageCase, curvature: Any, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    for part in ((0, 1), (0, 2)):
        with (
            folder.building(path, (0, 1)),
            pytest.raises(BlockingIOError, match="is being built by another process; expected none"),
        ):
            build(case, curvature, path, part=part)
    (path / "building-0-of-1").mkdir(parents=True)
    (path / "building-0-of-1" / "half.npy").write_bytes(b"what a process left that was killed")
    build(case, curvature, path)
    assert not list(path.glob("building*"))


def test_of_two_that_begin_at_once_the_one_without_the_lock_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "lock", lambda path: None)  # another has locked it since it was made
    with pytest.raises(BlockingIOError, match="is being built by another process"), folder.building(tmp_path, (0, 1)):
        pass


def test_a_folder_that_another_swept_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, swept = folder.lock, []

    def late(path: Path) -> int | None:
        found = lock(path)
        if not swept:  # opened, and gone
            shutil.rmtree(path)
            swept.append(path)
        return found

    monkeypatch.setattr(folder, "lock", late)
    with folder.building(tmp_path, (0, 1)) as mine:
        assert swept == [mine] and mine.is_dir()
    assert not list(tmp_path.iterdir())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "one bit": (flip, "has another checksum than the manifest; .*damaged, or another store's"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-5]), "cannot be read"),
    "no array": (lambda path: path.write_bytes(b"nothing"), "cannot be read"),
    "fewer examples": (lambda path: np.save(path, np.load(path)[:1]), r"holds \(1,\) records"),
    "a removed shard": (lambda path: path.unlink(), r"is missing: it holds examples 4 to 5; .* call TrainIndex.build"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_shard_is_refused_by_name_and_made_again(
    store: Path, case: LanguageCase, curvature: Any, name: str
) -> None:
    whole, shard = contents(store), store / "shards" / "000000000004.npy"
    damage, message = DAMAGES[name]
    damage(shard)
    with pytest.raises((ValueError, FileNotFoundError), match=f"{shard.name} {message}"):
        answers(store, case)
    shard.unlink(missing_ok=True)
    build(case, curvature, store)
    assert contents(store) == whole


def test_a_foreign_shard_is_refused_by_name(store: Path, case: LanguageCase, curvature: Any, tmp_path: Path) -> None:
    other = build(case, curvature, tmp_path / "other", axes=0.6, damping=0.7)
    name = "shards/000000000000.npy"
    shutil.copy(other.folder / name, store / name)
    with pytest.raises(ValueError, match=r"000000000000.npy has another checksum .*another store's"):
        answers(store, case)
    build(case, curvature, tmp_path / "half", part=(1, 2))
    build(case, curvature, tmp_path / "foreign", part=(0, 2), damping=0.7)
    for file in (tmp_path / "foreign" / "shards").iterdir():
        shutil.copy(file, tmp_path / "half" / "shards")
    with pytest.raises(ValueError, match=r"000000000000.npy is another store's: its note has store"):
        load_index(tmp_path / "half", case.model)


@pytest.mark.parametrize("file", ["axes.safetensors", "curvature.safetensors", "manifest.json"])
def test_a_damaged_part_of_the_folder_is_refused(store: Path, case: LanguageCase, file: str) -> None:
    flip(store / file)
    if file == "manifest.json":
        (store / file).write_text("{")
    with pytest.raises(ValueError, match=f"{file} is damaged"):
        load_index(store, case.model)
    (store / file).unlink()
    with pytest.raises(FileNotFoundError, match=file):
        load_index(store, case.model)


@pytest.mark.parametrize("file", ["axes.safetensors", "curvature.safetensors"])
def test_another_stores_parts_are_refused(store: Path, case: LanguageCase, tmp_path: Path, file: str) -> None:
    other = kfac(case.model, case.objective, case.train, case.layers, progress=False)
    shutil.copy(build(case, other, tmp_path / "other").folder / file, store / file)
    with pytest.raises(ValueError, match=r"is another curvature|holds a store of other"):
        load_index(store, case.model)


@pytest.mark.parametrize("options", [dict(bits=2), dict(axes=0.5), dict(damping=0.7), dict(components=2)], ids=str)
def test_another_store_in_the_same_folder_is_refused(
    store: Path, case: LanguageCase, curvature: Any, options: dict[str, Any]
) -> None:
    before = contents(store)
    with pytest.raises(ValueError, match=r"holds a store of other (bits|axes|damping): .*this call's is"):
        build(case, curvature, store, **options)
    with pytest.raises(ValueError, match="holds a store of other curvature"):
        build(case, kfac(case.model, case.objective, case.train, case.layers, progress=False), store)
    assert contents(store) == before


def test_other_examples_are_no_resumption(store: Path, case: LanguageCase, curvature: Any) -> None:
    with pytest.raises(ValueError, match=r"holds a store of 6 other examples; 6 came. .*append=True"):
        build(case, curvature, store, data=case_of(seed=2).batches([*FIRST, *MORE])[:2])


def test_another_models_query_is_refused(store: Path, case: LanguageCase) -> None:
    other = case_of(seed=4)
    with pytest.raises(ValueError, match="fitted at weights with hash"):
        load_index(store, other.model)
    with pytest.raises(ValueError, match="fitted at weights with hash"):
        load_index(store, case.model).prepare(other.model, other.objective, other.asked)  # type: ignore[union-attr]


# --- a full disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", range(6))
def test_a_disk_that_fills_leaves_what_is_complete_and_the_call_goes_on(
    built: Path, case: LanguageCase, curvature: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    path, left, sync = tmp_path / "store", [at], os.fsync

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        if at < 5:  # two shards with their notes, and the manifest
            with pytest.raises(
                OSError, match=r"cannot write .*No space left.*bytes free. Make room .*goes on from here"
            ):
                build(case, curvature, path)
            assert not list(path.rglob("building*"))
        else:
            build(case, curvature, path)
    build(case, curvature, path)
    assert contents(path) == contents(built)


def test_a_disk_without_room_is_said_before_the_pass(
    case: LanguageCase, curvature: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "free", lambda _: 10)
    with pytest.raises(OSError, match=r"bytes are still to be written, 10 are free. Make room, take fewer axes="):
        build(case, curvature, tmp_path / "store")


def test_the_manifest_says_what_the_store_was_made_from(store: Path, curvature: Any) -> None:
    facts = json.loads((store / "manifest.json").read_text())["facts"]
    assert facts["weights"] == curvature.facts.weights and facts["bits"] == 1 and facts["axes"]["axes"] == 0.6
    assert facts["damping"] == {k: pytest.approx(0.1 * v) for k, v in curvature.mean_eigenvalues().items()}
    assert facts["curvature"]["seed"] == 0 and facts["layers"]["up"] == [5, 5, "codes"]


def test_what_another_process_removes_at_the_same_time_is_waited_for(tmp_path: Path) -> None:
    dead = tmp_path / "building-0-of-2"
    dead.mkdir()
    held = lock(dead)
    assert held is not None

    def removed() -> None:
        shutil.rmtree(dead)
        held.release()

    Timer(0.3, removed).start()
    with folder.building(tmp_path, (0, 3)) as mine:
        assert [path.name for path in tmp_path.iterdir()] == [mine.name]
