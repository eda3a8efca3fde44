"""How scripts ask ranks to save: pieces of bash.

The signal that asks is USR1, which ends whoever has no handler for it: launchers and ranks in their first moments. So
nobody gets it before he catches it, and the asking is repeated until a rank has heard it. A launcher has a session of
its own, since what a terminal or a scheduler sends to all of a group would make it end the ranks.
"""

from __future__ import annotations

from pretrain.signals import PREEMPTED, REQUEST

# before a launcher that is started in the background: without job control it keeps the process id that $! tells
APART = "setsid "
CATCHES = """\
catches() {
    local mask
    mask=$(sed -n 's/^SigCgt:[[:space:]]*//p' "/proc/$1/status" 2> /dev/null) || return 1
    (( (16#${mask:-0} >> ($(kill -l USR1) - 1)) & 1 ))
}
"""
# the launcher passes it on to the ranks, wherever they are; one that has heard it says so in the run's folder
TELL_LAUNCHER = f"""\
tell() {{
    if catches "$pid"; then kill -s USR1 "$pid" 2> /dev/null || true; fi
    [ -e "$out/{REQUEST}" ]
}}
"""
TELL_CHILDREN = """\
tell() {
    local ranks rank heard=1
    ranks=$(cat /proc/"$pid"/task/*/children 2> /dev/null || true)
    for rank in $ranks; do
        if catches "$rank" && kill -s USR1 "$rank" 2> /dev/null; then heard=0; fi
    done
    return "$heard"
}
"""


def caught(tell: str, why: str) -> str:
    """Return the lines, before the ranks are started, that ask them to save where a signal comes.

    Parameters
    ----------
    tell : str
        ``TELL_LAUNCHER`` or ``TELL_CHILDREN``: tells the ranks of ``$pid``, and succeeds once one has heard it.
    why : str
        Why it is that one.
    """
    return f"""
# every signal means the same: save, and end; {why}.
# USR1 ends who does not catch it yet, so it is sent to those that do, and again until a rank has heard it
asked='' cut='' pid=''
{CATCHES}{tell}ask() {{
    asked=1 cut=1
    if [ -z "$pid" ] || ! kill -0 "$pid" 2> /dev/null || tell; then return 0; fi
    {{ sleep 1; kill -s USR1 "$$"; }} 2> /dev/null &
}}
trap ask TERM USR1 INT HUP
"""


def waited() -> str:
    """Return the end of a script, which waits for what it has started in the background."""
    return f"""\
pid=$!
# it may have come meanwhile
if [ -n "$asked" ]; then ask; fi

while true; do
    cut='' code=0
    wait "$pid" || code=$?
    # a signal ends the waiting, not the run
    [ -n "$cut" ] || break
done
if [ -e "$out/{PREEMPTED}" ]; then exit 75; fi
# 128 + USR1: it came to a rank that had just begun, did not catch it yet, and had nothing to save
if [ -n "$asked" ] && [ "$code" -eq 138 ]; then exit 75; fi
exit "$code"
"""


def stopped() -> str:
    """Return a script that asks all ranks in a container to save, and ends once they have ended."""
    return f"""\
# TERM would end this pod's sshd, and the ranks with it: they are asked to save before
cd /proc
{CATCHES}ranks() {{ grep -ls '[l]aunch\\.pretrain' [0-9]*/cmdline | cut -d / -f 1; }}

while asked=$(ranks) && [ -n "$asked" ]; do
    for rank in $asked; do
        if catches "$rank"; then kill -s USR1 "$rank" 2> /dev/null || true; fi
    done
    sleep 1
done
"""
