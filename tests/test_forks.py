"""Batches that forked processes share out: the same to the bit and in order, and no process is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from fgod.cli.work.supervise import ChildError
from fgod.data.asking import Draft, Filter, Sieve, places
from fgod.errors import FgodError, UsageError
from fgod.exporters.write import export
from fgod.guard.heartbeat import Heartbeat
from fgod.model import self_asked
from fgod.model.ask import AnswerSettings, portioned, write_answers
from fgod.model.chats import ChatFormat
from fgod.model.forks import TOKENIZERS_POOL, ForkLostError, in_batches, side_by_side
from fgod.model.generate import greedy
from fgod.model.load import beat_at_each_forward, load_model
from fgod.model.self_asked import drafts_at_once
from fgod.probe.likelihood import compare
from fgod.progress.followed import reporting
from fgod.system.process import read_process
from fgod.train.teacher import ask_teacher, write_table
from tests.heard import Heard
from tests.tiny_model import QUESTIONS, tiny_folder, tiny_rows

COUNTS = (1, 2, 3)
"""Numbers of processes that must give the same."""

PROMPTS = [f"{question} {number}" for number in range(3) for question in QUESTIONS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_folder(tmp_path_factory.mktemp("base") / "master")


# Sharing out


@pytest.mark.parametrize("processes", [*COUNTS, 9])
def test_results_come_in_the_order_of_the_jobs(processes: int) -> None:
    def work(number: int) -> tuple[int, torch.Tensor, int]:
        time.sleep(0.02 * (number % 3 == 0))
        return number, torch.full((2,), number), os.getpid()

    made = list(side_by_side(work, range(7), processes))
    assert [number for number, _, _ in made] == list(range(7))
    assert all(tensor.tolist() == [number] * 2 for number, tensor, _ in made)
    pids = {pid for _, _, pid in made}
    assert (pids == {os.getpid()}) if processes == 1 else (os.getpid() not in pids and len(pids) <= min(processes, 7))
    assert not active_children() and list(side_by_side(work, [], processes)) == []


def test_a_process_computes_with_one_thread() -> None:
    assert list(side_by_side(lambda _: torch.get_num_threads(), range(2), 2)) == [1, 1]


def refuse(number: int) -> int:
    if number == 3:
        raise UsageError("row 3: broken")
    return number


def divide(number: int) -> int:
    return 1 // (number - 3)


@pytest.mark.parametrize(
    ("work", "kind", "words"), [(refuse, UsageError, "^row 3: broken$"), (divide, ZeroDivisionError, "division")]
)
def test_what_is_raised_in_a_process_is_raised_here(
    work: Callable[[int], int], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        list(side_by_side(work, range(9), 2))
    notes = getattr(caught.value, "__notes__", [])
    assert bool(notes) == (kind is ZeroDivisionError), "the traceback of what nobody has explained"
    assert all("in divide" in note for note in notes) and not active_children()


class TwoParts(Exception):
    """Pickled by the one text that it hands on."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what} {number}")


class Framed(Exception):
    """Would say that it is wrong twice, once it was pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(f"wrong: {text}")


@pytest.mark.parametrize(
    ("raised", "kind", "code", "text"),
    [
        (ChildError("no result", 3), FgodError, 3, "no result"),
        (ForkLostError(7, -15), FgodError, 143, str(ForkLostError(7, -15))),
        (TwoParts("row", 3), RuntimeError, None, "TwoParts: row 3"),
        (Framed("row 3"), RuntimeError, None, "Framed: wrong: row 3"),
    ],
)
def test_an_exception_that_cannot_be_pickled_is_told(
    raised: Exception, kind: type[Exception], code: int | None, text: str
) -> None:
    def work(number: int) -> None:
        raise raised

    with pytest.raises(kind) as caught:
        list(side_by_side(work, range(2), 2))
    assert type(caught.value) is kind and str(caught.value) == text
    assert getattr(caught.value, "exit_code", None) == code
    assert ("in work" in "".join(getattr(caught.value, "__notes__", []))) == (code is None)


@pytest.mark.parametrize("own", ["true", "false", None])
def test_a_process_encodes_without_threads_and_this_one_as_its_user_said(
    own: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own is None:
        monkeypatch.delenv(TOKENIZERS_POOL, raising=False)
    else:
        monkeypatch.setenv(TOKENIZERS_POOL, own)
    assert list(side_by_side(lambda _: os.environ[TOKENIZERS_POOL], range(3), 2)) == ["false"] * 3
    assert os.environ.get(TOKENIZERS_POOL) == own


def test_a_process_that_is_killed_ends_the_work(folder: Path) -> None:
    def work(number: int) -> int:
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
        return number

    with pytest.raises(ForkLostError, match=r"was ended by SIGKILL, perhaps by .*--processes") as caught:
        list(side_by_side(work, range(5), 2))
    assert caught.value.exit_code == 137 and not active_children()
    with pytest.raises(ForkLostError, match=r"ended with exit code 3$") as caught:
        list(side_by_side(lambda _: os._exit(3), range(2), 2))
    assert caught.value.exit_code == 1 and isinstance(caught.value, FgodError)


def test_closing_it_early_ends_the_processes() -> None:
    made = side_by_side(lambda number: time.sleep(60 * number), range(4), 2)
    assert next(made) is None and len(active_children()) == 2
    made.close()
    assert not active_children()


CPU = torch.device("cpu")
BATCHES = [[4, 0], [1, 3], [2]]


@pytest.mark.parametrize("processes", COUNTS)
def test_each_index_comes_with_what_was_made_of_it(processes: int) -> None:
    with in_batches(lambda batch: [10 * index for index in batch], BATCHES, processes, CPU) as made:
        assert list(made) == [(4, 40), (0, 0), (1, 10), (3, 30), (2, 20)]
    with (
        pytest.raises(ValueError, match="shorter"),
        in_batches(lambda batch: [0], BATCHES, processes, CPU) as made,
    ):
        dict(made)
    assert not active_children()


def test_an_error_of_whoever_takes_results_ends_the_processes() -> None:
    with pytest.raises(ZeroDivisionError) as caught, in_batches(list, BATCHES, 2, CPU) as made:
        for index, _ in made:
            assert index == 4 and len(active_children()) == 2
            raise ZeroDivisionError
    assert caught.value.__traceback__ is not None and not active_children()


def test_a_gpu_is_not_shared() -> None:
    with (
        pytest.raises(ValueError, match="found 2 processes that compute on cuda, expected 1"),
        in_batches(list, BATCHES, 2, torch.device("cuda")),
    ):
        pass
    with in_batches(list, BATCHES, 1, torch.device("cuda")) as made:
        assert len(dict(made)) == 5


PARENT = """
import os, signal, sys, time
from fgod.model.forks import side_by_side

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of a shell's background ignores it

