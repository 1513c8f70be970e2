"""A lesson opened alone fetches the course, as on Colab, and then runs."""

import sys
from types import SimpleNamespace

import course
import pytest
from nbclient import NotebookClient

from helpers import colab, server

LESSON = course.LESSONS[2]
OPENING = course.OPENING.format(f"file://{course.ROOT}")
HERE = "import helpers, os; print(helpers.__file__, os.getcwd(), sep='\\n')"


@pytest.fixture
def alone(tmp_path):
    """A folder with nothing in it, as Colab has."""
    folder = tmp_path / "content"
    folder.mkdir()
    return folder


def test_a_lesson_runs_from_an_empty_folder(alone):
    notebook = course.read(LESSON)
    code = course.cells(notebook, "code")
    code[0].source = course.with_opening(code[0].source, OPENING)
    code[-1].source += f"\n{HERE}"
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(alone))
    clone = alone / "course"
    said = code[-1].outputs[-1].text.splitlines()[-2:]
    assert said == [f"{clone}/helpers/__init__.py", f"{clone}/notebooks"]
    server.stop_all()


def test_the_opening_is_put_in_once_and_can_be_taken_out():
    opened = course.with_opening("import json", OPENING)
    assert course.with_opening(opened, OPENING) == opened
    assert opened.endswith("import json")
    assert course.with_opening(opened, "") == "import json"


def test_a_restart_is_asked_for_when_another_numpy_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", SimpleNamespace(__version__="2.0"))
    monkeypatch.setattr(colab.subprocess, "run", lambda *_, **__: None)
    with pytest.raises(SystemExit, match="restart the session"):
        colab.main()
