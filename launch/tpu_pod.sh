#!/usr/bin/env bash
# One worker's part of a run on a TPU pod: all workers run it, with a --workdir that all of them see:
#   gcloud compute tpus tpu-vm ssh NAME --worker=all --command "cd styledrop_jax && bash launch/tpu_pod.sh personalize …"
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh tpu
export STYLEDROP_TPU_POD=1 # the workers find each other by the pod's metadata
exec styledrop "$@"
