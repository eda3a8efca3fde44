"""`matloom launch run` on two hosts: what it learns, and what it does when ranks, hosts and cables fail."""

from __future__ import annotations

import contextlib
import re
import signal
from pathlib import Path

import psutil
import pytest

from tests.distributed.ranks import ROOT, TIMEOUT_S
from tests.distributed.runs import Workshop
from tests.launch.namespaces import Cluster, wait_for

pytestmark = pytest.mark.launch
SCRIPT = ROOT / "docs" / "examples" / "launch" / "run.sh"
# long enough that a fault comes before the end
EPOCHS, SAVE = 20, 10
ENDLESS = ("--set", "optim.epochs=2000")
QUICK = ("--no-check", "--host-timeout", 15, "--grace", 5)
# what is to save gets the time on a busy machine too
TO_SAVE = ("--grace", 120)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Workshop:
    shop = Workshop.make(tmp_path_factory.mktemp("run"), toy_folder, epochs=EPOCHS, evaluate=10, save=SAVE)
    # each rank draws its own: the only thing that the number of ranks changes
    shop.recipe.write_text(re.sub("dropout = .*", "dropout = 0.0", shop.recipe.read_text()))
    return shop


@pytest.fixture(scope="module")
def alone(shop: Workshop) -> str:
    """A run of one process, which no launcher has started."""
    ((code, told),) = shop.run(shop.arguments("alone"))
    assert code == 0, told
    return "alone"


class Command:
    """A run that a user of node1 has started; a context that leaves no process behind."""

    def __init__(
        self,
        cluster: Cluster,
        shop: Workshop,
        out: str,
        *options: object,
        slots: int = 1,
        hostfile: str = "",
        order: tuple[int, int] = (0, 1),
    ) -> None:
        self.cluster, self.shop, self.out, self.log = cluster, shop, shop.folder / out, shop.folder / f"{out}.log"
        lines = [f"{cluster.nodes[number].name} slots={slots}\n" for number in order]
        hosts = shop.folder / f"{out}.hosts"
        hosts.write_text(hostfile or "".join(lines))
        env = {
            **shop.environment(), "RECIPE": str(shop.recipe), "OUT": str(self.out), "HOSTFILE": str(hosts),
            "SSH": f"ssh -F {cluster.folder}/ssh_config",
        }  # fmt: skip
        self.process = cluster.nodes[0].popen(SCRIPT, *options, log=self.log, env=env)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *error: object) -> None:
        for node in self.cluster.nodes:
            node.kill_all()
        self.process.wait()

    def wait(self) -> int:
        code = self.process.wait(TIMEOUT_S)
        assert self.cluster.strays() == [], self.told()
        return code

    def told(self) -> str:
        return self.log.read_text()

    def rank(self, number: int) -> psutil.Process:
        """Return the process of a rank of the newest attempt."""
        for node in self.cluster.nodes:
            for process in node.processes():
                with contextlib.suppress(psutil.Error):
                    if "-u" in process.cmdline() and process.environ().get("RANK") == str(number):
                        return process
        raise AssertionError(f"there is no rank {number}: {self.told()}")

    def agent(self, node: int) -> psutil.Process:
        (agent,) = [p for p in self.cluster.nodes[node].processes() if "launch.hosts.agent" in p.cmdline()]
        return agent

    def steps(self) -> int:
        metrics = self.out / "metrics.jsonl"
        return len(metrics.read_text().splitlines()) if metrics.exists() else 0

    def trained(self, steps: int) -> None:
        """Return once so many steps are made."""
        wait_for(lambda: self.steps() >= steps or self.process.poll() is not None)
        assert self.process.poll() is None, self.told()


def attempts(shop: Workshop, out: str) -> list[int]:
    """Number of ranks of each attempt."""
    folders = sorted((shop.folder / out / "logs").iterdir())
    assert [folder.name for folder in folders] == [f"attempt-{i}" for i in range(1, len(folders) + 1)]
    return [len(list(folder.glob("rank-0000?.log"))) for folder in folders]


def test_two_hosts_of_two_ranks_learn_what_one_process_learns(cluster: Cluster, shop: Workshop, alone: str) -> None:
    with Command(cluster, shop, "four", slots=2) as command:
        assert command.wait() == 0, command.told()
    assert shop.close("four", alone)
    assert attempts(shop, "four") == [4]


def test_a_host_that_dies_is_done_without(cluster: Cluster, shop: Workshop, alone: str) -> None:
    with Command(cluster, shop, "less", *QUICK) as command:
        command.trained(SAVE + 2)
        cluster.nodes[1].stop_sshd()
        cluster.nodes[1].kill_all()
        assert command.wait() == 0, command.told()
        told = command.told()
    assert "host node2 is lost" in told and "host node2 does not answer" in told
    assert "from the newest good checkpoint, on node1\n" in told
    assert attempts(shop, "less") == [2, 1]
    assert shop.close("less", alone)


