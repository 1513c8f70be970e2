"""Set up everything a reader needs: `.venv`, the pinned packages, the models.

With `--all` it installs what the tests and the site need, too. Run by `make` with
whatever `python3` is there, before anything is installed: it imports only the standard
library and avoids syntax that an old Python can't read, so that a machine that can't
run the course gets a sentence instead of a traceback.
"""

import contextlib
import hashlib
import os
import platform
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
# What a reader needs, and what the tests and the site need beside it.
LOCKS = ("requirements.lock", "requirements-dev.lock")
VERSIONS = ("3.10", "3.11", "3.12")

# Asked of each candidate, in its own process: its version, whether it can make a
# virtual environment, and whether the shared library that Triton's Python backend
# links to is there.
PROBE = """
import ctypes, os, sys, sysconfig
print("%d.%d" % sys.version_info[:2])
try:
    import ensurepip, venv
    print("venv")
except ImportError:
    print("no-venv")
name = "libpython%d.%d.so.1.0" % sys.version_info[:2]
for place in (os.path.join(sysconfig.get_config_var("LIBDIR") or "", name), name):
    try:
        ctypes.CDLL(place)
        print("libpython")
        break
    except OSError:
        pass
"""


def platform_problem(system, machine, libc):
    """Return why no server can run here, or None; `libc` is (name, version)."""
    elsewhere = (
        "use Docker, Binder or a Linux machine instead, or set TRITON=HOST:PORT to use"
        " a server that runs elsewhere (README.md, 'Three ways to get a server')."
    )
    if system != "Linux" or machine not in ("x86_64", "aarch64"):
        return (
            "NVIDIA's server comes as a wheel for Linux on x86-64 and aarch64, not for"
            " %s on %s: %s" % (system, machine, elsewhere)
        )
    name, version = libc
    if name != "glibc" or tuple(int(n) for n in version.split(".")[:2]) < (2, 35):
        return (
            "NVIDIA's server needs glibc 2.35 or later (Ubuntu 22.04, Debian 12) and"
            " this system has %s: %s" % (" ".join(libc).strip() or "none", elsewhere)
        )
    return None


def python_problem(answer, command):
    """Return why the Python that gave this answer to PROBE can't be used, or None."""
    version = answer[0] if answer else "none"
    if version not in VERSIONS:
        return (
            "The course needs Python %s to %s and `%s` is %s: install one of them"
            " (for example `apt install python3.11 python3.11-venv libpython3.11`, or"
            " conda) and run make again."
            % (VERSIONS[0], VERSIONS[-1], command, version)
        )
    if "no-venv" in answer:
        return (
            "Python %s is here without its venv module: install it (for example"
            " `apt install python%s-venv`) and run make again." % (version, version)
        )
    if "libpython" not in answer:
        return (
            "Python %s is here without its shared library libpython%s.so.1.0, which"
            " Triton's Python backend links to: install it (for example `apt install"
            " libpython%s`) and run make again." % (version, version, version)
        )
    return None


def ask(command):
    """Return the lines that a Python prints for PROBE, none if it doesn't run."""
    try:
        answer = subprocess.run(
            [command, "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError:
        return []
    return answer.stdout.decode().split()


def choose_python():
    """Return the first Python that can run the course, the caller's own preferred."""
    own = sys.executable
    candidates = [own] + ["python" + version for version in reversed(VERSIONS)]
    problems = []
    for command in candidates:
        answer = ask(command)
        problem = python_problem(answer, command)
        if problem is None:
            return command
        if answer or command == own:
            problems.append(problem)
    # A usable version that lacks a part is nearer to the goal than a wrong version.
    sys.exit(next((p for p in problems if not p.startswith("The course")), problems[0]))


def stamp(lock):
    """Return the file that says that a lock's packages are installed."""
    return os.path.join(VENV, lock + ".installed")


def fingerprint(lock):
    """Return a hash of all that decides what a lock's installation makes."""
    digest = hashlib.sha256()
    for name in (lock, "pyproject.toml", "helpers/bootstrap.py"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    digest.update(ROOT.encode())
    return digest.hexdigest()


def installed(lock):
    """Return whether `.venv` has a lock's packages, and its Python still runs."""
    try:
        with open(stamp(lock)) as file:
            return file.read() == fingerprint(lock) and bool(ask(PYTHON))
    except OSError:
        return False


def run(*command):
    """Run a step of the set-up, and end with its name if it fails."""
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        sys.exit(
            "The set-up stopped at: %s (the reason stands above: mend it, and run make"
            " again)" % " ".join(command)
        )


def install(lock):
    """Make `.venv`, if need be, and install a lock's packages into it."""
    if " " in ROOT:
        sys.exit(
            "Triton can't work in a folder whose path has a space: move the course out"
            " of '%s' and run make again." % ROOT
        )
    if not ask(PYTHON):
        run(choose_python(), "-m", "venv", "--clear", VENV)
    if lock == LOCKS[0]:
        print("Installing the pinned packages into .venv (about a minute) ...")
    else:
        print("Installing what the tests and the site need into .venv, too ...")
    pip = (PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    pip += ("--no-compile",)  # of what is installed, little is ever imported
    run(*(pip + ("--require-hashes", "--no-deps", "--requirement", lock)))
    if lock == LOCKS[0]:
        run(*(pip + ("--no-deps", "--no-build-isolation", "--editable", ".")))
    with open(stamp(lock) + ".part", "w") as file:
        file.write(fingerprint(lock))
    os.replace(stamp(lock) + ".part", stamp(lock))


@contextlib.contextmanager
def alone(folder):
    """Hold the lock of a folder, which is made if it is missing, against others."""
    try:
        import fcntl
    except ImportError:  # Windows, where nothing of ours runs twice at once
        yield
        return

    while True:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Who held the lock before may have removed the folder, and another made anew.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                break
        os.close(descriptor)
    try:
        yield
    finally:
        os.close(descriptor)


def main():
    """Set up the course, or say in one sentence why this machine can't run it."""
    if sys.version_info < (3, 6):
        sys.exit(python_problem(["%d.%d" % sys.version_info[:2]], sys.executable))
    problem = platform_problem(
        platform.system(), platform.machine(), platform.libc_ver()
    )
    if problem:
        sys.exit(problem)
    with alone(ROOT):
        for lock in LOCKS if "--all" in sys.argv[1:] else LOCKS[:1]:
            if not installed(lock):
                install(lock)
    run(PYTHON, "-m", "helpers.repository")
    # One lesson wants it; where it can't be had, it has said so and the rest goes on.
    subprocess.run((PYTHON, "-m", "helpers.perf_analyzer"), cwd=ROOT)


if __name__ == "__main__":
    main()
