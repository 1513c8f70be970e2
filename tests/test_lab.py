"""JupyterLab as `make lab` starts it, and a lesson in it, in a real browser."""

import ast
import json
import os
import shutil
import socket
import subprocess
import urllib.request

import nbformat
import pytest
from chromium import shoot
from conftest import wait_for
from course import LESSONS, ROOT, cells, read

pytestmark = pytest.mark.browser
LESSON, PLOT, PROGRESS = (
    next(path.name for path in LESSONS if path.name.startswith(number))
    for number in ("03", "04", "08")
)
LIVE = {PLOT: "screen.update(figure)", PROGRESS: "in tqdm(crops()"}


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A copy of what the learner sees, so that the lessons stay as they are."""
    copy = tmp_path_factory.mktemp("course")
    for name in ("notebooks", ".jupyter"):
        shutil.copytree(ROOT / name, copy / name)
    for name in (LESSON, PLOT, PROGRESS):
        lesson = read(copy / "notebooks" / name)
        if name in LIVE:
            lesson.cells = [lesson.cells[0], *leading_to(LIVE[name], lesson)]
        for cell in cells(lesson, "code"):
            cell.outputs, cell.execution_count = [], None
        nbformat.write(lesson, copy / "notebooks" / name)
    (copy / "docs").mkdir()
    for name in ("README.md", "docs/lesson.png"):
        shutil.copy(ROOT / name, copy / name)
    for name in (".venv", "data", "helpers"):
        (copy / name).symlink_to(ROOT / name)
    return copy


def leading_to(words, lesson):
    """Return the cell with these words, and those that make what it uses."""
    code = cells(lesson, "code")
    last = next(n for n, cell in enumerate(code) if words in cell.source)
    kept, used = [], set()
    for cell in reversed(code[: last + 1]):
        made, taken = names(cell.source)
        if not kept or made & used:
            kept.insert(0, cell)
            used |= taken
    return kept


def names(source):
    """Return what code makes by name, and what it uses."""
    made, used = set(), set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, ast.FunctionDef):
            made.add(node.name)
        elif isinstance(node, ast.alias):
            made.add((node.asname or node.name).partition(".")[0])
    return made, used


@pytest.fixture(scope="module")
def address(course):
    """The address of a JupyterLab, started by the command of `make lab`."""
    make = ["make", "--silent", "--dry-run", "lab"]
    said = subprocess.run(make, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    command = said.stdout.splitlines()[-1].replace(" .venv", " exec .venv")
    with socket.create_server(("127.0.0.1", 0)) as any_free:
        port = any_free.getsockname()[1]
    options = f"--no-browser --allow-root --port={port} --IdentityProvider.token=''"
    home = {"HOME": str(course), "JUPYTERLAB_WORKSPACES_DIR": str(course / "spaces")}
    running = subprocess.Popen(
        f"{command} {options}",
        shell=True,
        cwd=course,
        env=os.environ | home,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    assert wait_for(lambda: answers(f"{url}/api/status"), 60)
    yield url
    running.terminate()
    running.wait(20)


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


@pytest.fixture
def lab(browser, address):
    """A page for JupyterLab, which is at its address."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(60_000)
    page.address = address
    yield page
    assert page.locator(".jp-Dialog").count() == 0
    page.close()


def test_it_takes_its_settings_from_the_project(address):
    file = ROOT / ".jupyter" / "labconfig" / "default_setting_overrides.json"
    for plugin, settings in json.loads(file.read_text()).items():
        with urllib.request.urlopen(f"{address}/lab/api/settings/{plugin}") as answer:
            properties = json.load(answer)["schema"]["properties"]
        for name, setting in settings.items():
            default = properties[name]["default"]
            more = default if isinstance(default, dict) else {}
            assert default == ({**more, **setting} if more else setting)


def test_it_opens_on_the_map_of_the_course(lab):
    lab.goto(f"{lab.address}/lab/tree/README.md?reset")
    lab.locator(".jp-MarkdownViewer img").first.wait_for()
    shoot(lab, "lab-start")
    lab.locator(".jp-MarkdownViewer").get_by_role("link", name="Start a Server").click()
    lab.locator(".jp-Notebook h1", has_text="Start a Server").wait_for()
    shoot(lab, "lab-lesson")


def run_all(lab, lesson):
    """Open a lesson, with nothing else open, and run it from the menu."""
    lab.goto(f"{lab.address}/lab/tree/notebooks/{lesson}?reset")
    lab.locator(".jp-Notebook h1").wait_for()
    # The notebook's own mark says idle while the kernel connects, and Run is lost then.
    lab.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    lab.get_by_role("menuitem", name="Run", exact=True).click()
    lab.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def test_a_lesson_runs_from_the_menu_and_classifies_a_picture(lab, course):
    run_all(lab, LESSON)
    widget = lab.locator(".widget-vbox", has=lab.locator(".widget-upload"))
    with lab.expect_file_chooser() as chooser:
        widget.get_by_role("button").click()
    chooser.value.set_files(ROOT / "data" / "photos" / "chelsea.png")
    widget.get_by_text("EGYPTIAN CAT").scroll_into_view_if_needed()
    shoot(lab, "lab-widget")

    def saved_whole():
        lab.keyboard.press("Control+s")
        lab.wait_for_timeout(500)
        return ran(course) == ran(ROOT)

    assert wait_for(saved_whole, 60)
    assert not lab.get_by_text("Traceback").count()


def changes(locator, read, many):
    """Wait until something on the page has had so many values, and return them."""
    values = []

    def has_changed():
        value = read(locator) if locator.count() else None
        if value and value not in values:
            values.append(value)
        return len(values) >= many

    assert wait_for(has_changed, 120), values
    return values


def test_a_plot_is_drawn_anew_while_its_cell_runs(lab):
    run_all(lab, PLOT)
    cell = lab.locator(".jp-CodeCell", has_text=LIVE[PLOT])
    changes(cell.locator("img"), lambda image: image.get_attribute("src"), 4)
    assert cell.locator("img").count() == 1
    shoot(lab, "lab-live-plot")


def test_long_work_shows_a_bar_that_grows(lab):
    run_all(lab, PROGRESS)
    cell = lab.locator(".jp-CodeCell", has_text=LIVE[PROGRESS])
    bar = cell.locator(".jp-OutputArea-output", has_text="/200")
    texts = changes(bar, lambda output: output.inner_text(), 4)
    counts = [int(text.split()[-1].partition("/")[0]) for text in texts]
    assert counts == sorted(counts)
    shoot(lab, "lab-progress")


def ran(folder):
    """Return the lesson's counts of executions, as its file has them by now."""
    try:
        code = cells(read(folder / "notebooks" / LESSON), "code")
    except ValueError:  # it is being written
        return None
    return [cell.execution_count for cell in code]
