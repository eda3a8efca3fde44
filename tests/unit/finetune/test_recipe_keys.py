"""Experts, late fusion, folds and ensembles as keys of a recipe, through the comparison that a user starts."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from finetune.compare import Comparison
from finetune.config import FinetuneRecipe, load_finetune_recipe
from finetune.ensembles import PredictorEnsemble
from finetune.experts import Experts
from finetune.loading import PropertyModel, load
from finetune.predictor import read_predictor
from pretrain.config import Recipe
from shards.build import build
from shards.errors import CheckpointError, ConfigError, DataError
from shards.reader import Dataset
from shards.resplit import add_split
from shards.schema import Value
from shards.sealed import publish, staging
from shards.sources.base import Record
from shards.splits import SplitPlan
from tests.random_models import write_model
from tests.synthetic import FEATURES, SPLITS, ToyVector, generator, hidden, records
from tests.unit.finetune.predictors import digest

pytestmark = pytest.mark.usefixtures("mlflow_store")
BOTH = ("a", "b")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path, recipe: Recipe) -> Path:
    """A model of other weights that was pretrained on something else."""
    dataset = Dataset(toy_folder, list(recipe.modalities))
    folder = tmp_path_factory.mktemp("stranger") / "model"
    return write_model(
        folder, recipe, dataset, seed=7, data_name="other", data_sha256="1" * 64, data_contents=["9" * 64]
    )


@pytest.fixture(scope="module")
def causes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy records with labels that their modalities tell of."""

    def labelled() -> Iterator[Record]:
        for record in records():
            cause = hidden(record.id)
            labels = {"cause_ev": float(cause[0] + cause[1]), "sign": float(cause[0] > 0)}
            yield replace(record, labels={**record.labels, **labels})

    folder = tmp_path_factory.mktemp("causes") / "causes"
    build(labelled(), FEATURES, folder, name="causes", splits=SPLITS, workers=1, shard_samples=16)
    return folder


class Copied(ToyVector):
    """Samples whose ids differ behind a # alone are near copies of each other."""

    def __call__(self, record: Record) -> Value | None:
        rng = generator(self.step, record.id)
        return self.view(hidden(record.id.partition("#")[0]), rng)


def comparison(model: Path, data: Path, out: Path, rows: list[Any], **changes: Any) -> Comparison:
    tables = {
        "name": "keys",
        "model": str(model),
        "data": str(data),
        "target": "cause_ev",
        "seeds": (0, 1),
        "rows": [{"modalities": BOTH, **(row if "strategy" in row else {"strategy": row})} for row in rows],
        "optim": {"epochs": 2, "frozen_epochs": 8, "lr": 0.01},
        "head": {"kind": "regression", "dropout": 0.0},
    }
    return Comparison(FinetuneRecipe.model_validate({**tables, **changes}), out, report=lambda line: None)


def held(compared: Comparison, part: str) -> list[Any]:
    return [compared.dataset[int(i)] for i in compared.data.parts[part].positions]


