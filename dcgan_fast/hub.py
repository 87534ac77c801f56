"""Networks on the Hugging Face hub: what stands behind ``from_pretrained``, ``save_pretrained`` and ``push_to_hub``.

huggingface_hub's own ``PyTorchModelHubMixin`` does the work, but is no base class of the networks: it is optional,
takes a third of a second to import, and keeps a second config beside theirs. A network borrows it for the one call: a
subclass of its class that has the mixin is made at first use (:func:`_with_mixin`), and a copy of the network that
shares its weights becomes an instance of it. What is loaded comes back as the plain class.
"""

from __future__ import annotations

import copy
import functools
import os
import types
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from .convert.huggan import CONFIG, PICKLE, SAFETENSORS, read_config, read_network, weights_file
from .errors import UserError
from .files import cannot_write
from .networks import Described
from .optional import optional_module
from .training import checkpoint as checkpoints

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]

D = TypeVar("D", bound=Described)

_CARD: dict[str, Any] = {
    "library_name": "dcgan_fast",
    "tags": ["gan", "dcgan", "image-generation"],
    "paper_url": "https://arxiv.org/abs/1511.06434",
}


def from_pretrained(
    network_class: type[D], name_or_path: str | os.PathLike[str], **options: Any
) -> D:
    """See :meth:`dcgan_fast.networks.Described.from_pretrained`."""
    mixed = _with_mixin("from_pretrained", network_class)
    path = Path(name_or_path)
    # Of a folder that is not there the hub's library says that it is no name on the hub.
    of_hub = len(path.parts) <= 2 and not path.is_absolute() and not str(name_or_path)[:1] == "."
    if not path.is_dir() and (path.exists() or not of_hub):
        raise UserError(f"from_pretrained(): no such folder: {path}")
    if path.is_dir():
        read_config(path / CONFIG)  # the mixin takes it as it is
    network = mixed.from_pretrained(str(name_or_path), **options)
    vars(network).pop("_hub_mixin_config", None)  # which network.config is
    return network.eval()


def save_pretrained(
    network: Described, folder: str | os.PathLike[str], **options: Any
) -> str | None:
    """See :meth:`dcgan_fast.networks.Described.save_pretrained`."""
    twin = _twin("save_pretrained", network)
    try:
        return twin.save_pretrained(folder, **options)
    except OSError as error:
        if type(error).__module__ != "builtins":  # the hub's own
            raise
        raise cannot_write(Path(folder), error) from error


def push_to_hub(network: Described, repository: str, **options: Any) -> str:
    """See :meth:`dcgan_fast.networks.Described.push_to_hub`."""
    return _twin("push_to_hub", network).push_to_hub(repository, **options)


def _twin(where: str, network: Described) -> Any:
    """``network`` with the mixin: the same tensors, and a config of its own that names the class too."""
    mixed = _with_mixin(where, type(network))
    optional_module("safetensors", f"{where}()", "hub")
    twin: Any = copy.copy(network)
    twin.__class__ = mixed
    twin._hub_mixin_config = {**network.config, "network": type(network).__name__}
    return twin


def _with_mixin(where: str, network_class: type[Described]) -> Any:
    optional_module("huggingface_hub", f"{where}()", "hub")
    return _mixed_class(cast(Any, network_class))


@functools.cache
def _mixed_class(network_class: Any) -> Any:
    """A subclass of ``network_class`` whose three methods are the mixin's, reading what this library knows to read."""
    from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def fetch(model_id: str, **options: Any) -> Path:
        if os.path.isdir(model_id):
            return weights_file("from_pretrained()", Path(model_id))
        try:
            return Path(hf_hub_download(model_id, SAFETENSORS, **options))
        except EntryNotFoundError:
            return Path(hf_hub_download(model_id, PICKLE, **options))

    # The mixin's own loads with strict=False: weights that do not fit would be left random.
    def load(
        cls: type[Described],
        *,
        model_id: str,
        map_location: torch.device | str = "cpu",
        config: dict[str, Any] | None = None,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **_: Any,  # the config's settings once more
    ) -> torch.nn.Module:
        path = fetch(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        content = read_network(path, config or {})
        networks = checkpoints.build_networks(content, source=model_id)
        (network,) = networks.values()
        if type(network) is not network_class:
            raise UserError(
                f"from_pretrained(): {model_id} is a {type(network).__name__}, not a "
                f"{network_class.__name__}: use {type(network).__name__}.from_pretrained()"
            )
        return network.to(map_location)

    def body(namespace: dict[str, Any]) -> None:
        namespace["_from_pretrained"] = classmethod(load)
        namespace["__doc__"] = network_class.__doc__

    bases = (PyTorchModelHubMixin, network_class)
    card = {**_CARD, "tags": list(_CARD["tags"])}  # to which the mixin adds its own
    return types.new_class(network_class.__name__, bases, card, body)
