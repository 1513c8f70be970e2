.PHONY: setup lab test execute lock

setup: ; @python3 helpers/bootstrap.py
lab: setup ; .venv/bin/jupyter lab notebooks/01-start-a-server.ipynb
test: setup ; .venv/bin/python -m pytest -n 3 --dist loadfile -m "not alone" && .venv/bin/python -m pytest -m alone
execute: setup ; .venv/bin/python tests/execute.py
lock: setup ; .venv/bin/pip install --quiet uv && .venv/bin/uv pip compile pyproject.toml --extra test --universal --python-version 3.10 --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet --output-file requirements.lock
