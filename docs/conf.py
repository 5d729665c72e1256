"""Sphinx configuration of the site that `make docs` builds, without loading anything from the network."""

import os
import sys
import warnings
from importlib.metadata import version as version_of
from pathlib import Path

# Programs run only once here, so it is faster to compile them with few optimisations.
os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "MPLBACKEND": "Agg"}
warnings.filterwarnings("ignore", "A worker stopped")  # joblib replaces workers that use much memory
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import decision_tree  # noqa: E402
import hooks  # noqa: E402
import reference  # noqa: E402
import rule_figures  # noqa: E402

project = "lax_learning"
author = "The lax_learning authors"
copyright = author
release = version = version_of("lax_learning")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinx-mathjax-offline",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "gallery", "tutorials"]
default_role = "code"

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Fields", "params_style"), ("Variants", "params_style")]

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
bibtex_default_style = "plain"

copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "examples_dirs": ["gallery", "tutorials"],
    "gallery_dirs": ["auto_gallery", "auto_tutorials"],
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "min_reported_time": 1e9,
    "parallel": os.cpu_count(),
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
}

html_theme = "sphinx_book_theme"
html_title = "lax_learning"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "navbar_persistent": [],
    "use_download_button": False,
    "use_fullscreen_button": False,
}


def setup(app):
    app.add_config_value("draw_rule_figures", True, "env", bool)
    app.add_directive("rule-figure", rule_figures.RuleFigure)
    app.add_directive("decision-tree", decision_tree.DecisionTree)
    app.connect("config-inited", lambda app, config: reference.write(Path(app.srcdir, "api")))
    app.connect("builder-inited", rule_figures.draw_missing)
    app.connect("autodoc-skip-member", hooks.skip_field)
    app.connect("autodoc-process-signature", hooks.name_functions)
    app.connect("source-read", hooks.append_bibtex)
    app.connect("doctree-read", hooks.unlink)
    app.connect("build-finished", hooks.check_offline)
