"""Names of the files of an exported model."""

WEIGHTS = "model.safetensors"
RECIPE, SCHEMA, FITTED, METRICS = "recipe.json", "schema.json", "fitted.json", "metrics.json"
CARD = "MODEL_CARD.md"
EXPORTED = frozenset({WEIGHTS, RECIPE, SCHEMA, FITTED, METRICS, CARD})
