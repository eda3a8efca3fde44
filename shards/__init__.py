"""Data in: records become shards, shards become batches."""
