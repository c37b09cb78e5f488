#!/bin/bash
# An array job of SLURM: each task takes one shard of the batch. Written by `emdenoised batch --slurm`, which replaces
# the words between @; a copy with other #SBATCH lines is used by --template.
#SBATCH --job-name=emdenoised
#SBATCH --array=@ARRAY@
#SBATCH --output=@LOG@
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=1-00:00:00
#SBATCH --requeue
# Two minutes before the time limit the shard ends after its current tile, and is queued again.
#SBATCH --signal=B:TERM@120

@COMMAND@ --shard "$SLURM_ARRAY_TASK_ID/@TASKS@" &
shard=$!
trap 'kill -TERM $shard 2> /dev/null' TERM
wait $shard
status=$?
if [ $status -gt 128 ]; then # the wait was interrupted by the signal
    wait $shard
    status=$?
fi
# 75: the shard could not go on, but may later: a share that is away, a full disk, the end of the time limit.
if [ $status -eq 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" && sleep 60
fi
exit $status
