"""What makes a lesson one of ours: its frame, its budgets, its links, its honesty."""

import itertools
import re
import statistics

import course
import execute
import pytest
from course import cells, read, tags

PLAIN_WORDS = re.compile(r"\b(simply|just|obviously)\b", re.IGNORECASE)
FRAME = ("Exercise", "Recap")
IGNORED = {"nbval-ignore-output", "nbval-skip"}


@pytest.fixture(params=course.LESSONS, ids=lambda path: path.stem)
def lesson(request):
    return request.param


@pytest.fixture
def notebook(lesson):
    return read(lesson)


@pytest.fixture(scope="module")
def versions():
    return execute.versions()


def headings(notebook):
    """Return (level, text) of the headings, in order."""
    found = []
    for cell in cells(notebook, "markdown"):
        prose = re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL)
        found += re.findall(r"^(#+) (.+)$", prose, re.MULTILINE)
    return [(len(marks), text) for marks, text in found]


def sections(notebook):
    return [text for level, text in headings(notebook) if level == 2]


def text_of(output):
    return output.get("text") or output.get("data", {}).get("text/plain", "")


def test_there_are_lessons_and_their_numbers_have_no_gap():
    numbers = [int(path.name[:2]) for path in course.LESSONS]
    assert numbers == list(range(1, len(numbers) + 1))


def test_it_is_named_number_verb_object(lesson):
    assert re.fullmatch(r"\d\d(-[a-z]+){2,5}\.ipynb", lesson.name)


def test_it_has_one_title_and_four_to_six_sections(notebook):
    levels = [level for level, _ in headings(notebook)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    ideas = [s for s in sections(notebook) if not s.startswith(FRAME)]
    assert 4 <= len(ideas) <= 6
    assert sections(notebook)[-1] == "Recap"


def test_what_it_promises_matches_its_sections(notebook):
    promises = re.findall(r"^- ", notebook.cells[0].source, re.MULTILINE)
    ideas = [s for s in sections(notebook) if not s.startswith(FRAME)]
    assert len(promises) == len(ideas)
    assert "minutes" in notebook.cells[0].source


def test_it_is_of_a_size_that_one_reads_in_a_sitting(notebook):
    words = sum(len(cell.source.split()) for cell in cells(notebook, "markdown"))
    assert 25 <= len(notebook.cells) <= 40
    assert 900 <= words <= 1400


def test_its_code_is_short(notebook):
    code = [cell.source.splitlines() for cell in cells(notebook, "code")]
    sizes = [len([line for line in lines if line.strip()]) for lines in code]
    assert sum(sizes) <= 150
    assert max(sizes) <= 20
    assert statistics.median(sizes) <= 4
    assert max(len(line) for lines in code for line in lines) <= 88


def test_its_prose_comes_in_small_portions(notebook):
    for cell in cells(notebook, "markdown"):
        assert len(cell.source.split()) <= 150, cell.source[:60]


def test_at_most_two_code_cells_follow_each_other(notebook):
    kinds = "".join(cell.cell_type[0] for cell in notebook.cells)
    assert "ccc" not in kinds


def test_it_was_run_from_top_to_bottom(notebook):
    counts = [cell.execution_count for cell in cells(notebook, "code")]
    assert counts == list(range(1, len(counts) + 1))


def test_its_outputs_are_short(notebook):
    for cell in cells(notebook, "code"):
        lines = sum(len(text_of(output).splitlines()) for output in cell.outputs)
        assert lines <= 20, cell.source


def test_its_file_is_small(lesson):
    assert lesson.stat().st_size < 500_000


def test_an_error_is_there_on_purpose(notebook):
    for cell in cells(notebook, "code"):
        failed = any(output.output_type == "error" for output in cell.outputs)
        assert failed == ("raises-exception" in tags(cell)), cell.source


def test_it_asserts_its_claims(notebook):
    source = "\n".join(cell.source for cell in cells(notebook, "code"))
    assert len(re.findall(r"^\s*assert ", source, re.MULTILINE)) >= 3


def test_at_most_one_output_in_five_is_not_compared_and_it_says_why(notebook):
    code = cells(notebook, "code")
    ignored = [cell for cell in code if IGNORED & set(tags(cell))]
    assert all(cell.metadata.get("reason") for cell in ignored)
    assert not any("nbval-skip" in tags(cell) for cell in ignored)
    assert len(ignored) * 5 <= len([cell for cell in code if cell.outputs])


def test_each_exercise_has_a_check_and_a_solution(notebook):
    kinds = [tag for cell in notebook.cells for tag in tags(cell)]
    assert kinds.count("exercise") in (1, 2)
    assert kinds.count("check") == kinds.count("exercise")
    assert len(course.solutions(notebook)) == kinds.count("exercise")


def test_its_plots_and_pictures_have_a_text_for_who_does_not_see_them(notebook):
    for cell in cells(notebook, "code"):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            assert len(cell.metadata.get("alt", "")) > 20, cell.source
    for cell in cells(notebook, "markdown"):
        assert "![](" not in cell.source


def test_it_has_at_most_three_plots(notebook):
    plots = [
        output
        for cell in cells(notebook, "code")
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(plots) <= 3


def test_its_prose_uses_no_word_that_makes_a_reader_feel_slow(notebook):
    for cell in cells(notebook, "markdown"):
        assert not PLAIN_WORDS.search(cell.source), cell.source


def test_its_links_within_the_course_lead_somewhere(lesson, notebook):
    prose = "\n".join(cell.source for cell in cells(notebook, "markdown"))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not target.startswith("http"):
            assert (lesson.parent / target.partition("#")[0]).exists(), target


def test_it_ends_with_the_way_to_its_neighbours(lesson, notebook):
    assert notebook.cells[-1].source == course.navigation(lesson)


def test_it_begins_with_what_colab_needs(notebook):
    source = cells(notebook, "code")[0].source
    assert source == course.with_opening(source, course.opening())


def test_it_holds_nothing_of_the_machine_that_ran_it(lesson, notebook):
    assert set(notebook.metadata) == {*execute.METADATA, "triton_notebooks"}
    assert str(course.ROOT) not in lesson.read_text()
    assert "/root/" not in lesson.read_text()


def test_it_was_run_with_the_versions_that_are_locked(notebook, versions):
    assert notebook.metadata["triton_notebooks"] == versions
