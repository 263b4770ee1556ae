"""The controls above every browser's lists say how to score, and say it in numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inflib.widgets.asking import Asking
from inflib.widgets.engine import Engine
from inflib.widgets.ranking import ALL_LAYERS, Settings

FIRST = Settings("K-FAC", damping=0.01, count=30)


@pytest.fixture
def asking(shipped) -> Asking:
    engine = Engine(shipped.model, shipped.objective, shipped.index, shipped.methods)
    return Asking("Asking", "test-asking", engine, FIRST)


def test_the_controls_start_at_the_first_settings_and_are_the_settings(asking) -> None:
    assert asking.settings == FIRST
    asking.method.value, asking.layer.value, asking.measurement.value = "EK-FAC", "out", "margin"
    asking.damping.value, asking.count.value = 1.0, 2
    assert asking.settings == Settings("EK-FAC", 1.0, "out", "margin", 2)


def test_layers_and_measurements_are_those_of_the_engine(asking) -> None:
    assert [value for _, value in asking.layer.options] == [ALL_LAYERS, "hidden1", "hidden2", "out"]
    assert [value for _, value in asking.measurement.options] == ["log_likelihood", "margin", "logit"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"damping": 0}, r"damping=0; expected .*from 0\.0001 to 100"),
        ({"damping": -1.0}, r"damping=-1\.0; expected"),
        ({"damping": 1e6}, r"damping=1000000\.0; expected"),
        ({"damping": float("nan")}, "damping=nan; expected"),
        ({"count": 0}, "count=0; expected .*1 or more"),
        ({"method": "KFAC"}, "method='KFAC'; expected one of 'EK-FAC', 'K-FAC', 'gradient dot product'"),
    ],
)
def test_what_no_control_can_say_is_refused(shipped, wrong, message) -> None:
    engine = Engine(shipped.model, shipped.objective, shipped.index, shipped.methods)
    with pytest.raises(ValueError, match=message):
        Asking("Asking", "test-asking", engine, replace(FIRST, **wrong))


def test_every_control_of_a_setting_is_watched_for(asking) -> None:
    watched = {control.description for control in asking.setting_controls}
    assert watched == {"Method", "Damping", "Layers", "Measured", "How many"}


def test_the_damping_is_said_in_numbers_of_the_layers_asked_about(asking) -> None:
    asking.draw_damping()
    assert "λ = 3.1e-05, 7.5e-05, 0.00029" in asking.damping_note.value
    asking.layer.value = "out"
    asking.draw_damping()
    assert "λ = 0.00029<" in asking.damping_note.value
    asking.method.value = "gradient dot product"
    asking.draw_damping()
    assert "plays no role" in asking.damping_note.value
    assert asking.damping.disabled
