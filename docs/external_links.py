"""Ask each external link of the course whether it works: `make links`, with a network.

Writes docs/links.md: each link, where it stands, and the day it was last seen to work.
One that does not answer keeps its earlier day.
"""

import datetime
import json
import re
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "links.md"
NEVER = "not checked yet"
HEAD = """# Links

Where the course leads outside of itself, and when `make links` last saw each link work.
The tests don't ask: they need no network.

| Link | In | Last seen to work |
|---|---|---|
"""


def found() -> dict[str, list[str]]:
    """Return {link: the files that it stands in}, in the course's order."""
    sources = [ROOT / "README.md", *sorted((ROOT / "notebooks").glob("*.ipynb"))]
    sources += [p for p in sorted((ROOT / "docs").glob("*.md")) if p != PAGE]
    links = {}
    for source in sources:
        for link in re.findall(r"\]\((https?://[^)\s]+)\)", prose(source)):
            links.setdefault(link, []).append(source.relative_to(ROOT).as_posix())
    return links


def prose(source: Path) -> str:
    """Return the Markdown of a file or of a notebook."""
    if source.suffix == ".md":
        return source.read_text()
    cells = json.loads(source.read_text())["cells"]
    texts = [cell["source"] for cell in cells if cell["cell_type"] == "markdown"]
    return "\n".join("".join(text) for text in texts)


def listed() -> dict[str, str]:
    """Return {link: day} of the page as it is."""
    rows = re.findall(r"^\| <(\S+)> \| .* \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    return dict(rows)


def works(link: str) -> bool:
    """Return whether a link's page can be fetched."""
    request = urllib.request.Request(link, headers={"User-Agent": "Mozilla/5.0"})
    try:
        with urllib.request.urlopen(request, timeout=20):
            return True
    except OSError as error:
        print(f"{link}: {error}")
        return False


def row(link: str, places: list[str], day: str) -> str:
    """Return a link's line of the table."""
    pages = [f"[{Path(place).stem}](../{place})" for place in dict.fromkeys(places)]
    return f"| <{link}> | {', '.join(pages)} | {day} |\n"


def main() -> None:
    """Check all links and write the page."""
    days, today = listed(), datetime.date.today().isoformat()
    rows = [
        row(link, places, today if works(link) else days.get(link, NEVER))
        for link, places in found().items()
    ]
    PAGE.write_text(HEAD + "".join(rows))


if __name__ == "__main__":
    main()
