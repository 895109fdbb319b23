#!/usr/bin/env bash
# Runs the tests in a virtual environment made from pyproject.toml, in two processes. Arguments go to pytest:
# `-m slow` runs those alone that take minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh dev
ruff check .
ruff format --check .
basedpyright > .venv/types 2>&1 &
types=$!
command -v chromium || command -v chromium-browser || command -v google-chrome ||
  echo "no Chromium on this machine: the studio's page is not tested in a browser"
passed=0
python -m pytest -q -m "not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@" || passed=$?
wait "$types" || { cat .venv/types; passed=1; }
exit "$passed"
