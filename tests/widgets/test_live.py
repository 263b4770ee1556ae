"""A panel's output holds its still for everybody, and its live view only under a type that a dead kernel leaves unknown."""

import ipywidgets as W
import pytest

from inflib.widgets.base import Panel
from inflib.widgets.live import WIDGET_VIEW

# in which order VS Code's notebooks prefer types; "*" is everything that begins so (src/kernels/execution/helpers.ts)
VS_CODE = (
    *("application/vnd.*", "application/vdom.*", "application/geo+json", "text/html", "application/javascript"),
    *("image/*", "text/latex", "text/markdown", "application/json", "text/plain"),
)


class Still(Panel):
    def __init__(self) -> None:
        super().__init__("Still", "test-still")
        self.arrange([W.Button(description="press")], [])

    def as_text(self) -> str:
        return "a still"

    def as_html(self) -> str:
        return "<p>a still</p>"


@pytest.fixture
def served(monkeypatch):
    """As a Jupyter server starts its kernels."""
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/some.ipynb")


@pytest.fixture
def not_served(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)


def shown_by_vs_code(bundle, renderers):
    """The first type in VS Code's order for which it has a renderer."""

    def rank(kind):
        return next(n for n, known in enumerate(VS_CODE) if kind == known or kind.startswith(known.rstrip("*")))

    return next(kind for kind in sorted(bundle, key=rank) if kind in renderers)


def test_what_a_jupyter_server_saves_holds_no_view_that_could_outlive_its_kernel(served):
    panel = Still()
    bundle = panel._repr_mimebundle_()
    own = f"application/vnd.inflib.{panel.model_id}+json"
    assert set(bundle) == {own, "text/html", "text/plain"}
    assert bundle[own]["model_id"] == panel.model_id
    assert (bundle["text/plain"], bundle["text/html"]) == ("a still", "<p>a still</p>")


def test_two_panels_have_two_types_so_that_none_stands_where_another_stood(served):
    one, two = Still()._repr_mimebundle_(), Still()._repr_mimebundle_()
    assert set(one) & set(two) == {"text/html", "text/plain"}


def test_where_no_jupyter_server_saves_it_a_panel_is_shown_as_every_widget_is(not_served):
    panel = Still()
    bundle = panel._repr_mimebundle_()
    assert set(bundle) == {WIDGET_VIEW, "text/html", "text/plain"}
    assert bundle[WIDGET_VIEW]["model_id"] == panel.model_id


def test_vs_code_shows_the_panel_while_it_runs_there(not_served):
    assert shown_by_vs_code(Still()._repr_mimebundle_(), {WIDGET_VIEW, "text/html", "text/plain"}) == WIDGET_VIEW


def test_vs_code_shows_the_still_of_what_jupyterlab_saved(served):
    assert shown_by_vs_code(Still()._repr_mimebundle_(), {WIDGET_VIEW, "text/html", "text/plain"}) == "text/html"
