#!/usr/bin/env bash
# Runs the tests in a virtual environment made from pyproject.toml, in two processes. Arguments go to pytest:
# `-m slow` runs those alone that take minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh dev
ruff check .
ruff format --check .
basedpyright
exec python -m pytest -q -m "not slow" --numprocesses 2 --dist loadfile "$@"
