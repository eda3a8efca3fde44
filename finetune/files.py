"""Names of the files that a predictor, and a model that is published, have beside those of `pretrain.export_files`."""

PREDICTOR, EXPERTS = "predictor.json", "experts.json"
# of a hub
CONFIG, README = "config.json", "README.md"
ADDED = frozenset({PREDICTOR, EXPERTS, CONFIG, README})
