"""Models on the Hugging Face hub: down, verified against their sealed hashes, and up, as safetensors, config and card.

A model that is published here is a sealed folder as `finetune.load` reads it, with a ``config.json`` and ``README.md``
beside the rest. Of a repository only what its seal names is fetched, and nothing but what an export has: no pickle, no
code.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, cast

import safetensors.torch
from huggingface_hub import (
    ModelCard,
    PyTorchModelHubMixin,
    get_session,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import Tensor, nn

from finetune.files import CONFIG, README
from finetune.registry.contents import FILES
from pretrain.export import contiguous
from pretrain.export_files import CARD, WEIGHTS
from shards.cache import cache_folder
from shards.errors import CheckpointError, MatloomError, RegistryError
from shards.quoting import printable
from shards.sealed import SEAL, sealing, verify

SCHEME = "hf://"
REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
# seconds until a hub that does not answer is away
PATIENCE_S = 5.0


def download(uri: str, *, token: str | bool | None = None) -> Path:
    """Fetch a model from the hub into the cache, and verify it.

    Parameters
    ----------
    uri : str
        ``hf://org/name``, ``org/name``, either with ``@revision``: a branch, a tag or a commit. ``HF_ENDPOINT`` names
        another hub. Without a connection, what is in the cache is taken.
    token : str or bool, optional
        Where not given, that of ``hf auth login`` or ``HF_TOKEN``.

    Returns
    -------
    Path
        A sealed folder; read only.

    Raises
    ------
    RegistryError
        Where there is no such model, the hub cannot be reached, or the repository holds no model of matloom.
    CheckpointError
        Where a file differs from what was sealed.
    """
    match = REPOSITORY.fullmatch(uri.removeprefix(SCHEME))
    if match is None:
        raise RegistryError(f"'{uri}' names no model of a hub", do="write hf://organisation/name, or add @revision")
    endpoint = os.environ.get("HF_ENDPOINT")
    options: dict[str, Any] = {
        "cache_dir": cache_folder() / "hub",
        "endpoint": endpoint,
        "library_name": "matloom",
        "token": token,
        # the library would ask six times, and wait in between
        "local_files_only": not _reachable(
            hf_hub_url(match["repo"], SEAL, revision=match["revision"], endpoint=endpoint)
        ),
        "etag_timeout": PATIENCE_S,
    }
    try:
        seal = Path(hf_hub_download(match["repo"], SEAL, revision=match["revision"], **options))
        names = _sealed_names(seal, uri)
        # the commit that the seal is of: a branch may move between two requests
        commit = seal.parent.name
        folder = Path(snapshot_download(match["repo"], revision=commit, allow_patterns=[*names, SEAL], **options))
    except MatloomError:
        raise
    except (LocalEntryNotFoundError, OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        raise _refused(uri, error) from None
    verify(folder, error=CheckpointError)
    return folder


def _reachable(url: str) -> bool:
    """Say whether the hub answers anything at all."""
    try:
        get_session().head(url, timeout=PATIENCE_S)
    except Exception:
        # whatever library the hub's client stands on
        return False
    return True


def _sealed_names(seal: Path, uri: str) -> list[str]:
    """Return the names in a seal, of which every one may be fetched."""
    try:
        names = list(json.loads(seal.read_text())["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError("the seal is damaged", where=uri, why=repr(error)) from None
    for name in names:
        if not isinstance(name, str) or name not in FILES:
            raise CheckpointError(
                f"the model holds '{printable(name)}'",
                where=uri,
                why=f"nothing but {', '.join(sorted(FILES))} is ever fetched",
            )
    return names


def _refused(uri: str, error: Exception) -> RegistryError:
    reasons = {
        RevisionNotFoundError: ("the model has no such revision", "check what stands behind the @"),
        RepositoryNotFoundError: ("the hub has no such model, or not for you", "check the name; hf auth login"),
        LocalEntryNotFoundError: (
            "the hub cannot be reached, and the model is not in the cache",
            "check the connection; or the path, where a folder is meant",
        ),
        EntryNotFoundError: ("this is no model of matloom", "matloom export writes one that can be uploaded"),
    }
    kind = next((kind for kind in reasons if isinstance(error, kind)), None)
    what, do = reasons[kind] if kind else ("the hub cannot be read", "check HF_ENDPOINT and the connection")
    why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return RegistryError(what, where=uri, why=why, do=do)


class HubModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="matloom",
    tags=["materials-science", "multimodal"],
):
    """The network of a sealed folder with ``from_pretrained``, ``save_pretrained`` and ``push_to_hub``.

    What it saves, `finetune.load` and `from_pretrained` both read; weights that were changed are saved as they are.

    Parameters
    ----------
    folder : str
        A sealed folder that pretraining or fine-tuning wrote.

    Attributes
    ----------
    model : Foundation or PropertyModel
        What `finetune.load` gives of the folder.
    network : MultimodalModel or Predictor
        Its network.
    """

    def __init__(self, folder: str) -> None:
        from finetune.loading import PropertyModel, load

        super().__init__()
        self.model = load(folder)
        self.network: nn.Module = (
            self.model.predictor if isinstance(self.model, PropertyModel) else cast(nn.Module, self.model.model)
        )
        # a folder of one's own may hold more, which stays where it is
        others = (path for path in sorted(Path(folder).iterdir()) if path.name in FILES - {WEIGHTS, SEAL})
        self.files = {path.name: path.read_bytes() for path in others}
        self._hub_mixin_config = self._config()

    def forward(self, batch: Any) -> Any:
        """Run the network."""
        return self.network(batch)

    def save_pretrained(self, save_directory: Path | str, **options: Any) -> str | None:
        """Write a sealed folder; options are those of ``huggingface_hub.ModelHubMixin.save_pretrained``."""
        push = {name: options.pop(name) for name in ("push_to_hub", "repo_id") if name in options}
        with sealing(Path(save_directory)) as stage:
            super().save_pretrained(stage, **options)
        if not push.get("push_to_hub"):
            return None
        return str(self.push_to_hub(push.get("repo_id") or Path(save_directory).name))

    def _save_pretrained(self, save_directory: Path) -> None:
        for name, data in self.files.items():
            if name not in (CONFIG, README):
                (save_directory / name).write_bytes(data)
        safetensors.torch.save_file(contiguous(self.network.state_dict()), save_directory / WEIGHTS)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        map_location: str = "cpu",
    ) -> HubModel:
        """Load from a sealed folder or from the hub, verified against the seal; there is no fall-back to pickle."""
        name = str(pretrained_model_name_or_path)
        if not Path(name).is_dir():
            name = str(download(f"{name}@{revision}" if revision else name, token=token))
        return cls(name).to(map_location)

    def generate_model_card(self, *args: Any, **options: Any) -> ModelCard:
        """Return the model's own card under the table of metadata that the hub reads."""
        metadata = self._hub_mixin_info.model_card_data.to_yaml()
        # pages show the card: what another model's holds is no markup of ours, and no control of a terminal
        card = printable(self.files.get(CARD, b"").decode(errors="replace"), lines=True, most=0)
        return ModelCard(f"---\n{metadata}\n---\n\n{card.replace('<', '&lt;')}")

    def _config(self) -> dict[str, Any]:
        """Return what one may want to know of a model without loading it."""
        from finetune.loading import PropertyModel

        count = sum(cast(Tensor, p).numel() for p in self.network.parameters())
        if isinstance(self.model, PropertyModel):
            info = self.model.info
            own: dict[str, Any] = {
                "targets": list(info.targets),
                "task": info.task,
                "modalities": list(info.modalities),
            }
            return {"model_type": "matloom-predictor", **own, "head": info.head, "parameters": count}
        recipe = self.model.export.recipe
        own = {"name": recipe.name, "modalities": self.model.modalities, "dim": recipe.projection.dim}
        return {"model_type": "matloom-foundation", **own, "parameters": count}