class TestExperts:
    @pytest.mark.parametrize("gate", ["static", "input", "noisy_top_k"])
    def test_a_mixture_is_trained_registered_and_loaded_without_its_experts(
        self, gate: str, export_folder: Path, stranger: Path, causes: Path, tmp_path: Path
    ) -> None:
        models = [str(export_folder), str(stranger)]
        row = {"kind": "experts", "models": models, "gate": gate}
        compared = comparison(stranger, causes, tmp_path, [row], seeds=(0,))
        (result,) = compared.run()
        model = load(str(tmp_path / "predictor"))
        assert isinstance(model, PropertyModel) and isinstance(model.predictor.featurizer, Experts)
        value = model.estimate(held(compared, "test"))
        np.testing.assert_allclose(value.value.numpy(), result.predictions, atol=1e-5)
        assert value.lower is not None and value.importance is None
        assert [source["uri"] for source in model.predictor.featurizer.sources] == models
        gate_of = model.predictor.featurizer.gate
        assert all(parameter.isfinite().all() for parameter in gate_of.parameters())

    def test_experts_stay_as_they_are_and_the_gate_learns(
        self, export_folder: Path, stranger: Path, causes: Path, tmp_path: Path
    ) -> None:
        row = {"kind": "experts", "models": [str(export_folder), str(stranger)], "gate": "input"}
        compared = comparison(stranger, causes, tmp_path, [row])
        first, second = (compared.fitter.fit(compared.recipe.rows[0], seed).predictor for seed in (0, 1))
        assert first is not None and second is not None
        ours = [digest(expert) for expert in first.featurizer.experts]  # type: ignore[union-attr]
        assert ours == [digest(expert) for expert in second.featurizer.experts]  # type: ignore[union-attr]
        assert ours[0] != ours[1]
        assert digest(first.featurizer.gate) != digest(second.featurizer.gate)  # type: ignore[arg-type]

    def test_what_the_gate_adds_is_part_of_the_loss(
        self, export_folder: Path, stranger: Path, causes: Path, tmp_path: Path
    ) -> None:
        """A strong regulariser drives the static gate to one expert, whatever the target says."""
        models = [str(export_folder), str(stranger)]
        scores = {}
        for strength in (0.0, 1e3):
            row = {"kind": "experts", "models": models, "regulariser": strength}
            optim = {"frozen_epochs": 60, "lr": 0.05}
            compared = comparison(stranger, causes, tmp_path, [row], seeds=(0,), optim=optim)
            predictor = compared.fitter.fit(compared.recipe.rows[0], 0).predictor
            assert predictor is not None
            scores[strength] = float(predictor.featurizer.scores().max())  # type: ignore[operator]
        assert scores[1e3] > 0.6 > scores[0.0] or scores[1e3] > scores[0.0] + 0.1

    def test_a_predictor_of_another_property_is_an_expert(
        self, export_folder: Path, causes: Path, tmp_path: Path
    ) -> None:
        comparison(export_folder, causes, tmp_path / "one", ["full"], seeds=(0,), target="gap_ev").run()
        other = str(tmp_path / "one" / "predictor")
        row = {"kind": "experts", "models": [other, str(export_folder)]}
        compared = comparison(export_folder, causes, tmp_path / "two", [row], seeds=(0,))
        (result,) = compared.run()
        model = load(str(tmp_path / "two" / "predictor"))
        assert isinstance(model, PropertyModel)
        np.testing.assert_allclose(model.estimate(held(compared, "test")).value, result.predictions, atol=1e-5)
        data = Path(shutil.copytree(causes, tmp_path / "causes"))
        add_split(data, "later", SplitPlan(by="id"))
        for key in ({"strategy": row}, {"strategy": "full", "start": other}):
            with pytest.raises(ConfigError, match="predictor' was trained on split 'chemical_system'"):
                comparison(export_folder, data, tmp_path, [key], split="later")
        with pytest.raises(ConfigError, match="reads 'b', which the row does not look at"):
            comparison(export_folder, causes, tmp_path, [{"strategy": row, "modalities": ("a",)}])
        again = {"kind": "experts", "models": [str(tmp_path / "two" / "predictor"), other]}
        with pytest.raises(ConfigError, match="cannot be an expert"):
            comparison(export_folder, causes, tmp_path, [again])

    def test_a_description_of_experts_that_is_damaged_is_refused(
        self, export_folder: Path, stranger: Path, causes: Path, tmp_path: Path
    ) -> None:
        row = {"kind": "experts", "models": [str(export_folder), str(stranger)]}
        comparison(stranger, causes, tmp_path, [row], seeds=(0,)).run()
        folder = tmp_path / "predictor"
        tables = json.loads((folder / "experts.json").read_text())
        for change in ({"experts": tables["experts"][:1]}, {"experts": [{}, {}]}, {"experts": 3}, {}):
            other = staging(tmp_path / "changed")
            other.mkdir()
            for path in folder.iterdir():
                if path.name != "seal.json":
                    (other / path.name).write_bytes(path.read_bytes())
            (other / "experts.json").write_text(json.dumps(change))
            publish(tmp_path / "changed")
            with pytest.raises((CheckpointError, ConfigError)):
                read_predictor(tmp_path / "changed")

    def test_what_is_wrong_is_said(self, export_folder: Path, causes: Path, tmp_path: Path) -> None:
        two = [str(export_folder)] * 2
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"models": two, "k": 3}, "k = 3 of 2 experts"),
            ({"models": two, "k": 1}, "cannot learn to route"),
            ({"models": two[:1]}, "at least 2"),
            ({"models": two, "gates": "input"}, "did you mean 'gate'"),
        ]
        for options, message in wrong:
            with pytest.raises(ConfigError, match=message):
                comparison(export_folder, causes, tmp_path, [{"kind": "experts", **options}])
        row = {"strategy": {"kind": "experts", "models": two}, "fusion": {"kind": "gated"}}
        with pytest.raises(ConfigError, match="takes no 'fusion'"):
            comparison(export_folder, causes, tmp_path, [row])


