"""The lessons as data: their order, their cells, and the links between them."""

import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted((ROOT / "notebooks").glob("[0-9][0-9]-*.ipynb"))
# Those that run Docker themselves: `make test-docker` runs them.
ON_DOCKER = [path for path in LESSONS if "container" in path.name]


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


def solve(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Put each solution where its exercise is."""
    exercises = [cell for cell in notebook.cells if "exercise" in tags(cell)]
    for cell, solution in zip(exercises, solutions(notebook), strict=True):
        cell.source = solution
    return notebook


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
