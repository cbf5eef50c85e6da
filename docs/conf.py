"""How the site of this documentation is built: `make docs`. Its sources lie at the project's root and in docs/."""

import tomllib
from pathlib import Path

import search  # noqa: F401  (sets what OpenMP reads when it is loaded)

ROOT = Path(__file__).parents[1]

project = "prunefront"
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
copyright = "the prunefront developers"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
include_patterns = ["*.md", "docs/**.md", "benchmarks/**.md"]
root_doc = "docs/index"
myst_heading_anchors = 3  # links such as page.md#a-heading
myst_enable_extensions = ["colon_fence"]

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "prunefront"
html_show_sourcelink = False
