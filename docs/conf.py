"""Sphinx configuration of the documentation site: `make docs` builds it into build/docs."""

project = "Exeat"
author = "The Exeat maintainers"
project_copyright = "the Exeat maintainers"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = "Exeat"
html_static_path = []
html_copy_source = False
html_show_sphinx = False
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
exclude_patterns = ["_*", "runbooks"]
nitpicky = True
pygments_style = "friendly"
