"""A curvature comes back from its file as it went in, for its own model and for no other."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from networks import Tied, make, zoo
from oracle import assert_close
from torch import nn

from inflib import (
    CrossEntropy,
    Facts,
    Kronecker,
    TrainIndex,
    diagonal,
    ekfac,
    gauss_newton,
    identity,
    influence,
    kfac,
    load,
    load_index,
    relative,
    save,
    untied,
)
from inflib.storage import folder_beside, read_safetensors, seal, write_safetensors

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("fit", [ekfac, kfac, diagonal, identity])
@pytest.mark.parametrize("labels", ["expected", "sampled"])
def test_a_curvature_comes_back_the_same_function(fit: Any, labels: str, tmp_path: Path) -> None:
    case = make(n=8)
    before = fit(case.model, case.objective, case.train, labels=labels, draws=2, seed=5, progress=False)
    path = tmp_path / "factors.safetensors"
    save(before, path)
    after = load(path, case.model)
    assert after.facts == before.facts
    assert after.layers == before.layers
    assert after.shapes == before.shapes
    assert after.default_damping == before.default_damping
    for part in ("eigenvalues", "Q_S", "Q_A"):
        one, two = getattr(before, part), getattr(after, part)
        assert list(one) == list(two)
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert_close(after.to_dense(), before.to_dense(), 1e-14)  # stored row by row, so rounded differently
    one, two = (
        influence(case.model, case.objective, case.train, case.queries, c, progress=False) for c in (before, after)
    )
    assert_close(one, two, 1e-12)


def test_layers_come_back_in_the_models_order(tmp_path: Path) -> None:
    case = make(widths=(2,) + (3,) * 11 + (2,), n=3)  # fc10 sorts before fc2
    curvature = ekfac(case.model, case.objective, case.train, progress=False)
    save(curvature, tmp_path / "f")
    assert load(tmp_path / "f", case.model).layers == tuple(case.layers)


def test_the_kind_of_sharing_comes_back(tmp_path: Path) -> None:
    case = zoo("convolution")
    for sharing in ("expand", "reduce"):
        save(ekfac(case.model, case.objective, case.train, sharing=sharing, progress=False), tmp_path / "f")
        assert load(tmp_path / "f", case.model).facts.sharing == sharing


def test_some_layers_only_and_untied_layers_come_back(tmp_path: Path) -> None:
    case, model = make(), Tied()
    for layers in ("middle", untied(["first", "second"])):
        curvature = ekfac(model, case.objective, case.train, layers=layers, progress=False)
        save(curvature, tmp_path / "f")
        after = load(tmp_path / "f", model)
        assert after.facts == curvature.facts
        assert_close(after.to_dense(), curvature.to_dense(), 1e-14)


def test_a_layer_with_one_output_and_one_input_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(1, 2, bias=False))
    train = [(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))]
    curvature = ekfac(model, CrossEntropy(), train, progress=False)
    save(curvature, tmp_path / "f")
    assert_close(load(tmp_path / "f", model).to_dense(), curvature.to_dense(), 1e-14)


def test_a_float32_curvature_keeps_its_dtype(tmp_path: Path) -> None:
    case = make()
    model = case.model.float()
    curvature = ekfac(model, case.objective, [(case.x.float(), case.y)], progress=False)
    save(curvature, tmp_path / "f")
    assert load(tmp_path / "f", model).eigenvalues["fc0"].dtype == torch.float32


def test_an_existing_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    case, other = make(seed=1), make(seed=2)
    path = tmp_path / "f"
    for c in (case, other):
        save(ekfac(c.model, c.objective, c.train, progress=False), path)
    assert load(path, other.model).layers == ("fc0", "fc1")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_failed_write_keeps_the_old_file_and_leaves_no_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make()
    path = tmp_path / "f"
    save(ekfac(case.model, case.objective, case.train, progress=False), path)
    before = path.read_bytes()

    def fails_half_way(_: Any, to: Any, *rest: Any) -> None:
        Path(to).write_bytes(before[: len(before) // 2])
        raise OSError("disk full")

    def fails(*_: Any) -> None:
        raise OSError("disk full")

    for what, instead in (("safetensors.torch.save_file", fails_half_way), ("os.replace", fails)):
        with monkeypatch.context() as patched:
            patched.setattr(what, instead)
            with pytest.raises(OSError, match="disk full"):
                save(kfac(case.model, case.objective, case.train, progress=False), path)
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("damping", [0.25, relative(0.03), 0.0])
def test_the_default_damping_comes_back_and_gives_the_same_numbers(damping: Any, tmp_path: Path) -> None:
    case = make()
    before = replace(ekfac(case.model, case.objective, case.train, progress=False), default_damping=damping)
    save(before, tmp_path / "f")
    after = load(tmp_path / "f", case.model)
    assert after.default_damping == damping
    if damping:  # 0 is singular here
        one, two = before.inverse_eigenvalues(), after.inverse_eigenvalues()
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_saving_what_was_loaded_gives_the_same_bytes_and_the_same_scores(tmp_path: Path) -> None:
    case = make(n=8)
    save(ekfac(case.model, case.objective, case.train, progress=False), tmp_path / "f")
    once = load(tmp_path / "f", case.model)
    save(once, tmp_path / "g")
    again = load(tmp_path / "g", case.model)
    one, two = (
        influence(case.model, case.objective, case.train, case.queries, c, progress=False) for c in (once, again)
    )
    assert torch.equal(one, two)
    assert (tmp_path / "f").read_bytes() == (tmp_path / "g").read_bytes()


SAVES = """
import sys, torch
from inflib import Facts, Kronecker, save
values, Q_S, Q_A = ({"fc": torch.eye(2) + k} for k in (1, 0, 0))
save(Kronecker(values, Q_S, Q_A, Facts("EK-FAC", "expected", 1, 0, 3, "w")), sys.argv[1])
"""


def test_the_same_curvature_gives_the_same_bytes_every_time_and_in_every_process(tmp_path: Path) -> None:
    values, Q_S, Q_A = ({"fc": torch.eye(2, dtype=torch.float32) + k} for k in (1, 0, 0))
    for k in range(20):  # metadata of several entries would come in an order of chance
        save(Kronecker(values, Q_S, Q_A, Facts("EK-FAC", "expected", 1, 0, 3, "w")), tmp_path / str(k))
    root = str(Path(__file__).resolve().parent.parent)
    subprocess.run([sys.executable, "-c", SAVES, tmp_path / "elsewhere"], check=True, cwd=root, timeout=120)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_a_saved_file_may_be_read_by_those_who_may_read_any_new_file(mask: int, tmp_path: Path) -> None:
    case = make()
    curvature = ekfac(case.model, case.objective, case.train, progress=False)
    os.umask(mask)
    for _ in range(2):  # new, and over an old one
        save(curvature, tmp_path / "f")
        assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o666 & ~mask


# --- indexes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("animal", ["residual", "tokens", "transformer layer"])
def test_an_index_comes_back_and_answers_as_before(animal: str, dtype: Any, tmp_path: Path) -> None:
    case = zoo(animal)
    curvature = ekfac(case.model, case.objective, case.train, layers=case.layers, progress=False)
    before = TrainIndex.build(case.model, case.objective, case.train, curvature, dtype=dtype, progress=False)
    save(before, tmp_path / "index")
    after = load_index(tmp_path / "index", case.model)
    assert (len(after), after.nbytes, list(after.held)) == (len(before), before.nbytes, list(before.held))
    one, two = (index.influence(case.model, case.objective, case.queries, damping=0.1) for index in (before, after))
    assert_close(two, one, 1e-13)  # stored row by row, so rounded differently
    save(after, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "index").read_bytes()


def test_an_index_of_other_weights_is_refused(tmp_path: Path) -> None:
    case = zoo("tokens")
    curvature = ekfac(case.model, case.objective, case.train, progress=False)
    save(TrainIndex.build(case.model, case.objective, case.train, curvature, progress=False), tmp_path / "index")
    with torch.no_grad():
        case.model.up.weight += 1
    with pytest.raises(ValueError, match=r"was fitted at weights with hash \w+, this model's are"):
        load_index(tmp_path / "index", case.model)


def test_a_file_of_the_other_kind_says_how_to_read_it(tmp_path: Path) -> None:
    case = make()
    curvature = ekfac(case.model, case.objective, case.train, progress=False)
    save(curvature, tmp_path / "curvature")
    save(TrainIndex.build(case.model, case.objective, case.train, curvature, progress=False), tmp_path / "index")
    with pytest.raises(
        ValueError, match=r"'inflib curvature 2'; expected 'inflib index 2'. Read it with inflib.load\."
    ):
        load_index(tmp_path / "curvature", case.model)
    with pytest.raises(ValueError, match=r"Read it with inflib.load_index\."):
        load(tmp_path / "index", case.model)


# --- what is refused ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    case = make()
    save(ekfac(case.model, case.objective, case.train, progress=False), tmp_path / "factors.safetensors")
    return tmp_path / "factors.safetensors"


def test_other_weights_are_refused_with_both_hashes_and_the_fix(saved: Path) -> None:
    model = make().model
    fitted_at = load(saved, model).facts.weights
    with torch.no_grad():
        model.fc0.bias[1] += 1e-9
    with pytest.raises(ValueError, match=rf"was fitted at weights with hash {fitted_at}, this model's are .*fit again"):
        load(saved, model)


def test_a_model_trained_further_is_refused(saved: Path) -> None:
    case = make()
    optimiser = torch.optim.SGD(case.model.parameters(), 1e-3)
    nn.functional.cross_entropy(case.model(case.x), case.y).backward()
    optimiser.step()
    with pytest.raises(ValueError, match=r"expected the same. Load the checkpoint it was fitted at"):
        load(saved, case.model)


def test_other_shapes_are_refused_with_the_shapes(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"another model: layer 'fc0': .* made for \(4, 4\), the model has \(6, 4\)"):
        load(saved, make(widths=(3, 6, 3)).model)


def test_other_layers_are_refused(saved: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"was saved for another model: layers='fc0' matches no layer.*'0', '2'"):
        load(saved, model)


def test_another_dtype_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"was fitted at weights with hash"):
        load(saved, make().model.float())


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"nothing.safetensors does not exist; expected a file written by inflib"
    ):
        load(tmp_path / "nothing.safetensors", make().model)


def test_a_folder_is_no_file_and_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    case = make()
    with pytest.raises(FileNotFoundError, match=r"is a folder; expected a file written by inflib.save. Check the path"):
        load(tmp_path, case.model)
    curvature = ekfac(case.model, case.objective, case.train, progress=False)
    with pytest.raises(
        FileNotFoundError, match=r"cannot write .*nowhere.*f: expected its folder to exist. Create .*nowhere first"
    ):
        save(curvature, tmp_path / "nowhere" / "f")


DAMAGE = {
    "cut short by much": lambda whole: whole[: len(whole) // 2],
    "cut short by one byte": lambda whole: whole[:-1],
    "cut in the header": lambda whole: whole[:20],
    "a byte too many": lambda whole: whole + b"0",
    "a header that is no JSON": lambda whole: whole[:8] + b"?" + whole[9:],
    "other bytes": lambda whole: b"not a safetensors file",
    "empty": lambda whole: b"",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(saved: Path, damage: str) -> None:
    saved.write_bytes(DAMAGE[damage](saved.read_bytes()))
    with pytest.raises(ValueError, match=r"factors.safetensors is damaged or no safetensors file .*inflib.save"):
        load(saved, make().model)


def test_a_file_of_another_format_is_refused(saved: Path) -> None:
    tensors, metadata = read_safetensors(saved)
    write_safetensors(tensors, {**metadata, "format": "inflib curvature 0"}, saved)
    with pytest.raises(
        ValueError, match=r"of format 'inflib curvature 0'; expected 'inflib curvature 2'. Fit and save"
    ):
        load(saved, make().model)
    write_safetensors({"weight": torch.ones(3)}, {}, saved)
    with pytest.raises(ValueError, match=r"of format None; expected"):
        load(saved, make().model)
    safetensors.torch.save_file({"weight": torch.ones(3)}, saved)  # another program's, without metadata
    with pytest.raises(ValueError, match=r"of format None; expected"):
        load(saved, make().model)


def test_the_file_says_what_it_holds(saved: Path) -> None:
    """Readable by anyone: shapes, label kind, seed and the weights' hash are in the file's own metadata."""
    tensors, metadata = read_safetensors(saved)
    assert json.loads(metadata["layers"]) == {"fc0": [4, 4], "fc1": [3, 5]}
    facts = json.loads(metadata["facts"])
    assert facts["method"] == "EK-FAC"
    assert facts["labels"] == "expected"
    assert (facts["draws"], facts["seed"], facts["examples"]) == (1, 0, 7)
    assert len(facts["weights"]) == 32
    assert sorted(tensors) == sorted(f"{part}/fc{k}" for part in ("eigenvalues", "Q_S", "Q_A") for k in (0, 1))


def test_only_factored_curvatures_are_saved(tmp_path: Path) -> None:
    case = make()
    with pytest.raises(TypeError, match=r"save got a Dense; expected a Kronecker curvature"):
        save(gauss_newton(case.model, case.objective, case.train, progress=False), tmp_path / "f")  # type: ignore[arg-type]


# --- what comes in is whole -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["curvature", "index of pairs", "index of matrices"])
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, nn.Module, Any]:
    case = zoo("tokens") if request.param == "index of matrices" else make()
    value: Any = ekfac(case.model, case.objective, case.train, progress=False)
    if request.param != "curvature":
        value = TrainIndex.build(case.model, case.objective, case.train, value, progress=False)
    save(value, tmp_path / "f")
    return tmp_path / "f", case.model, load if request.param == "curvature" else load_index


def test_one_bit_that_changes_anywhere_is_noticed(whole: Any) -> None:
    path, model, read = whole
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    read(path, model)
    places = [*range(0, header, 3), *range(header, len(data), max(1, (len(data) - header) // 60)), len(data) - 1]
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"^\S*f (is damaged|is of format|has|lacks)"):
            read(path, model)


Change = Any
ALTERED: dict[str, tuple[Change, str]] = {
    "a tensor missing": (lambda t, m: t.pop("Q_A/fc1"), r"lacks the tensor 'Q_A/fc1'; expected 6 tensors"),
    "all of a kind missing": (lambda t, m: [t.pop(f"Q_S/fc{k}") for k in (0, 1)], r"lacks the tensor 'Q_S/fc0'"),
    "no eigenvalues": (lambda t, m: t.pop("eigenvalues/fc0"), r"lacks the tensor 'eigenvalues/fc0'"),
    "a tensor too many": (lambda t, m: t.update({"Q_S/fc7": torch.eye(2)}), r"has the tensor 'Q_S/fc7' of no layer"),
    "swapped": (
        lambda t, m: t.update({"Q_S/fc0": t["Q_S/fc1"], "Q_S/fc1": t["Q_S/fc0"]}),
        r"has 'Q_S/fc0' of shape \(3, 3\); expected \(4, 4\)",
    ),
    "transposed": (
        lambda t, m: t.update({"eigenvalues/fc1": t["eigenvalues/fc1"].T.contiguous()}),
        r"of shape \(5, 3\)",
    ),
    "not a number": (
        lambda t, m: t["Q_A/fc0"].__setitem__((0, 0), torch.nan),
        r"NaN or infinity in 'Q_A/fc0'",
    ),
    "infinite": (lambda t, m: t["eigenvalues/fc1"].__setitem__((0, 0), torch.inf), r"NaN or infinity in 'eigenvalues"),
    "negative": (lambda t, m: t["eigenvalues/fc1"].neg_(), r"has the negative eigenvalue -\S+ in 'eigenvalues/fc1'"),
    "not orthogonal": (lambda t, m: t["Q_S/fc0"].mul_(1.001), r"'Q_S/fc0', which is not orthogonal"),
    "one number of Q": (lambda t, m: t["Q_A/fc1"][0, 1].add_(1e-9), r"'Q_A/fc1', which is not orthogonal"),
    "two dtypes": (
        lambda t, m: t.update({"Q_S/fc0": t["Q_S/fc0"].float()}),
        r"torch.float32, torch.float64; expected one",
    ),
    "whole numbers": (
        lambda t, m: t.update({k: x.long() for k, x in t.items()}),
        r"holds torch.int64; expected one float",
    ),
    "facts that are no JSON": (lambda t, m: m.update(facts="{"), r"has '{' for 'facts', which is no JSON"),
    "facts that are a list": (lambda t, m: m.update(facts="[]"), r"has \[\] for 'facts'; expected a JSON object"),
    "no facts": (lambda t, m: m.pop("facts"), r"has no 'facts' in its metadata; expected facts, layers and damping"),
    "no layers": (lambda t, m: m.pop("layers"), r"has no 'layers'"),
    "empty layers": (lambda t, m: m.update(layers="{}"), r"has the layers {}; expected {layer: \[o, i\]}"),
    "a layer of one axis": (lambda t, m: m.update(layers='{"fc0": [4]}'), r"has the layers {'fc0': \[4\]}"),
    "a fact missing": (lambda t, m: _facts(m, examples=None), r"lacks the fact 'examples'; expected method, labels"),
    "a newer fact": (
        lambda t, m: _facts(m, processes=4),
        r"has the fact 'processes', unknown to this inflib.*wrote it",
    ),
    "a fact of another type": (lambda t, m: _facts(m, seed="0"), r"has '0' as its fact 'seed'; expected .* type int"),
    "damping that is negative": (lambda t, m: m.update(damping="-1"), r"has the damping -1; expected a number"),
    "damping that is a word": (lambda t, m: m.update(damping='{"absolute": 1}'), r"has the damping {'absolute': 1}"),
    "damping that is not a number": (lambda t, m: m.update(damping='{"relative": NaN}'), r"has the damping"),
}


def _facts(metadata: dict, **changes: Any) -> None:
    facts = json.loads(metadata["facts"]) | changes
    metadata["facts"] = json.dumps({k: v for k, v in facts.items() if v is not None})


@pytest.mark.parametrize("change", ALTERED)
def test_a_file_that_is_not_whole_is_refused_though_its_checksum_fits(saved: Path, change: str) -> None:
    tensors, metadata = read_safetensors(saved)
    alter, message = ALTERED[change]
    alter(tensors, metadata)
    write_safetensors(tensors, seal(tensors, metadata), saved)
    with pytest.raises(ValueError, match=rf"factors.safetensors .*{message}"):
        load(saved, make().model)


def test_facts_with_defaults_may_be_missing(saved: Path) -> None:
    tensors, metadata = read_safetensors(saved)
    _facts(metadata, untied=None, sharing=None)
    write_safetensors(tensors, seal(tensors, metadata), saved)
    assert load(saved, make().model).facts.sharing == "expand"


INDEX_ALTERED: dict[str, tuple[Change, str]] = {
    "a layer missing": (lambda t: [t.pop(f"index/{part}/fc1") for part in "ag"], r"lacks the tensor 'index/a/fc1'"),
    "one side missing": (lambda t: t.pop("index/g/fc0"), r"lacks the tensor 'index/g/fc0'"),
    "fewer examples": (lambda t: t.update({"index/g/fc1": t["index/g/fc1"][:3].clone()}), r"of shape \(3, 1, 3\)"),
    "both kinds": (lambda t: t.update({"index/G/fc0": torch.ones(7, 4, 4)}), r"has the tensor 'index/a/fc0' of no"),
    "not a number": (lambda t: t["index/a/fc0"].fill_(torch.nan), r"NaN or infinity in 'index/a/fc0'"),
    "two dtypes": (lambda t: t.update({"index/a/fc0": t["index/a/fc0"].bfloat16()}), r"torch.bfloat16, torch.float64"),
}


@pytest.mark.parametrize("change", INDEX_ALTERED)
def test_an_index_that_is_not_whole_is_refused(change: str, tmp_path: Path) -> None:
    case = make()
    curvature = ekfac(case.model, case.objective, case.train, progress=False)
    save(TrainIndex.build(case.model, case.objective, case.train, curvature, progress=False), tmp_path / "f")
    tensors, metadata = read_safetensors(tmp_path / "f")
    alter, message = INDEX_ALTERED[change]
    alter(tensors)
    write_safetensors(tensors, seal(tensors, metadata), tmp_path / "f")
    with pytest.raises(ValueError, match=message):
        load_index(tmp_path / "f", case.model)


def test_a_file_without_a_checksum_is_refused(saved: Path) -> None:
    tensors, metadata = read_safetensors(saved)
    del metadata["checksum"]
    write_safetensors(tensors, metadata, saved)
    with pytest.raises(ValueError, match=r"is damaged: its numbers or facts are not those that were written"):
        load(saved, make().model)


# --- what goes out --------------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys, safetensors.torch, torch
from pathlib import Path
from inflib.storage import write_safetensors
def dies(_, to, *rest):
    Path(to).with_name(".tmpABC").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
safetensors.torch.save_file = dies
write_safetensors({"a": torch.ones(2)}, {}, Path(sys.argv[1]))
"""


