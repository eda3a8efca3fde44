"""DeepSpeed settings by name: ``--deepspeed-config zero2`` in place of a file; docs/profiles.md says when which."""

from __future__ import annotations

from pathlib import Path

from shards.errors import ConfigError, suggest

HERE = Path(__file__).resolve().parent


def profiles() -> list[str]:
    """Return the names of the profiles."""
    return sorted(file.stem for file in HERE.glob("*.json"))


def deepspeed_settings(name_or_path: str | Path) -> Path:
    """Return the file of DeepSpeed's settings that is meant.

    Parameters
    ----------
    name_or_path : str or Path
        A file, or a profile's name. A name is a word without a folder and an ending: a file called ``zero2`` in the
        working directory is ``./zero2``.

    Raises
    ------
    ConfigError
        Where there is no such file, no such profile.
    """
    text, path = str(name_or_path), Path(name_or_path)
    if text in profiles():
        return HERE / f"{text}.json"
    if path.is_file():
        return path
    if path.suffix or len(path.parts) != 1:
        raise ConfigError(
            f"there is no file {text} with DeepSpeed's settings",
            where="--deepspeed-config",
            do=f"a file, or a profile: {', '.join(profiles())}",
        )
    raise ConfigError(
        f"'{text}' is no profile of DeepSpeed's settings, and no file",
        where="--deepspeed-config",
        do=suggest(text, profiles()),
    )
