"""The site: Sphinx over the committed, executed lessons, which it does not run.

The pages need no network, neither to be built nor to be read. Binder and Colab are
offered once pyproject.toml names the course's address, as `Repository`.
"""

import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))

# Sphinx wants all pages below one folder.
shutil.rmtree(DOCS / "notebooks", ignore_errors=True)
shutil.copytree(
    DOCS.parent / "notebooks",
    DOCS / "notebooks",
    ignore=lambda _, names: [name for name in names if not name.endswith(".ipynb")],
)

project = "Triton, hands on"
html_title = project
copyright = "the authors, under the Apache License 2.0"
language = "en"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton", "site_pages"]
exclude_patterns = ["_build", "notebooks/.*"]

nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}
nb_mime_priority_overrides = [("html", "text/html", 50)]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]
nitpicky = True
# What autodoc finds in signatures and has no page here.
nitpick_ignore_regex = [("py:.*", ".*")]

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
smartquotes = False
default_role = "code"

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = True
html_sourcelink_suffix = ""
html_show_sphinx = False
html_favicon = "_static/favicon.svg"
html_theme_options = {"top_of_page_buttons": []}
copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go"
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