@pytest.mark.skipif(os.name != "posix", reason="locks are POSIX's")
def test_what_a_killed_process_left_is_removed_by_the_next_save_to_that_name(saved: Path) -> None:
    before, root = saved.read_bytes(), str(Path(__file__).resolve().parent.parent)
    subprocess.run([sys.executable, "-c", KILLED, saved], check=False, cwd=root, timeout=120)
    (saved.parent / f"{saved.name}.1234.part").write_bytes(b"of an older inflib")
    (saved.parent / "another.1234.part").write_bytes(b"somebody else's")
    assert saved.read_bytes() == before
    assert len(list(saved.parent.glob("factors.safetensors.*.part"))) == 2
    save(load(saved, make().model), saved)
    assert sorted(p.name for p in saved.parent.iterdir()) == ["another.1234.part", saved.name]


@pytest.mark.skipif(os.name != "posix", reason="locks are POSIX's")
def test_a_folder_that_was_removed_meanwhile_is_no_error(tmp_path: Path) -> None:
    with folder_beside(tmp_path / "f") as folder:
        folder.rmdir()
    assert not list(tmp_path.iterdir())


def test_what_another_process_is_writing_is_left_alone(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, inner = safetensors.torch.save_file, load(saved, make().model)

    def saves_meanwhile(*args: Any) -> None:
        monkeypatch.setattr("safetensors.torch.save_file", plain)
        save(inner, saved)  # as from another process, while this one has its folder open
        plain(*args)

    monkeypatch.setattr("safetensors.torch.save_file", saves_meanwhile)
    save(inner, saved)
    load(saved, make().model)
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_disk_that_is_full_says_which_path_and_how_many_bytes(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curvature, before = load(saved, make().model), saved.read_bytes()
    size = 8 * (4 * 4 + 4 * 4 + 4 * 4 + 3 * 5 + 3 * 3 + 5 * 5)

    def full(*_: Any) -> None:
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(
        OSError, match=rf"cannot write \S*factors.safetensors \(.*No space left.*with {size} bytes free"
    ):
        save(curvature, saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_folder_that_may_not_be_written_to_says_so(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curvature, before = load(saved, make().model), saved.read_bytes()

    def refuses(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuses)  # root may write anywhere: nothing else stands in its way
    with pytest.raises(PermissionError, match=r"cannot write .*Permission denied.*save elsewhere. The file that was"):
        save(curvature, saved)
    assert saved.read_bytes() == before
