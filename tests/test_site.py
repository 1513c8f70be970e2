"""The site, built without a network, and walked in a real browser."""

import functools
import http.server
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from chromium import shoot
from course import LESSONS, ROOT, cells, read

DOCS = ROOT / "docs"
SEARCHED, FOUND_IN = "dynamic batching", ["Glossary", "Read the Metrics"]
PAGES = ["index", *(f"notebooks/{path.stem}" for path in LESSONS)]
PAGES += ["troubleshooting", "glossary", "helpers", "links", "genindex", "search"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site. A warning of Sphinx is an error."""
    folder = tmp_path_factory.mktemp("site") / "html"
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n"]
    answer = subprocess.run([*build, DOCS, folder], capture_output=True, text=True)
    assert (answer.returncode, answer.stderr) == (0, "")
    return folder


class Links(HTMLParser):
    """Collects what a page leads to, what it loads, and its anchors."""

    def __init__(self, page):
        super().__init__()
        self.links, self.loaded, self.anchors = [], [], set()
        self.feed(page.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors.add(found.get("id"))
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in ("img", "script", "link"):
            self.loaded += [found[key] for key in ("src", "href") if key in found]


@pytest.fixture(scope="module")
def parsed(site):
    pages = site.rglob("*.html")
    return {page.relative_to(site).as_posix(): Links(page) for page in pages}


def test_there_is_a_page_for_everything(parsed):
    assert {f"{page}.html" for page in PAGES} <= set(parsed)


def test_every_link_within_the_site_leads_to_a_page_and_a_place_on_it(site, parsed):
    for page, found in parsed.items():
        for link in found.links:
            if urlsplit(link).scheme:
                continue
            target, _, anchor = urljoin(page, link).partition("#")
            assert (site / unquote(target)).is_file(), f"{page}: {link}"
            if anchor:
                assert anchor in parsed[target].anchors, f"{page}: {link}"


def test_no_page_loads_anything_from_elsewhere(parsed):
    for page, found in parsed.items():
        for link in found.loaded:
            assert not urlsplit(link).netloc, f"{page}: {link}"


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_can_be_downloaded_and_says_what_it_was_run_with(site, lesson):
    page = (site / "notebooks" / f"{lesson.stem}.html").read_text()
    assert f'href="../_sources/notebooks/{lesson.name}" download' in page
    assert (site / "_sources" / "notebooks" / lesson.name).exists()
    for name, version in read(lesson).metadata["triton_notebooks"].items():
        assert f"{name} {version}" in page


def test_binder_and_colab_are_offered_once_the_address_is_known(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import site_pages

    page = f"notebooks/{LESSONS[0].stem}"
    assert "Open in" not in site_pages.bar(page, None)
    line = site_pages.bar(page, "https://github.com/OWNER/NAME")
    colab = "https://colab.research.google.com/github/OWNER/NAME/blob/HEAD/"
    binder = "https://mybinder.org/v2/gh/OWNER/NAME/HEAD?urlpath=lab/tree/"
    assert f'<a href="{colab}{page}.ipynb">Open in Colab</a>' in line
    assert f'<a href="{binder}{page}.ipynb">Open in Binder</a>' in line


def test_a_link_to_what_has_no_page_leads_to_the_repository(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import site_pages

    def converted(text):
        place = ROOT / "notebooks"
        return site_pages.LINK.sub(lambda m: site_pages.site_link(m, place), text)

    assert converted("[it](../helpers/curl.py)") == "it"
    assert converted("[it](02-x.ipynb#A,-b)") == "[it](/notebooks/02-x.ipynb#a-b)"
    monkeypatch.setattr(site_pages, "REPOSITORY", "https://github.com/OWNER/NAME")
    there = "https://github.com/OWNER/NAME/blob/HEAD/helpers/curl.py"
    assert converted("[it](../helpers/curl.py)") == f"[it]({there})"
    assert converted("[it](https://x.org)") == "[it](https://x.org)"


def test_every_diagram_and_plot_has_a_text(site):
    for lesson in LESSONS:
        page = (site / "notebooks" / f"{lesson.stem}.html").read_text()
        source = lesson.read_text()
        assert page.count('role="img" aria-label="Diagram of ') == source.count(
            "```mermaid"
        )
        for cell in cells(read(lesson), "code"):
            if alt := cell.metadata.get("alt"):
                assert f'alt="{alt}"' in page


def test_the_links_page_lists_every_external_link(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import external_links

    listed = external_links.listed()
    assert list(listed) == list(external_links.found()), "run `make links`"
    day = re.compile(r"\d{4}-\d\d-\d\d|not checked yet")
    assert all(day.fullmatch(text) for text in listed.values())


def test_the_helpers_page_has_every_module_that_a_lesson_imports():
    page = (DOCS / "helpers.md").read_text()
    for lesson in LESSONS:
        source = "\n".join(cell.source for cell in cells(read(lesson), "code"))
        names = re.findall(r"^from helpers import (.+)$", source, re.MULTILINE)
        names = [name for line in names for name in line.split(", ")]
        names += re.findall(r"^from helpers\.(\w+) import", source, re.MULTILINE)
        for name in names:
            assert f"automodule:: helpers.{name}\n" in page


def course_links():
    """Return (page, lesson, heading) of each link into a lesson from docs."""
    for page in ("troubleshooting", "glossary"):
        text = (DOCS / f"{page}.md").read_text()
        pattern = r"\]\(\.\./notebooks/([\w-]+\.ipynb)#(\S+)\)"
        for name, anchor in re.findall(pattern, text):
            yield page, name, anchor


@pytest.mark.parametrize(("page", "name", "anchor"), sorted(set(course_links())))
def test_a_link_into_a_lesson_leads_to_a_heading_in_jupyter_too(page, name, anchor):
    prose = cells(read(ROOT / "notebooks" / name), "markdown")
    headings = re.findall(r"^#+ (.+)$", "\n".join(c.source for c in prose), re.M)
    assert anchor in [heading.replace(" ", "-") for heading in headings]


def complaints():
    """Return (message, lesson) of each message that the index quotes."""
    text = (DOCS / "troubleshooting.md").read_text()
    rows = re.findall(r"^\| (.+) \| \[.*/([\w-]+\.ipynb)#", text, re.MULTILINE)
    return [(said, name) for seen, name in rows for said in re.findall("`(.+?)`", seen)]


@pytest.mark.parametrize(("message", "name"), complaints())
def test_a_message_of_the_troubleshooting_index_is_seen_in_its_lesson(message, name):
    texts = []
    for cell in read(ROOT / "notebooks" / name).cells:
        texts.append(cell.source)
        for output in cell.get("outputs", []):
            texts += [output.get(key, "") for key in ("text", "evalue")]
            texts.append(output.get("data", {}).get("text/plain", ""))
    assert message in " ".join(" ".join(texts).split())


def test_the_index_begins_with_the_tree_of_the_last_table():
    lesson = read(ROOT / "notebooks" / "15-break-it-and-mend-it.ipynb")
    prose = "\n".join(cell.source for cell in cells(lesson, "markdown"))
    [tree] = re.findall("```mermaid.*?```", prose, re.DOTALL)
    assert tree in (DOCS / "troubleshooting.md").read_text()


# --- In a browser ------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(Quiet, directory=site)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing of requests."""


def open_page(browser, address, page, **options):
    """Open a page and return it, with a list of what went wrong in it."""
    opened = browser.new_page(**options)
    opened.errors = []
    opened.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.on("console", lambda m: m.type == "error" and opened.errors.append(m.text))
    opened.on(
        "requestfailed",
        lambda request: opened.errors.append(f"{request.url}: {request.failure}"),
    )
    opened.goto(f"{address}/{page}")
    return opened


@pytest.fixture(scope="module", params=PAGES)
def page(request, browser, address):
    opened = open_page(browser, address, f"{request.param}.html")
    opened.name = request.param.replace("/", "-")
    yield opened
    opened.close()


LEVELS = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"],
    "rules": {"heading-order": {"enabled": True}, "color-contrast": {"enabled": False}},
}
CONTRAST = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
# Code has the same few colours on every page, and many pieces: one page stands for all.
WITHOUT_CODE = {"exclude": [[".highlight"]]}


