"""What the site adds to the lessons: diagrams, links, and a line under each title."""

import json
import os
import re
import sys
from html import escape, unescape
from pathlib import Path

import mermaidx
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT.get("urls", {}).get("Repository")  # https://github.com/OWNER/NAME
HOSTS = {
    "Open in Binder": "https://mybinder.org/v2/gh/{0}/HEAD?urlpath=lab/tree/{1}.ipynb",
    "Open in Colab": "https://colab.research.google.com/github/{0}/blob/HEAD/{1}.ipynb",
}
# So that a page's width holds a diagram in letters that one can read.
COMPACT = {"flowchart": {"rankSpacing": 24, "nodeSpacing": 24, "padding": 6}}
LINK = re.compile(r"(?<!!)\[([^][]+)\]\((?!https?:|#|/)([^)\s]+)\)")
PAGES = {"README.md": "/index.md"}  # what has its page under another name


class Mermaid(SphinxDirective):
    """A diagram, drawn while the site is built; site.css gives it its colours."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the diagram as a picture with the text of its boxes."""
        name = f"diagram-{self.env.new_serialno('diagram')}"
        drawn = mermaidx.render("\n".join(self.content), config=COMPACT)
        svg = drawn.svg().replace("my-svg", name)
        labels = re.findall(r">([^<>]+)<", re.sub("<style>.*?</style>", "", svg))
        text = "; ".join(unescape(label) for label in labels)
        named = f'role="img" aria-label="Diagram of {escape(text)}"'
        svg = re.sub('role="[^"]+" aria-roledescription="[^"]+"', named, svg, count=1)
        return [nodes.raw("", f'<div class="mermaid">{svg}</div>', format="html")]


def slug(heading: str) -> str:
    """Return the anchor that GitHub, and so the site, gives a heading in Markdown."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def site_link(link: re.Match, folder: Path) -> str:
    """Return a link between files of the course as one between pages of the site.

    What has no page is shown in the repository, if that is known, or not linked.
    """
    text, target = link.groups()
    path, _, anchor = target.partition("#")
    place = Path(os.path.normpath(folder / path)).relative_to(ROOT).as_posix()
    if path.endswith(".ipynb"):  # Jupyter's anchors are the headings themselves
        anchor = slug(anchor.replace("-", " "))
    page = PAGES.get(place) or "/" + place.removeprefix("docs/")
    if place not in PAGES and not place.startswith(("docs/", "notebooks/")):
        if not REPOSITORY:
            return text
        page = f"{REPOSITORY}/blob/HEAD/{place}"
    return f"[{text}]({page}#{anchor})" if anchor else f"[{text}]({page})"


def read_source(app: Sphinx, page: str, source: list[str]) -> None:
    """Let links lead to pages, and plots have the alternative text of their cell."""
    home = ROOT if page.startswith("notebooks/") else ROOT / "docs"
    folder = (home / page).parent
    source[0] = LINK.sub(lambda link: site_link(link, folder), source[0])
    if page.startswith("notebooks/"):
        notebook = json.loads(source[0])
        del notebook["cells"][-1]  # the way to the neighbours, which every page has
        python = {"name": "python", "pygments_lexer": "ipython3"}  # knows !ls and %cd
        notebook["metadata"]["language_info"] = python
        for cell in notebook["cells"]:
            if alt := cell["metadata"].get("alt"):
                cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
        source[0] = json.dumps(notebook)


def terms() -> dict[str, str]:
    """Return {term: anchor} of the glossary."""
    headings = re.findall(r"^## (.+)$", (ROOT / "docs/glossary.md").read_text(), re.M)
    return {heading.lower(): slug(heading) for heading in headings}


def link_terms(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Lead the first mention of each of Triton's terms in a lesson to the glossary."""
    if not page.startswith("notebooks/"):
        return
    glossary = app.builder.get_relative_uri(page, "glossary")
    for term, anchor in terms().items():
        pattern = re.compile(rf"\b{re.escape(term)}s?\b(?! server)", re.IGNORECASE)
        for text in list(tree.findall(nodes.Text)):
            found = pattern.search(text)
            if found and prose(text):
                before, after = text[: found.start()], text[found.end() :]
                link = nodes.reference("", found[0], refuri=f"{glossary}#{anchor}")
                link["classes"].append("term")
                parts = [nodes.Text(before), link, nodes.Text(after)]
                text.parent.replace(text, parts)
                break


def prose(text: nodes.Text) -> bool:
    """Return whether a text is in a paragraph, and neither code nor a link."""
    parent, kinds = text.parent, (nodes.reference, nodes.literal, nodes.table)
    above = []
    while parent:
        above.append(parent)
        parent = parent.parent
    inside = any(isinstance(node, nodes.paragraph) for node in above)
    return inside and not any(isinstance(node, kinds) for node in above)


def bar(page: str, repository: str | None) -> str:
    """Return the line under a lesson's title: where to open it, how it was run."""
    links = {}
    if repository:
        owner = repository.removeprefix("https://github.com/")
        links = {text: url.format(owner, page) for text, url in HOSTS.items()}
    links["Download"] = f'../_sources/{page}.ipynb" download="'
    anchors = [f'<a href="{url}">{text}</a>' for text, url in links.items()]
    notebook = json.loads((ROOT / f"{page}.ipynb").read_text())
    run_with = notebook["metadata"]["triton_notebooks"]
    versions = ", ".join(f"{name} {version}" for name, version in run_with.items())
    return f'<p class="bar">{" · ".join(anchors)}<br>Run with {versions}.</p>'


def finish(app: Sphinx, page: str, template: str, context: dict, tree: object) -> None:
    """Put that line into a page, and say of which level the sidebar's headings are."""
    sidebar = context.get("furo_navigation_tree", "")
    level = 'role="heading" aria-level="2"'
    context["furo_navigation_tree"] = sidebar.replace('role="heading"', level)
    if page.startswith("notebooks/"):
        line = f"</h1>\n{bar(page, REPOSITORY)}"
        context["body"] = context["body"].replace("</h1>", line, 1)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register all of this with Sphinx."""
    app.add_directive("mermaid", Mermaid)
    app.connect("source-read", read_source)
    app.connect("doctree-resolved", link_terms)
    app.connect("html-page-context", finish, priority=900)  # after the theme
    return {"parallel_read_safe": True}
