"""How the documentation is built: ``make docs``."""

import sys
from pathlib import Path

import openwork

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "openwork"
author = "the openwork developers"
copyright = f"%Y, {author}"
version = release = openwork.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "methods",
    "reference",
]
exclude_patterns = ["_build", "_ext"]

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "openwork"
copybutton_exclude = ".linenos, .gp, .go"
