"""Make a lesson that was opened alone, as on Colab, run: what its first cell runs.

Installs what the course needs, except JupyterLab, builds the models, and goes to the
folder that the lessons run in. What is there already is left as it is.
"""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Install, build, and go there; ask for a restart if NumPy is not what it was."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [p for p in project["dependencies"] if not p.startswith("jupyterlab")]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", *needed]
    subprocess.run(pip, check=True)
    loaded = getattr(sys.modules.get("numpy"), "__version__", None)
    if loaded not in (None, importlib.metadata.version("numpy")):
        sys.exit("NumPy was replaced: restart the session, and run from the top.")
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT / "notebooks")
    from helpers import repository

    repository.build()


if __name__ == "__main__":
    main()
