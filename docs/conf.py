"""How Sphinx builds the docs as a site: `make docs`."""

project = "eventstream"
author = "eventstream contributors"
copyright = "2026, eventstream contributors"
extensions = ["myst_parser"]
myst_heading_anchors = 3
exclude_patterns = ["demo"]
html_theme = "furo"
html_title = "eventstream"
