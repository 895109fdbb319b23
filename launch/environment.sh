# shellcheck shell=bash
# Sourced: makes .venv on first use, installs the package with the extras named, and activates it.
extra="${1:-}"
stamp=".venv/installed-${extra:-base}-$(sha256sum pyproject.toml | cut -c1-16)"
if [ ! -f "$stamp" ]; then
  echo "installing into $PWD/.venv: a few minutes, once" >&2
  [ -x .venv/bin/python ] || "${PYTHON:-$(command -v python3.11 || command -v python3)}" -m venv .venv
  # torch first and exactly: a range may bring several gigabytes of CUDA packages.
  [ "$extra" != dev ] || .venv/bin/pip install --quiet "torch==2.13.0"
  .venv/bin/pip install --quiet --editable ".${extra:+[$extra]}"
  touch "$stamp"
fi
source .venv/bin/activate
# Huge pages for XLA's buffers: a third less time in the kernel on a CPU.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
