"""`matloom launch run` on two hosts: what it learns, and what it does when ranks, hosts and cables fail."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.distributed.runs import Workshop
from tests.launch.launched import attempts, launch_run, without_dropout
from tests.launch.namespaces import Cluster, wait_for

pytestmark = pytest.mark.launch
# long enough that a fault comes before the end
EPOCHS, SAVE = 20, 10
ENDLESS = ("--set", "optim.epochs=2000")
QUICK = ("--no-check", "--host-timeout", 15, "--grace", 5)
# what is to save gets the time on a busy machine too
TO_SAVE = ("--grace", 120)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Workshop:
    shop = Workshop.make(tmp_path_factory.mktemp("run"), toy_folder, epochs=EPOCHS, evaluate=10, save=SAVE)
    return without_dropout(shop)


@pytest.fixture(scope="module")
def alone(shop: Workshop) -> str:
    """A run of one process, which no launcher has started."""
    ((code, told),) = shop.run(shop.arguments("alone"))
    assert code == 0, told
    return "alone"


def test_two_hosts_of_two_ranks_learn_what_one_process_learns(cluster: Cluster, shop: Workshop, alone: str) -> None:
    with launch_run(cluster, shop, "four", slots=2) as run:
        assert run.end_alone() == 0, run.told()
    assert shop.close("four", alone)
    assert attempts(shop, "four") == [4]


def test_a_host_that_dies_is_done_without(cluster: Cluster, shop: Workshop, alone: str) -> None:
    with launch_run(cluster, shop, "less", *QUICK) as run:
        run.trained(SAVE + 2)
        cluster.nodes[1].stop_sshd()
        cluster.nodes[1].kill_all()
        assert run.end_alone() == 0, run.told()
        told = run.told()
    assert "host node2 is lost" in told and "host node2 does not answer" in told
    assert "from the newest good checkpoint, on node1\n" in told
    assert attempts(shop, "less") == [2, 1]
    assert shop.close("less", alone)


def test_the_first_host_that_dies_is_done_without_too_and_comes_back(
    cluster: Cluster, shop: Workshop, alone: str
) -> None:
    # started elsewhere than on the host that dies
    order = "node2 slots=1\nnode1 slots=1\n"
    with launch_run(cluster, shop, "back", "--master-addr", cluster.nodes[1].address, *QUICK, hostfile=order) as run:
        run.trained(SAVE + 2)
        cluster.nodes[1].kill_all()
        assert run.end_alone() == 0, run.told()
        assert "host node2 is lost" in run.told()
    assert attempts(shop, "back") == [2, 2]
    assert shop.close("back", alone)


def test_fewer_hosts_than_it_needs_end_it(cluster: Cluster, shop: Workshop) -> None:
    with launch_run(cluster, shop, "needs", "--min-hosts", 2, *QUICK, *ENDLESS) as run:
        run.trained(2)
        cluster.nodes[1].stop_sshd()
        cluster.nodes[1].kill_all()
        assert run.end_alone() == 8, run.told()
        told = run.told()
    assert "1 of the 2 hosts that the run needs answer" in told and "where: node2" in told and "refused" in told


@pytest.mark.parametrize("slots", ["node1 slots=1\nnode2 slots=1\n", "node1 slots=1\nnode9 slots=1\n"])
def test_a_host_that_is_not_there_is_named_before_anything_runs(cluster: Cluster, shop: Workshop, slots: str) -> None:
    out = f"away-{'node9' in slots}"
    cluster.nodes[1].stop_sshd()
    with launch_run(cluster, shop, out, *QUICK, hostfile=slots) as run:
        assert run.end_alone() == 8, run.told()
        told = run.told()
    assert f"where: {'node9' if 'node9' in slots else 'node2'}" in told
    assert ("not resolve" if "node9" in slots else "refused") in told
    assert not (shop.folder / out / "logs").exists()


def test_hosts_that_are_enough_start_without_one_that_is_away(cluster: Cluster, shop: Workshop, alone: str) -> None:
    cluster.nodes[1].stop_sshd()
    with launch_run(cluster, shop, "enough", "--min-hosts", 1, "--host-timeout", 15) as run:
        assert run.end_alone() == 0, run.told()
        told = run.told()
    assert "goes on without node2, not reached" in told
    assert attempts(shop, "enough") == [1]
    assert shop.close("enough", alone)


def test_a_rank_that_is_killed_is_named_and_all_start_again(cluster: Cluster, shop: Workshop, alone: str) -> None:
    with launch_run(cluster, shop, "again", *QUICK) as run:
        run.trained(SAVE + 2)
        run.rank(1).kill()
        assert run.end_alone() == 0, run.told()
        told = run.told()
    assert "rank 1 on node2 was ended by SIGKILL" in told
    assert attempts(shop, "again") == [2, 2]
    assert shop.close("again", alone)


def test_without_restarts_the_exit_code_is_that_of_the_signal(cluster: Cluster, shop: Workshop) -> None:
    with launch_run(cluster, shop, "once", "--restarts", 0, *QUICK, *ENDLESS) as run:
        run.trained(2)
        run.rank(1).kill()
        assert run.end_alone() == 128 + signal.SIGKILL, run.told()


def test_an_agent_that_is_stopped_loses_its_host_and_ends_its_ranks_when_it_goes_on(
    cluster: Cluster, shop: Workshop
) -> None:
    with launch_run(cluster, shop, "stopped", "--restarts", 0, *QUICK, *TO_SAVE, *ENDLESS) as run:
        run.trained(2)
        agent, rank = run.agent(1), run.rank(1)
        agent.suspend()
        # its ranks live: asked to end, all save
        assert run.end() == 75, run.told()
        assert "host node2 is lost: no sign of life for 15 s" in run.told()
        agent.resume()
        wait_for(lambda: not agent.is_running() and not rank.is_running())
        assert cluster.strays() == []


def test_a_cut_cable_leaves_no_orphans_on_either_side(cluster: Cluster, shop: Workshop) -> None:
    with launch_run(cluster, shop, "cut", "--restarts", 0, *QUICK, *ENDLESS) as run:
        run.trained(2)
        cluster.nodes[1].wire(up=False)
        assert run.end() == 8, run.told()
        assert "host node2 is lost" in run.told()
        # it has heard nobody for as long, and ends its ranks itself
        run.alone(150)


@pytest.mark.parametrize("target", ["controller", "agent", "rank"])
def test_a_signal_to_any_of_them_makes_both_hosts_save(cluster: Cluster, shop: Workshop, target: str) -> None:
    out = f"asked-{target}"
    with launch_run(cluster, shop, out, *QUICK, *ENDLESS) as run:
        run.trained(2)
        if target == "controller":
            run.process.send_signal(signal.SIGTERM)
        else:
            (run.agent(1) if target == "agent" else run.rank(1)).send_signal(signal.SIGUSR1)
        assert run.end_alone() == 75, run.told()
    assert len(shop.checkpoints(out)) == 1 and attempts(shop, out) == [2]


def test_the_death_of_the_command_is_that_of_the_run_which_saves(cluster: Cluster, shop: Workshop) -> None:
    with launch_run(cluster, shop, "headless", *QUICK, *TO_SAVE, *ENDLESS) as run:
        run.trained(2)
        run.process.kill()
        run.alone(150)
    assert (shop.folder / "headless" / "preempted.json").exists() and len(shop.checkpoints("headless")) == 1