def test_the_first_host_that_dies_is_done_without_too_and_comes_back(
    cluster: Cluster, shop: Workshop, alone: str
) -> None:
    # started elsewhere than on the host that dies
    with Command(cluster, shop, "back", "--master-addr", cluster.nodes[1].address, *QUICK, order=(1, 0)) as command:
        command.trained(SAVE + 2)
        cluster.nodes[1].kill_all()
        assert command.wait() == 0, command.told()
        assert "host node2 is lost" in command.told()
    assert attempts(shop, "back") == [2, 2]
    assert shop.close("back", alone)


def test_fewer_hosts_than_it_needs_end_it(cluster: Cluster, shop: Workshop) -> None:
    with Command(cluster, shop, "needs", "--min-hosts", 2, *QUICK, *ENDLESS) as command:
        command.trained(2)
        cluster.nodes[1].stop_sshd()
        cluster.nodes[1].kill_all()
        assert command.wait() == 8, command.told()
        told = command.told()
    assert "1 of the 2 hosts that the run needs answer" in told and "where: node2" in told and "refused" in told


@pytest.mark.parametrize("slots", ["node1 slots=1\nnode2 slots=1\n", "node1 slots=1\nnode9 slots=1\n"])
def test_a_host_that_is_not_there_is_named_before_anything_runs(cluster: Cluster, shop: Workshop, slots: str) -> None:
    out = f"away-{'node9' in slots}"
    cluster.nodes[1].stop_sshd()
    with Command(cluster, shop, out, *QUICK, hostfile=slots) as command:
        assert command.wait() == 8, command.told()
        told = command.told()
    assert f"where: {'node9' if 'node9' in slots else 'node2'}" in told
    assert ("not resolve" if "node9" in slots else "refused") in told
    assert not (shop.folder / out / "logs").exists()


def test_hosts_that_are_enough_start_without_one_that_is_away(cluster: Cluster, shop: Workshop, alone: str) -> None:
    cluster.nodes[1].stop_sshd()
    with Command(cluster, shop, "enough", "--min-hosts", 1, "--host-timeout", 15) as command:
        assert command.wait() == 0, command.told()
        told = command.told()
    assert "goes on without node2, not reached" in told
    assert attempts(shop, "enough") == [1]
    assert shop.close("enough", alone)


def test_a_rank_that_is_killed_is_named_and_all_start_again(cluster: Cluster, shop: Workshop, alone: str) -> None:
    with Command(cluster, shop, "again", *QUICK) as command:
        command.trained(SAVE + 2)
        command.rank(1).kill()
        assert command.wait() == 0, command.told()
        told = command.told()
    assert "rank 1 on node2 was ended by SIGKILL" in told
    assert attempts(shop, "again") == [2, 2]
    assert shop.close("again", alone)


def test_without_restarts_the_exit_code_is_that_of_the_signal(cluster: Cluster, shop: Workshop) -> None:
    with Command(cluster, shop, "once", "--restarts", 0, *QUICK, *ENDLESS) as command:
        command.trained(2)
        command.rank(1).kill()
        assert command.wait() == 128 + signal.SIGKILL, command.told()


def test_an_agent_that_is_stopped_loses_its_host_and_ends_its_ranks_when_it_goes_on(
    cluster: Cluster, shop: Workshop
) -> None:
    with Command(cluster, shop, "stopped", "--restarts", 0, *QUICK, *TO_SAVE, *ENDLESS) as command:
        command.trained(2)
        agent, rank = command.agent(1), command.rank(1)
        agent.suspend()
        # its ranks live: asked to end, all save
        assert command.process.wait(TIMEOUT_S) == 75, command.told()
        assert "host node2 is lost: no sign of life for 15 s" in command.told()
        agent.resume()
        wait_for(lambda: not agent.is_running() and not rank.is_running())
        assert cluster.strays() == []


def test_a_cut_cable_leaves_no_orphans_on_either_side(cluster: Cluster, shop: Workshop) -> None:
    with Command(cluster, shop, "cut", "--restarts", 0, *QUICK, *ENDLESS) as command:
        command.trained(2)
        cluster.nodes[1].wire(up=False)
        assert command.process.wait(TIMEOUT_S) == 8, command.told()
        assert "host node2 is lost" in command.told()
        # it has heard nobody for as long, and ends its ranks itself
        wait_for(lambda: cluster.strays() == [], 150)


@pytest.mark.parametrize("target", ["controller", "agent", "rank"])
def test_a_signal_to_any_of_them_makes_both_hosts_save(cluster: Cluster, shop: Workshop, target: str) -> None:
    out = f"asked-{target}"
    with Command(cluster, shop, out, *QUICK, *ENDLESS) as command:
        command.trained(2)
        if target == "controller":
            command.process.send_signal(signal.SIGTERM)
        else:
            (command.agent(1) if target == "agent" else command.rank(1)).send_signal(signal.SIGUSR1)
        assert command.wait() == 75, command.told()
    assert len(shop.checkpoints(out)) == 1 and attempts(shop, out) == [2]


def test_the_death_of_the_command_is_that_of_the_run_which_saves(cluster: Cluster, shop: Workshop) -> None:
    with Command(cluster, shop, "headless", *QUICK, *TO_SAVE, *ENDLESS) as command:
        command.trained(2)
        command.process.kill()
        wait_for(lambda: cluster.strays() == [], 150)
    assert (shop.folder / "headless" / "preempted.json").exists() and len(shop.checkpoints("headless")) == 1
