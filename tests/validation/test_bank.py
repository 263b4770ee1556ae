"""A bank holds what its recipe's retrainings measured, however often its making was interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from inflib import CrossEntropy
from inflib.lab import mlp
from inflib.validation import datamodeling
from inflib.validation.bank import (
    BankRecipe,
    half_subsets,
    load_bank,
    load_published,
    make_bank,
    save_small,
    without,
)
from inflib.validation.bank.__main__ import find, main
from inflib.validation.retraining import Training

N, Q, K, R = 24, 5, 6, 3


def tiny() -> BankRecipe:
    """24 examples, 6 half-subsets × 3 seeds, in parts of 4 and 2 networks."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(N + Q, 6, generator=g), torch.arange(N + Q) % 3
    return BankRecipe(
        name="tiny",
        build=lambda seed: mlp((6, 4, 3), seed=seed),
        objective=CrossEntropy(),
        inputs=x[:N],
        targets=y[:N],
        queries=[(x[N:], y[N:])],
        training=Training(epochs=2, batch_size=8, weight_decay=1e-2),
        masks=half_subsets(N, K, seed=1),
        seeds=R,
        at_once=4,
    )


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_a_bank_holds_every_query_of_every_retraining(tmp_path):
    recipe = tiny()
    bank = make_bank(recipe, tmp_path, progress=False)
    assert bank.measured("margin").shape == (R, K, Q) and bank.masks.shape == (K, N)
    x, y = recipe.queries[0]
    for seed, k in ((0, 0), (1, 5), (2, 3)):
        model = recipe.train(seed, recipe.masks[k].float(), progress=False).model(0)
        f = model(x).detach()
        loss = F.cross_entropy(f, y, reduction="none").double()
        others = f.double().masked_fill(F.one_hot(y, 3).bool(), -torch.inf).logsumexp(1)
        margin = f.double().gather(1, y[:, None])[:, 0] - others
        assert torch.allclose(bank.measured("loss")[seed, k], loss, atol=1e-5)
        assert torch.allclose(bank.measured("log_likelihood")[seed, k], -loss, atol=1e-5)
        assert torch.allclose(bank.measured("margin")[seed, k], margin, atol=1e-5)
    assert torch.equal(bank.mean("loss"), bank.measured("loss").sum(0) / R)
    assert torch.equal(bank.masks, recipe.masks)


MAKE = """
import sys, time
sys.path[:0] = {paths!r}
import test_bank
from inflib.validation.bank import folder, make_bank
write = folder._write
def write_and_wait(path, content):
    write(path, content)
    if path.name == "part-0001.npz":
        time.sleep(600)
folder._write = write_and_wait
make_bank(test_bank.tiny(), {folder!r}, progress=False)
"""


