"""How Sphinx makes the site: the notebooks as they were saved, the reference from the docstrings, no network.

``docs/make_site.py`` lays the pages out and runs it; nothing is executed while the site is built.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from docstrings import as_restructured_text
from mathematics import as_mathml

project = "inflib"
author = copyright = "The inflib authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "inflib"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_math_renderer = "mathml"
html_theme_options = {"navigation_with_keys": True}

nb_execution_mode = "off"  # the outputs are those that CI compares
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "dollarmath", "html_image"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
copybutton_selector = "div.highlight-ipython3 pre, div.highlight-python pre, div.highlight-console pre"
suppress_warnings = ["mystnb.mime_priority", "myst.header"]

autodoc_typehints = "none"  # the signature has them, as it was written
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True


def setup(app) -> None:
    app.add_html_math_renderer("mathml", inline_renderers=(as_mathml, None), block_renderers=(as_mathml, None))
    app.connect("autodoc-process-docstring", as_restructured_text)
