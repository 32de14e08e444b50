#!/usr/bin/env bash
# Train on Slurm, over any number of nodes: sbatch [--nodes N] scripts/train_slurm.sh FILE [KEY VALUE ...]
#
# Two minutes before its time is over the job gets SIGUSR1, saves a checkpoint and ends; it is then
# queued again, and goes on from there until the last epoch is done.
#SBATCH --job-name=dolg
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=96
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
CFG="$1"; shift
MASTER="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"

# The agents pass the signals on; the workers have longer than torchrun's half a minute to save
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110
# Workers started again do not look for those that died (pytorch/pytorch#135712)
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" \
    --max-restarts 3 --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d \
    --rdzv-endpoint "$MASTER:29500" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    tools/train.py --cfg "$CFG" "$@" &
STEP=$!

REQUEUE=
trap 'REQUEUE=1; scancel --signal=USR1 "$SLURM_JOB_ID.0"' USR1
wait "$STEP"
STATUS=$?
if [ -n "$REQUEUE" ]; then
    wait "$STEP"        # the first wait ended with the signal
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$STATUS"
