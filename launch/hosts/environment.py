"""Which variables the ranks of all hosts get; none of them ever stands on a command line.

``matloom launch run`` sends them to each host through the standard input of its agent. Where another launcher starts
the ranks, each rank reads the same file itself (``--env_file``, or MATLOOM_ENV_FILE), and the launcher, which may
print or pass on all that it finds in its environment, has no secret to tell.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path

from launch.hosts.redaction import holds_secret
from shards.errors import ConfigError

FILE = "MATLOOM_ENV_FILE"
# what runs are set by: tracking and data, communication, numerics and devices, Python
PREFIXES = ("MLFLOW_", "MATLOOM_", "HF_", "HUGGING_FACE_", "AWS_", "AZURE_", "GOOGLE_", "FSSPEC_", "NCCL_", "GLOO_",
            "UCX_", "FI_", "CCL_", "OMPI_MCA_", "TORCH_", "PYTORCH_", "TORCHINDUCTOR_", "TRITON_", "CUDA_", "HIP_",
            "HSA_", "DS_", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "GOMP_", "PYTHON")  # fmt: skip
NAMES = {"PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "LANG", "LC_ALL", "CC", "CXX", "MAX_JOBS", "REQUESTS_CA_BUNDLE",
         "SSL_CERT_FILE", "CURL_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy",
         "no_proxy"}  # fmt: skip
# each host has its own, or the launcher says so
OWN = {FILE, "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"}
RANKS = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE",
         "MASTER_ADDR", "MASTER_PORT"}  # fmt: skip
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def for_ranks(
    wanted: Iterable[str] = (), file: Path | None = None, *, here: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the variables for the ranks of all hosts.

    Parameters
    ----------
    wanted : iterable of str
        Of ``--env``: ``NAME`` as it is here, whatever its name, or ``NAME=VALUE``, which wins over everything.
    file : Path, optional
        Of ``--env-file``; it wins over what is here. By default what MATLOOM_ENV_FILE names.
    here : mapping of str to str, optional
        Instead of this process's environment.

    Raises
    ------
    ConfigError
        Where a variable is not there, is for the launcher to set, or has a secret as its value on the command line;
        and where the file cannot be used.
    """
    here = os.environ if here is None else here
    chosen = {name: value for name, value in here.items() if is_for_ranks(name)}
    file = file or (Path(here[FILE]) if here.get(FILE) else None)
    if file is not None:
        chosen |= read_env_file(file)
    for item in wanted:
        name, given, value = item.partition("=")
        _check_name(name, "--env")
        if given:
            _refuse_secret(name, value)
        elif name not in here:
            raise ConfigError(f"--env {name}: there is no such variable", do=f"export {name}, or use --env-file FILE")
        chosen[name] = value if given else here[name]
    return chosen


def is_for_ranks(name: str) -> bool:
    """Say whether a variable goes to all ranks without being asked for."""
    return name not in OWN and (name in NAMES or name.startswith(PREFIXES))


def refuse_secret_words(option: str, value: str, do: str) -> None:
    """Raise `ConfigError` where the value of an option, which stands on command lines, has a secret inside.

    Parameters
    ----------
    option : str
        As the user has written it, without the value.
    value : str
        What is behind it.
    do : str
        The way that tells nobody.
    """
    # ssh's SetEnv=NAME=VALUE, and what gives it a password, which knows better ways
    text = re.sub(r"(?i)\bsetenv[=\s]+", " ", value)
    if holds_secret("", text) or re.search(r"\bsshpass\s+-p", value):
        raise ConfigError(
            f"{option}: a secret must not stand on a command line, which every user of the hosts can read", do=do
        )


def adopt_env_file(file: Path | None = None, environment: MutableMapping[str, str] | None = None) -> None:
    """Take the variables of a file into the environment of this process; for ranks that another launcher starts.

    Parameters
    ----------
    file : Path, optional
        By default what MATLOOM_ENV_FILE names; without either nothing happens.
    environment : mutable mapping, optional
        Instead of this process's.
    """
    environment = os.environ if environment is None else environment
    file = file or (Path(environment[FILE]) if environment.get(FILE) else None)
    if file is not None:
        environment.update(read_env_file(file))


def read_env_file(path: Path) -> dict[str, str]:
    r"""Return the variables of a file of ``NAME=VALUE`` lines, quoted as python-dotenv has it.

    Within ``'...'`` everything is meant as it stands; ``"..."`` knows ``\n`` and may have several lines. No ``$`` is
    expanded.

    Raises
    ------
    ConfigError
        Where it cannot be read, is no such file, or others may read it though it holds a secret.
    """
    from dotenv.parser import parse_stream

    found: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8") as stream:
            status = os.fstat(stream.fileno())
            for line in parse_stream(stream):
                if line.error or (line.key is not None and line.value is None):
                    # the line itself may be a secret
                    raise ConfigError(
                        "a line of the environment file is no NAME=VALUE",
                        where=f"{path}:{line.original.line}",
                        do="quote values with spaces, quotes or several lines: NAME='...'",
                    )
                if line.key is not None:
                    _check_name(line.key, f"{path}:{line.original.line}")
                    found[line.key] = line.value or ""
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise ConfigError("the environment file cannot be read", where=path, why=why) from None
    secret = [name for name, value in found.items() if holds_secret(name, value)]
    # what somebody else has made for us, Kubernetes for example, can be read by its group alone
    others = stat.S_IRWXO if status.st_uid != os.geteuid() else stat.S_IRWXO | stat.S_IRWXG
    mode = stat.S_IMODE(status.st_mode)
    if secret and mode & others:
        raise ConfigError(
            "others may read the environment file, and it holds secrets",
            where=path,
            why=f"its mode is {mode:04o}; secret: {', '.join(secret)}",
            do=f"chmod 600 {path}",
        )
    return found


def _check_name(name: str, where: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError("this is no name of a variable", where=where, why="letters, digits and _, no digit first")
    if name in RANKS:
        raise ConfigError(f"{name} is for the launcher to set", where=where, do="leave it out")


def _refuse_secret(name: str, value: str) -> None:
    if holds_secret(name, value):
        raise ConfigError(
            f"--env {name}=...: a secret must not stand on a command line, which every user of the host can read",
            do=f"export {name} and give --env {name}, or write it into a file of mode 600 and give --env-file FILE",
        )
