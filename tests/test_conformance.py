"""The conformance suite: inflib passes every check, and every check fails a library with the mistake that it is for.

The mistakes are planted in ``inflib.lab.plain``, a line each: those of notebook 10, and more for the checks that those
leave out.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import conformance
import pytest
import torch

from inflib.conformance import CHECKS, FAILED, NOT_OFFERED, OFFERS, PASSED, RAISED, as_data, markdown, run
from inflib.conformance.ours import Inflib
from inflib.lab.mistakes import MISTAKES, Mistake, broken

MORE = [
    Mistake("N twice", "torch.stack(parts, -1)", "torch.stack(parts, -1) / 12", "much_damping_is_the_dot_product"),
    Mistake("mean label", "p[:, c : c + 1].sqrt()", "p[:, c : c + 1]", "one_example_is_exact"),
    Mistake(
        "half the noise", "yield e.expand_as(outputs)", "yield 0.5 * e.expand_as(outputs)", "a_linear_model_is_refitted"
    ),
    Mistake(
        "own damping",
        "(v * solve(fitted, name, v, damping_of",
        "(v * v + 0 * solve(fitted, name, v, damping_of",
        "self_influence_is_the_diagonal",
    ),
    Mistake("a layer left out", "case, damping).sum(-1)", "case, damping)[..., 1:].sum(-1)", "layers_add_up"),
    Mistake("sum over examples", "{k: x / len(case.train)", "{k: x", "doubled_data_change_nothing"),
    Mistake(
        "square of a sum", ".square().sum(0))", ".sum(0, keepdim=True).square().sum(0))", "batches_may_be_cut_anywhere"
    ),
    Mistake("repeated draws", "100 * draw", "0 * draw", "more_draws_come_nearer"),
    Mistake("padding counted", "* there[..., None]", "", "padding_changes_nothing"),
]
SINGLE = 1e-5  # what a library without float64 says of its rounding; no mistake may hide behind it
PLANTED = {mistake.name: mistake for mistake in MISTAKES + MORE}


@pytest.fixture(scope="module")
def ours() -> list:
    return run(Inflib())


def test_inflib_passes_every_check(ours) -> None:
    assert [o.check for o in ours] == list(CHECKS)
    assert not [o for o in ours if o.status != PASSED]


def test_the_plain_program_is_sound_before_a_mistake_is_planted() -> None:
    assert not [o for o in run(broken(None)) if o.status != PASSED]


@pytest.mark.parametrize("mistake", PLANTED.values(), ids=PLANTED)
def test_the_check_named_for_a_mistake_sees_it_by_a_number(mistake: Mistake) -> None:
    (found,) = run(broken(mistake), [mistake.seen_by])
    assert found.status == FAILED, found
    assert found.error is not None
    assert found.error > min(10 * max(found.bound, SINGLE), 1 - found.bound)


def test_every_check_is_the_one_named_for_some_mistake() -> None:
    assert {mistake.seen_by for mistake in PLANTED.values()} == set(CHECKS)


def test_a_mistake_is_one_line_and_a_line_that_is_not_there_is_refused() -> None:
    assert len({mistake.right for mistake in MISTAKES}) >= 13  # one line can be wrong in two ways
    with pytest.raises(ValueError, match="0 times; expected once"):
        broken(Mistake("none", "no such line", "", "layers_add_up"))


def test_the_mistakes_cover_those_of_the_course() -> None:
    assert len(MISTAKES) == 15
    assert sum(mistake.tokens for mistake in MISTAKES) == 3


# --- what becomes of a check ---------------------------------------------------------------------------------------


class Modest(Inflib):
    """Offers little, and raises where it is asked."""

    name, offers = "modest", frozenset({"observed labels", "damping", "self-influence"})

    def self_influence(self, fitted, case, damping):
        raise RuntimeError("no self-influence\nafter all")


def test_what_a_library_does_not_offer_is_no_failure_and_what_it_raises_is_told() -> None:
    status = {o.check: o for o in run(Modest())}
    assert status["layers_add_up"].status == NOT_OFFERED
    assert status["layers_add_up"].why == "layer scores"
    assert status["padding_changes_nothing"].why == "next token, padding"
    assert status["self_influence_is_the_diagonal"].status == RAISED
    assert status["self_influence_is_the_diagonal"].why == "RuntimeError: no self-influence after all"
    assert status["scores_are_symmetric"].status == PASSED


def test_scores_of_another_shape_or_that_are_no_numbers_fail() -> None:
    class Odd(Inflib):
        def scores(self, fitted, case, damping):
            return super().scores(fitted, case, damping).T

    class Nan(Inflib):
        def scores(self, fitted, case, damping):
            return super().scores(fitted, case, damping) * torch.nan

    for library in (Odd(), Nan()):
        (found,) = run(library, ["one_example_is_exact" if isinstance(library, Nan) else "columns_follow_the_examples"])
        assert found.status in (FAILED, RAISED)


def test_a_library_without_float64_is_asked_for_what_its_own_rounding_leaves() -> None:
    class Single(Inflib):
        rounding = SINGLE

        def scores(self, fitted, case, damping):
            return super().scores(fitted, case, damping).float() * (1 + 3e-7 * torch.rand(len(case.train)))

    class Coarse(Single):
        rounding = Inflib.rounding

    passed, failed = (run(library, ["batches_may_be_cut_anywhere"])[0] for library in (Single(), Coarse()))
    assert (passed.status, passed.bound) == (PASSED, SINGLE)
    assert (failed.status, failed.bound) == (FAILED, 1e-8)


def test_every_check_says_which_mistake_it_sees_and_needs_what_can_be_offered() -> None:
    for check in CHECKS.values():
        assert "Sees " in check.sees
        assert {each for need in check.needs for each in need.split(" | ")} <= set(OFFERS)


def test_checks_leave_torchs_defaults_and_the_adapters_model_alone(ours) -> None:
    assert torch.get_default_dtype() == torch.float32
    first, second = ([o.error for o in outcomes] for outcomes in (ours, run(Inflib())))
    assert first == pytest.approx(second, abs=1e-12)  # nothing of a run is left for the next


def test_the_table_has_a_row_for_each_check_and_a_line_that_shows_each_failure_again(ours) -> None:
    sign = run(broken(PLANTED["sign"]))
    found = {"inflib": ours, "wrong": sign, "modest": run(Modest(), ["layers_add_up"])}
    table = markdown(found, {"wrong": "python wrong.py --check {check}"})
    for name in CHECKS:
        assert f"| {name.replace('_', ' ')} |" in table
    assert "| an example speaks for itself | yes | **no** |" in table
    assert "| layers add up | yes | yes | – |" in table
    failed = [o.check for o in sign if o.status == FAILED]
    assert all(f"`python wrong.py --check {name}`" in table for name in failed)
    assert f"| {len(CHECKS)} of {len(CHECKS)} | {len(CHECKS) - len(failed)} of {len(CHECKS)} | 0 of 0 |" in table
    data = json.loads(json.dumps(as_data(found, {"inflib": {"version": "1"}})))
    assert data["inflib"]["version"] == "1"
    assert [o["check"] for o in data["wrong"]["outcomes"] if o["status"] == FAILED] == failed


# --- other libraries -----------------------------------------------------------------------------------------------


def test_the_table_that_is_kept_is_made_from_the_outcomes_that_are_kept() -> None:
    answers = json.loads((conformance.RESULTS / "conformance.json").read_text(encoding="utf-8"))
    assert (conformance.RESULTS / "conformance.md").read_text(encoding="utf-8") == conformance.table(answers)
    assert list(answers) == list(conformance.ADAPTERS)
    assert all([o["check"] for o in answer["outcomes"]] == list(CHECKS) for answer in answers.values())


def test_the_table_says_why_of_everything_that_was_not_asked() -> None:
    answers = json.loads((conformance.RESULTS / "conformance.json").read_text(encoding="utf-8"))
    for answer in answers.values():
        reasons = [o["why"] for o in answer["outcomes"] if o["status"] == NOT_OFFERED]
        missing = {what for why in reasons for what in re.split(", | \\| ", why)}
        assert missing <= answer["lacks"].keys() <= OFFERS.keys()


@pytest.mark.peers
@pytest.mark.parametrize("library", ["curvlinops", "kronfluence"])
def test_another_library_is_asked_by_the_command_and_passes(peers_python: Path, library: str) -> None:
    command = [
        str(peers_python),
        conformance.__file__,
        "--library",
        library,
        "--json",
        "--check",
        "one_example_is_exact",
    ]
    environment = os.environ | {"PYTHONPATH": str(conformance.ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout.strip().splitlines()[-1])["outcomes"]
    assert found["status"] == PASSED and found["error"] < 1e-12
