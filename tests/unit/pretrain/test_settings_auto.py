"""Settings as users bring them from Hugging Face: "auto", what the recipe says already, misspelt keys, broken JSON."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from pretrain.automatic import recipe_settings, resolved
from pretrain.config import OptimConfig
from pretrain.deepspeed_keys import OFFLOAD_OPTIMIZER, OFFLOAD_PARAM, REPLACED, SETTABLE, ZERO
from pretrain.settings import check_settings, read_settings
from shards.errors import ConfigError

OPTIM = OptimConfig(lr=2e-4, min_lr=2e-5, betas=(0.9, 0.98), weight_decay=0.1, grad_clip=0.5, accumulate=2)
SAYS = recipe_settings(OPTIM, batch_size=64, world=4, warmup_steps=10, total_steps=200, precision="bf16")
# the shape of the example files of transformers for ZeRO 3
HUGGING_FACE: dict[str, Any] = {
    "fp16": {
        "enabled": "auto",
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": 16,
        "hysteresis": 2,
        "min_loss_scale": 1,
    },
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {
        "type": "auto",
        "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"},
    },
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "auto", "pin_memory": True},
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}


def test_a_file_of_hugging_faces_is_resolved_and_told() -> None:
    before = copy.deepcopy(HUGGING_FACE)
    settings, lines = resolved({}, HUGGING_FACE, SAYS)
    assert before == HUGGING_FACE
    assert sorted(lines) == sorted(
        [
            "fp16.enabled: auto -> false",
            "bf16.enabled: auto -> true",
            "optimizer.params.lr: auto -> 0.0002",
            "optimizer.params.betas: auto -> [0.9, 0.98]",
            "optimizer.params.eps: auto -> 1e-08",
            "optimizer.params.weight_decay: auto -> 0.1",
            "scheduler.type: auto -> WarmupCosineLR",
            "scheduler.params.warmup_min_lr: auto -> 0.0",
            "scheduler.params.warmup_max_lr: auto -> 0.0002",
            "scheduler.params.warmup_num_steps: auto -> 10",
            "zero_optimization.offload_param.device: auto -> none",
            "zero_optimization.reduce_bucket_size: auto -> 500000000",
            "zero_optimization.stage3_prefetch_bucket_size: auto -> 50000000",
            "zero_optimization.stage3_param_persistence_threshold: auto -> 100000",
            "gradient_accumulation_steps: auto -> 2",
            "gradient_clipping: auto -> 0.5",
            "train_batch_size: auto -> 128",
            "train_micro_batch_size_per_gpu: auto -> 16",
        ]
    )
    assert "auto" not in json.dumps(settings)
    assert set(settings) == {"zero_optimization", "steps_per_print", "wall_clock_breakdown"}
    assert settings["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    check_settings(settings)


def test_the_recipes_own_table_comes_before_deepspeeds_defaults() -> None:
    deepspeed = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 1000}}
    given = {"zero_optimization": {"stage": "auto", "reduce_bucket_size": "auto", "allgather_bucket_size": "auto"}}
    settings, lines = resolved(deepspeed, given, SAYS)
    assert settings == {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000, "allgather_bucket_size": 500_000_000}
    }
    assert "zero_optimization.stage: auto -> 2" in lines
    assert resolved(deepspeed, {}, SAYS) == (deepspeed, [])
    with pytest.raises(ConfigError, match="'auto' is no table"):
        resolved(deepspeed, {"zero_optimization": "auto"}, SAYS)


@pytest.mark.parametrize(
    "given",
    [
        {"train_batch_size": 128, "train_micro_batch_size_per_gpu": 16, "gradient_accumulation_steps": 2},
        {"gradient_clipping": 0.5},
        {"optimizer": {"type": "adamw", "params": {"lr": 0.0002, "betas": [0.9, 0.98]}}},
        {"scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 200, "cos_min_ratio": 0.1}}},
        {"bf16": {"enabled": True}, "fp16": {"enabled": False, "hysteresis": 7}},
        {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
        {"activation_checkpointing": {"partition_activations": False, "number_checkpoints": None}},
        {"checkpoint": {"load_universal": False}, "amp": {"enabled": False, "opt_level": "O1"}},
        {"data_types": {"grad_accum_dtype": None}, "optimizer": None},
    ],
)
def test_what_the_recipe_says_too_is_accepted(given: dict[str, Any]) -> None:
    assert resolved({}, given, SAYS) == ({}, [])


@pytest.mark.parametrize(
    ("given", "message", "do"),
    [
        ({"train_batch_size": 64}, "train_batch_size is 64, but 128 by the recipe", "data.batch_size"),
        ({"train_micro_batch_size_per_gpu": 64}, "is 64, but 16 by the recipe", "that of all ranks"),
        ({"gradient_accumulation_steps": 1}, "is 1, but 2 by the recipe", "optim.accumulate"),
        ({"gradient_clipping": 1.0}, "gradient_clipping is 1.0, but 0.5", "optim.grad_clip"),
        ({"optimizer": {"type": "Lamb"}}, "optimizer.type is Lamb, but AdamW", "optim"),
        ({"optimizer": {"params": {"lr": 1e-3}}}, "optimizer.params.lr is 0.001, but 0.0002", "optim"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler.type is WarmupLR, but WarmupCosineLR", "optim"),
        ({"fp16": {"enabled": True}}, "fp16.enabled is true, but false", "optim.precision"),
        ({"bf16": {"enabled": False}}, "bf16.enabled is false, but true", "optim.precision"),
        ({"bf16": {"enabled": 1}}, "bf16.enabled is 1, but true", "optim.precision"),
        ({"activation_checkpointing": {"cpu_checkpointing": True}}, "is true, but false", "checkpoint_activations"),
        ({"checkpoint": {"load_universal": True}}, "load_universal is true", "checkpoint"),
        ({"optimizer": "AdamW"}, "'optimizer' = 'AdamW' is no table", ""),
    ],
)
def test_what_contradicts_the_recipe_is_refused_with_both_values(given: dict[str, Any], message: str, do: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolved({}, given, SAYS)
    assert do in (caught.value.do or "")


@pytest.mark.parametrize(
    ("given", "message", "suggestion"),
    [
        ({"zero_optimisation": {}}, "'zero_optimisation'", "zero_optimization"),
        ({"zero_optimization": {"stag": 2}}, "'zero_optimization.stag'", "stage"),
        ({"zero_optimization": {"reduce_bucket": 5}}, "zero_optimization.reduce_bucket'", "reduce_bucket_size"),
        ({"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}}, "offload_optimizer.devise", "device"),
        ({"zero_optimization": {"offload_param": {"pin": True}}}, "offload_param.pin'", "pin_memory"),
        ({"zero_optimization": {"cpu_offload": True}}, "is deprecated", "offload_optimizer"),
        ({"zero_optimization": True}, "is no table", "stage"),
        ({"optimizer": {"params": {"learning_rate": 1}}}, "optimizer.params.learning_rate", ""),
        ({"optimizer": {"params": {"weigth_decay": 1}}}, "params.weigth_decay", "weight_decay"),
        ({"activation_checkpointing": {"partition_activation": True}}, "partition_act", "partition_activations"),
        ({"comms_logger": {"prof_al": True}}, "comms_logger.prof_al'", "prof_all"),
        ({"flops_profiler": {"modul_depth": 2}}, "flops_profiler.modul_depth", "module_depth"),
        ({"tensorboard": {"enable": True}}, "tensorboard.enable'", "enabled"),
        ({"gradient_cliping": 1}, "'gradient_cliping'", "gradient_clipping"),
        ({"bf16": {"enable": True}}, "bf16.enable'", "enabled"),
    ],
)
def test_misspelt_keys_are_refused_with_a_suggestion(given: dict[str, Any], message: str, suggestion: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolved({}, given, SAYS)
    assert suggestion in (caught.value.do or "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"zero_optimization": {"stage": 1, "stage": 3}}', "'stage' stands there twice"),
        ('{"gradient_clipping": NaN}', "NaN is no number"),
        ('{"gradient_clipping": -Infinity}', "Infinity is no number"),
        ("[1]", "are no table"),
        ("{", "no valid JSON"),
        ("[" * 100_000, "no valid JSON"),
    ],
)
def test_broken_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_settings(tmp_path / "ds.json")


def test_settings_are_read_from_json_and_toml(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(json.dumps(HUGGING_FACE))
    (tmp_path / "ds.toml").write_text("[zero_optimization]\nstage = 2\n")
    assert read_settings(tmp_path / "ds.json") == HUGGING_FACE
    assert read_settings(tmp_path / "ds.toml") == {"zero_optimization": {"stage": 2}}
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings(tmp_path / "none.json")


def test_the_tables_of_keys_are_deepspeeds_own() -> None:
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    def defaults(model: Any) -> dict[str, Any]:
        return {
            field.alias or name: field.default
            for name, field in model.model_fields.items()
            if not (field.json_schema_extra or {}).get("deprecated")
        }

    zero = defaults(DeepSpeedZeroConfig)
    # experimental parts that no encoder here has use for
    assert set(zero) - set(ZERO) == {"zenflow", "leaf_module"}
    for name, value in ZERO.items():
        assert isinstance(value, dict) or zero[name] == value, name
    assert defaults(DeepSpeedZeroOffloadOptimizerConfig) == OFFLOAD_OPTIMIZER
    assert defaults(DeepSpeedZeroOffloadParamConfig) == OFFLOAD_PARAM
    deprecated = {
        n for n, f in DeepSpeedZeroConfig.model_fields.items() if (f.json_schema_extra or {}).get("deprecated")
    }
    assert deprecated == set(REPLACED)
    for name, model in {
        "tensorboard": TensorBoardConfig, "csv_monitor": CSVConfig, "wandb": WandbConfig, "comet": CometConfig,
        "comms_logger": CommsLoggerConfig,
    }.items():  # fmt: skip
        assert defaults(model) == SETTABLE[name]
    profiler = DeepSpeedFlopsProfilerConfig({})
    assert vars(profiler) == SETTABLE["flops_profiler"]
    assert SETTABLE["aio"] == AIO_DEFAULT_DICT
    assert SETTABLE["timers"] == {"throughput": defaults(DeepSpeedThroughputTimerConfig)}
    assert set(SAYS["fp16"]) == set(defaults(DeepSpeedFP16Config))
    assert set(SAYS["bf16"]) == set(defaults(DeepSpeedBF16Config))
