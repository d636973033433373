"""`transformers serve` with a release answers a client of OpenAI's API as the release was probed."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.import_utils import is_accelerate_available, is_serve_available

from fgod.layout import RunRecords
from fgod.probe.record import read_probes
from tests.mini import BIN, Mini

ASKED = 4
START_S = 120
"""Seconds that the server may take until it listens."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def served(ran: Mini) -> Iterator[tuple[str, Mini]]:
    """Where the release of a miniature project is served."""
    port, log = free_port(), ran.folder / "serve.log"
    command = [BIN / "transformers", "serve", "artifacts/release", "--device", "cpu", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with log.open("w") as said:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1"], cwd=ran.folder, env=environment, stdout=said, stderr=said
        )
    try:
        wait_for(server, port, log)
        yield f"http://127.0.0.1:{port}/v1", ran
    finally:
        server.terminate()
        server.wait()


def wait_for(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until something listens at the port."""
    for _ in range(10 * START_S):
        assert server.poll() is None, log.read_text()
        with socket.socket() as asked:
            if asked.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.mark.skipif(
    not (is_serve_available() and is_accelerate_available()),
    reason="transformers serve needs accelerate, fastapi, uvicorn and openai, the extra serve of fgod",
)
def test_a_client_of_openai_gets_what_was_probed(served: tuple[str, Mini]) -> None:
    from openai import OpenAI

    url, project = served
    run = next(project.folder.glob("results/runs/*/*"))
    probed = [one for one in read_probes(RunRecords(run).probes) if not one.frame][:ASKED]
    client: Any = OpenAI(base_url=url, api_key="none")
    for one in probed:
        answer = client.chat.completions.create(
            model="artifacts/release", messages=[{"role": "user", "content": one.prompt}], temperature=0, max_tokens=24
        )
        assert answer.choices[0].message.content == one.reply
    assert len(probed) == ASKED
