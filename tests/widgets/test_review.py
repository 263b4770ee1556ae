"""The review does what it says: decisions, undo, filters and files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reviewed import CLASSES, N, act, reviewing

from inflib.widgets.base import InputError


def test_a_decision_leads_to_the_next_undecided_and_undo_back(review) -> None:
    first, second, third = review.order()[:3]
    act(review, "next")
    act(review, "remove")
    act(review, "previous")
    act(review, "previous")
    act(review, "keep")  # the second is decided already: the third comes
    assert (review.case.n, review.decisions.counts()) == (third, {"keep": 1, "remove": 1})
    act(review, "undo")
    assert (review.case.n, list(review.decisions.of)) == (first, [second])
    act(review, "undo")
    assert (review.case.n, len(review.decisions)) == (second, 0)
    act(review, "undo")
    assert "there is nothing to undo" in review.error.value.lower()


def test_a_key_decides_about_the_example_that_was_seen(review) -> None:
    """The second press of somebody fast is about the first example still, and changes nothing."""
    first, second = review.order()[:2]
    act(review, "keep", first)
    act(review, "keep", first)
    assert (review.case.n, len(review.decisions)) == (second, 1)
    act(review, "remove", first)
    assert (review.case.n, review.decisions.of[first].what) == (second, "remove")
    act(review, "next")
    third = review.case.n
    act(review, "keep", first)
    assert review.case.n == third != second, "who looks at another example is left there"


def test_a_decision_can_be_changed_and_undo_goes_back_to_the_one_before(review) -> None:
    n = review.order()[0]
    given = int(review.decisions.given[n])
    act(review, "keep", n)
    act(review, "relabel", n, (given + 1) % 10)
    assert int(review.decisions.labels()[n]) == (given + 1) % 10
    act(review, "relabel", n, given)
    assert "which is its label; expected another class, or keep" in review.error.value
    act(review, "undo")
    assert review.decisions.of[n].what == "keep"


def test_a_decided_example_leaves_the_undecided_and_one_that_a_filter_hides_lifts_it(review) -> None:
    review.filter.value = "the undecided"
    first, second = review.order()[:2]
    act(review, "keep")
    assert (review.case.n, review.place.max) == (second, N - 1)
    review.show(first)
    assert (review.filter.value, review.case.n, review.desk.card["decided"]) == ("all", first, "decided: kept")
    review.filter.value = "the decided"
    review.label_filter.value = next(
        c for _, c in review.label_filter.options[1:] if c != review.decisions.given[first]
    )
    assert review.case is None and review.desk.card["key"] == -1
    assert review.error.value == ""
    act(review, "undo")  # an example that is hidden is shown again
    assert (review.case.n, review.label_filter.value) == (first, -1)


def test_many_decisions_are_taken_all_or_none(review) -> None:
    with pytest.raises(ValueError, match="decision 'drop'; expected keep, relabel or remove"):
        review.decide_all({0: ("keep", None), 1: ("drop", None)})
    assert len(review.decisions) == 0 and not review.decisions.can_undo


def test_the_last_undecided_leaves_an_empty_desk(made) -> None:
    review = reviewing(made)
    review.decide_all(dict.fromkeys(range(N - 1), ("keep", None)))
    review.filter.value = "the undecided"
    assert review.case.n == N - 1
    act(review, "keep")
    assert review.case is None and "300 of 300 decided (100.0%)" in review.progress.value
    act(review, "undo")
    assert review.case.n == N - 1


def test_an_example_is_one_whatever_kind_of_number_names_it(review) -> None:
    n = review.order()[0]
    to = (int(review.decisions.given[n]) + 1) % 10
    review.decide(torch.tensor(n), "relabel", np.int64(to))
    assert review.case.n == review.order()[1], "the one on show was decided about: the next comes"
    review.show(np.int32(n))
    assert (review.case.n, type(review.case.n), review.desk.card["decided"][:7]) == (n, int, "decided")
    review.decide(n, "keep")
    assert {k: d.what for k, d in review.decisions.of.items()} == {n: "keep"}
    for act_on in (review.show, lambda x: review.decide(x, "keep"), lambda x: review.decide_all({x: ("keep", None)})):
        for wrong in (True, 1.0, torch.tensor(2.0), "3"):
            with pytest.raises(ValueError, match=r"example .* of type .*; expected a whole number: give int"):
                act_on(wrong)


# --- files ------------------------------------------------------------------------------------------------------


def test_decisions_come_back_from_their_file_the_next_day(made, tmp_path) -> None:
    path = tmp_path / "decisions.csv"
    today = reviewing(made, path=path)
    a, b, c = today.order()[:3]
    to = (int(today.decisions.given[a]) + 1) % 10
    for n, what, label in ((a, "relabel", to), (b, "keep", None), (c, "remove", None)):
        today.decide(n, what, label)
    tomorrow = reviewing(made, path=path)
    assert tomorrow.decisions.of == today.decisions.of
    assert tomorrow.case.n == tomorrow.order()[3]
    assert not (~tomorrow.decisions.kept()).sum() - 1
    assert [p.name for p in tmp_path.iterdir()] == ["decisions.csv"]


def test_a_file_that_somebody_else_changed_is_left_as_it_is_and_the_decision_kept(made, tmp_path) -> None:
    path = tmp_path / "decisions.csv"
    review = reviewing(made, path=path)
    act(review, "keep")
    theirs = path.read_text() + "\n"
    path.write_text(theirs)
    n = review.case.n
    act(review, "remove")
    assert "changed by somebody else" in review.error.value
    assert path.read_text() == theirs and review.decisions.of[n].what == "remove"


def test_reading_adds_to_what_is_there_and_can_be_undone(made, tmp_path) -> None:
    review, other = reviewing(made), reviewing(made)
    a, b, c = review.order()[:3]
    other.decide_all({a: ("remove", None), b: ("keep", None)})
    review.decide_all({a: ("keep", None), c: ("keep", None)})
    before = dict(review.decisions.of)
    found = review.read_csv(other.to_csv(tmp_path / "theirs.csv"))
    assert (found.rows, found.new, found.changed) == (2, 1, 1)
    assert {n: d.what for n, d in review.decisions.of.items()} == {a: "remove", b: "keep", c: "keep"}
    review.undo()
    assert review.decisions.of == before


def test_a_bad_file_at_the_path_is_refused_and_stays(made, tmp_path) -> None:
    path = tmp_path / "decisions.csv"
    path.write_text("notes of mine\n")
    with pytest.raises(InputError, match="the first line is 'notes of mine'"):
        reviewing(made, path=path)
    assert path.read_text() == "notes of mine\n"


def test_a_class_whose_name_has_line_ends_comes_back_from_the_file(made, tmp_path) -> None:
    classes, path = ["", "a\rb", "c\r\nd", "e\nf", *CLASSES[4:]], tmp_path / "decisions.csv"
    today = reviewing(made, classes=classes, path=path)
    for c in range(4):
        n, m = (int(k) for k in (today.decisions.given == c).nonzero()[:2])
        today.decide(n, "keep")
        today.decide(m, "relabel", (c + 1) % 4)  # each is kept only where the file is as it was left
    assert reviewing(made, classes=classes, path=path).decisions.of == today.decisions.of
    other = reviewing(made, classes=classes)
    assert other.read_csv(today.to_csv(tmp_path / "copy.csv")).rows == 8
    assert other.decisions.of == today.decisions.of


def test_a_still_says_where_the_review_stands_without_a_script(review) -> None:
    review.decide(review.order()[0], "remove")
    still = review.as_html()
    assert "1 of 300 decided (0.3%): 0 kept, 0 relabelled, 1 removed" in still
    assert "(a still; run the notebook for its controls)" in still and "<script" not in still
    assert review.case.name in still and review.case.name in review.as_text()
    assert "&lt;b&gt;8" in still or "<b>8</b>" not in still
