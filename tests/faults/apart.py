"""Run a command alone with its /tmp, its /dev/shm and its processes.

`python tests/faults/apart.py COMMAND …` ends with 1 if the command leaves anything in
either folder. Where this machine gives nobody namespaces, the command runs without,
and a line says so: it then shares both folders with everything else.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

FOLDERS = (Path("/tmp"), Path("/dev/shm"))
UNSHARE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
INSIDE = "--inside"


def can_be_had(command: list[str]) -> bool:
    """Return whether a command for namespaces works here."""
    return (
        bool(shutil.which(command[0]))
        and not subprocess.run(
            [*command, "mount", "-t", "tmpfs", "none", "/tmp"],
            stderr=subprocess.DEVNULL,
        ).returncode
    )


def run_inside(command: list[str]) -> int:
    """Run a command with both folders empty, and look at what is in them after it."""
    for folder in FOLDERS:
        subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
    child = subprocess.Popen(command)
    while (ended := os.wait())[0] != child.pid:  # orphans come to process 1
        pass
    deadline = time.monotonic() + 5  # for what ends a moment after its parent
    while (left := left_over()) and time.monotonic() < deadline:
        time.sleep(0.1)
    for what in left:
        print(f"Left over: {what}")
    return os.waitstatus_to_exitcode(ended[1]) or bool(left)


def left_over() -> list[str]:
    """Return the files in both folders, and what runs besides this process."""
    found = [str(path) for folder in FOLDERS for path in folder.iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            words = (process / "cmdline").read_text().replace("\0", " ")
            if words and process.name != str(os.getpid()):  # a zombie has no words
                found.append(f"process {words}")
    return found


def main(arguments: list[str]) -> int:
    """Enter namespaces of our own, or say that there are none."""
    if arguments[0] == INSIDE:
        return run_inside(arguments[1:])
    os.environ.pop("TMPDIR", None)
    for ours in (UNSHARE, [*UNSHARE, "--user", "--map-root-user"]):
        if can_be_had(ours):
            again = [*ours, sys.executable, __file__, INSIDE, *arguments]
            return subprocess.run(again).returncode
    print("No namespaces here: /tmp and /dev/shm are shared, and not looked at.")
    return subprocess.run(arguments).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
