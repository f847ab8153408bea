#!/usr/bin/env bash
# Puts together the folder of a Hugging Face Space: the app, the code and one model. What is in it is copied, so it can
# be pushed as it is.
#   runs/space/build.sh FOLDER [MODEL]      default model: models/emoji
#   (cd FOLDER && python app.py)            shows it at http://127.0.0.1:7860
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
folder=${1:?usage: runs/space/build.sh FOLDER [MODEL]}
model=${2:-$root/models/emoji}

[[ -f $model/config.json ]] || { echo "build.sh: $model is no model folder: it has no config.json" >&2; exit 2; }
[[ ! -e $folder || -z $(ls -A "$folder") ]] || { echo "build.sh: $folder is not empty; name a new folder" >&2; exit 2; }

mkdir -p "$folder"
cp "$here/app.py" "$here/README.md" "$here/requirements.txt" "$root/LICENSE" "$folder/"
cp -R "$root/src/flowtok" "$folder/flowtok"
find "$folder/flowtok" -name __pycache__ -type d -prune -exec rm -r {} +
mkdir "$folder/flowtok/models"
cp -RL "$model" "$folder/flowtok/models/emoji"
# The Hub keeps weights and pictures outside of git's own storage.
printf '%s filter=lfs diff=lfs merge=lfs -text\n' '*.safetensors' '*.png' > "$folder/.gitattributes"
echo "the Space is in $folder"
