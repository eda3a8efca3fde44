"""What a head asks of the rows of a recipe, said before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable

from finetune.adapt.base import Adaptation
from finetune.config import FinetuneRecipe, Plan, RowConfig
from finetune.estimators.base import Estimator
from finetune.heads.base import HEADS, Head
from finetune.targets import Target
from shards.errors import ConfigError

# scale_shift acts on single rows within the head, where pairs are side by side already
OF_PAIRS = ("frozen", "attentive")


def check_head(recipe: FinetuneRecipe) -> None:
    """Raise `ConfigError` where the head, the pairs and a row of the recipe do not go together."""
    head = HEADS.get(recipe.head_options().kind)
    kind = recipe.head["kind"]
    if (head.partners == 2) != (recipe.pairs is not None):
        raise ConfigError(
            f"the head '{kind}' predicts {'pairs' if recipe.pairs is None else 'single materials'}",
            where="head.kind" if recipe.pairs else "pairs",
            do="head.kind = 'pair' or 'pair_classification'" if recipe.pairs else "pairs = 'pairs.csv'",
        )
    if recipe.pairs is not None and (recipe.deltas or recipe.augment):
        raise ConfigError(
            f"pairs take no '{'delta' if recipe.deltas else 'augment'}'",
            where="delta" if recipe.deltas else "augment",
            why="both partners are encoded once, and labels are those of the pair",
        )
    for row in recipe.rows:
        plan = row.plan()
        if not isinstance(plan, Estimator):
            _check_row(head, kind, row, plan)


def _check_row(head: type[Head], kind: str, row: RowConfig, plan: Plan) -> None:
    if head.partners == 2 and plan.kind not in OF_PAIRS:
        raise ConfigError(
            f"the strategy '{row.label}' does not take pairs",
            where="rows.*.strategy",
            why="both partners are encoded once, by encoders that stay as they are",
            do=f"strategies for pairs: {', '.join(OF_PAIRS)}, and every estimator",
        )
    if head.keeps_rows and isinstance(plan, Adaptation) and (plan.kind != "frozen" or row.fusion is not None):
        raise ConfigError(
            f"the head '{kind}' does not go with the row '{row.label}'",
            where="rows.*",
            why="it keeps features of training rows, and here they change while it is trained",
            do="strategy = 'frozen' without a fusion, or an estimator",
        )


def check_inputs(recipe: FinetuneRecipe, targets: Iterable[Target]) -> None:
    """Raise `ConfigError` where a row would look at the modality that it is to predict."""
    predicted = {target.name for target in targets if target.modality}
    for row in recipe.rows:
        for name in (*row.modalities, row.descriptors):
            if name in predicted:
                raise ConfigError(
                    f"the row '{row.label}' looks at '{name}', which is the target",
                    where="rows.*.modalities",
                    why="what is predicted would be known",
                    do="leave it out of the row",
                )
