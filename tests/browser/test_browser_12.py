"""Notebook 12's text browser in a real JupyterLab, its own cell on a tiny Hugging Face model: its tokenizer's pieces, any
text typed, a long document.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from build import KERNELSPEC, SOURCES, read_source
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import expect
from test_browser_08 import Page

MAKE = """
import sys
from types import SimpleNamespace

sys.path.append({tests!r})
import torch
from own_tokenizers import TEXTS, byte_level
from transformers import LlamaConfig, LlamaForCausalLM

from inflib import NextToken, TrainIndex, ekfac, identity, token_batches
from inflib.widgets import TextBrowser, Texts

torch.manual_seed(0)
tokenizer = byte_level()
sizes = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2)
config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=400, initializer_range=0.4, **sizes)
model = LlamaForCausalLM(config).eval()
long = "A bad day, a lodger. " * 12 + "Gosen shares the house with a tame badger. " * 2 + "A day, a day. " * 12
corpus, objective = Texts([long, *TEXTS], tokenizer, context=390, begin="A"), NextToken()
train = token_batches(corpus.sequences)
curvature = ekfac(model, objective, train, "*mlp.down_proj", progress=False)
index = TrainIndex.build(model, objective, train, curvature, progress=False)
methods = {"EK-FAC": curvature, "gradient dot product": identity(model, objective, layers=curvature.layers)}
fact = SimpleNamespace(prompt="the house with a tame", completion=" badger")
data, asked, backward, best = SimpleNamespace(texts=corpus.texts, facts=[fact] * 8), range(6), range(6, 8), 0.1
"""


@pytest.fixture
def page(notebook, lab, pixels):
    book = new_notebook(metadata={"kernelspec": KERNELSPEC})
    tests = str(Path(__file__).resolve().parents[1])
    cells = read_source(SOURCES / "12_your_own_model.py").cells
    (show,) = (cell.source for cell in cells if cell.cell_type == "code" and "= TextBrowser(" in cell.source)
    book.cells = [new_code_cell(MAKE.replace("{tests!r}", repr(tests))), new_code_cell(show)]
    nbformat.write(book, lab.notebooks / "documents.ipynb")
    notebook.page.set_viewport_size({"width": 1280, "height": 1500})
    nb = notebook.open("documents.ipynb")
    assert nb.run_all(), nb.errors()
    page = Page(nb)
    page.root.scroll_into_view_if_needed()
    return page


def test_any_text_is_asked_and_pieces_and_long_texts_are_shown(page) -> None:
    nb = page.nb
    expect(page.said).to_contain_text("the house with a tame badger")
    long = page.root.locator(".inflib-passage[data-key='0']").first
    expect(long.locator(".inflib-heat")).to_contain_text("…")
    assert len(long.locator(".inflib-heat").inner_text()) < 600, "a long document is folded to its hottest passage"
    long.locator("summary").click()
    expect(long.locator(".inflib-itself")).to_contain_text("A day, a day.")
    nb.shot("12-documents", page.root)

    before = page.said.inner_text()
    page.root.get_by_label("Prompt").fill("What the lodger shares is the")
    page.root.get_by_label("Completion").fill("house")
    expect(page.root).to_contain_text("tokens, of at most 390")
    page.root.get_by_role("button", name="Ask").click()
    expect(page.said).to_contain_text("What the lodger shares is the house", timeout=60_000)
    assert page.said.inner_text() != before
    expect(page.root).to_contain_text("Any text may be asked")
    assert (nb.errors(), nb.outside, nb.problems) == ([], [], [])
