"""What a run makes of faults by itself: how often it starts again, on which hosts, and that a lost host is fenced.

Ranks wait in step 8 of their process, or in its first evaluation, which every attempt comes to: after step 6, one after
the checkpoint.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.distributed import held
from tests.distributed.ranks import ROOT
from tests.distributed.runs import Workshop
from tests.launch.faulty import (
    GRACE_S,
    HANG_S,
    HANGS,
    LOST_S,
    TIMES,
    UNCHECKED,
    WHOLE_S,
    counted,
    ended_alone,
    whole_checkpoints,
)
from tests.launch.launched import NOWHERE, Launched, attempts, launch_run, without_dropout
from tests.launch.namespaces import Cluster, wait_for
from tests.launch.test_preflight import instead, sshd

pytestmark = pytest.mark.launch


@pytest.fixture(scope="module")
def shop(shop: Workshop) -> Workshop:
    return without_dropout(shop)


def again(run: Launched, *ranks: int) -> None:
    """Return once the ranks of a new attempt wait."""
    run.reached(*ranks)
    for marker in run.hold.folder.glob("reached-*"):
        marker.unlink()


def test_a_cut_off_host_has_ended_its_ranks_before_the_run_goes_on(
    cluster: Cluster, shop: Workshop, whole: str
) -> None:
    """Else two attempts would write into one folder. Its rank waits for ever, so that only its agent can end it."""
    with counted("restarts", "link down, restart", "its cable is cut", 0) as row:
        with launch_run(cluster, shop, "fenced", *UNCHECKED, "--restarts", 1, phase="step") as run:
            again(run)
            cluster.nodes[1].wire(up=False)
            wait_for(lambda: "attempt 2 of 2" in run.told(), 2 * LOST_S + WHOLE_S)
            assert run.ranks(1) == []
            run.hold.release(0)
            ended_alone(row, run, WHOLE_S)
        assert row["code"] == 0, run.told()
        assert "host node2 is lost" in run.told() and "on node1\n" in run.told()
        assert attempts(shop, "fenced") == [2, 1] and whole_checkpoints(shop, "fenced")
        assert shop.close("fenced", whole)


@pytest.mark.slow
def test_a_host_that_died_and_came_back_is_used_again(cluster: Cluster, shop: Workshop, whole: str) -> None:
    node = cluster.nodes[1]
    with counted("restarts", "a host dies and comes back, restarts", "SIGKILL to everything", 0) as row:
        with launch_run(cluster, shop, "back", *UNCHECKED, "--restarts", 2, phase="eval") as run:
            again(run)
            node.stop_sshd()
            node.kill_all()
            again(run, 0)
            node.start_sshd()
            run.rank(0).kill()
            again(run)
            run.hold.release()
            ended_alone(row, run, WHOLE_S)
        assert row["code"] == 0, run.told()
        assert attempts(shop, "back") == [2, 1, 2]
        assert shop.close("back", whole)


@pytest.mark.slow
def test_a_host_that_comes_back_as_another_one_is_left_out(
    cluster: Cluster, shop: Workshop, whole: str, tmp_path: Path
) -> None:
    node, module = cluster.nodes[1], ROOT / "launch" / "bars.py"
    how = "SIGKILL to everything, one more line in a module when it is back"
    with counted("restarts", "a host comes back with other code", how, 0) as row:
        with (
            launch_run(cluster, shop, "other", *TIMES, "--restarts", 1, phase="step") as run,
            instead(node, module, f"{module.read_text()}# more\n", tmp_path),
        ):
            node.kill_all()
            ended_alone(row, run, WHOLE_S)
        assert row["code"] == 0, run.told()
        assert "matloom: host node2 is left out: code: launch/bars.py is not as on node1" in run.told()
        assert attempts(shop, "other") == [2, 1]
        assert shop.close("other", whole)


def test_who_starts_a_run_again_at_once_waits_for_its_ranks(cluster: Cluster, shop: Workshop, whole: str) -> None:
    """Else two runs would write into one folder; the ranks of the first one have lost their controller, and save."""
    how = "SIGKILL to the controller; the same command while the ranks still save"
    with counted("restarts", "started again at once", how, 0) as row:
        with launch_run(cluster, shop, "twice", *UNCHECKED, "--grace", 120, "--restarts", 0, phase="step") as first:
            first.process.kill()
            first.process.wait()
            with launch_run(
                cluster, shop, "twice", *UNCHECKED, "--restarts", 0, "--resume", "auto", phase=NOWHERE
            ) as second:
                second.until(lambda: "is being written by process" in second.told())
                assert whole_checkpoints(shop, "twice") == [held.SAVE]
                first.hold.release()
                ended_alone(row, second, WHOLE_S)
        assert row["code"] == 0, second.told()
        assert f"step-{held.EXPECTED['step']:08d}\n" in second.told()
        assert shop.same("twice", whole)


@pytest.mark.slow
def test_too_few_hosts_end_it(cluster: Cluster, shop: Workshop) -> None:
    with counted("restarts", "fewer hosts than --min-hosts", "a host dies for good", 8) as row:
        with launch_run(cluster, shop, "few", *UNCHECKED, "--restarts", 3, "--min-hosts", 2, phase="step") as run:
            again(run)
            cluster.nodes[1].stop_sshd()
            cluster.nodes[1].kill_all()
            ended_alone(row, run, 2 * LOST_S)
        assert row["code"] == 8, run.told()
        assert "1 of the 2 hosts that the run needs answer" in run.told() and "where: node2" in run.told()
        assert whole_checkpoints(shop, "few") == [held.SAVE]


@pytest.mark.slow
def test_a_crash_that_repeats_ends_after_the_restarts(cluster: Cluster, shop: Workshop) -> None:
    how = "SIGKILL to the ranks in the first evaluation, each time"
    with counted("restarts", "a crash in every attempt", how, 137) as row:
        with launch_run(cluster, shop, "repeats", *UNCHECKED, "--restarts", 1, phase="eval") as run:
            for _ in range(2):
                again(run)
                run.rank(1).kill()
                run.rank(0).kill()
            ended_alone(row, run, GRACE_S)
        assert row["code"] == 137, run.told()
        assert "given up after 1 restart\n" in run.told() and attempts(shop, "repeats") == [2, 2]
        assert whole_checkpoints(shop, "repeats") == [held.SAVE]


@pytest.mark.slow
def test_a_hang_is_restarted(cluster: Cluster, shop: Workshop, whole: str) -> None:
    with counted("restarts", "a rank stopped, restart", "SIGSTOP", 0) as row:
        with launch_run(cluster, shop, "hangs", *UNCHECKED, "--restarts", 1, *HANGS, phase="step") as run:
            again(run)
            run.rank(1).suspend()
            run.hold.release()
            ended_alone(row, run, HANG_S + 10 + LOST_S + WHOLE_S)
        assert row["code"] == 0, run.told()
        assert "rank 1 of 2 hangs in step 8" in run.told() and attempts(shop, "hangs") == [2, 2]
        assert shop.same("hangs", whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "out", "option"),
    [
        (2, "recipe", "objective.anchor=nobody"),
        (3, "data", "data.path=/nowhere"),
        (4, "whole", "seed=5"),
        (6, "diverged", "optim.lr=1e30"),
    ],
)
def test_what_no_other_attempt_mends_is_tried_once(
    cluster: Cluster, shop: Workshop, whole: str, code: int, out: str, option: str
) -> None:
    with counted("restarts", f"exit code {code}", f"--set {option}", code) as row:
        with launch_run(cluster, shop, out, *UNCHECKED, "--restarts", 2, "--set", option, phase=NOWHERE) as run:
            ended_alone(row, run, WHOLE_S)
        assert row["code"] == code, run.told()
        assert "attempt 2" not in run.told()


@pytest.mark.slow
def test_an_outage_shorter_than_the_time_out_is_lived_through(cluster: Cluster, shop: Workshop, whole: str) -> None:
    """Also one that is longer than the 15 s after which ssh gives up by itself."""
    with counted("restarts", "link down for 20 s of 60", "its cable is cut, and mended", 0) as row:
        with (
            sshd(cluster.nodes[1], "ClientAliveInterval 0\n"),
            launch_run(cluster, shop, "outage", *UNCHECKED, "--restarts", 0, "--host-timeout", 60, phase="step") as run,
        ):
            again(run)
            cluster.nodes[1].wire(up=False)
            with contextlib.suppress(AssertionError):
                wait_for(lambda: run.process.poll() is not None, 20)
            cluster.nodes[1].mend()
            run.hold.release()
            ended_alone(row, run, WHOLE_S)
        assert row["code"] == 0, run.told()
        assert shop.same("outage", whole)
