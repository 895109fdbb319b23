#!/usr/bin/env bash
# Fetches the emoji sets from npm and builds the corpus that the shipped models learn from.
#
#   bash launch/fetch_corpus.sh FOLDER      # then: styledrop pretrain --config.corpus FOLDER ...
#
# Needs npm and this package's Python (PYTHON=... to choose one). About 250 MB of packages and 135 MB of drawings in
# FOLDER, at 64 and 128 pixels, ten minutes on one core. Run again, it fetches and builds only what is missing.
set -euo pipefail

folder=${1:?"usage: bash launch/fetch_corpus.sh FOLDER"}
python=${PYTHON:-python3}
packages=(
  @iconify-json/noto@1.2.9
  @iconify-json/noto-v1@1.2.5
  @iconify-json/twemoji@1.2.5
  @iconify-json/fluent-emoji@1.2.7
  @iconify-json/fluent-emoji-flat@1.2.6
  @iconify-json/emojione@1.2.3
  @iconify-json/fxemoji@1.2.2
  @iconify-json/openmoji@1.2.29
  @iconify-json/fluent-emoji-high-contrast@1.2.6
  emojibase-data@17.0.0
)

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
# --prefix keeps npm inside the folder, --ignore-scripts from running anything the packages bring.
npm install --prefix "$folder/npm" --no-save --ignore-scripts --no-audit --no-fund "${packages[@]}"
cd "$(dirname "$0")/.."
"$python" -c 'import sys; from styledrop_jax.emoji.builder import build; build(*sys.argv[1:])' "$folder/npm/node_modules" "$folder"
echo "corpus: $folder"
