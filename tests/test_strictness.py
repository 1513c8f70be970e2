"""The comparison of outputs is strict, and the exercises can be solved."""

import copy
import os
import re
import subprocess

import course
import nbformat
import pytest
from nbval.plugin import IPyNbCell, IPyNbFile

COMPARED = ("text", "evalue", "text/plain")


MARKS = {path: [pytest.mark.docker] for path in course.ON_DOCKER}
PARAMS = [pytest.param(p, id=p.stem, marks=MARKS.get(p, [])) for p in course.LESSONS]


@pytest.fixture(params=PARAMS)
def lesson(request):
    return request.param


def places(outputs):
    """Yield (holder, key) of each text in the outputs that nbval has to compare."""
    for output in outputs:
        for holder in (output, output.get("data", {})):
            for key in COMPARED:
                if re.search(r"[a-zA-Z]", holder.get(key, "")):
                    yield holder, key


def change_one_character(holder, key):
    place = re.search(r"[a-zA-Z]", holder[key]).start()
    other = "x" if holder[key][place] != "x" else "y"
    holder[key] = holder[key][:place] + other + holder[key][place + 1 :]


def is_compared(cell):
    return "nbval-ignore-output" not in course.tags(cell) and any(
        places(cell.get("outputs", []))
    )


def test_one_changed_character_in_any_output_is_a_difference(lesson, request):
    file = IPyNbFile.from_parent(request.session, path=lesson)
    file.setup_sanitize_files()
    file.skip_compare = ("metadata", "traceback", "image/png", "execution_count")
    cells = [c for c in course.cells(course.read(lesson), "code") if is_compared(c)]
    assert len(cells) >= 5
    for number, cell in enumerate(cells):
        item = IPyNbCell.from_parent(
            file, name=f"Cell {number}", cell_num=number, cell=cell, options={}
        )
        assert item.compare_outputs(cell.outputs, copy.deepcopy(cell.outputs))
        for index in range(len(list(places(cell.outputs)))):
            changed = copy.deepcopy(cell.outputs)
            change_one_character(*list(places(changed))[index])
            assert not item.compare_outputs(cell.outputs, changed), changed


def run_pytest(*words):
    """Run pytest as `make test` does, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": "tests"}
    options = {"cwd": course.ROOT, "env": environment, "capture_output": True}
    return subprocess.run([*course.PYTEST, *words], text=True, **options).stdout


@pytest.mark.parametrize("lesson", course.LESSONS[:2], indirect=True)
def test_nbval_goes_red_when_one_character_is_changed(lesson):
    notebook = course.read(lesson)
    numbers = [n for n, cell in enumerate(notebook.cells) if is_compared(cell)]
    notebook.cells = notebook.cells[: numbers[0] + 1]
    change_one_character(*next(places(notebook.cells[-1].outputs)))
    changed = lesson.with_name(f".changed-{lesson.name}")
    try:
        nbformat.write(notebook, changed)
        said = run_pytest(changed)
    finally:
        changed.unlink(missing_ok=True)
    code = len(course.cells(notebook, "code"))
    passed = f", {code - 1} passed" if code > 1 else ""
    assert f"1 failed{passed} in" in said
    assert "Cell outputs differ" in said


@pytest.mark.parametrize(
    ("solution", "result"), [("x = 3", "3 passed"), ("x = 2", "1 failed")]
)
def test_a_solution_that_solves_nothing_is_found(solution, result, tmp_path):
    check = "print('Right' if x == 3 else 'Not yet')"
    prose = f"<summary>Solution</summary>\n\n```python\n{solution}\n```"
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["exercise"]}),
            nbformat.v4.new_code_cell(check, metadata={"tags": ["check"]}),
            nbformat.v4.new_markdown_cell(prose),
        ]
    )
    lesson = tmp_path / "exercise.ipynb"
    nbformat.write(notebook, lesson)
    said = run_pytest("-p", "conftest", "-c", "pyproject.toml", lesson)
    assert result in said.splitlines()[-1], said


def test_an_unsolved_exercise_is_not_taken_for_right(lesson):
    for cell in course.cells(course.read(lesson), "code"):
        if "check" in course.tags(cell):
            printed = "".join(output.get("text", "") for output in cell.outputs)
            assert re.search(r"^Not yet", printed, re.MULTILINE), printed
