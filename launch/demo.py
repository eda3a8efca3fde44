"""`matloom demo`: everything once on the embedded data, through the same commands that users have."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launch.start import HERE, environment, finetune_command, pretrain_command, ranks_here, run
from launch.tables import console, table
from shards.errors import ConfigError, MatloomError

RECIPES = HERE.parent / "recipes"
MODEL = "models:/demo@champion"
SOURCE, SPLIT = "dft_crystals", "chemical_system"
TARGETS = {"formation_energy_ev_per_atom": "demo-formation-energy", "band_gap_ev": "demo-band-gap"}
EXAMPLE = "GaN_wurtzite"
MARK = ".matloom-demo"


class Demo:
    """The stages of the demo, and the seconds that each took.

    Parameters
    ----------
    out : Path
        Folder for everything but the MLflow store.
    accelerators : int
        Ranks of the pretraining.
    """

    def __init__(self, out: Path, accelerators: int) -> None:
        self.out, self.accelerators = out, accelerators
        self.shards, self.plots = out / "shards", out / "plots"
        self.seconds: dict[str, float] = {}
        self.model = MODEL

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Announce a stage and keep its time."""
        console.rule(f"[bold]{title}")
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 1)
        console.print(f"[dim]{title}: {self.seconds[name]:.0f} s")

    def build(self) -> None:
        """Build the shards and show what they hold."""
        from launch.progress import build_with_progress
        from launch.tables import print_summary
        from shards.build_recipe import embedded_recipe
        from shards.reader import Dataset
        from shards.summary import summarize

        build_with_progress(embedded_recipe(SOURCE), self.shards)
        print_summary(summarize(Dataset(self.shards)))

    def pretrain(self) -> None:
        """Pretrain; `model` becomes what it registered."""
        from finetune.registry import resolve
        from pretrain.tracking import REGISTERED

        options = ["--set", f"data.path={self.shards}", "--out", str(self.out / "pretrain")]
        command = pretrain_command(RECIPES / "demo.toml", options, self.accelerators)
        console.print(" ".join(command), style="dim", highlight=False)
        _must(run(command), "pretraining failed")
        registered = json.loads((self.out / "pretrain" / REGISTERED).read_text())["uri"]
        if resolve(registered) != resolve(MODEL):
            console.print(f"an earlier champion scores better; this demo goes on with its own {registered}")
            self.model = registered

    def finetune(self) -> dict[str, Any]:
        """Fine-tune for every target at once, one process each, and return the tables."""
        processes = []
        for target, name in TARGETS.items():
            options = ["--config", str(RECIPES / "demo-finetune.toml"), "--out", str(self.out / name)]
            for key, value in (
                ("target", target),
                ("name", name),
                ("data", self.shards),
                ("model", self.model),
            ):
                options += ["--set", f"{key}={value}"]
            processes.append(subprocess.Popen(finetune_command(options), env=environment(threads=1)))
        for code in [process.wait() for process in processes]:
            _must(code, "fine-tuning failed")
        return {
            target: json.loads((self.out / name / "report" / "table.json").read_text())["rows"]
            for target, name in TARGETS.items()
        }

    def evaluate(self) -> list[Any]:
        """Measure retrieval on the test part, for the first and only time, and draw the plots."""
        from finetune.evaluations.base import Subject
        from finetune.evaluations.retrieval import retrieval_table
        from finetune.loading import load_foundation
        from pretrain.plots import retrieval_plot
        from shards.reader import Dataset

        self.plots.mkdir(parents=True, exist_ok=True)
        foundation, dataset = load_foundation(self.model), Dataset(self.shards)
        rows = retrieval_table(foundation, dataset, split=SPLIT)
        for file in (self.out / "pretrain" / "plots").glob("loss.*"):
            shutil.copy(file, self.plots)
        retrieval_plot(self.plots, rows)
        self._map(Subject(model=foundation, dataset=dataset, split=SPLIT))
        for name in TARGETS.values():
            for file in (self.out / name / "report").glob("parity_*"):
                shutil.copy(file, self.plots)
        return rows

    def _map(self, subject: Any) -> None:
        """Draw the embeddings of all crystals: ``latent_map.csv``, one PNG by band gap, one by prototype."""
        from finetune.evaluations.latent_map import LatentMap
        from pretrain.plots import plot, write_csv

        mapped = LatentMap(methods=("tsne",), colours=("band_gap_ev", "prototype"), embedding="crystal")(subject)
        write_csv(self.plots / "latent_map.csv", mapped.tables["latent_map"])
        for name, draw in mapped.plots.items():
            plot(self.plots / f"latent_map_{name.removeprefix('tsne_')}.png", draw, size=(7.5, 4.6))

    def use(self) -> Path:
        """Predict for a CIF, and search by a CIF and by a DOS."""
        from shards.sources.examples import write_examples

        cif, dos = write_examples(self.out / "examples", EXAMPLE)
        for arguments in (
            ["predict", "models:/demo-formation-energy@champion", str(cif)],
            ["predict", "models:/demo-band-gap@champion", str(cif)],
            ["search", self.model, str(cif), "--data", str(self.shards), "-k", "5"],
            ["search", self.model, str(dos), "--data", str(self.shards), "-k", "5"],
        ):
            console.print(f"$ matloom {' '.join(arguments)}", style="bold", highlight=False)
            _must(run([sys.executable, "-m", "launch.cli", *arguments]), f"matloom {arguments[0]} failed")
        return cif