class TestLateFusion:
    @pytest.mark.parametrize("method", ["nnls", "simplex", "random_forest"])
    def test_a_weighted_branch_a_modality_is_a_row(
        self, method: str, export_folder: Path, causes: Path, tmp_path: Path
    ) -> None:
        rows: list[Any] = [{"kind": "late_fusion", "method": method}, {"strategy": "mean", "modalities": ()}]
        fused, mean = comparison(export_folder, causes, tmp_path, rows, seeds=(0,)).run()
        assert fused.summary()["strategy"] == f"late_fusion(method={method})"
        assert fused.summary()["test_mae"] < mean.summary()["test_mae"]
        assert not (tmp_path / "predictor").exists(), "an estimator is not registered"

    def test_weights_are_fitted_to_rows_that_no_branch_has_seen(
        self, export_folder: Path, causes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every branch is a model that knows its training rows by heart: on those it would be without error."""
        from finetune import late_fusion

        errors = []
        fit = late_fusion.fit_out_of_fold

        def watched(options: Any, branches: Any, **rest: Any) -> Any:
            for branch in branches.values():
                there = ~np.isnan(branch.by_row())
                errors.append(np.abs(branch.by_row() - branch.targets)[there].mean())
                assert all(not set(fold.train) & set(fold.test) for fold in branch.folds)
            return fit(options, branches, **rest)

        monkeypatch.setattr(late_fusion, "fit_out_of_fold", watched)
        row = {"kind": "late_fusion", "branch": {"kind": "random_forest", "trees": 20, "leaf": 1}}
        comparison(export_folder, causes, tmp_path, [row], seeds=(0,)).run()
        assert min(errors) > 0.3

    def test_inner_folds_keep_what_the_split_keeps(self, export_folder: Path, causes: Path, tmp_path: Path) -> None:
        compared = comparison(export_folder, causes, tmp_path, ["probe"])
        groups = compared.data.groups
        tags = [sample.tags["chemical_system"] for sample in compared.dataset]
        assert len(set(groups)) == len(set(tags)) == len(set(zip(groups, tags, strict=True)))

    def test_probabilities_stay_probabilities_and_what_is_wrong_is_said(
        self, export_folder: Path, causes: Path, tmp_path: Path
    ) -> None:
        row: dict[str, Any] = {"kind": "late_fusion"}
        classes = {"target": "sign", "head": {"kind": "classification"}}
        (result,) = comparison(export_folder, causes, tmp_path, [row], seeds=(0,), **classes).run()
        assert result.predictions.min() >= 0 and result.predictions.max() <= 1
        with pytest.raises(ConfigError, match="one model a modality"):
            comparison(export_folder, causes, tmp_path, [{"strategy": row, "modalities": ("a",)}])
        with pytest.raises(ConfigError, match="did you mean 'method'"):
            comparison(export_folder, causes, tmp_path, [{**row, "methode": "nnls"}])
        with pytest.raises(ConfigError, match="no estimator 'ridg'"):
            comparison(export_folder, causes, tmp_path, [{**row, "branch": "ridg"}])
        many = comparison(export_folder, causes, tmp_path, [{**row, "folds": 40}], seeds=(0,))
        with pytest.raises(DataError, match="cannot fill 40 inner folds"):
            many.run()


class TestFolds:
    def test_every_row_is_fitted_in_every_fold_and_everything_is_held_out_once(
        self, stranger: Path, causes: Path, tmp_path: Path
    ) -> None:
        folds = {"by": "chemical_system", "folds": 3, "val": 0.2}
        rows: list[Any] = ["frozen", "probe", {"strategy": "mean", "modalities": ()}]
        compared = comparison(stranger, causes, tmp_path, rows, folds=folds)
        results = compared.run()
        summaries = [result.summary() for result in results]
        assert [(s["folds"], s["seeds"]) for s in summaries] == [(3, 2), (3, 1), (3, 1)]
        frozen = results[0]
        maes = [run["mae"] for run in frozen.test]
        assert len(maes) == 6 and summaries[0]["test_mae"] == pytest.approx(np.mean(maes))
        assert summaries[0]["test_mae_std"] == pytest.approx(np.std(maes, ddof=1))
        lines = list(csv.DictReader((tmp_path / "report" / "folds.csv").open()))
        assert [line["fold"] for line in lines] == ["fold 0", "fold 1", "fold 2"] * 3
        assert float(lines[0]["test_mae"]) == pytest.approx(np.mean(maes[:2]))
        table = json.loads((tmp_path / "report" / "table.json").read_text())
        assert table["pretrained_on_held_out"] is False
        assert not (tmp_path / "predictor").exists(), "a predictor of one fold is not registered"

        tags = np.array([sample.tags["chemical_system"] for sample in compared.dataset])
        tested = []
        for fitter in compared.fitters.values():
            parts = {part: set(tags[rows.positions]) for part, rows in fitter.data.parts.items()}
            assert not parts["train"] & parts["test"] and not parts["val"] & (parts["train"] | parts["test"])
            tested += fitter.data.parts["test"].positions.tolist()
            mean = fitter.data.parts["train"].targets.mean().item()
            assert fitter.fit(compared.recipe.rows[2], 0).predictions[:, 0] == pytest.approx(mean)
        assert sorted(tested) == list(range(len(compared.dataset)))

    def test_encodings_are_shared_and_are_those_of_each_fold_alone(
        self, stranger: Path, causes: Path, tmp_path: Path
    ) -> None:
        fusion = {"strategy": "frozen", "fusion": {"kind": "gated", "dim": 8, "form": "attention"}}
        compared = comparison(stranger, causes, tmp_path, [fusion], folds={"folds": 3})
        from finetune.data import TargetData
        from finetune.predictor import build_featurizer

        featurizer = build_featurizer(compared.export, BOTH, pretrained=True)
        for fitter in compared.fitters.values():
            shared = fitter.data.encoded(featurizer, BOTH)
            own = TargetData.encoded(fitter.data, featurizer, BOTH)
            for part, rows in own.items():
                for name, column in rows.columns.items():
                    assert torch.equal(column.present, shared[part].columns[name].present)
                    torch.testing.assert_close(column.vector, shared[part].columns[name].vector)
        assert len({id(fitter.data.shared) for fitter in compared.fitters.values()}) == 1  # type: ignore[attr-defined]

    def test_near_copies_of_a_sample_do_not_flatter(self, stranger: Path, tmp_path: Path) -> None:
        """Labels that have nothing to do with the features: by groups nothing is predicted, torn apart all is."""

        def copies(grouped: bool) -> Iterator[Record]:
            rng = np.random.default_rng(0)
            for record in list(records())[:24]:
                label = {"noise_ev": float(rng.normal())}
                for copy in range(4):
                    group = record.id if grouped else None
                    yield replace(record, id=f"{record.id}#{copy}", labels=label, group=group)

        scores = {}
        for grouped in (True, False):
            folder = tmp_path / f"{grouped}"
            same = {"a": Copied(step="a"), "b": Copied(step="b", missing=0.3)}
            build(copies(grouped), same, folder, name="copies", splits=SPLITS, workers=1, shard_samples=16)
            row = {"kind": "random_forest", "trees": 10}
            compared = comparison(
                stranger, folder, tmp_path / "out", [row], folds={"folds": 4}, target="noise_ev", seeds=(0,)
            )
            scores[grouped] = compared.run()[0].summary()["test_r2"]
        assert scores[False] > 0.8 and scores[True] < 0.3

    def test_clashes_are_refused(
        self, export_folder: Path, stranger: Path, causes: Path, toy_folder: Path, tmp_path: Path
    ) -> None:
        folds = {"folds": 3}
        with pytest.raises(ConfigError, match="was trained on this data set"):
            comparison(export_folder, toy_folder, tmp_path, ["frozen"], folds=folds, target="gap_ev")
        row = {"kind": "experts", "models": [str(stranger), str(export_folder)]}
        with pytest.raises(ConfigError, match="was trained on this data set"):
            comparison(stranger, toy_folder, tmp_path, [row], folds=folds, target="gap_ev")
        allowed = {**folds, "seen": "allow"}
        assert comparison(
            export_folder, toy_folder, tmp_path, ["frozen"], folds=allowed, target="gap_ev"
        ).pretrained_on_these
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"split": "chemical_system"}, "leave one of the two out"),
            ({"register_as": "x"}, "one fold is not registered"),
            ({"folds": {"folds": 1}}, "at least 2 folds"),
            ({"folds": {"val": 0.9}}, "val"),
            ({"folds": {"fold": 3}}, "fold"),
        ]
        for changes, message in wrong:
            with pytest.raises(ValueError, match=message):
                comparison(stranger, causes, tmp_path, ["frozen"], **{"folds": folds, **changes})
        with pytest.raises(DataError, match="have no tag 'space_group'"):
            comparison(stranger, causes, tmp_path, ["frozen"], folds={"by": "space_group"})


class TestEnsembles:
    def test_the_seeds_of_the_best_row_are_one_registered_predictor_and_runs_of_their_own(
        self, export_folder: Path, causes: Path, tmp_path: Path
    ) -> None:
        from mlflow import MlflowClient

        name = f"together-{tmp_path.name}"
        compared = comparison(
            export_folder, causes, tmp_path, ["frozen", "full"], name=name, ensemble={}, seeds=(0, 1, 2)
        )
        results = compared.run()
        best = next(result for result in results if result.row == compared.best_row)
        assert best.summary()["val_mae"] == min(result.summary()["val_mae"] for result in results)
        uri = json.loads((tmp_path / "registered.json").read_text())["uri"]
        model = load(uri)
        assert isinstance(model, PropertyModel) and isinstance(model.predictor, PredictorEnsemble)
        assert (model.info.members, model.info.how) == (3, "mean")

        samples = held(compared, "test")
        found = model.estimate(samples, calibrated=False)
        alone = [
            PropertyModel(model.info, member, model.specs, model.as_evaluated) for member in model.predictor.members
        ]  # type: ignore[arg-type]
        values = torch.stack([one.estimate(samples, calibrated=False).value for one in alone])
        assert len(alone) == 3
        torch.testing.assert_close(found.value, values.mean(0))
        torch.testing.assert_close(found.std, values.std(0, unbiased=False))
        np.testing.assert_allclose(values[0].numpy(), best.predictions, atol=1e-5)
        error = (found.value - compared.data.targets["test"]).abs().mean().item()
        assert best.summary()["ensemble_test_mae"] == pytest.approx(error, abs=1e-5)

        calibrated = model.estimate(samples)
        assert calibrated.lower is not None and calibrated.std is not None and found.std is not None
        assert not torch.allclose(calibrated.std, found.std)
        validation = held(compared, "val")
        inside = model.estimate(validation)
        truth = compared.data.targets["val"]
        assert ((inside.lower <= truth) & (truth <= inside.upper)).float().mean() >= 0.9  # type: ignore[operator]
        card = (tmp_path / "predictor" / "MODEL_CARD.md").read_text()
        assert "the mean of 3 members" in card

        client = MlflowClient()
        experiment = client.get_experiment_by_name("matloom")
        assert experiment is not None
        (parent,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
        nested = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        assert sorted(run.data.params["seed"] for run in nested) == ["0", "1", "2"]
        assert {run.info.status for run in nested} == {"FINISHED"}
        by_seed = {int(run.data.params["seed"]): run.data.metrics["member_test_mae"] for run in nested}
        assert by_seed == pytest.approx({seed: best.test[seed]["mae"] for seed in (0, 1, 2)})
        version = client.get_model_version(*uri.removeprefix("models:/").split("/"))
        linked = client.get_logged_model(version.model_id or version.source.removeprefix("models:/"))
        of_members = [metric for metric in linked.metrics or [] if metric.key == "member_test_mae"]
        assert {metric.run_id for metric in of_members} == {run.info.run_id for run in nested}

    def test_the_gain_is_what_the_members_differ_by(self, export_folder: Path, causes: Path, tmp_path: Path) -> None:
        """Krogh and Vedelsby: squared error of the ensemble = mean of the members' - their ambiguity."""
        (result,) = comparison(export_folder, causes, tmp_path, ["scratch"], ensemble={}).run()
        table = result.summary()
        gain = table["ensemble_test_mse_mean_member"] - table["ensemble_test_ambiguity"]
        assert table["ensemble_test_mse_ensemble"] == pytest.approx(gain, rel=1e-5)
        assert table["ensemble_test_rmse"] ** 2 == pytest.approx(gain, rel=1e-4)
        mean_member = np.mean([run["rmse"] ** 2 for run in result.test])
        assert table["ensemble_test_mse_mean_member"] == pytest.approx(mean_member, rel=1e-5)

    def test_what_members_share_is_stored_once(self, export_folder: Path, causes: Path, tmp_path: Path) -> None:
        comparison(export_folder, causes, tmp_path, ["frozen"], ensemble={"how": "median"}, seeds=(0, 1, 2, 3)).run()
        with safe_open(tmp_path / "predictor" / "model.safetensors", "numpy") as file:
            names = sorted(file.keys())
        encoders = [name for name in names if ".encoders." in name]
        assert encoders and all(name.startswith("members.0.") for name in encoders)
        assert any(name.startswith("members.3.head.") for name in names)
        predictor, info, _ = read_predictor(tmp_path / "predictor")
        assert info.how == "median" and isinstance(predictor, PredictorEnsemble)
        first, last = (member.featurizer.encoders for member in (predictor.members[0], predictor.members[3]))
        assert digest(first) == digest(last)  # type: ignore[arg-type]

    def test_folds_and_seeds_are_members_calibrated_out_of_fold(
        self, stranger: Path, causes: Path, tmp_path: Path
    ) -> None:
        compared = comparison(
            stranger, causes, tmp_path, ["frozen"], folds={"folds": 2, "repeats": 2, "val": 0.2}, ensemble={}
        )
        (result,) = compared.run()
        model = load(str(tmp_path / "predictor"))
        assert isinstance(model, PropertyModel) and model.info.members == 8
        assert len(result.together) == 4 and result.summary()["folds"] == 4
        assert {"fold_mae", "val_mae"} <= set(model.info.metrics)
        # of each row that the first round holds out, once, by the members that have not seen it
        assert model.info.calibration is not None and model.info.calibration["rows"] == [60]
        first = list(compared.fitters)[:2]
        squares = [
            (result.together[i]["mse_ensemble"], len(compared.fitters[fold].data.parts["test"].ids))
            for i, fold in enumerate(first)
        ]
        pooled = sum(square * count for square, count in squares) / sum(count for _, count in squares)
        assert model.info.metrics["fold_rmse"] ** 2 == pytest.approx(pooled, rel=1e-4)
        everything = list(compared.dataset)
        fitted_to = model.estimate(everything, calibrated=False).value[:, 0].numpy()
        truth = np.array([sample.labels["cause_ev"] for sample in everything])
        seen = np.abs(fitted_to - truth).mean()
        assert seen < model.info.metrics["fold_mae"], "out of fold is not what the whole ensemble says of its own rows"
        assert "out-of-fold" in (tmp_path / "predictor" / "MODEL_CARD.md").read_text()

    def test_one_member_is_none_and_classes_are_combined(
        self, export_folder: Path, causes: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match="has one member"):
            comparison(export_folder, causes, tmp_path, ["frozen"], ensemble={}, seeds=(0,))
        with pytest.raises(ValueError, match="how"):
            comparison(export_folder, causes, tmp_path, ["frozen"], ensemble={"how": "best"})
        classes = {"target": "sign", "head": {"kind": "classification"}}
        comparison(export_folder, causes, tmp_path, ["frozen"], ensemble={}, **classes).run()
        model = load(str(tmp_path / "predictor"))
        assert isinstance(model, PropertyModel) and model.info.task == "classification"
        value = model.predict(list(Dataset(causes))[:5]).values
        assert ((value > 0) & (value < 1)).all()


def test_a_file_reaches_them_all(export_folder: Path, causes: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        f"""
name = "keys"
model = "{export_folder}"
data = "{causes}"
target = "cause_ev"
rows = [
  {{ strategy = {{ kind = "experts", models = ["{export_folder}", "{export_folder}"] }}, modalities = ["a"] }},
  {{ strategy = {{ kind = "late_fusion", method = "simplex" }}, modalities = ["a", "b"] }},
]
[folds]
by = "chemical_system"
folds = 5
[ensemble]
how = "median"
"""
    )
    recipe = load_finetune_recipe(path, ["folds.repeats=2"])
    assert recipe.folds is not None and (recipe.folds.repeats, recipe.folds.folds) == (2, 5)
    assert recipe.ensemble is not None and recipe.ensemble.how == "median"
    with pytest.raises(ConfigError, match="did you mean 'stratify'"):
        load_finetune_recipe(path, ["folds.stratifi=gap"])
