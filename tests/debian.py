"""Programs out of Debian's packages, unpacked in a folder and not installed."""

import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


class CannotRunError(Exception):
    """A program can't be had or run on this machine; the message says why."""


def check_debian(what: str) -> None:
    """Refuse a machine whose packages are not Debian 12's."""
    system = platform.freedesktop_os_release() if sys.platform == "linux" else {}
    if system.get("VERSION_CODENAME") != "bookworm":
        raise CannotRunError(f"{what} is unpacked from Debian 12, which this is not")
    if not shutil.which("apt-get"):
        raise CannotRunError(f"there is no apt-get to fetch {what} with")


def run(*command: object, **options: object) -> str:
    """Run a step and return what it prints; raise with what it says if it fails."""
    answer = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
    if answer.returncode != 0:
        raise CannotRunError(f"`{command[0]}` said: {answer.stdout.strip()[-500:]}")
    return answer.stdout


def short_hash(names: list[str]) -> str:
    """Return a short name for a list of names."""
    return hashlib.sha256(" ".join(names).encode()).hexdigest()[:12]


def unpack(place: Path, packages: list[str], *options: str) -> Path:
    """Return a folder with Debian packages and what they need, once it is filled.

    Its name is `place`'s with a hash of the packages; one of others is removed.
    """
    folder = place.with_name(f"{place.name}-{short_hash(packages)}")
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    for old in folder.parent.glob(f"{place.name}-*"):
        shutil.rmtree(old)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    archives = part / "archives"
    (archives / "partial").mkdir(parents=True)
    apt = ["apt-get", "--quiet", "--yes", "-o", f"Dir::Cache::archives={archives}/"]
    apt += ["-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=true"]
    fetch = [*apt, "install", "--download-only", "--reinstall", *options, *packages]
    try:
        run(*fetch)
    except CannotRunError:  # the lists of packages are missing, or out of date
        run(*apt, "update")
        run(*fetch)
    for archive in archives.glob("*.deb"):
        run("dpkg-deb", "--extract", archive, part)
    shutil.rmtree(archives)
    part.chmod(0o755)
    return part.rename(folder)
