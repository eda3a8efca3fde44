"""A random forest: with composition descriptors the classical baseline of materials properties."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.pipeline import make_pipeline

from finetune.estimators.base import ESTIMATORS, REGRESSION
from finetune.estimators.scikit import ScikitEstimator, imputer


@ESTIMATORS.register("random_forest")
class RandomForest(ScikitEstimator):
    """Breiman, Mach. Learn. 45, 5 (2001); on Magpie descriptors as in Ward et al., npj Comput. Mater. 2, 16028 (2016).

    Attributes
    ----------
    trees : int
        Number of trees.
    features : float or str
        Share of the features that a split may choose from, or ``sqrt`` of their number.
    leaf : int
        Least rows of a leaf.
    jobs : int
        Threads; the result is the same for any number.
    """

    kind: Literal["random_forest"] = "random_forest"
    trees: int = Field(300, ge=1)
    features: float | Literal["sqrt"] = 1 / 3
    leaf: int = Field(1, ge=1)
    jobs: int = Field(1, ge=1)

    def model(self, *, task: str, seed: int, folds: int) -> Any:
        """Return the pipeline."""
        forest = RandomForestRegressor if task == REGRESSION else RandomForestClassifier
        return make_pipeline(
            imputer(),
            forest(
                n_estimators=self.trees,
                max_features=self.features,
                min_samples_leaf=self.leaf,
                n_jobs=self.jobs,
                random_state=seed,
            ),
        )
