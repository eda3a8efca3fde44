"""Search in the latent space: the materials of a data set that are nearest to a query of any modality."""

from finetune.search.index import Hit, Index
from finetune.search.query import embed_query
from finetune.search.run import open_index, search

__all__ = ["Hit", "Index", "embed_query", "open_index", "search"]
