"""Downloads: from a server of our own that does all that a server can do wrong."""

import errno
import fcntl
import hashlib
import http.server
import os
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

from helpers import download
from helpers.download import DownloadError, Remote

ROOT = Path(download.__file__).parent.parent
DATA = bytes(range(256)) * 4000  # 1,024,000 bytes
SIZE = len(DATA)
SHA256 = hashlib.sha256(DATA).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        far = self.server.far
        far.asked.append(self.headers.get("Range"))
        behave = far.behaviours[min(len(far.asked), len(far.behaviours)) - 1]
        behave(self)

    def log_message(self, *_):
        pass

    def answer(self, data, start=0, status=200, length=None, brings=None, **headers):
        """Send `data` from `start` on, or only the first `brings` bytes of that."""
        self.send_response(status)
        length = len(data) - start if length is None else length
        if length >= 0:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        body = data[start:] if brings is None else data[start : start + brings]
        self.server.far.served += len(body)  # first: the client may be done before us
        self.wfile.write(body)


def whole(brings=None, data=DATA, **options):
    """A server that ignores Range."""
    return lambda handler: handler.answer(data, brings=brings, **options)


def ranges(brings=None, data=DATA):
    """A server that knows Range, and may break off."""

    def behave(handler):
        asked = handler.headers.get("Range")
        if not asked:
            return handler.answer(data, brings=brings)
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(data):
            return handler.send_error(416)
        where = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return handler.answer(data, start, 206, brings=brings, Content_Range=where)

    return behave


def fails(code):
    return lambda handler: handler.send_error(code)


def silent(handler):
    handler.server.far.released.wait(30)


def hangs_after(count):
    def behave(handler):
        handler.answer(DATA, brings=count)
        handler.wfile.flush()
        handler.server.far.released.wait(30)

    return behave


def hangs_up(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


def babbles(handler):
    handler.wfile.write(b"220 mail ready\r\n")


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        """Say nothing of a client that has heard enough."""


class Far:
    """A server on this machine: the n-th request meets the n-th behaviour."""

    def __init__(self, *behaviours):
        self.behaviours, self.asked, self.served = behaviours, [], 0
        self.released = threading.Event()
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.far = self
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.host}/file.bin"
        threading.Thread(target=self.server.serve_forever, args=[0.01]).start()

    def end(self):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def far():
    """Start a server that behaves as told."""
    started = []

    def start(*behaviours):
        started.append(Far(*behaviours))
        return started[-1]

    yield start
    for server in started:
        server.end()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(download, "PAUSE_S", 0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "downloads" / "file.bin"


@pytest.fixture
def part(file):
    """What an earlier run left: a test writes it."""
    file.parent.mkdir()
    return file.with_name("file.bin.part")


def remote(*servers, size=SIZE):
    return Remote(tuple(server.url for server in servers), SHA256, size)


def command(server, file):
    """Return the command that does the same in another process."""
    code = (
        "import sys; from pathlib import Path; from helpers import download\n"
        "remote = download.Remote((sys.argv[1],), sys.argv[2])\n"
        "download.PAUSE_S = 0; download.fetch(remote, Path(sys.argv[3]))"
    )
    return [sys.executable, "-c", code, server.url, SHA256, str(file)]


def left(file):
    return sorted(path.name for path in file.parent.glob("*"))


def refusal(wanted, file, **options):
    """Return the one sentence of a failure, which leaves nothing by the final name."""
    with pytest.raises(DownloadError) as caught:
        download.fetch(wanted, file, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert not file.exists()
    return message


def passing(reason, far, file):
    return (
        f"file.bin can't be fetched ({far.host}: {reason}): check the network and run"
        f" it again, which goes on where it stopped, or fetch {far.url} on another"
        f" machine and put it at {file}."
    )


def lasting(reason, far, file):
    return (
        f"file.bin can't be fetched ({far.host}: {reason}): find a copy with the"
        f" SHA-256 {SHA256} and put it at {file}."
    )


# What works


@pytest.mark.parametrize("size", [SIZE, None])
def test_a_file_arrives_whole_and_leaves_nothing_beside_it(far, file, size):
    download.fetch(remote(far(whole()), size=size), file)
    assert file.read_bytes() == DATA
    assert left(file) == ["file.bin"]
    assert file.stat().st_mode & 0o777 == 0o644


def test_a_second_run_asks_nobody_and_says_nothing(far, file, capsys):
    server = far(whole())
    download.fetch(remote(server), file)
    assert capsys.readouterr().out == f"Fetching file.bin from {server.host} ...\n"
    download.fetch(remote(server), file)
    assert capsys.readouterr().out == ""
    assert len(server.asked) == 1


def test_a_file_put_there_by_hand_is_taken_if_its_hash_fits(far, file, part):
    file.write_bytes(DATA)
    server = far(whole())
    download.fetch(remote(server), file)
    assert server.asked == []


def test_another_file_put_there_by_hand_is_replaced_and_said_to_be(far, file, part):
    file.write_bytes(b"another")
    (part.parent / "sees.txt").touch()

    def behave(handler):
        assert file.read_bytes() == b"another"  # until the right one is whole
        handler.answer(DATA)

    capture = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda text, **_: capture.append(text))
        download.fetch(remote(far(behave)), file)
    assert file.read_bytes() == DATA
    assert capture[0].startswith(f"{file} is another file (its SHA-256)")


def test_a_server_that_does_not_say_how_much_it_sends_is_believed_to_the_size(
    far, file
):
    download.fetch(remote(far(whole(data=DATA + b"more", length=-1))), file)
    assert file.read_bytes() == DATA


def test_a_redirect_is_followed_with_its_range(far, file, part):
    part.write_bytes(DATA[:1000])
    behind = far(ranges())

    def redirect(handler):
        handler.answer(b"", status=302, Location=behind.url)

    download.fetch(remote(far(redirect)), file)
    assert file.read_bytes() == DATA
    assert behind.asked == ["bytes=1000-"]


# How it goes on


def test_a_broken_connection_is_resumed_and_no_byte_is_sent_twice(far, file):
    server = far(ranges(brings=100_000))
    download.fetch(remote(server), file)
    assert file.read_bytes() == DATA
    assert server.asked == [None, *(f"bytes={n}00000-" for n in range(1, 11))]
    assert server.served == SIZE


def test_the_next_run_goes_on_where_a_killed_one_stopped(far, file):
    slow = far(hangs_after(700_000))
    killed = subprocess.Popen(command(slow, file), cwd=ROOT)
    part = file.with_name("file.bin.part")
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size > 600_000):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert left(file) == ["file.bin.part"]
    have = part.stat().st_size

    server = far(ranges())
    download.fetch(remote(server), file)
    assert file.read_bytes() == DATA
    assert server.asked == [f"bytes={have}-"]
    assert server.served == SIZE - have
    assert left(file) == ["file.bin"]