def run_demo(out: Path, *, accelerators: int = 0) -> None:
    """Run the demo and write ``summary.json``: ``retrieval``, ``finetuning`` and ``seconds``."""
    if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
        raise ConfigError("the folder holds something that is no demo", where=out, do="matloom demo --out ANOTHER")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARK).write_text("made by matloom demo, which deletes this folder when it runs again\n")
    demo = Demo(out, accelerators or ranks_here(most_on_cpu=2))
    with demo.stage("shards", "1. shards: 547 crystals with real missing modalities"):
        demo.build()
    with demo.stage("pretraining", f"2. pretraining: five modalities, {demo.accelerators} ranks"):
        demo.pretrain()
    with demo.stage("finetuning", "3. fine-tuning: the honest table"):
        tables = demo.finetune()
    with demo.stage("evaluation", "4. held-out retrieval and plots"):
        retrieval = demo.evaluate()
    with demo.stage("use", "5. use"):
        cif = demo.use()
    summary = {"retrieval": retrieval, "finetuning": tables, "seconds": demo.seconds}
    (out / "summary.json").write_text(json.dumps(summary, indent=1))
    _print(demo, retrieval, tables, cif)


def _print(demo: Demo, retrieval: list[Any], tables: dict[str, Any], cif: Path) -> None:
    shown = ("query", "target", "n", "recall_at_1", "chance_at_1", "recall_at_5", "median_rank")
    console.print(table("Retrieval among held-out materials", [{k: row[k] for k in shown} for row in retrieval]))
    for target, rows in tables.items():
        lines = [
            {
                "strategy": row["strategy"],
                "modalities": "+".join(row["modalities"]) or "none",
                "test MAE": f"{row['test_mae']:.3f}" + (f" +- {row['test_mae_std']:.3f}" if row["seeds"] > 1 else ""),
                "test R2": f"{row['test_r2']:.2f}",
            }
            for row in rows
        ]
        console.print(table(f"{target}, held-out chemical systems, {len(rows)} rows", lines))
        console.print(_verdict(rows))
    total = sum(demo.seconds.values())
    console.print(f"\n{total:.0f} s in all. Plots: {demo.plots}/*.png (and .csv). Numbers: {demo.out}/summary.json")
    console.print("Go on with:")
    for command in (
        "mlflow ui",
        f"matloom search {MODEL} {cif}",
        "matloom pretrain recipes/demo.toml --set objective.kind=all_pairs",
    ):
        console.print(f"  {command}", highlight=False, soft_wrap=True)


def _verdict(rows: list[Any]) -> str:
    """Say whether pretraining helped: by more than the spreads over the seeds together, or not."""
    by_strategy = {row["strategy"]: row for row in rows}
    scratch = by_strategy["scratch"]
    lines = []
    for strategy in ("frozen", "full"):
        row = by_strategy[strategy]
        gain = scratch["test_mae"] - row["test_mae"]
        spread = scratch["test_mae_std"] + row["test_mae_std"]
        verdict = "beats" if gain > spread else "is worse than" if gain < -spread else "is level with"
        lines.append(f"{strategy} {verdict} training from scratch ({-gain:+.3f}, spread {spread:.3f})")
    return "Pretraining: " + "; ".join(lines) + "."


def _must(code: int, what: str) -> None:
    """Raise where a stage failed, with the exit code of what it ran."""
    if code:
        error = MatloomError(what, why=f"exit code {code}; its own message stands above")
        error.exit_code = code
        raise error
