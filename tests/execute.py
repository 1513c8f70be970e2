"""Run lessons anew and write their outputs: those named on the command line, or all.

Each gets its links to its neighbours, its opening for Colab, outputs and counts from a
fresh kernel, the versions of what it ran with, and else nothing that depends on the
machine. A lesson that fails stays as it was.
"""

import contextlib
import importlib.metadata
import io
import json
import os
import re
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import course
import nbformat
from nbclient import NotebookClient

from helpers import repository, server

METADATA = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}
WIDGET = "application/vnd.jupyter.widget-view+json"


def versions() -> dict[str, str]:
    """Return the versions of the server, by its own word, and of the two packages."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        server.start(repository.build()) as triton,
        urllib.request.urlopen(f"http://{triton.http}/v2") as answer,
    ):
        found = {"Triton": json.load(answer)["version"]}
    packages = ("tritonclient", "onnxruntime")
    return found | {name: importlib.metadata.version(name) for name in packages}


def merge_streams(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Join neighbouring pieces of one stream, which arrive as the kernel flushes."""
    merged = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            last["text"] += output.text
        else:
            merged.append(output)
    for output in merged:
        if output.output_type == "stream":  # a progress bar writes over itself
            output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
    return merged


@contextlib.contextmanager
def no_server_left() -> Iterator[None]:
    """End the servers that the block has left running, so that ports are free again."""
    before = {process.name for process in server.all_records()}
    yield
    for process in server.all_records():
        if process.name not in before:
            process.end()


def execute(lesson: Path, found: dict[str, str]) -> None:
    """Run one lesson and write it back, with the versions found."""
    notebook = course.read(lesson)
    notebook.cells[-1].source = course.navigation(lesson)
    first = course.cells(notebook, "code")[0]
    first.source = course.with_opening(first.source, course.opening())
    client = NotebookClient(notebook, timeout=600, kernel_name="python3")
    with no_server_left():
        client.execute(cwd=str(lesson.parent))
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.metadata["triton_notebooks"] = found
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{lesson.name[:2]}-{number:02}"
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = merge_streams(cell.outputs)
            for output in cell.outputs:  # a widget lives as long as its kernel
                output.get("data", {}).pop(WIDGET, None)
    part = lesson.with_suffix(".part")
    nbformat.write(notebook, part)
    part.replace(lesson)


def main() -> None:
    """Run the lessons named on the command line, or all that need no Docker."""
    os.environ.pop("TRITON", None)
    usual = [lesson for lesson in course.LESSONS if lesson not in course.ON_DOCKER]
    found = versions()
    for lesson in map(Path, sys.argv[1:] or usual):
        print(f"Running {lesson.name} ...", flush=True)
        execute(lesson.resolve(), found)


if __name__ == "__main__":
    main()
