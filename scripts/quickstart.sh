#!/usr/bin/env bash
# From nothing to an mAP table: bash scripts/quickstart.sh [OUT_DIR]
#
# Makes a synthetic landmark benchmark, trains a small DOLG on its training landmarks, and
# scores the network before and after training on landmarks that it never saw.
# Started again with the same OUT_DIR, it goes on where it was stopped.
set -euo pipefail
OUT="$(realpath -m "${1:-output/quickstart}")"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

DATA="$OUT/data"
CFG=(--cfg configs/quickstart.yaml DATA_DIR "$DATA" OUT_DIR "$OUT/train")

say "1/5  the synthetic landmarks"
python tools/make_landmarks.py --root "$DATA"

say "2/5  training"
python tools/train.py "${CFG[@]}"

say "3/5  descriptors, before and after training"
LAST=$(ls "$OUT"/train/checkpoints/model_epoch_*.pyth | tail -n 1)
for NAME in untrained trained; do
    WEIGHTS="$OUT/train/checkpoints/model_epoch_0000.pyth"
    [ "$NAME" = trained ] && WEIGHTS="$LAST"
    python tools/infer.py "${CFG[@]}" TEST.WEIGHTS "$WEIGHTS" INFER.OUT_DIR "$OUT/features/$NAME" \
        INFER.IMAGES "$DATA/synthetic/distractors"
done

say "4/5  scores on unseen landmarks"
score() {   # score RESULT FEATURES [--distractors STORE]
    echo "$1:"
    python revisitop/evaluate.py --gnd "$DATA/synthetic/gnd_synthetic.pkl" \
        --query "$OUT/features/$2/synthetic/query" \
        --database "$OUT/features/$2/synthetic/database" --json "$OUT/$1.json" "${@:3}"
}
score untrained untrained
score trained trained
score trained_distractors trained --distractors "$OUT/features/trained/distractors"

say "5/5  the page of results"
# --across: with and without distractors on one page
python tools/report.py --across "$OUT/untrained.json" "$OUT/trained.json" "$OUT/trained_distractors.json" \
    --training "$OUT/train" --json "$OUT/results.json" --output "$OUT/report.html"

say "done: open $OUT/report.html"
