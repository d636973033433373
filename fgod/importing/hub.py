"""Fetch a model from the Hugging Face hub: the files that a base needs, of one commit, which is recorded beside them.

    fgod fetch OWNER/NAME [OUT] [--revision main]        OUT/config.json, *.safetensors, tokenizer.json, …, import.json

huggingface_hub reads HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE; offline, what its cache has is taken.
A download that is stopped goes on where it was: it lies in OUT.part until it is whole.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from fgod.errors import FgodError, UsageError
from fgod.importing import RECORD
from fgod.model.folder import checked_config
from fgod.model.load import first_line
from fgod.system.files import file_digests, write_json

SMALL = ["config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
         "vocab.json", "merges.txt", "chat_template*", "LICENSE*", "README.md"]  # fmt: skip
WEIGHTS = ["model*.safetensors", "model.safetensors.index.json"]

COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch(
    repository: str,
    out: Path,
    revision: str = constants.DEFAULT_REVISION,
    endpoint: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> str:
    """Fetch a model to the folder `out`, which appears whole; returns the commit.

    config.json comes first: of a model that cannot be a base no weights are fetched.

    Args:
        repository: OWNER/NAME.
        revision: a branch, a tag or a commit.
        endpoint: of the hub, by default HF_ENDPOINT's or huggingface.co.

    Raises:
        UsageError: there is no such model or revision, it is refused, or it cannot be a base.
        FgodError: the hub does not answer, or fails.
    """
    part = out.with_name(f"{out.name}.part")
    with _explained(repository, revision, endpoint or constants.ENDPOINT):
        if constants.is_offline_mode():
            commit = _copy_cached(repository, revision, part)
        else:
            commit = _commit(repository, revision, endpoint)
            snapshot_download(repository, revision=commit, local_dir=part, allow_patterns=SMALL, endpoint=endpoint)
        checked_config(part, export_ok=True)
        if not constants.is_offline_mode():
            say(f"fetch · {repository} · commit {commit}")
            snapshot_download(repository, revision=commit, local_dir=part, allow_patterns=WEIGHTS, endpoint=endpoint)
    _check_weights(repository, part)
    shutil.rmtree(part / ".cache", ignore_errors=True)
    record = {"source": repository, "revision": revision, "commit": commit, "files": file_digests(part)}
    write_json(part / RECORD, record)
    part.replace(out)
    return commit


def _commit(repository: str, revision: str, endpoint: str | None) -> str:
    """The commit that a revision names now."""
    commit = HfApi(endpoint=endpoint).model_info(repository, revision=revision).sha
    if commit is None or not COMMIT.fullmatch(commit):
        raise FgodError(f"{repository}: the hub names the commit {commit!r} for {revision}, expected 40 hex digits")
    return commit


def _copy_cached(repository: str, revision: str, part: Path) -> str:
    """Copy what the cache has; returns the commit."""
    cached = Path(
        snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=[*SMALL, *WEIGHTS])
    )
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(cached, part)  # the cache holds links: their files are copied
    return cached.name


def _check_weights(repository: str, part: Path) -> None:
    if not any(part.glob("model*.safetensors")):
        raise UsageError(
            f"{repository}: found no model.safetensors, nor shards of one: expected a model in Hugging Face format; of "
            "a repository of GGUF files download one, then: fgod import FILE.gguf OUT"
        )


@contextmanager
def _explained(repository: str, revision: str, endpoint: str) -> Iterator[None]:
    """What the hub answers, in words."""
    try:
        yield
    except HFValidationError as error:
        raise UsageError(f"{repository}: no name of a model, expected OWNER/NAME ({first_line(error)})") from error
    except GatedRepoError as error:
        raise UsageError(
            f"{repository}: {endpoint} refuses it ({error.response.status_code}): its owner asks for consent; accept "
            "the terms on the model's page, and set HF_TOKEN to a token of that account"
        ) from error
    except RevisionNotFoundError as error:
        raise UsageError(f"{repository}: --revision: found {revision!r}, expected a branch, tag or commit") from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"{repository}: {endpoint} has no such model, or it is private ({error.response.status_code}): check the "
            "name; for a private one set HF_TOKEN"
        ) from error
    except HfHubHTTPError as error:
        raise FgodError(_refusal(repository, endpoint, error.response.status_code)) from error
    except LocalEntryNotFoundError as error:
        raise FgodError(
            f"{repository}: it is not in the cache of huggingface_hub, and nothing can be fetched: "
            f"HF_HUB_OFFLINE is set, or {endpoint} does not answer"
        ) from error
    except (httpx2.HTTPError, ConnectionError, TimeoutError) as error:
        raise FgodError(
            f"{repository}: {endpoint} does not answer ({first_line(error)}): this machine has no network, or "
            "HF_ENDPOINT is wrong"
        ) from error


def _refusal(repository: str, endpoint: str, status: int) -> str:
    if status == 401:
        return f"{repository}: {endpoint} refuses it (401): HF_TOKEN is not set or not valid there (or wrong name)"
    if status == 403:
        return f"{repository}: {endpoint} refuses it (403): HF_TOKEN may not read this model"
    return f"{repository}: {endpoint} fails ({status}): try again later"