def violations(page, rules, context=None):
    """Return what axe-core finds on a page against these rules."""
    from axe_playwright_python.sync_playwright import Axe

    options = {**rules, "resultTypes": ["violations"]}
    found = Axe().run(page, context, options).response["violations"]
    return [(v["id"], node["html"][:200]) for v in found for node in v["nodes"]]


def poor_contrasts(page):
    context = None if LESSONS[0].stem in page.name else WITHOUT_CODE
    return violations(page, CONTRAST, context)


@pytest.mark.browser
def test_a_page_is_whole(page):
    shoot(page, f"{page.name}-light")
    pictures = "[...document.images].every(i => i.complete && i.naturalWidth)"
    assert page.evaluate(pictures)
    assert page.errors == []


@pytest.mark.browser
def test_a_page_is_accessible(page):
    assert violations(page, LEVELS) + poor_contrasts(page) == []


@pytest.mark.browser
def test_a_page_is_legible_in_the_dark(page):
    """And plots keep the white background that Matplotlib's black is seen on."""
    page.emulate_media(color_scheme="dark")
    try:
        shoot(page, f"{page.name}-dark")
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", dark)[:3])) < 60
        assert all(corner == [255, 255, 255, 255] for corner in page.evaluate(CORNERS))
        assert poor_contrasts(page) == []
    finally:
        page.emulate_media(color_scheme="light")


