"""Discovery: screen candidates for property ranges, extremes and likeness."""

from finetune.discover.goals import Extreme, InRange, parse_goal
from finetune.discover.pareto import fronts
from finetune.discover.screen import Discovery, discover, known_index

__all__ = ["Discovery", "Extreme", "InRange", "discover", "fronts", "known_index", "parse_goal"]
