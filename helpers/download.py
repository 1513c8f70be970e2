"""Files from the internet: whole and with the right hash, or not there at all."""

import dataclasses
import errno
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from helpers import bootstrap

if TYPE_CHECKING:  # without packages, `helpers.repository` says how to get them
    from tqdm import tqdm

TIMEOUT_S = 30.0  # how long a server may keep silent
TRIES = 5  # in a row that bring nothing new
PAUSE_S = 1.0  # before the second try; it doubles with each
CHUNK = 1 << 16
LATER = {408, 416, 429, 500, 502, 503, 504}  # the answers that are worth another try


class DownloadError(Exception):
    """A file can't be had; the message is one sentence with the cure."""


class _Problem(Exception):
    """Why one address didn't give the file; `passing` if it may do so later."""

    def __init__(self, reason: str, passing: bool = True) -> None:
        super().__init__(reason)
        self.passing = passing


class _Broken(Exception):
    """The connection ended too early; the next one goes on from there."""


@dataclasses.dataclass(frozen=True)
class Remote:
    """A file on the internet: its addresses, SHA-256 and, where known, its bytes."""

    urls: tuple[str, ...]  # all end with the file's name
    sha256: str
    size: int | None = None

    @property
    def name(self) -> str:
        """What the file is called where it comes from."""
        return self.urls[0].rpartition("/")[2]


def fetch(remote: Remote, file: Path, timeout_s: float = TIMEOUT_S) -> None:
    """Bring a file that isn't there yet, going on where an earlier run was broken off.

    What has arrived waits in `<name>.part` beside it. A file that is there, put there
    by hand perhaps, is kept if its hash is right. Raises DownloadError.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with bootstrap.alone(file.parent):
            if not has_hash(file, remote.sha256):
                _fetch(remote, file, timeout_s)
    except OSError as error:
        raise DownloadError(_explain(error, remote, file)) from error


def has_hash(file: Path, sha256: str) -> bool:
    """Return whether a file is there and has this SHA-256."""
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256


def _fetch(remote: Remote, file: Path, timeout_s: float) -> None:
    if file.exists():
        print(f"{file} is another file (its SHA-256): fetching the right one.")
    part = file.with_name(f"{file.name}.part")
    problems = []
    for url in remote.urls:
        host = urlsplit(url).netloc
        print(f"Fetching {file.name} from {host} ...", flush=True)
        try:
            _fetch_from(url, remote, part, timeout_s)
        except _Problem as problem:
            print(f"{host}: {problem}", flush=True)
            problems.append((host, problem))
        else:
            part.chmod(0o644)  # a container's server runs as another user
            part.replace(file)
            return
    raise DownloadError(_sum_up(remote, file, problems))


def _fetch_from(url: str, remote: Remote, part: Path, timeout_s: float) -> None:
    """Leave the whole file, its hash checked, at `part`."""
    resumed = _size(part) > 0
    _complete(url, remote, part, timeout_s)
    if not has_hash(part, remote.sha256) and resumed:
        part.unlink()  # was its beginning wrong?
        _complete(url, remote, part, timeout_s)
    if not has_hash(part, remote.sha256):
        part.unlink()
        raise _Problem("these are not the bytes of the right file", passing=False)


def _complete(url: str, remote: Remote, part: Path, timeout_s: float) -> None:
    """Add to `part` until it is complete, over as many connections as it takes."""
    from tqdm import tqdm

    tries, most = 0, _size(part)
    with tqdm(
        total=remote.size, unit="B", unit_scale=True, desc=part.stem, disable=None
    ) as bar:
        while True:
            try:
                return _go_on(url, remote, part, timeout_s, bar)
            except _Broken as broken:
                tries = 1 if _size(part) > most else tries + 1
                most = max(most, _size(part))
                if tries == TRIES:
                    raise _Problem(f"{broken}, {TRIES} times") from None
                time.sleep(PAUSE_S * 2 ** (tries - 1))


def _go_on(url: str, remote: Remote, part: Path, timeout_s: float, bar: "tqdm") -> None:
    """Add to `part` what one connection brings; raises _Broken if that isn't all."""
    have = _size(part)
    if have and have == remote.size:
        return
    request = urllib.request.Request(url, headers={"User-Agent": "triton-notebooks"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with closing(_open(request, part, timeout_s)) as answer:
        where = answer.headers.get("Content-Range", "")
        resumed = answer.status == 206 and where.startswith(f"bytes {have}-")
        start = have if resumed else 0  # not every server knows ranges
        end = remote.size if answer.length is None else start + answer.length
        if end is None or (answer.status == 206 and not resumed):
            raise _Problem("it doesn't say what it sends", passing=False)
        if end != (remote.size or end):
            reason = f"it offers {end:,} bytes instead of {remote.size:,}"
            raise _Problem(reason, passing=False)
        bar.total, bar.n = end, start
        with part.open("ab" if start else "wb") as stream:
            for chunk in _chunks(answer, end - start):
                stream.write(chunk)
                bar.update(len(chunk))
            stream.flush()
            os.fsync(stream.fileno())
    if _size(part) < end:
        raise _Broken(f"the connection broke at {_size(part):,} of {end:,} bytes")


def _open(
    request: urllib.request.Request, part: Path, timeout_s: float
) -> http.client.HTTPResponse:
    try:
        return urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        reason = f"it answers {error.code} {error.reason}"
        if error.code == 416:  # `part` is longer than what the server has
            part.unlink()
        if error.code in LATER:
            raise _Broken(reason) from None
        raise _Problem(reason, passing=False) from None
    except (http.client.HTTPException, OSError) as error:
        early = isinstance(error, urllib.error.URLError)
        reason = error.reason if early else error
        if isinstance(reason, TimeoutError):
            raise _Problem(f"no answer within {timeout_s:g} s") from None
        if early:
            why = getattr(reason, "strerror", None) or reason
            raise _Problem(f"no connection ({why})") from None
        raise _Broken("no answer that is HTTP") from None


def _chunks(answer: http.client.HTTPResponse, length: int) -> Iterator[bytes]:
    """Yield `length` bytes of the body, as they come; fewer if the connection ends."""
    while length > 0:
        try:
            chunk = answer.read1(min(CHUNK, length))
        except (http.client.HTTPException, OSError):
            return
        if not chunk:
            return
        length -= len(chunk)
        yield chunk


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _sum_up(remote: Remote, file: Path, problems: list[tuple[str, _Problem]]) -> str:
    reasons = "; ".join(f"{host}: {problem}" for host, problem in problems)
    if any(problem.passing for _, problem in problems):
        cure = (
            "check the network and run it again, which goes on where it stopped, or"
            f" fetch {remote.urls[0]} on another machine and put it at {file}."
        )
    else:
        cure = f"find a copy with the SHA-256 {remote.sha256} and put it at {file}."
    return f"{file.name} can't be fetched ({reasons}): {cure}"


def _explain(error: OSError, remote: Remote, file: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        room = f"{max(1, round((remote.size or 0) / 1e6))} MB"
        return f"No space left for {file}: free {room} there and run it again."
    reason = error.strerror or error
    return f"{file} can't be written ({reason}): make its folder yours, then try again."
