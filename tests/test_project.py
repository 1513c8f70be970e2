"""The house: one list of dependencies, one set-up, clean code."""

import ast
import importlib.metadata
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from course import LESSONS, PROJECT, ROOT, read, title
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from helpers import bootstrap

README = (ROOT / "README.md").read_text()
READERS, OTHERS = ((ROOT / name).read_text() for name in bootstrap.LOCKS)
LOCK = READERS + OTHERS
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(text=LOCK):
    """Return {name: versions} of both locks, or of one."""
    versions = {}
    for name, version in re.findall(r"^([\w.-]+)==([\w.+!-]+)", text, re.MULTILINE):
        versions.setdefault(normal(name), []).append(version)
    return versions


def declared():
    extras = PROJECT["optional-dependencies"].values()
    found = map(Requirement, itertools.chain(PROJECT["dependencies"], *extras))
    return [r for r in found if r.marker is None or r.marker.evaluate()]


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_the_lock_pins_what_pyproject_asks_for(requirement):
    versions = locked()[normal(requirement.name)]
    assert all(version in requirement.specifier for version in versions)


@pytest.mark.parametrize("requirement", declared(), ids=lambda r: r.name)
def test_what_is_installed_is_what_is_locked(requirement):
    installed = importlib.metadata.version(requirement.name)
    assert installed in locked()[normal(requirement.name)]


def test_a_reader_need_not_fetch_what_only_tests_and_the_site_need():
    readers, others = locked(READERS), locked(OTHERS)
    assert not readers.keys() & others.keys()
    needed = {normal(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert needed <= readers.keys()
    assert {"playwright", "pytest", "sphinx"} <= others.keys()


def test_the_lessons_and_the_helpers_import_what_a_reader_has():
    cells = [cell.source for lesson in LESSONS for cell in read(lesson).cells]
    modules = [path.read_text() for path in (ROOT / "helpers").rglob("*.py")]
    text = "\n".join([*cells, *modules])
    named = set(re.findall(r"^\s*(?:import|from) (\w+)", text, re.MULTILINE))
    owners = importlib.metadata.packages_distributions()
    readers = {"pip", *locked(READERS), normal(PROJECT["name"])}
    assert {"numpy", "tritonclient", "psutil"} <= named
    for name in named & owners.keys():
        assert readers & set(map(normal, owners[name])), name


def test_every_pin_has_a_hash_and_no_host_is_named():
    pins = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in pin for pin in pins)
    assert "//" not in LOCK
    assert "--index" not in LOCK
    assert "--find-links" not in LOCK


def test_environment_yml_asks_for_python_pip_and_the_project_alone():
    python, pip, rest = ENVIRONMENT["dependencies"]
    assert pip == "pip"
    assert rest == {"pip": ["--editable ."]}
    assert python.partition("=")[2] in SpecifierSet(PROJECT["requires-python"])


def test_the_set_up_allows_the_pythons_that_the_project_allows():
    allowed = SpecifierSet(PROJECT["requires-python"])
    candidates = [f"3.{minor}" for minor in range(8, 16)]
    assert tuple(allowed.filter(candidates)) == bootstrap.VERSIONS


def test_ci_calls_the_test_commands_of_the_readme():
    commands = ["make test", "make test-docker"]
    assert all(f"`{c}`" in README or f"\n{c} " in README for c in commands)
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make")] == commands
    assert "set -euo pipefail" in lines


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_the_readme_lists_every_lesson_by_its_title(lesson):
    line = f"[{title(read(lesson))}](notebooks/{lesson.name})"
    assert line in README


def test_the_sections_that_the_readme_names_are_there():
    rows = re.findall(r"^\| .* \| (\d\d, .*) \|$", README, re.MULTILINE)
    named = [re.fullmatch(r"(\d\d), \*(.+)\*", p) for r in rows for p in r.split("; ")]
    assert len(named) >= 15
    for number, section in (match.groups() for match in named):
        prose = "\n".join(cell.source for cell in read(LESSONS[int(number) - 1]).cells)
        assert f"## {section}\n" in prose, (number, section)


def test_the_readmes_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)\s]+)\)", README):
        if not target.startswith(("http", "#")):
            assert (ROOT / target).exists(), target


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_has_nothing_to_say(command):
    answer = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--quiet", str(ROOT)],
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stdout


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_servers_side_imports_nothing_of_helpers():
    for module in (ROOT / "helpers" / "backends").glob("*/*.py"):
        assert not [name for name in imports(module) if name.startswith("helpers")]


def test_helpers_do_not_import_each_other_in_circles():
    modules = {path.stem: path for path in (ROOT / "helpers").glob("[a-z]*.py")}
    needs = {
        name: {i.split(".")[1] for i in imports(path) if i.startswith("helpers.")}
        for name, path in modules.items()
    }
    while free := [name for name, needed in needs.items() if not needed & set(needs)]:
        for name in free:
            del needs[name]
    assert needs == {}


# --- The set-up of a bare machine --------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ([], "is none"),
        (["3.9", "venv", "libpython"], "is 3.9: install one of them"),
        (["3.13", "venv", "libpython"], "is 3.13: install one of them"),
        (["3.11", "no-venv", "libpython"], "without its venv module"),
        (["3.11", "venv"], "without its shared library libpython3.11.so.1.0"),
    ],
)
def test_a_python_that_will_not_do_is_told_what_to_do(answer, sentence):
    problem = bootstrap.python_problem(answer, "python3")
    assert sentence in problem
    assert "run make again" in problem


def test_this_python_will_do():
    assert bootstrap.python_problem(bootstrap.ask(sys.executable), "python3") is None


def test_a_folder_with_a_space_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, "ROOT", "/home/my user/course")
    with pytest.raises(SystemExit, match="whose path has a space"):
        bootstrap.install(bootstrap.LOCKS[0])


def test_the_set_up_can_be_read_by_pythons_that_are_too_old():
    source = Path(bootstrap.__file__).read_text()
    ast.parse(source, feature_version=(3, 4))


def test_a_second_set_up_does_nothing():
    command = [sys.executable, str(ROOT / "helpers" / "bootstrap.py"), "--all"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "Installing" not in answer.stdout
    assert "Building" not in answer.stdout
