#!/usr/bin/env bash
# Installs the package for one machine with NVIDIA GPUs (CUDA 13) and runs what follows: bash launch/local_gpu.sh personalize …
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh cuda
exec styledrop "$@"
