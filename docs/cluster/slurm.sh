#!/usr/bin/env bash
#SBATCH --job-name=prunefront
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@300
# A Ray cluster inside a job, and a search on it. What is under way five minutes before the end is recorded;
# submit the same job again and it goes on.
#   sbatch docs/cluster/slurm.sh --model vim_small --checkpoint /shared/vim_small.pth --data folder:/shared/imagenet \
#     --flops-budget 0.5:0.7 --trials 2000 --study vim-s --db postgresql://prunefront@dbhost/prunefront
set -euo pipefail

# The nodes share the home folder: the token lies there, and only its owner may read it.
umask 077
token="$HOME/.prunefront-ray-token-$SLURM_JOB_ID"
head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token" RAY_USAGE_STATS_ENABLED=0
trap 'rm -f "$token"' EXIT

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs on one node do not meet
address="$(getent ahostsv4 "${nodes[0]}" | awk 'NR == 1 {print $1}'):$port"
cpus="$SLURM_CPUS_PER_TASK"

# srun of the head and of the others; each ends with the job.
srun --overlap --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" \
  ray start --block --head --port="$port" --node-ip-address="${address%:*}" --num-cpus="$cpus" --include-dashboard=false &
for _ in $(seq 60); do
  ray health-check --address "$address" >/dev/null 2>&1 && break
  sleep 2
done
for node in "${nodes[@]:1}"; do
  srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" ray start --block --address="$address" --num-cpus="$cpus" &
done
# How many evaluations run at a time is settled when the search starts, so all nodes must be there.
python - "$address" "${#nodes[@]}" <<'PYTHON'
import sys, time
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
deadline = time.monotonic() + 300
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]) and time.monotonic() < deadline:
    time.sleep(1)
PYTHON

# bash hands the signal on, once: a second one would end the search without recording what is under way.
prunefront search --ray-address "$address" "$@" &
search=$!
trap 'kill -TERM "$search"' TERM
status=0
wait "$search" || status=$?
if kill -0 "$search" 2>/dev/null; then # the signal ended the first wait
  status=0
  wait "$search" || status=$?
fi
exit "$status"
