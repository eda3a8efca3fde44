"""DeepSpeed's settings of a user: reading them, and refusing what DeepSpeed would take without doing it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pretrain.deepspeed_keys import CHOICES, NULLABLE, REPLACED, SETTABLE, SWITCHES, ZERO
from shards.errors import ConfigError, suggest
from shards.recipes import read_tables

# gradients that DeepSpeed exchanges at once
BUCKET = "reduce_bucket_size"
OWNED = {
    "activation_checkpointing",
    "amp",
    "bf16",
    "checkpoint",
    "data_types",
    "fp16",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "torch_autocast",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
}


def read_settings(path: Path) -> dict[str, Any]:
    """Read settings from JSON (or TOML), or raise `ConfigError`.

    A key that stands there twice and a NaN are no JSON: Python would take the last one, and the NaN.
    """
    if path.suffix == ".toml":
        return read_tables(path)
    try:
        settings = json.loads(path.read_text(), object_pairs_hook=_each_once, parse_constant=_no_constant)
    except OSError as error:
        raise ConfigError("DeepSpeed's settings cannot be read", where=path, why=error.strerror) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError("DeepSpeed's settings are no valid JSON", where=path, why=str(error)) from None
    if not isinstance(settings, dict):
        raise ConfigError("DeepSpeed's settings are no table", where=path, do='{"zero_optimization": {"stage": 1}}')
    return settings


def zero_stage(settings: Mapping[str, Any]) -> int:
    """Return the ZeRO stage of DeepSpeed's settings."""
    return settings.get("zero_optimization", {}).get("stage", 0)


def offloads(settings: Mapping[str, Any], name: str = "offload_optimizer") -> bool:
    """Say whether the optimizer works on the CPU, away from the accelerator; or whether ``offload_param`` lie there."""
    return _device(settings, name) == "cpu"


def elements(settings: Mapping[str, Any], name: str, *, least: int = 0) -> int:
    """Return a size of ``zero_optimization``, or DeepSpeed's default, or raise `ConfigError`."""
    value = int(settings.get("zero_optimization", {}).get(name, ZERO[name]))
    if value < least:
        raise ConfigError(f"zero_optimization.{name} = {value} is too small", do=f"leave it out: {ZERO[name]}")
    return value


def with_fitting_bucket(settings: Mapping[str, Any], trained: int) -> dict[str, Any]:
    """Return the settings with a bucket of gradients that is no larger than all gradients together.

    DeepSpeed makes it as large as they say, 2 GB by its default, whatever there is to put in it. A bucket that takes
    all gradients is exchanged once, however large it is: nothing else depends on that.
    """
    if not zero_stage(settings):
        return dict(settings)
    bucket = min(elements(settings, BUCKET, least=1), max(1, trained))
    return {**settings, "zero_optimization": {**settings["zero_optimization"], BUCKET: bucket}}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse what is the recipe's, and what the engine cannot do, or raise `ConfigError`.

    Parameters
    ----------
    settings : mapping
        Without "auto", and without what the recipe says (`pretrain.automatic.resolved`).
    """
    owned = OWNED & set(settings)
    if owned:
        raise ConfigError(
            f"DeepSpeed's {sorted(owned)} cannot be set here",
            why="batch size, optimizer, schedule, clipping, precision and checkpoints are the recipe's",
            do="set them in [data], [optim] and [checkpoint]",
        )
    check_names(settings)
    _check_values(settings, SETTABLE)
    stage = zero_stage(settings)
    for name, stages in (("offload_optimizer", (1, 2, 3)), ("offload_param", (3,))):
        device = _device(settings, name)
        if device not in ("none", "cpu"):
            raise ConfigError(f"zero_optimization.{name} cannot go to '{device}'", do='device = "cpu"')
        if device == "cpu" and stage not in stages:
            raise ConfigError(
                f"zero_optimization.{name} does nothing at ZeRO stage {stage}",
                do=f"zero_optimization.stage = one of {stages}, or leave it out",
            )


def check_names(settings: Mapping[str, Any], known: Mapping[str, Any] = SETTABLE, *, path: str = "") -> None:
    """Refuse keys that DeepSpeed does not have, at any depth: it takes most of them and does nothing about it."""
    for name, value in settings.items():
        if path and name in REPLACED:
            raise ConfigError(f"'{path}{name}' is deprecated", do=f"{path}{REPLACED[name]}")
        if name not in known:
            raise ConfigError(f"'{path}{name}' is no DeepSpeed key that can be set here", do=suggest(name, known))
        inside = known[name]
        if isinstance(inside, dict) and value is not None:
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"'{path}{name}' = {value!r} is no table", do=f'a table, with "{next(iter(inside))}" for example'
                )
            check_names(value, inside, path=f"{path}{name}.")


def _check_values(settings: Mapping[str, Any], known: Mapping[str, Any], *, path: str = "") -> None:
    """Refuse values that are of another kind than the default: what reads them here, or DeepSpeed, would fail late."""
    for name, value in settings.items():
        key, default = f"{path}{name}", known[name]
        if value is None and (default is None or name in NULLABLE):
            continue
        if isinstance(default, dict) and isinstance(value, Mapping):
            _check_values(value, default, path=f"{key}.")
        elif not _is_kind(value, False if name in SWITCHES else default):
            shown = "null" if default is None else json.dumps(default, default=str)
            raise ConfigError(f"'{key}' cannot be {json.dumps(value, default=str)}", do=f"leave it out: {shown}")
        elif key in CHOICES and value not in CHOICES[key]:
            raise ConfigError(f"'{key}' cannot be {json.dumps(value)}", do=f"one of {json.dumps(CHOICES[key])}")


def _is_kind(value: Any, default: Any) -> bool:
    """Say whether a value is of the kind of a default; text where that is null."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, int):
        # 5e8 is how many write it
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, str if default is None else type(default))


@contextmanager
def refused() -> Iterator[None]:
    """Turn DeepSpeed's complaints about the keys of a table of its settings into a `ConfigError`."""
    try:
        yield
    except ValidationError as error:
        wrong = error.errors()[0]
        name = ".".join(str(part) for part in wrong["loc"])
        raise ConfigError(f"DeepSpeed does not take '{name}'", where=error.title, why=wrong["msg"]) from None


def _device(settings: Mapping[str, Any], name: str) -> str:
    return (settings.get("zero_optimization", {}).get(name) or {}).get("device", "none")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' stands there twice")
    return table


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")