CORNERS = """[...document.querySelectorAll(".cell_output img")].map(image => {
    const canvas = document.createElement("canvas").getContext("2d");
    canvas.drawImage(image, 0, 0);
    return [...canvas.getImageData(1, 1, 1, 1).data];
})"""


@pytest.mark.browser
def test_a_phone_shows_a_page_without_scrolling_sideways(page):
    before = page.viewport_size
    page.set_viewport_size({"width": 360, "height": 740})
    shoot(page, f"{page.name}-phone")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.set_viewport_size(before)


@pytest.mark.browser
def test_the_first_screen_says_what_this_is_and_what_to_type(browser, address):
    size = {"width": 1280, "height": 720}
    opened = open_page(browser, address, "index.html", viewport=size)
    for text in ("Inference Server", "executed", "make lab", "Begin with lesson 01"):
        box = opened.get_by_text(text).first.bounding_box()
        assert box["y"] + box["height"] <= 720
    picture = opened.get_by_alt_text("Lesson 03 in JupyterLab").bounding_box()
    assert picture["y"] + picture["height"] <= 720
    opened.close()


@pytest.mark.browser
def test_the_search_finds_what_a_lesson_says(browser, address):
    opened = open_page(browser, address, "index.html")
    opened.wait_for_load_state("networkidle")  # whoever leaves earlier aborts its icon
    opened.get_by_placeholder("Search").fill(SEARCHED)
    opened.keyboard.press("Enter")
    results = opened.locator("ul.search li")
    opened.get_by_text("Search finished").wait_for()
    for title in FOUND_IN:
        assert results.get_by_role("link", name=title).count()
    shoot(opened, "search-results")
    assert opened.errors == []
    opened.close()


@pytest.mark.browser
def test_code_can_be_copied(browser, address):
    opened = open_page(browser, address, "index.html")
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened.locator("div.highlight").first.hover()
    opened.locator("button.copybtn").first.click()
    copied = opened.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("make lab")
    opened.close()


@pytest.mark.browser
def test_the_keyboard_leads_from_one_lesson_to_the_next(browser, address):
    first, second = PAGES[1:3]
    opened = open_page(browser, address, f"{first}.html")
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.innerText") == "Skip to content"
    opened.locator("a.next-page").focus()
    opened.keyboard.press("Enter")
    opened.wait_for_url(f"{address}/{second}.html")
    opened.close()
