#!/usr/bin/env bash
# From nothing to a style of its own: installs the package and runs StyleDrop on a bundled reference image.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh ""
exec styledrop personalize --config configs/styledrop.py --workdir "${1:-runs/quickstart}"
