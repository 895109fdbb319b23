#!/usr/bin/env bash
# From nothing to a style of its own: installs the package and runs StyleDrop on a bundled reference image.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh ""
# Two devices made of one CPU: a batch is cut in two that run side by side.
export JAX_NUM_CPU_DEVICES="${JAX_NUM_CPU_DEVICES:-2}"
exec styledrop personalize --config styledrop --workdir "${1:-runs/quickstart}"
