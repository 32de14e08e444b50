#!/usr/bin/env bash
# Reranking from end to end on the synthetic landmarks: bash scripts/reranking.sh [OUT_DIR]
#
# Trains a small DELG, extracts descriptors and local features, lists the neighbours of other landmarks'
# photographs, trains a reranking transformer on them, and prints one table of rerankers on landmarks that
# neither has seen. Started again with the same OUT_DIR, it goes on where it was stopped.
set -euo pipefail
OUT="$(realpath -m "${1:-output/reranking}")"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

DELG=(--cfg configs/delg/synthetic.yaml DATA_DIR "$OUT/data" OUT_DIR "$OUT/delg" INFER.OUT_DIR "$OUT/features")

say "1/7  the synthetic landmarks: for DELG and the test, and others for the transformer"
python tools/make_landmarks.py --root "$OUT/data" --queries 3
python tools/make_landmarks.py --root "$OUT/pairs" --seed 7 --train-landmarks 120 --train-photos 12 \
    --train-size 320 --test-landmarks 1 --distractors 2

say "2/7  training DELG"
python tools/train.py "${DELG[@]}"

say "3/7  descriptors and local features"
python tools/infer.py "${DELG[@]}" INFER.DATASET synthetic INFER.IMAGES "$OUT/data/synthetic/distractors"
python tools/infer.py "${DELG[@]}" INFER.IMAGES "$OUT/pairs/synthetic_train/train_list.txt"

say "4/7  neighbours of the transformer's training images"
python tools/search.py neighbours "$OUT/features/train_list" --top 100 --output "$OUT/neighbours"

say "5/7  training the transformer"
python tools/train.py --cfg configs/rrt/synthetic.yaml DATA_DIR "$OUT/pairs" OUT_DIR "$OUT/rrt" \
    TRAIN.PAIRS.FEATURES "$OUT/features/train_list" TRAIN.PAIRS.NEIGHBOURS "$OUT/neighbours"

say "6/7  reranking"
METHODS=aqe,alpha,superglobal,kreciprocal,diffusion,spatial,rrt,rrt@0.5,rrt@0.5+spatial
python tools/rerank.py --methods "$METHODS" --cfg configs/rrt/synthetic.yaml DATA_DIR "$OUT/data" OUT_DIR "$OUT/rrt" \
    INFER.DATASET synthetic INFER.OUT_DIR "$OUT/features" RERANK.OUT_DIR "$OUT/rerank" \
    RERANK.DISTRACTORS "[$OUT/features/distractors]"

say "7/7  the page of results"
python tools/report.py "$OUT/rerank"/{global,superglobal_top100,spatial_top100,rrt_top100}.json \
    --output "$OUT/report"

say "done: open $OUT/report/index.html"
