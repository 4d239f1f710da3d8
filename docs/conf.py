"""Sphinx configuration."""

project = "vosfs"
author = "the vosfs developers"
copyright = "2026, the vosfs developers"
extensions: list[str] = []
exclude_patterns = ["_build"]
html_theme = "alabaster"
