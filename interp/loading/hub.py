"""Checkpoints of the hub: the files that are read, in its cache, and what stands in the way, each in one line.

Only the configuration and safetensors are fetched, at one commit; the rest is as for a local folder. Address, token,
cache and offline rules are huggingface_hub's own (HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE).
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from interp.errors import ModelLoadError, first_line
from interp.loading.shards import INDEX, WEIGHTS, indexed_files

OPTIONAL = ("generation_config.json",)


def snapshot(name: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder in the cache that holds a checkpoint's configuration and weights, and its commit.

    Raises:
        ModelLoadError: no such model or revision, no access, no connection, or files that are not there.
    """
    config = _file(name, "config.json", revision)
    if config is None:
        adapter = _file(name, "adapter_config.json", revision)
        if adapter is None:
            raise ModelLoadError(f"cannot read the config of {name!r}: no config.json on the hub at {_at(revision)}")
        _file(name, "adapter_model.safetensors", adapter.parent.name)
        return adapter.parent, adapter.parent.name
    commit = config.parent.name
    for file in OPTIONAL:
        _file(name, file, commit)
    if _file(name, WEIGHTS, commit) is None:
        index = _file(name, INDEX, commit)
        if index is None:
            raise ModelLoadError(
                f"{name!r} has no weights in safetensors at {_at(revision)}: neither {WEIGHTS} nor {INDEX}; pickled "
                "weights are not opened"
            )
        for shard in indexed_files(index, name):
            if _file(name, shard, commit) is None:
                raise ModelLoadError(f"{INDEX} of {name!r} names {shard!r}, which is not on the hub")
    return config.parent, commit


def fetch(name: str, file: str, revision: str | None = None) -> Path | None:
    """A file of a repository in the cache, fetched where it is not there yet; None where there is no such file.

    Raises:
        ModelLoadError: no such repository or revision, no access, no connection.
    """
    return _file(name, file, revision)


def _file(name: str, file: str, revision: str | None) -> Path | None:
    """A file in the cache, fetched where it is not there yet; None where the model has no such file."""
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except GatedRepoError as error:
        raise ModelLoadError(
            f"{name!r} is gated: ask for access on its page, then log in (`hf auth login`) or set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelLoadError(f"{name!r} has no revision {revision!r}; give a branch, a tag or a commit") from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(
            f"cannot read the config of {name!r}: no folder of that name here, and no such model on the hub (or a "
            "private one: log in with `hf auth login`)"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if file in OPTIONAL or (file != "config.json" and constants.HF_HUB_OFFLINE):
            return None
        where = (
            "is offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else f"cannot be reached at {constants.ENDPOINT}"
        )
        raise ModelLoadError(
            f"cannot read the config of {name!r}: no folder of that name here, the hub {where}, and {file} is not in "
            "the cache"
        ) from error
    except EntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ModelLoadError(f"{name!r} is neither a folder here nor a hub id: {first_line(error)}") from error
    except HfHubHTTPError as error:
        raise ModelLoadError(f"cannot fetch {file} of {name!r} from the hub: {first_line(error)}") from error
    except Exception as error:  # of whichever HTTP client huggingface_hub uses
        raise ModelLoadError(
            f"the connection to the hub broke while fetching {file} of {name!r}: {first_line(error)}"
        ) from error


def _at(revision: str | None) -> str:
    return "its main branch" if revision is None else f"revision {revision!r}"
