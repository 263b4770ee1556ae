"""Where a panel stands in a notebook: its still in what is saved, the live panel over it as long as its kernel runs.

JupyterLab shows the best that it knows of an output, and to it a saved widget without a kernel is the best, as an error
message. So an output that Lab is to save holds no widget, but the still and a MIME type of that panel's own, which
nobody knows until the panel's ``Live`` half arrives in the page and teaches it to Lab: on the first run, and again when
the page is loaded anew and its kernel still runs. Without the kernel the still is the best there is.
"""

from __future__ import annotations

import os
from typing import Any

import anywidget
import ipywidgets as W
import traitlets

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

_ESM = f"""
const VIEW = "{WIDGET_VIEW}";
function initialize({{ model }}) {{
  const {{ rendermime, context }} = model.widget_manager, mime = model.get("mime");
  if (!rendermime || !context) return;  // no JupyterLab
  const createRenderer = options => rendermime.getFactory(VIEW).createRenderer(options);
  rendermime.addFactory({{ safe: true, mimeTypes: [mime], createRenderer }}, -1);  // before all else
  for (const cell of context.model.cells)
    for (let n = 0; n < (cell.outputs?.length ?? 0); n++)
      if (mime in cell.outputs.get(n).data) cell.outputs.get(n).setData({{}});  // nothing new, but shown anew
  return () => rendermime.removeMimeType(mime);
}}
export default {{ initialize }};
"""


class Live(anywidget.AnyWidget):
    """Teaches JupyterLab to show ``panel`` for outputs that hold its MIME type; has no view of its own."""

    _esm = _ESM
    mime = traitlets.Unicode().tag(sync=True)

    def __init__(self, panel: W.Widget) -> None:
        super().__init__(mime=f"application/vnd.inflib.{panel.model_id}+json")

    def instead_of_view(self, bundle: dict[str, Any]) -> dict[str, Any]:
        """A widget's MIME bundle, its view under this panel's type; as it is where no Jupyter server saves it.

        Elsewhere (VS Code, Voilà, nbclient) a view that finds no kernel is left out by who saves or shows it.
        """
        if "JPY_SESSION_NAME" not in os.environ:  # a Jupyter server tells its kernels which notebook they serve
            return bundle
        return {self.mime if kind == WIDGET_VIEW else kind: data for kind, data in bundle.items()}
