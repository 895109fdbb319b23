#!/usr/bin/env bash
# Installs the package on a Cloud TPU VM (one host) and runs what follows: bash launch/tpu_vm.sh personalize …
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh tpu
exec styledrop "$@"
