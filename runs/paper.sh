#!/usr/bin/env bash
# The paper's model, from raw shards to scores: image tokenizer, two stages at 256 px, 512 px, captions, measures.
# Stop it at any time and start it again: finished parts are kept and a stage goes on from its last checkpoint.
#   TOKENIZER_DATA='datacomp/{00000..01779}.tar' STAGE1_DATA=... STAGE2_DATA=... COCO=coco runs/paper.sh [FOLDER [SIZE]]
#   default: runs/paper xl; SIZE is b, xl or h
# What is trained on (docs/data.md: shards as img2dataset writes them, "::" joins several lists):
#   TOKENIZER_DATA   DataComp-1B
#   STAGE1_DATA      DataComp-1B, CC12M and LAION-aesthetic; with aesthetic_score and pwatermark in their metadata
#   STAGE2_DATA      the same kinds in their finest part, LAION-art, LAION-pop, JourneyDB, DALLE3-1M; pictures without
#                    scores, as the synthetic ones are, are taken as they are
#   COCO             COCO 2014: annotations/, train2014/, val2014/ and Karpathy's dataset_coco.json (docs/evaluation.md);
#                    COCO_TRAIN, its training part with its captions, is what captions are learned from: shards, or a
#                    folder with a text file of the same name beside each picture, a caption in each line
#   COCO_VAL         20,000 or so pictures of its validation part in the same form, of which a twentieth, the split
#                    `validation`, is rebuilt and compared; all are read into memory (4 GB; above 8 GB they are refused)
#   MJHQ             the set MJHQ-30K, for its FID
# GPUS is the number of GPUs of this machine; for several machines set TORCHRUN to a longer command, such as
#   TORCHRUN='torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400'
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-runs/paper}
size=${2:-xl}
: "${TOKENIZER_DATA:?name the shards}" "${STAGE1_DATA:?name the shards}" "${STAGE2_DATA:?name the shards}"
: "${COCO:?name the folder of COCO}" "${COCO_TRAIN:?name the training part of COCO}"
: "${COCO_VAL:?name a small part of COCO to rebuild}" "${MJHQ:?name the folder of MJHQ-30K}"
flowtok=${FLOWTOK:-.venv/bin/flowtok}
read -r -a torchrun <<<"${TORCHRUN:-.venv/bin/torchrun --standalone --nproc-per-node ${GPUS:-8}}"

# The text encoder: CLIP's, which stays as it is.
clip=$folder/clip
[[ -d $clip/text_encoder ]] || "$flowtok" import --text-encoder openai/clip-vit-large-patch14-336 -o "$clip"

# 650k steps of 1,024 pictures. LPIPS and ConvNeXt-S are fetched once, or read from a folder: append
# tokenizer_stage.perceptual.weights=FOLDER. Then the same for 512 px: it starts from the weights for 256 px, which fit.
"${torchrun[@]}" "$flowtok" train paper-tokenizer --data "$TOKENIZER_DATA" -o "$folder/tokenizer-256" \
  --text-encoder "$clip"
"${torchrun[@]}" "$flowtok" train paper-tokenizer --data "$TOKENIZER_DATA" -o "$folder/tokenizer-512" \
  --text-encoder "$clip" --from "$folder/tokenizer-256" image_tokenizer.image_size=512 \
  tokenizer_training.num_steps=50000 tokenizer_stage.adversary.start_step=0

# Flow and text projector: 250k steps of 4,096 pairs, then 150k on finer pictures, then the same at 512 px.
"${torchrun[@]}" "$flowtok" train "paper-256-stage1-$size" --data "$STAGE1_DATA" -o "$folder/256-stage1" \
  --from "$folder/tokenizer-256"
"${torchrun[@]}" "$flowtok" train "paper-256-stage2-$size" --data "$STAGE2_DATA" -o "$folder/256-stage2" \
  --from "$folder/256-stage1"
# The tokenizer is taken from the first model that has one, everything else from the second.
"${torchrun[@]}" "$flowtok" train "paper-512-$size" --data "$STAGE2_DATA" -o "$folder/512" \
  --from "$folder/tokenizer-512" --from "$folder/256-stage2"

# From pictures to words, on COCO.
"${torchrun[@]}" "$flowtok" train "paper-captions-$size" --data "$COCO_TRAIN" -o "$folder/captions" \
  --from "$folder/256-stage2"

# The paper's measures: 20 steps, guidance 2; and how true rebuilt pictures are, guided by the model's own captions.
"$flowtok" eval "$folder/256-stage2/model" --data "$COCO" --task coco30k --steps 20 --guidance 2 \
  -o "$folder/scores/coco30k"
"$flowtok" eval "$folder/256-stage2/model" --data "$MJHQ" --task mjhq30k --steps 20 --guidance 2 \
  -o "$folder/scores/mjhq30k"
"$flowtok" eval "$folder/captions/model" --data "$COCO" --task karpathy --caption-steps 20 \
  -o "$folder/scores/karpathy"
"$flowtok" eval "$folder/captions/model" --data "$COCO_VAL" --task reconstruction --split validation \
  --weights download -o "$folder/scores/reconstruction"