def test_killed_it_goes_on_and_ends_bit_for_bit_the_same(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    make_bank(tiny(), whole, progress=False)
    assert len(contents(whole)) == 8  # recipe, masks, and two parts for each of three seeds
    script = MAKE.format(paths=[*sys.path, str(Path(__file__).parent)], folder=str(broken))
    process = subprocess.Popen([sys.executable, "-c", script])
    while not (broken / "part-0001.npz").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(contents(broken)) == 4
    (broken / "part-0002.partial").write_bytes(b"half a part")  # as if it had died while writing
    with pytest.raises(FileNotFoundError, match=r"holds 2 of 6 parts of a bank; part-0002\.npz is the first missing"):
        load_bank(broken)
    make_bank(tiny(), broken, progress=False)
    assert contents(broken) == contents(whole)


def test_a_part_that_is_there_is_not_made_again(tmp_path):
    make_bank(tiny(), tmp_path, progress=False)
    part = tmp_path / "part-0003.npz"
    np.savez(part, margin=np.zeros((2, Q), np.float32), log_likelihood=np.ones((2, Q), np.float32))
    again = make_bank(tiny(), tmp_path, progress=False)
    assert bool((again.measured("margin")[1, 4:] == 0).all()) and bool((again.measured("margin")[1, :4] != 0).any())


def test_a_small_file_holds_the_bank_to_the_steps_of_its_bits(tmp_path):
    bank = make_bank(tiny(), tmp_path / "bank", progress=False)
    for bits in (8, 16):
        save_small(bank, tmp_path / "small.npz", bits=bits)
        small = load_bank(tmp_path / "small.npz", tiny())
        for name in ("margin", "log_likelihood"):
            came, held = small.measured(name), bank.measured(name)
            reach = held.amax((0, 1)) - held.amin((0, 1))
            assert bool(((came - held).abs() <= reach / (2**bits - 1) / 2 * 1.001).all())
        assert torch.equal(small.masks, bank.masks) and small.facts == bank.facts
    first = (tmp_path / "small.npz").read_bytes()
    save_small(bank, tmp_path / "small.npz", bits=16)
    assert (tmp_path / "small.npz").read_bytes() == first


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        (lambda r: replace(r, training=Training(epochs=3, batch_size=8, weight_decay=1e-2)), "training"),
        (lambda r: replace(r, inputs=r.inputs + 1), "data"),
        (lambda r: replace(r, build=lambda s: mlp((6, 5, 3), seed=s)), "network"),
        (lambda r: replace(r, masks=half_subsets(N, K, seed=2)), "masks"),
        (lambda r: replace(r, queries=[(r.queries[0][0][:4], r.queries[0][1][:4])]), "queries"),
    ],
)
def test_a_bank_of_another_recipe_or_other_data_is_refused(tmp_path, other, differs):
    make_bank(tiny(), tmp_path, progress=False)
    with pytest.raises(ValueError, match=rf"is of another recipe: {differs} differ"):
        load_bank(tmp_path, other(tiny()))
    with pytest.raises(ValueError, match=rf"{differs} differ .*Make the bank anew in another folder"):
        make_bank(other(tiny()), tmp_path, progress=False)


def test_a_bank_begun_by_another_version_is_not_gone_on_with(tmp_path):
    make_bank(tiny(), tmp_path, progress=False)
    facts = json.loads((tmp_path / "recipe.json").read_text())
    (tmp_path / "recipe.json").write_text(json.dumps(facts | {"made_with": "torch 1.0 on cpu"}))
    with pytest.raises(ValueError, match="made_with differ"):
        make_bank(tiny(), tmp_path, progress=False)
    assert load_bank(tmp_path, tiny()).seeds == R  # it may still be read


def test_a_measurement_that_was_not_made_is_refused_with_those_that_were(tmp_path):
    bank = make_bank(tiny(), tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"'logit' is not in this bank; expected one of log_likelihood, margin, loss"):
        bank.measured("logit")


def test_masks_keep_their_share_and_are_the_same_for_ever():
    masks = half_subsets(N, 8, share=0.25)
    assert masks.sum(1).tolist() == [6] * 8 and len({tuple(m.tolist()) for m in masks}) == 8
    assert torch.equal(half_subsets(N, 3, share=0.25), masks[:3])  # more masks change none of the first
    assert masks[0].nonzero().flatten().tolist() == [0, 2, 11, 17, 20, 21]
    assert without(5, [[1], [0, 4]]).tolist() == [[True, False, True, True, True], [False, True, True, True, False]]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: half_subsets(N, 5, share=0.01), "keep 0 of 24"),
        (lambda: half_subsets(N, 0), "at least one mask"),
        (lambda: without(5, [[5]]), r"group 0 leaves out \[5\]; expected a part of 0 to 4"),
        (lambda: without(5, [[0], range(5)]), "group 1 .*expected a part"),
        (lambda: replace(tiny(), masks=torch.ones(K, N)), r"masks are torch\.float32 \(6, 24\); expected bools"),
        (lambda: replace(tiny(), masks=torch.zeros(K, N).bool()), "mask 0 keeps no example"),
        (
            lambda: replace(tiny(), masks=(torch.arange(N) % 3 != 1)[None]),
            r"mask 0 keeps no example of class 1 \(1 of 1",
        ),
        (lambda: replace(tiny(), seeds=0), "seeds=0"),
        (lambda: find("nothing"), "recipe 'nothing' is not in inflib.lab.banks; expected one of logistic, decay"),
        (lambda: find("inflib.lab.models:mlp"), "mlp returned Sequential; expected a BankRecipe"),
    ],
)
def test_masks_and_recipes_that_say_nothing_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_nothing_there_is_said_with_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no bank; expected recipe\.json, masks\.npy and parts"):
        load_bank(tmp_path)


