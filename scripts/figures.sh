#!/usr/bin/env bash
# The pictures of docs/looking-inside.md: bash scripts/figures.sh DATA WEIGHTS [QUICKSTART [RERANKING]]
#
# DATA holds minilandmarks/, WEIGHTS is timm's tf_efficientnet_lite0; QUICKSTART and RERANKING are what
# scripts/quickstart.sh and scripts/reranking.sh wrote: without them their pictures stay as they are.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: bash scripts/figures.sh DATA WEIGHTS [QUICKSTART [RERANKING]]" >&2; exit 1; }
DATA="$(realpath "$1")" WEIGHTS="$(realpath "$2")"
QUICKSTART="${3:+$(realpath "$3")}" RERANKING="${4:+$(realpath "$4")}"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

PHOTOS="$DATA/minilandmarks/jpg" IMAGES=docs/images FEATURES=output/figures
LITE0=(--cfg configs/eval/efficientnet_lite0_gem.yaml --weights "$WEIGHTS")

say "where a network looks"
python tools/visualize.py attention "${LITE0[@]}" --kinds share --box 153 28 505 441 \
    -o $IMAGES/attention.jpg --image "$PHOTOS"/sacre_coeur_93341989_396310999.jpg \
    "$PHOTOS"/london_bridge_78916675_4568141288.jpg

say "what matches"
python tools/visualize.py matches "${LITE0[@]}" --box 153 28 505 441 -o $IMAGES/matches.jpg \
    --pair "$PHOTOS"/sacre_coeur_93341989_396310999.jpg "$PHOTOS"/sacre_coeur_71295362_4051449754.jpg \
    RERANK.SPATIAL.MATCHING mutual RERANK.SPATIAL.THRESHOLD 10

say "what is alike"
python tools/infer.py --cfg configs/eval/efficientnet_lite0_gem.yaml TEST.WEIGHTS "$WEIGHTS" \
    INFER.DATASET minilandmarks INFER.DATA_DIR "$DATA" INFER.OUT_DIR $FEATURES
python tools/visualize.py embedding --store $FEATURES/minilandmarks/{database,query} \
    --images "$PHOTOS" --gnd "$DATA/minilandmarks/gnd_minilandmarks.pkl" --method tsne \
    -o $IMAGES/embedding.jpg

if [ -n "$QUICKSTART" ]; then
    say "DOLG"
    python tools/visualize.py attention --cfg configs/quickstart.yaml OUT_DIR "$QUICKSTART/train" \
        --image "$QUICKSTART/data/synthetic/jpg/landmark0000_query_0.jpg" --scales 0.7071 1 1.4142 \
        -o $IMAGES/dolg.jpg
fi

if [ -n "$RERANKING" ]; then
    say "the reranking transformer"
    python tools/visualize.py rrt --cfg configs/rrt/synthetic.yaml OUT_DIR "$RERANKING/rrt" \
        --store "$RERANKING"/features/synthetic/{query,database} --images "$RERANKING/data/synthetic/jpg" \
        --pair landmark0000_query_0 landmark0000_easy_0 -o $IMAGES/rrt.jpg
fi
