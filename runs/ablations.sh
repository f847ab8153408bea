#!/usr/bin/env bash
# The paper's ablations at a small scale, on a part of the emoji set: alignment target, loss and weight, and the usual
# way (text as a condition, noise as the source) against the direct flow. Same budget for all, several seeds, one table.
#   runs/ablations.sh [--updates N] [--pictures N] [--seeds "1 2 3"] [--data FOLDER] [--limit N] [FOLDER]
#   default: 800 updates of 64 on 256 pictures, about 3 minutes on two CPU cores for each of 12 variants and 3 seeds,
#   measuring included; seeds 1 2 3, runs/emoji/data, 256 prompts of each split, runs/ablations.
# Stop it at any time and start it again: what is measured is kept, and a training goes on from its last checkpoint.
# Every seed goes through all variants before the next one begins, so there is a whole table early.
set -euo pipefail
updates=800 pictures=256 seeds="1 2 3" data= limit=256 folder=
usage() { sed -n '2,8s/^# \{0,1\}//p' "$0"; }
while (($#)); do
  case $1 in
    --updates | --pictures | --seeds | --data | --limit)
      (($# > 1)) || { echo "$1 needs a value" >&2; exit 2; }
      printf -v "${1#--}" '%s' "$2"; shift 2 ;;
    -h | --help) usage; exit ;;
    -*) echo "unknown option $1; see runs/ablations.sh --help" >&2; exit 2 ;;
    *) folder=$1; shift ;;
  esac
done
here=$(pwd)
cd "$(dirname "$0")/.."
absolute() { [[ $1 = /* ]] && echo "$1" || echo "$here/$1"; }
folder=$([[ -n $folder ]] && absolute "$folder" || echo runs/ablations)
data=$([[ -n $data ]] && absolute "$data" || echo runs/emoji/data)
python=${PYTHON:-.venv/bin/python}
flowtok=${FLOWTOK:-.venv/bin/flowtok}
device=${DEVICE:-cpu}
model=${MODEL:-models/emoji} # whose image tokenizer all take, and whose projector is the settled one
[[ -f $data/metadata.jsonl ]] || { echo "there is no emoji set in $data; build it: flowtok data emoji -o $data" >&2; exit 2; }
mkdir -p "$folder/cache"

# One budget for one folder: rows of other lengths must not stand in one table.
budget="--updates $updates --pictures $pictures --limit $limit"
[[ -f $folder/budget ]] || echo "$budget" >"$folder/budget"
if [[ $(<"$folder/budget") != "$budget" ]]; then
  echo "$folder was begun with $(<"$folder/budget"), not $budget; name another folder" >&2
  exit 2
fi

# The same tokenizer for all, whatever becomes of the shipped model meanwhile; and the same small set.
if [[ ! -d $folder/from ]]; then
  rm -rf "$folder/from.part"
  cp -R "$model" "$folder/from.part"
  mv "$folder/from.part" "$folder/from"
fi
if [[ ! -f $folder/set/metadata.jsonl ]]; then
  "$python" runs/ablations.py set "$data" "$folder/set" --pictures "$pictures" >/dev/null
fi

# Moments of the pictures and features of the captions are the same for all and bear hashes in their names; the rest of
# a run's cache is its own.
lend() { mkdir -p "$1/cache"; find "$folder/cache" -name '*.safetensors' -exec ln -f {} "$1/cache/" \;; }
take() { find "$1/cache" \( -name 'image-*' -o -name 'captions-*' \) -exec ln -f {} "$folder/cache/" \; ; }

mapfile -t variants < <("$python" runs/ablations.py names)
for seed in $seeds; do
  for variant in "${variants[@]}"; do
    run=$folder/$variant/seed-$seed
    [[ -f $run/scores/records.json ]] && continue
    echo "== $variant, seed $seed" >&2
    lend "$run"
    if [[ $variant = *as-condition ]]; then
      told=${variant%-as-condition}
      "$python" runs/text_as_condition.py --data "$folder/set" --from "$folder/from" -o "$run" --updates "$updates" \
        --seed "$seed" --limit "$limit" --told "${told/#text/features}"
    else
      mapfile -t changes < <("$python" runs/ablations.py changes "$variant" --updates "$updates" --seed "$seed")
      "$flowtok" train emoji "${changes[@]}" --from "$folder/from" --data "$folder/set" -o "$run" --device "$device"
      "$flowtok" eval "$run/model" --data "$folder/set" --task retrieval --split train,unseen_concept \
        --limit "$limit" --batch-size 64 --device "$device" -o "$run/scores"
    fi
    take "$run"
    rm -rf "$run/cache" "$run"/flow/checkpoint-*.safetensors "$run/scores/pictures"
  done
done
"$python" runs/ablations.py table "$folder" -o "$folder/ablations.md"