def test_the_command_makes_a_bank_and_its_small_file(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    main(["test_bank:tiny", "--folder", str(tmp_path / "bank"), "--small", str(tmp_path / "small.npz")])
    said = capsys.readouterr().out
    assert "Bank(tiny: 6 masks × 3 seeds, 5 queries, 24 examples of which 12 kept; log_likelihood, margin)" in said
    assert torch.equal(load_bank(tmp_path / "small.npz").masks, load_bank(tmp_path / "bank").masks)


# --- published banks -------------------------------------------------------------------------------------------------


def publish(folder, wrap=lambda array: array, **replaced):
    """A miniature of the published layout: K masks and the losses of Q queries, NumPy arrays in .pt files."""
    g = np.random.default_rng(0)
    masks = half_subsets(N, 12).numpy()
    files = {"masks": masks.astype(np.float32), "losses": g.normal(size=(12, Q)), "margins": g.normal(size=(12, Q))}
    for name, array in (files | replaced).items():
        if array is not None:
            torch.save(wrap(array), folder / f"{name}.pt")
    return files


@pytest.mark.parametrize("wrap", [lambda array: array, torch.from_numpy], ids=["arrays", "tensors"])
def test_published_masks_and_losses_become_a_bank_of_one_seed(tmp_path, wrap):
    files = publish(tmp_path, wrap)
    bank = load_published(tmp_path)
    assert bank.masks.tolist() == files["masks"].astype(bool).tolist() and bank.seeds == 1
    assert bank.measured("loss")[0].tolist() == files["losses"].tolist()
    assert bank.measured("margin")[0].tolist() == files["margins"].tolist()
    # the published evaluation, written out: −masks · scores against losses, Spearman's correlation, a query at a time
    scores = torch.from_numpy(np.random.default_rng(1).normal(size=(Q, N)))
    ranks = lambda v: np.argsort(np.argsort(v))  # noqa: E731
    predicted = -files["masks"] @ scores.numpy().T
    expected = [np.corrcoef(ranks(predicted[:, q]), ranks(files["losses"][:, q]))[0, 1] for q in range(Q)]
    found = datamodeling(scores, bank, "log_likelihood")
    assert found.per_query.tolist() == pytest.approx(expected) and found.ceiling is None


class Runs:
    """Would leave a file behind if it were unpickled."""

    def __reduce__(self):
        return (Path("ran").write_text, ("it ran",))


def test_what_a_published_file_would_run_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    publish(tmp_path, losses=Runs())
    with pytest.raises(ValueError, match=r"losses\.pt cannot be read as numbers alone"):
        load_published(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("replaced", "error", "match"),
    [
        (dict(masks=None), FileNotFoundError, r"holds losses\.pt, margins\.pt; expected masks\.pt, and losses"),
        (dict(losses=None, margins=None), FileNotFoundError, r"holds masks\.pt; expected"),
        (dict(masks=np.full((12, N), 0.5)), ValueError, "other numbers than 0 and 1"),
        (dict(losses=np.zeros((11, Q))), ValueError, r"shape \(11, 5\), 0 numbers not finite; expected \(12, Q\)"),
        (dict(margins=np.full((12, Q), np.nan)), ValueError, "60 numbers not finite"),
        (dict(losses=[1, 2]), ValueError, "holds list; expected one tensor"),
    ],
)
def test_published_files_that_do_not_belong_together_are_refused(tmp_path, replaced, error, match):
    publish(tmp_path, **replaced)
    with pytest.raises(error, match=match):
        load_published(tmp_path)
