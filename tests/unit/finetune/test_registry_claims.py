"""The lock of promotions: who may not write on a model neither moves, nor blocks, nor decides anything."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pretrain import claim, promotion
from pretrain.claim import OvertakenError, Promotion
from pretrain.promotion import current, history, promote
from shards.errors import RegistryError

pytestmark = pytest.mark.usefixtures("mlflow_store")


@pytest.fixture
def model(request: pytest.FixtureRequest, mlflow_store: None) -> str:
    """A registered model with three versions, of which the first is in use."""
    # a store that an earlier test has named goes before the variable
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    name, client = request.node.name[-60:], MlflowClient()
    client.create_registered_model(name)
    for _ in range(3):
        client.create_model_version(name, "somewhere")
    promote(client, name, "champion", "1", who="first", why="the first")
    return name


def record(number: int, version: str, mark: str = "") -> Promotion:
    told: Any = {"previous": "1", "who": "x", "why": "x", "metric": "", "time_ms": 1}
    return Promotion(number=number, alias="champion", version=version, mark=mark, **told)


def titles(name: str, number: int = 2) -> list[str]:
    return list(claim._titles(name, "champion", number, history(MlflowClient(), name, "champion")[-1]))


def versions(name: str) -> list[str]:
    return [record.version for record in history(MlflowClient(), name, "champion")]


def test_names_taken_by_strangers_block_nothing(model: str) -> None:
    client = MlflowClient()
    forged = json.dumps(asdict(record(2, "3")))
    for title, secret in zip(titles(model)[:3], ["", "anything", forged], strict=True):
        client.create_experiment(title, tags={claim.TAG: secret})
    assert versions(model) == ["1"]
    promote(client, model, "champion", "2", who="second", why="better")
    assert versions(model) == ["1", "2"] and current(client, model, "champion") == "2"
    # what the strangers make of their claims afterwards changes nothing
    theirs = client.search_experiments(filter_string=f"name LIKE '{claim.PREFIX} {model}@%'")
    assert len(theirs) == 3
    for experiment in theirs:
        client.set_experiment_tag(experiment.experiment_id, claim.TAG, forged)
    assert versions(model) == ["1", "2"]


def test_who_blocks_every_name_is_named_and_nothing_has_changed(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient()
    monkeypatch.setattr(claim, "FOREIGN", 4)
    for title in titles(model):
        client.create_experiment(title)
    before = client.get_registered_model(model).tags
    with pytest.raises(RegistryError, match=r"promotion 2 of 'champion'.*is blocked") as blocked:
        promote(client, model, "champion", "2", who="x", why="x")
    assert f"matloom promotion {model}@champion 2" in str(blocked.value)
    assert client.get_registered_model(model).tags == before and current(client, model, "champion") == "1"


def test_a_claim_needs_the_secret_that_the_intent_only_names(model: str) -> None:
    """Who reads the tags of the model knows every intent, and can claim for none of them."""
    client = MlflowClient()
    intent = record(2, "3", claim._mark("secret"))
    client.set_registered_model_tag(model, claim._intent(intent), json.dumps(asdict(intent)))
    for title, told in zip(titles(model)[:2], [intent.mark, claim._intent(intent)], strict=True):
        client.create_experiment(title, tags={claim.TAG: told})
    assert versions(model) == ["1"]
    client.create_experiment(titles(model)[2], tags={claim.TAG: "secret"})
    assert versions(model) == ["1", "3"]


def test_of_two_who_have_seen_the_same_the_second_is_told_who_won(model: str) -> None:
    client = MlflowClient()
    (last,) = history(client, model, "champion")
    won = claim.claim(client, model, record(2, "2"), last)
    for _ in range(2):
        with pytest.raises(OvertakenError) as lost:
            claim.claim(client, model, record(2, "3"), last)
        assert lost.value.winner == won
        # also once the winner's record has taken the place of the intent
        claim.write_record(client, model, won)
        claim.tidy(client, model, won, client.get_registered_model(model).tags)
    assert not [key for key in client.get_registered_model(model).tags if key.startswith(claim.INTENT)]


def test_who_was_cut_off_after_the_claim_is_helped_by_the_next(model: str) -> None:
    client = MlflowClient()
    claim.claim(client, model, record(2, "2"), history(client, model, "champion")[-1])
    assert versions(model) == ["1", "2"] and current(client, model, "champion") == "1"
    promote(client, model, "champion", "3", who="x", why="x")
    assert versions(model) == ["1", "2", "3"] and current(client, model, "champion") == "3"
    tags = client.get_registered_model(model).tags
    assert claim.recorded(tags, "champion", 2) is not None
    assert not [key for key in tags if key.startswith(claim.INTENT)]


def test_who_was_cut_off_before_the_claim_has_promoted_nothing(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient()

    def cut(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client, "create_experiment", cut)
        with pytest.raises(KeyboardInterrupt):
            promote(client, model, "champion", "2", who="x", why="x")
    assert versions(model) == ["1"]
    promote(client, model, "champion", "3", who="x", why="x")
    assert versions(model) == ["1", "3"]


def test_a_claim_that_somebody_removed_does_not_undo_what_is_recorded(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, claims = MlflowClient(), promotion.claim

    def late(*arguments: Any) -> Promotion:
        own = claims(*arguments)
        claim.write_record(client, model, record(2, "2", "theirs"))
        return own

    monkeypatch.setattr(promotion, "claim", late)
    with pytest.raises(OvertakenError) as lost:
        promote(client, model, "champion", "3", who="x", why="x")
    assert lost.value.winner.mark == "theirs" and versions(model) == ["1", "2"]
    assert current(client, model, "champion") == "1"


def test_a_claim_whose_answer_was_lost_is_ones_own(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient()
    create = client.create_experiment

    def lost(*arguments: Any, **options: Any) -> str:
        create(*arguments, **options)
        raise MlflowException("the connection was closed")

    monkeypatch.setattr(client, "create_experiment", lost)
    promote(client, model, "champion", "2", who="x", why="x")
    assert versions(model) == ["1", "2"] and current(client, model, "champion") == "2"


def test_long_names_and_names_that_differ_in_case_have_claims_of_their_own() -> None:
    long = [next(claim._titles(name, "a" * 200, 1, None)) for name in ("x" * 250, "x" * 249 + "y", "X" * 250)]
    assert len({title.lower() for title in long}) == 3 and max(map(len, long)) < 200