def work(number):
    os.write(1, f"{os.getpid()}\\n".encode())
    time.sleep(60)

list(side_by_side(work, range(2), 2))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_the_one_that_forked_them(number: int) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        parent.send_signal(number)
        parent.wait(20)
    deadline = time.monotonic() + 20
    while any(read_process(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# What a model says


def test_answers_are_the_same_files(folder: Path, tmp_path: Path) -> None:
    settings = AnswerSettings(max_new_tokens=8, batch_size=5)
    heard = [Heard() for _ in COUNTS]
    for count, own in zip(COUNTS, heard, strict=True):
        with reporting(own):
            write_answers(folder, PROMPTS, tmp_path / str(count), settings, processes=count)
    for name in ("answers.tsv", "answers.json"):
        assert len({(tmp_path / str(count) / name).read_bytes() for count in COUNTS}) == 1
    assert [own.steps[-1] for own in heard] == [(24, 24)] * 3 and all(own.ends for own in heard)


def test_replies_are_the_same(folder: Path) -> None:
    model, chat = load_model(folder), ChatFormat.of_folder(folder)
    one, two, three = (greedy(model, chat, PROMPTS, 8, 5, count) for count in COUNTS)
    assert one == two == three and len(one) == len(PROMPTS)


def test_portions_are_sorted_by_length_each_by_itself() -> None:
    lengths = [9, 1, 8, 2, 7, 3, 6, 4, 5, 1, 2]
    assert portioned(lengths, 2) == [[1, 3], [5, 7], [6, 4], [2, 0], [9, 10], [8]]
    assert portioned([], 2) == []


class Everything(Sieve):
    """Keeps what it looks at, and has enough after 20 drafts."""

    def __init__(self, keep: Filter, wanted: int) -> None:
        super().__init__(keep, wanted)
        self.seen: list[Draft] = []

    @property
    def full(self) -> bool:
        return len(self.seen) >= 20

    def add(self, drafts: Iterable[Draft]) -> None:
        self.seen += drafts


@pytest.mark.parametrize(("prompts", "looked_at"), [(2, 8), (40, 24)])
def test_drafts_are_the_same_and_looked_at_in_order(
    folder: Path, prompts: int, looked_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_asked, "Sieve", Everything)
    settings = {
        "prompts": prompts, "temperature": 1.0, "top_p": 0.95, "max_tokens": 6, "max_chars": 400, "seed": 7,
        "names": [], "systems": {"en": ["Be short."], "zh-Hant": ["請簡短。"]},
    }  # fmt: skip
    model, chat = load_model(folder), ChatFormat.of_folder(folder)
    drawn: list[list[Draft]] = []
    for count in COUNTS:
        found = self_asked.ask_itself(model, chat, settings, 4, processes=count)
        assert isinstance(found, Everything) and not active_children()
        drawn.append(found.seen)
    assert drawn[0] == drawn[1] == drawn[2] and len(drawn[0]) == looked_at
    assert [one.place for one in drawn[0]] == (places(settings["systems"]) * looked_at)[:looked_at]
    assert len({one.text for one in drawn[0]}) > looked_at / 2


def test_rounds_have_each_draft_once() -> None:
    assert drafts_at_once(8, 3, 2) == [
        [range(0, 6, 3), range(1, 6, 3), range(2, 6, 3)],
        [range(6, 8, 3), range(7, 8, 3)],
    ]


def test_the_teachers_tables_are_the_same(folder: Path, tmp_path: Path) -> None:
    model, samples = load_model(folder), list(dict.fromkeys(ChatFormat.of_folder(folder).rows(tiny_rows())))
    for count in COUNTS:
        write_table(tmp_path / str(count), samples, ask_teacher(model, samples, 8, 1.0, 3, count))
    assert len({(tmp_path / str(count)).read_bytes() for count in COUNTS}) == 1


def test_comparisons_are_the_same(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "nvfp4")
    base, model, chat = load_model(folder), load_model(tmp_path / "nvfp4"), ChatFormat.of_folder(folder)
    answers = write_answers(folder, PROMPTS, tmp_path / "answers", AnswerSettings(max_new_tokens=6))
    one, two, three = (compare(base, model, chat, answers, 5, count) for count in COUNTS)
    assert one == two == three and all(found.kl for found in one)


def test_forked_processes_give_heartbeats(folder: Path, tmp_path: Path) -> None:
    phase = tmp_path / "phase"
    beat = Heartbeat(phase)
    beat("model_loaded")
    os.utime(phase, (0, 0))
    model = load_model(folder)
    beat_at_each_forward(model, beat)
    greedy(model, ChatFormat.of_folder(folder), PROMPTS, 3, 5, 2)
    assert phase.stat().st_mtime > 0
