#!/bin/sh
# Extract descriptors on all GPUs: sh scripts/run_extractor.sh FILE [--retry-failed] [KEY VALUE ...]
#
# One worker per GPU; without any, NPROC workers (default 1) on the CPU. NPROC also takes fewer GPUs than
# there are. The same command goes on where it was stopped. On several nodes that share INFER.OUT_DIR
# start it on each, with INFER.TOTAL_NUM nodes and INFER.CUT_NUM from 1 on, or let Slurm do so:
#     srun --ntasks-per-node 1 sh scripts/run_extractor.sh FILE [KEY VALUE ...]
# Ends with status 0 only if the stores are whole; else it names what is missing.
set -u
if [ $# -lt 1 ]; then
    echo "usage: sh scripts/run_extractor.sh FILE [--retry-failed] [KEY VALUE ...]" >&2
    exit 2
fi
TOOLS="$(dirname "$0")/../tools"
CFG="$1"; shift

GPUS=$(python -c "import torch; print(torch.cuda.device_count())") || exit 1
if [ "$GPUS" -gt 0 ]; then
    set -- NUM_GPUS "${NPROC:-$GPUS}" "$@"
else
    set -- NUM_GPUS "${NPROC:-1}" DEVICE cpu "$@"
fi
if [ "${SLURM_NNODES:-1}" -gt 1 ]; then
    set -- INFER.TOTAL_NUM "$SLURM_NNODES" INFER.CUT_NUM $(( SLURM_NODEID + 1 )) "$@"
fi

# Each worker takes chunks that no other has; torch's elastic launcher starts them again when one dies
python "$TOOLS/infer.py" --cfg "$CFG" "$@"
STATUS=$?
[ "$STATUS" -eq 130 ] && exit 130       # interrupted
# Whole is what counts
python "$TOOLS/infer.py" --cfg "$CFG" --check "$@" || exit 1
exit "$STATUS"
