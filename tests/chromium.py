"""A browser for tests: the machine's own, or Debian's, unpacked into .cache/chromium.

Screenshots of what the tests see are left in .cache/screenshots, to be looked at.
"""

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from course import ROOT
from debian import CannotRunError, check_debian, unpack
from playwright.sync_api import Browser, Page, sync_playwright

from helpers import bootstrap

CACHE = ROOT / ".cache"
SCREENSHOTS = CACHE / "screenshots"
PACKAGES = ["chromium", "fonts-dejavu-core", "fonts-liberation"]
FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{0}/usr/share/fonts</dir><cachedir>{0}/fonts</cachedir></fontconfig>
"""


def program() -> tuple[str, dict[str, str]]:
    """Return a browser's path and its environment; raise CannotRunError without one."""
    for name in ("chromium", "google-chrome"):
        if path := shutil.which(name):
            return path, dict(os.environ)
    check_debian("Chromium")
    with bootstrap.alone(str(CACHE)):
        folder = unpack(CACHE / "chromium", PACKAGES, "--no-install-recommends")
    fonts = folder / "fonts.conf"
    fonts.write_text(FONTS.format(folder))
    libraries = folder / "usr" / "lib" / f"{platform.machine()}-linux-gnu"
    path = f"{libraries}:{libraries}/pulseaudio"
    environment = {"LD_LIBRARY_PATH": path, "FONTCONFIG_FILE": str(fonts)}
    return str(folder / "usr/lib/chromium/chromium"), os.environ | environment


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Run a browser for the block; raise CannotRunError where there can be none."""
    path, environment = program()
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        running = playwright.chromium.launch(
            executable_path=path, args=arguments, env=environment
        )
        yield running
        running.close()


def shoot(page: Page, name: str) -> None:
    """Leave a picture of the whole page: as JPEG, which takes half the time of PNG."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=Path(SCREENSHOTS, f"{name}.jpg"), full_page=True, quality=80)


__all__ = ["SCREENSHOTS", "CannotRunError", "browser", "shoot"]
