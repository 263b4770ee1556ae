"""Anybody's texts and pictures are reviewed; what does not belong together is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from reviewed import CLASSES, N, reviewing, sentences

from inflib.widgets import Examples, Review


def test_texts_are_reviewed_like_pictures_under_their_own_names() -> None:
    texts, model, objective, examples, index = sentences()
    review = Review(model, objective, index, examples, classes=["work", "play", "spam"])
    assert set(range(0, 60, 10)) <= set(review.order()[:9])
    n = review.case.n
    assert review.desk.card["text"] == texts[n] and review.desk.card["name"] == f"mail {n}"
    assert all("text" in one for one in review.desk.card["opponents"])
    assert "<script>" not in review.as_html() and "&lt;script&gt;" in review.as_html()
    review.decide(n, "relabel", ["work", "play", "spam"][n % 3])
    with pytest.raises(ValueError, match="class 'ham'; expected its number, or one of work, play, spam"):
        review.decide(n, "relabel", "ham")
    assert review.decisions.table()[0]["label"] == ["work", "play", "spam"][n % 3]


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3), (700, 500, 3)])
def test_pictures_of_any_size_and_colour_are_shown(made, shape) -> None:
    model, objective, index, noisy, *_, signals = made
    images = (
        np.random.Generator(np.random.PCG64(0)).integers(0, 255, (N, *shape), dtype=np.uint8)
        if shape[0] < 99
        else [np.zeros(shape, np.uint8)] * N
    )
    review = Review(model, objective, index, Examples(noisy.inputs, noisy.labels, images=images), signals=signals)
    assert review.desk.card["colour"] is True
    assert len(review.desk.card["picture"]) < 160 * 160 * 3 * 4 / 3 + 4000


def test_what_does_not_belong_together_is_refused(made) -> None:
    model, objective, index, noisy, clean, _, signals = made
    with pytest.raises(ValueError, match="9 names of classes; expected 10, each another"):
        reviewing(made, classes=CLASSES[:9])
    with pytest.raises(ValueError, match=r"signal 'mine' has shape \(3,\); expected 300 finite numbers"):
        reviewing(made, signals={"mine": torch.zeros(3)})
    with pytest.raises(ValueError, match="the index holds 300 examples, and 42 came"):
        Review(model, objective, index, clean, signals={"mine": torch.zeros(42)})
    with pytest.raises(ValueError, match="expected class numbers"):
        Review(model, objective, index, replace(noisy, labels=noisy.labels + 3), signals=signals)
    with pytest.raises(ValueError, match="as many images or texts, one of the two"):
        Examples(noisy.inputs, noisy.labels)
    with pytest.raises(ValueError, match="as many images or texts"):
        Examples(noisy.inputs, noisy.labels, texts=["a"])
