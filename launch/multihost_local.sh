#!/usr/bin/env bash
# Runs what follows in two processes of this machine (PROCESSES=n: in n), as so many hosts would: bash launch/multihost_local.sh personalize …
# For trying and testing: on CPUs they talk by gloo. STYLEDROP is the command, if not the one that this installs.
set -euo pipefail
if [ -z "${STYLEDROP:-}" ]; then
  cd "$(dirname "$0")/.."
  source launch/environment.sh "${EXTRA:-}"
fi
export JAX_NUM_PROCESSES="${PROCESSES:-2}"
export JAX_COORDINATOR_ADDRESS="localhost:${PORT:-$((20000 + RANDOM % 12000))}"
export NPROC="${NPROC:-32}" # threads enough for all devices of all processes to wait for each other
processes=()
for ((number = 0; number < JAX_NUM_PROCESSES; number++)); do
  JAX_PROCESS_ID=$number ${STYLEDROP:-styledrop} "$@" &
  processes+=($!)
done
trap 'kill "${processes[@]}" 2>/dev/null || true' INT TERM
status=0
for process in "${processes[@]}"; do
  while kill -0 "$process" 2>/dev/null; do
    wait "$process" || status=$?
  done
done
exit $status
