"""The lessons as data: their order, their cells, and the links between them."""

import re
import sys
from pathlib import Path

import nbformat

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LESSONS = sorted((ROOT / "notebooks").glob("[0-9][0-9]-*.ipynb"))
# Those that run Docker themselves: `make test-docker` runs them.
ON_DOCKER = [path for path in LESSONS if "container" in path.name]

# A pytest of its own, to which a lesson or two are added.
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]


def read(lesson: Path) -> nbformat.NotebookNode:
    return nbformat.read(lesson, as_version=4)


def cells(notebook: nbformat.NotebookNode, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def title(notebook: nbformat.NotebookNode) -> str:
    return re.match(r"# (.+)", notebook.cells[0].source)[1]


def solutions(notebook: nbformat.NotebookNode) -> list[str]:
    """Return the code of the collapsed solutions, in order."""
    pattern = r"<summary>Solution</summary>\s+```python\n(.+?)```"
    prose = "\n".join(cell.source for cell in cells(notebook, "markdown"))
    return re.findall(pattern, prose, re.DOTALL)


OPENING = """from pathlib import Path

if not Path("../helpers").exists():  # alone, as on Colab: fetch the course
    ![ -d course ] || git clone -q {} course
    %run course/helpers/colab.py

"""


def opening() -> str:
    """Return what a lesson's code begins with, nothing until we have an address."""
    address = PROJECT.get("urls", {}).get("Repository")
    return OPENING.format(address) if address else ""


def with_opening(source: str, wanted: str) -> str:
    """Return a lesson's first code with this opening in place of any other."""
    pattern = re.escape(OPENING).replace(r"\{\}", r"\S+")
    return wanted + re.sub(pattern, "", source)


def navigation(lesson: Path) -> str:
    """Return the links that a lesson ends with."""
    place = LESSONS.index(lesson)
    links = []
    if place > 0:
        before = LESSONS[place - 1]
        links.append(f"← Previous: [{title(read(before))}]({before.name})")
    if place + 1 < len(LESSONS):
        after = LESSONS[place + 1]
        links.append(f"Next: [{title(read(after))}]({after.name}) →")
    return " · ".join(["[All lessons](../README.md#the-lessons)", *links])