def test_a_server_that_ignores_ranges_starts_anew(far, file, part):
    part.write_bytes(DATA[:500_000])
    server = far(whole())
    download.fetch(remote(server), file)
    assert file.read_bytes() == DATA
    assert server.asked == ["bytes=500000-"]
    assert server.served == SIZE


def test_a_complete_part_needs_no_server(far, file, part):
    part.write_bytes(DATA)
    server = far(fails(500))
    download.fetch(remote(server), file)
    assert file.read_bytes() == DATA
    assert server.asked == []


@pytest.mark.parametrize("size", [SIZE, None])
def test_a_part_that_is_too_long_is_thrown_away(far, file, part, size):
    part.write_bytes(DATA + b"more")
    server = far(ranges())
    download.fetch(remote(server, size=size), file)
    assert file.read_bytes() == DATA
    assert server.asked[-1] is None


@pytest.mark.parametrize("have", [1000, SIZE])
def test_a_part_with_wrong_bytes_is_thrown_away(far, file, part, have):
    part.write_bytes(b"x" * have)
    server = far(ranges())
    download.fetch(remote(server), file)
    assert file.read_bytes() == DATA
    assert server.asked[-1] is None


def test_a_busy_server_is_asked_again(far, file):
    server = far(fails(503), fails(429), hangs_up, whole())
    download.fetch(remote(server), file)
    assert file.read_bytes() == DATA
    assert len(server.asked) == 4


def test_it_waits_longer_before_each_try(far, file, monkeypatch):
    waited = []
    monkeypatch.setattr(download, "PAUSE_S", 1)
    monkeypatch.setattr(time, "sleep", waited.append)
    refusal(remote(far(fails(503))), file)
    assert [s for s in waited if s >= 1] == [1, 2, 4, 8]


@pytest.mark.parametrize(
    "wrong",
    [fails(404), whole(data=b"version https://git-lfs"), whole(data=DATA[::-1])],
    ids=["404", "a pointer of Git LFS", "wrong bytes"],
)
def test_the_next_address_helps_out(far, file, wrong):
    bad, good = far(wrong), far(ranges())
    download.fetch(remote(bad, good), file)
    assert file.read_bytes() == DATA
    assert (len(bad.asked), good.asked) == (1, [None])


def test_the_next_address_goes_on_where_the_first_broke_off(far, file):
    bad, good = far(ranges(brings=400_000), hangs_up), far(ranges())
    download.fetch(remote(bad, good), file)
    assert file.read_bytes() == DATA
    assert (bad.served, good.served) == (400_000, SIZE - 400_000)


