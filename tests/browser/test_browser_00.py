"""Exploration."""
import time
from playwright.sync_api import expect
from nbformat import v4; import nbformat

def test_look(notebook, lab):
    src=open('/work/main/notebooks/src/00_start_here.py').read()
    code='''
import torch; torch.set_num_threads(1)
from inflib import *
from inflib.lab import *
from inflib.widgets import *
d=mnist_5k(); m=mlp(dtype=torch.float64); load_checkpoint(shipped_checkpoint("mnist_mlp"),m)
c=load(shipped_checkpoint("mnist_mlp_ekfac"),m)
tr=d.train.batches(dtype=torch.float64); o=CrossEntropy()
ms=three_methods(m,o,tr,c)
ix=TrainIndex.build(m,o,tr,c)
b=ImageBrowser(m,o,ix,d.train,d.queries,curvatures=ms,query=225)
b'''
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell(code)],metadata={"kernelspec":{"display_name":"Python 3","language":"python","name":"python3"}}), lab.notebooks/"look.ipynb")
    nb = notebook.open("look.ipynb")
    nb.page.set_viewport_size({"width":1280,"height":1500})
    assert nb.run_all(), nb.errors()
    b = nb.page.locator(".inflib-browser")
    expect(b.locator(".inflib-card")).to_have_count(16)
    nb.page.wait_for_timeout(500)
    nb.shot("look-light", b)
    nb.shot("look-page")
    print(b.aria_snapshot()[:1500])
    nb.theme("JupyterLab Dark"); nb.page.wait_for_timeout(500)
    nb.shot("look-dark", b)
    b.locator(".inflib-card").nth(0).click()
    expect(b.get_by_text("Queries it helps")).to_be_visible()
    nb.shot("look-back", b)
    print(b.locator("text=Method").first.evaluate("e => e.parentElement.outerHTML")[:700]); print(b.locator("text=Method").first.evaluate("e => {const s=getComputedStyle(e.parentElement); return [s.display,s.flexDirection,s.width,s.flexWrap]}")); print(b.locator(".widget-checkbox").evaluate("e => e.outerHTML"))
    print(nb.outside, nb.problems)
