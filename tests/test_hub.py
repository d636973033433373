"""Models are fetched from a hub, here a server on this machine: what is asked of it, and what it may answer."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

from fgod.errors import FgodError, UsageError
from fgod.importing import RECORD
from fgod.importing.hub import fetch
from fgod.model.folder import check_folder
from fgod.system.files import file_digests, read_json, write_json
from tests.families import family_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A server with one repository, me/tiny, that has the files of a folder. `asked`: paths in order, with tokens."""

    folder: Path
    url: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    refusal: tuple[int, dict[str, str]] | None = None

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


def handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = unquote(self.path.partition("?")[0])
            hub.asked.append((path, self.headers.get("authorization")))
            status, headers, content = respond(hub, path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def respond(hub: Hub, path: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body, as the hub gives them."""
    if hub.refusal:
        return hub.refusal[0], hub.refusal[1], b"{}"
    if not path.removeprefix("/api/models").startswith("/me/tiny"):
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
    if "/revision/" in path:
        if path.endswith("/revision/nowhere"):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        return 200, {"Content-Type": "application/json"}, json.dumps({"id": "me/tiny", "sha": COMMIT}).encode()
    if path.startswith(f"/api/models/me/tiny/tree/{COMMIT}"):
        files = [
            {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": oid(file)}
            for file in sorted(hub.folder.iterdir())
        ]
        return 200, {"Content-Type": "application/json"}, json.dumps(files).encode()
    file = hub.folder / path.rpartition("/")[2]
    if path.startswith(f"/me/tiny/resolve/{COMMIT}/") and file.is_file():
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{oid(file)}"'}, file.read_bytes()
    return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"


def oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = family_folder("qwen2", tmp_path / "served")
    (folder / "pytorch_model.bin").write_bytes(b"another form of the weights")
    (folder / "evil.py").write_text("raise SystemExit")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    found = Hub(folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_of(found)) as server:
        found.url = f"http://127.0.0.1:{server.server_address[1]}"
        Thread(target=server.serve_forever, daemon=True).start()
        yield found
        server.shutdown()


def test_what_a_base_needs_is_fetched_and_the_commit_recorded(hub: Hub, tmp_path: Path) -> None:
    assert fetch("me/tiny", tmp_path / "out", endpoint=hub.url) == COMMIT
    assert check_folder(tmp_path / "out").architecture == "Qwen2ForCausalLM"
    record = read_json(tmp_path / "out" / RECORD)
    assert (record["source"], record["revision"], record["commit"]) == ("me/tiny", "main", COMMIT)
    served = file_digests(hub.folder)
    assert record["files"] == {name: sha256 for name, sha256 in served.items() if not name.endswith((".bin", ".py"))}
    assert sorted(record["files"]) == sorted(p.name for p in (tmp_path / "out").iterdir() if p.name != RECORD)
    weights = next(n for n, path in enumerate(hub.paths()) if path.endswith(".safetensors"))
    assert all(f"/{COMMIT}/" in path for path in hub.paths()[weights:])


def test_the_command_honours_endpoint_and_token(hub: Hub, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "fgod", "fetch", "me/tiny"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert f"models/tiny: me/tiny at {COMMIT}" in ended.stderr and (tmp_path / "models/tiny/config.json").exists()
    assert {token for path, token in hub.asked if "me/tiny" in path} == {"Bearer hf_secret"}
    assert "hf_secret" not in (tmp_path / "models/tiny" / RECORD).read_text() + ended.stderr


def test_offline_nothing_is_asked(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FgodError, match=r"me/tiny: it is not in the cache of huggingface_hub.*HF_HUB_OFFLINE is set"):
        fetch("me/tiny", tmp_path / "out", endpoint=hub.url)
    assert not hub.asked and not (tmp_path / "out").exists()


def test_offline_the_cache_is_taken(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download("me/tiny", endpoint=hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert fetch("me/tiny", tmp_path / "out") == COMMIT and len(hub.asked) == asked
    assert check_folder(tmp_path / "out").tied and not any(p.is_symlink() for p in (tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("refusal", "kind", "words"),
    [
        ((401, {}), FgodError, r"refuses it \(401\): HF_TOKEN is not set or not valid there"),
        ((401, {"X-Error-Code": "RepoNotFound"}), UsageError, r"no such model, or it is private \(401\).*set HF_TOKEN"),
        ((403, {"X-Error-Code": "GatedRepo"}), UsageError, r"refuses it \(403\).*accept the terms on the model's page"),
        ((403, {}), FgodError, r"refuses it \(403\): HF_TOKEN may not read"),
        ((404, {"X-Error-Code": "RepoNotFound"}), UsageError, r"has no such model, or it is private \(404\)"),
        ((418, {}), FgodError, r"fails \(418\): try again later"),
    ],
)
def test_what_the_hub_refuses_is_said(
    hub: Hub, tmp_path: Path, refusal: tuple[int, dict[str, str]], kind: type[Exception], words: str
) -> None:
    hub.refusal = refusal
    with pytest.raises(kind, match=f"me/tiny: {hub.url} .*{words}"):
        fetch("me/tiny", tmp_path / "out", endpoint=hub.url)
    assert not (tmp_path / "out").exists()


def test_a_name_or_revision_that_is_not_there(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"me/other: .* has no such model"):
        fetch("me/other", tmp_path / "out", endpoint=hub.url)
    with pytest.raises(UsageError, match="--revision: found 'nowhere', expected a branch, tag or commit"):
        fetch("me/tiny", tmp_path / "out", "nowhere", endpoint=hub.url)
    with pytest.raises(UsageError, match="a/b/c: no name of a model, expected OWNER/NAME"):
        fetch("a/b/c", tmp_path / "out", endpoint=hub.url)


def test_no_network(tmp_path: Path) -> None:
    with pytest.raises(FgodError, match=r"me/tiny: http://127.0.0.1:9 does not answer .*no network, or HF_ENDPOINT"):
        fetch("me/tiny", tmp_path / "out", endpoint="http://127.0.0.1:9")


def test_of_a_model_that_cannot_be_a_base_no_weights_are_fetched(hub: Hub, tmp_path: Path) -> None:
    config = read_json(hub.folder / "config.json")
    write_json(hub.folder / "config.json", {**config, "quantization_config": {"quant_method": "awq"}})
    with pytest.raises(UsageError, match="quantization_config: found 'awq'"):
        fetch("me/tiny", tmp_path / "out", endpoint=hub.url)
    write_json(hub.folder / "config.json", {**config, "architectures": ["GPT2LMHeadModel"]})
    with pytest.raises(UsageError, match=r"architectures: found .*GPT2LMHeadModel"):
        fetch("me/tiny", tmp_path / "out2", endpoint=hub.url)
    assert not any("safetensors" in path.rpartition("/")[2] for path in hub.paths())
    assert not (tmp_path / "out").exists()


def test_a_repository_without_safetensors(hub: Hub, tmp_path: Path) -> None:
    (hub.folder / "model.safetensors").rename(hub.folder / "tiny.gguf")
    with pytest.raises(UsageError, match=r"me/tiny: found no model\.safetensors.*fgod import FILE\.gguf OUT"):
        fetch("me/tiny", tmp_path / "out", endpoint=hub.url)