def test_two_at_once_fetch_once(far, file):
    server = far(whole())
    threads = [
        threading.Thread(target=download.fetch, args=(remote(server), file))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_bytes() == DATA
    assert server.served == SIZE


# What fails, and the sentence for it


def test_no_network(file):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    host = f"127.0.0.1:{port}"
    url = f"http://{host}/file.bin"
    message = refusal(Remote((url,), SHA256, SIZE), file)
    assert message.startswith(
        f"file.bin can't be fetched ({host}: no connection (Connection refused)): check"
    )


def test_an_unknown_name(file, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    url = "http://nowhere.invalid/file.bin"
    message = refusal(Remote((url,), SHA256, SIZE), file)
    assert "(nowhere.invalid: no connection (Name or service not known))" in message


def test_a_file_that_is_not_there(far, file):
    server = far(fails(404))
    reason = "it answers 404 Not Found"
    assert refusal(remote(server), file) == lasting(reason, server, file)
    assert len(server.asked) == 1
    assert left(file) == []


def test_wrong_bytes_of_the_right_length(far, file):
    server = far(ranges(data=DATA[::-1]))
    reason = "these are not the bytes of the right file"
    assert refusal(remote(server), file) == lasting(reason, server, file)
    assert left(file) == []


def test_wrong_bytes_are_never_resumed_from(far, file):
    refusal(remote(far(ranges(data=DATA[::-1]))), file)
    server = far(ranges())
    download.fetch(remote(server), file)
    assert server.asked == [None]


@pytest.mark.parametrize("change", [-1000, 1000])
def test_a_length_that_is_not_the_right_file_s(far, file, change):
    server = far(whole(length=SIZE + change))
    reason = f"it offers {SIZE + change:,} bytes instead of 1,024,000"
    assert refusal(remote(server), file) == lasting(reason, server, file)
    assert left(file) == []


def test_a_length_that_is_too_long_for_what_comes(far, file):
    server = far(whole(length=SIZE + 1000))
    reason = "the connection broke at 1,024,000 of 1,025,000 bytes, 5 times"
    message = refusal(remote(server, size=None), file)
    assert message == passing(reason, server, file)


def test_a_length_that_is_too_short_for_what_comes(far, file):
    server = far(whole(length=1000))
    reason = "these are not the bytes of the right file"
    message = refusal(remote(server, size=None), file)
    assert message == lasting(reason, server, file)
    assert left(file) == []


def test_no_length_at_all(far, file):
    server = far(whole(length=-1))
    message = refusal(remote(server, size=None), file)
    assert message == lasting("it doesn't say what it sends", server, file)
    assert left(file) == []


def test_a_connection_that_breaks_again_and_again(far, file):
    server = far(whole(brings=300_000))
    reason = "the connection broke at 300,000 of 1,024,000 bytes, 5 times"
    assert refusal(remote(server), file) == passing(reason, server, file)
    assert len(server.asked) == 5
    assert left(file) == ["file.bin.part"]


@pytest.mark.parametrize("does", [hangs_up, babbles])
def test_a_server_that_does_not_speak_http(far, file, does):
    server = far(does)
    reason = "no answer that is HTTP, 5 times"
    assert refusal(remote(server), file) == passing(reason, server, file)


def test_a_server_that_never_answers(far, file):
    server = far(silent)
    begin = time.monotonic()
    message = refusal(remote(server), file, timeout_s=0.2)
    assert time.monotonic() - begin < 2
    assert message == passing("no answer within 0.2 s", server, file)
    assert len(server.asked) == 1


def test_a_server_that_stops_in_the_middle(far, file):
    server = far(hangs_after(300_000))
    message = refusal(remote(server), file, timeout_s=0.2)
    reason = "the connection broke at 300,000 of 1,024,000 bytes, 5 times"
    assert message == passing(reason, server, file)


def test_another_range_than_the_one_asked_for(far, file, part):
    part.write_bytes(DATA[:1000])
    where = f"bytes 0-{SIZE - 1}/{SIZE}"
    server = far(whole(status=206, Content_Range=where))
    message = refusal(remote(server), file)
    assert message == lasting("it doesn't say what it sends", server, file)


def test_all_addresses_stand_in_the_sentence(far, file):
    gone, broken = far(fails(404)), far(hangs_up)
    message = refusal(remote(gone, broken), file)
    assert message.startswith(
        f"file.bin can't be fetched ({gone.host}: it answers 404 Not Found;"
        f" {broken.host}: no answer that is HTTP, 5 times): check the"
    )


def test_a_full_disk(far, file, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert refusal(remote(far(whole())), file) == (
        f"No space left for {file}: free 1 MB there and run it again."
    )


def test_a_disk_that_really_is_full(far, file):
    file.parent.mkdir()
    file.with_name("file.bin.part").symlink_to("/dev/full")
    message = refusal(remote(far(whole())), file)
    assert message.startswith(f"No space left for {file}: free 1 MB")


def test_a_folder_of_somebody_else(far, file, monkeypatch):
    def deny(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", deny)
    assert refusal(remote(far(whole())), file) == (
        f"{file} can't be written (Permission denied): make its folder yours, then try"
        " again."
    )


def test_the_bar_is_drawn_on_a_terminal_alone(far, file):
    server = far(ranges(brings=600_000))
    terminal, stderr = os.openpty()
    rows_and_columns = struct.pack("HHHH", 24, 80, 0, 0)
    fcntl.ioctl(stderr, termios.TIOCSWINSZ, rows_and_columns)
    subprocess.run(command(server, file), cwd=ROOT, stderr=stderr, check=True)
    os.close(stderr)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert "file.bin: 100%" in shown
    assert "1.02M/1.02M" in shown

    file.unlink()
    silently = subprocess.run(command(server, file), cwd=ROOT, capture_output=True)
    assert (silently.returncode, silently.stderr) == (0, b"")
