.PHONY: setup everything lab openvino test test-docker test-faults execute docs links bench bench-growth lock
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do command -v $$p && break; done)

# Packages come uncompiled: what is imported once is compiled then, for good.
unexport PYTHONDONTWRITEBYTECODE

SET_UP = "$(or $(PYTHON),$(error Install Python 3.10, 3.11 or 3.12, for example with `apt install python3 python3-venv`))" helpers/bootstrap.py
setup: ; @$(SET_UP)
# And what only the tests and the site need.
everything: ; @$(SET_UP) --all
lab: setup ; JUPYTER_CONFIG_PATH=.jupyter .venv/bin/python -m jupyterlab README.md
# OpenVINO's build, which lesson 14 would fetch, and say so where the page says nothing.
openvino: setup ; .venv/bin/python -m helpers.openvino
# What it draws is the same each time; `make test-faults` draws anew.
test: everything ; .venv/bin/python -m helpers.openvino && SEED=$${SEED:-7} .venv/bin/python -m pytest -n 4 --dist loadscope --no-loadscope-reorder -m "not alone and not docker and not faults" && .venv/bin/python -m pytest -m alone
# 5 is pytest's word for no test: where no engine can run, it has said so in a line.
test-docker: everything ; .venv/bin/python -m pytest -m docker tests/docker || test $$? -eq 5
test-faults: everything ; .venv/bin/python tests/faults/apart.py .venv/bin/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m faults -rP tests/faults
execute: everything ; .venv/bin/python -m helpers.openvino && .venv/bin/python tests/execute.py && .venv/bin/python tests/docker/engine.py .venv/bin/python tests/execute.py notebooks/05-run-the-container.ipynb
docs: everything ; .venv/bin/python -m sphinx -E -q -W --keep-going -n docs docs/_build/html && echo "Open docs/_build/html/index.html"
links: everything ; .venv/bin/python docs/external_links.py
# Half an hour, on a quiet machine; what it makes is in benchmarks/RESULTS.md.
bench: setup ; .venv/bin/python -m benchmarks --fresh && .venv/bin/python -m benchmarks.same_request && .venv/bin/python -m benchmarks report
bench-growth: setup ; rm -f .cache/benchmarks/growth.jsonl && .venv/bin/python -m benchmarks.growth && .venv/bin/python -m benchmarks report
# Left out: an optional part of jsonschema that takes 2.6 s of each start; and, of what the
# tests and the site need, what a reader has. uv keeps the pins that the file has already.
COMPILE = .venv/bin/uv pip compile pyproject.toml --universal --python-version 3.10 --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-package rfc3987-syntax --no-emit-package lark --quiet
READERS = $$(sed -n "s/^\([a-z0-9-]*\)==.*/--no-emit-package \1/p" requirements.lock | sort -u)
lock: everything ; .venv/bin/pip install --quiet uv && $(COMPILE) --output-file requirements.lock && cat requirements.lock requirements-dev.lock > .cache/lock && $(COMPILE) --all-extras $(READERS) --output-file .cache/lock && mv .cache/lock requirements-dev.lock
