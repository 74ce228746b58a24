"""How Sphinx builds the manual: `make docs`. Nothing is fetched from anywhere."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from nodepass import __version__  # noqa: E402 - importable only now

project = "nodepass"
author = "the nodepass authors"
project_copyright = "the nodepass authors"
version = release = __version__

extensions = ["sphinx.ext.autodoc", "from_code", "http_interface"]
templates_path: list[str] = []
exclude_patterns = ["_ext"]
default_role = "code"
nitpicky = False
highlight_language = "console"

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"

html_theme = "furo"
html_title = f"nodepass {release}"
html_copy_source = False
html_show_sphinx = False
