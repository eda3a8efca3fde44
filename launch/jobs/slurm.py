"""A batch script for SLURM, which puts itself back into the queue when its time is up, and goes on from there.

``srun`` starts the ranks themselves, without an agent or another launcher in between: SLURM reaches every task on
every node with its signals, and ends what is left. What ``matloom launch run`` adds to that is written out here:
restarts, one exit code, a log a rank.
"""

from __future__ import annotations

from launch.jobs.base import Job, forgotten, header, shell, staged
from pretrain.signals import PREEMPTED

# what another attempt may mend: a hang, a lost host, what nobody foresaw, and the signals from outside (128 + n)
MENDABLE = "7 | 8 | 70 | 129 | 1[3-9]? | 2??"
ONCE_A_NODE = 'srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 '


def render(job: Job) -> str:
    """Return the script."""
    how = [
        "Submit it by `sbatch FILE`; options given there win over those below (sbatch --qos=NAME --nodes=4 FILE).",
        f"{job.grace_s} s before its time is up, SLURM sends USR1 to the ranks, and to them alone: they save and end",
        "with 75, and this script puts the job back into the queue. SLURM itself does so after a node has failed, or",
        "for a job of higher priority. `scancel JOB` ends it for good; the ranks save then too, where KillWait of",
        "slurm.conf leaves them the time.",
    ]
    first, rest = header(job, how).split("\n", 1)
    return "\n".join([first, *(f"#SBATCH {option}" for option in _options(job)), rest, _start(job), _end(job)])


def _options(job: Job) -> list[str]:
    """Return what sbatch is asked for; nothing of it can hold a space or a quote."""
    wanted = {
        "job-name": job.label,
        "nodes": job.nodes,
        "ntasks-per-node": job.ranks_per_node,
        "gpus-per-node": job.gpus_per_node or None,
        "cpus-per-task": job.cpus or None,
        "nodelist": ",".join(job.hosts) or None,
        "partition": job.partition,
        "account": job.account,
        "time": job.time,
        # all of it: the nodes are ours alone
        "mem": 0,
        "signal": f"USR1@{job.grace_s}",
        "output": f"{job.label}-%j.log",
        "open-mode": "append",
    }
    return [*(f"--{name}={value}" for name, value in wanted.items() if value is not None), "--exclusive", "--requeue"]


def _start(job: Job) -> str:
    """Return the lines that start the ranks and wait for them."""
    # since 22.05 srun does not take the first from sbatch; without it, it would bind each rank to one core
    cpus = f"--cpus-per-task={job.cpus}" if job.cpus else "--cpu-bind=none"
    srun = ["srun", cpus, "--kill-on-bad-exit=0", f"--wait={job.grace_s}"]
    lines = staged(job, ONCE_A_NODE)
    if lines:
        # the command: its failure is judged below like that of the run
        lines[2] += " || code=$?"
    return "\n".join(
        [
            forgotten(),
            'logs="$out/logs/slurm-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"',
            'mkdir -p -- "$logs"',
            'echo "attempt ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST; the ranks write to $logs"',
            'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"',
            "code=0",
            *lines,
            "",
            "# once a rank has ended, the others get some time to save; --kill-on-bad-exit would end them at once.",
            "# No trap for TERM: SLURM sends it to end the job for good, and then this must not start it again",
            f'[ "$code" -ne 0 ] || {shell(srun)} \\',
            '    --output="${logs//%/%%}/rank-%5t.log" \\',
            f'    {shell([job.python, "-u", *job.module()])} 2> "$logs/srun.log" || code=$?',
            '[ ! -e "$logs/srun.log" ] || cat -- "$logs/srun.log" >&2',
        ]
    )


def _end(job: Job) -> str:
    """Return the lines that decide what an exit code means."""
    return f"""\

failures="$out/logs/slurm-$SLURM_JOB_ID.failures" saved="$out/logs/slurm-$SLURM_JOB_ID.saved"
again=
if [ -e "$out/{PREEMPTED}" ]; then
    # saved; a rank that did not end in time changes nothing
    code=75
    step=$(grep -o '"step": *[0-9]*' "$out/{PREEMPTED}" || true)
    # without a step since the last time it counts as a failure: the time may be too short for one
    if [ "$step" != "$(cat -- "$saved" 2>/dev/null || true)" ]; then again=1; fi
    echo "$step" > "$saved"
elif [ "$code" -ne 0 ]; then
    # srun gives the highest code; one rank's error in recipe, data, checkpoint or registry is what made others fail
    own=$(grep -oE 'Exited with exit code [2-6]$' -- "$logs/srun.log" 2>/dev/null | head -n 1 || true)
    if [ -n "$own" ]; then code=${{own##* }}; fi
    echo "failed with $code"
    grep -h -A4 '^matloom: ' -- "$logs"/rank-*.log | head -n 20 || true
fi
case "$code" in
    75 | {MENDABLE})
        if [ -z "$again" ]; then
            echo "$code" >> "$failures"
            if [ "$(wc -l < "$failures")" -le {job.restarts} ]; then again=1; fi
        fi
        ;;
esac
if [ -n "$again" ]; then scontrol requeue "$SLURM_JOB_ID" || echo "this SLURM does not requeue; submit it again"; fi
exit "$code"
"""
