"""The pages in Traditional Chinese are in step with the English ones (tests/pages.py says in what)."""

import re

import pytest

from fgod.evaluate.words import simplified
from tests.mini import ROOT
from tests.pages import FOLDER, README, Pages, english_of, figures, sections, slugs, unclosed

FILES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PAGES = Pages({path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in FILES})
PAIRS = PAGES.pairs()


def test_the_readme_and_the_main_pages_are_translated():
    names = ("data", "training", "measuring", "guard", "why-runs-failed", "teaching")
    assert {("README.md", README), *((f"docs/{name}.md", f"{FOLDER}{name}.md") for name in names)} <= set(PAIRS)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[1])
def test_a_translation_is_in_step(pair):
    faults = PAGES.faults(*pair)
    assert not faults, "\n".join([*faults, "Change both pages; tests/pages.py says what has to agree."])


@pytest.mark.parametrize("page", sorted(PAGES.texts))
def test_every_link_leads_somewhere(page):
    assert PAGES.broken(page, lambda path: (ROOT / path).exists()) == []


def test_a_page_and_its_translation_link_to_each_other():
    for english, translation in PAIRS:
        first = PAGES.sections[translation][1].links[0]
        assert PAGES.place(translation, first) == (english, ""), translation
    assert PAGES.place("README.md", PAGES.sections["README.md"][1].links[0]) == (README, "")


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[1])
def test_a_translation_has_simplified_characters_only_where_it_quotes_the_english_page(pair):
    english, translation = (set(PAGES.texts[path]) for path in pair)
    assert [char for char in sorted(translation - english) if simplified(char)] == []


@pytest.mark.parametrize("page", sorted(PAGES.texts))
def test_bold_text_is_closed(page):
    assert unclosed(PAGES.texts[page]) == []


def test_the_terms_are_those_of_the_pages():
    rows = re.findall(r"^\|" + r" ([^|]+) \|" * 4 + "$", PAGES.texts[f"{FOLDER}terms.md"], re.MULTILINE)
    assert len(rows) > 20
    ours = "\n".join(PAGES.texts[path] for _, path in PAIRS)
    theirs = "\n".join(PAGES.texts[path] for path, _ in PAIRS).lower()
    for row in rows[1:]:
        for term, word in (row[:2], row[2:]):
            assert term in ours and word in theirs, (term, word)


# ----------------------------------------------------------------------------------------------------- on small strings

ENGLISH = """# Guard

[中文](docs/zh-Hant/guard.md)

It takes 5 % of a core, and `--limit-gb 16` GiB at 10⁻⁵. See [terms](other.md#some-terms).

    fgod guard -- CMD   # any command, 2 times
    fgod plan

## How it ends

| code | meaning |
|---|---|
| 75 | killed (`memory`), .85 to .94 |

### Left out

Nothing of 3.

## Cost

None.
"""
CHINESE = """# 守衛

[English](../guard.md)

用 `--limit-gb 16`，10⁻⁵，占一個核心的 5 %。見[用語](other.md#一些用語)與[對照](terms.md)。

    fgod guard -- CMD   # 任何指令，2 次
    fgod plan

## 怎麼結束

| 代碼 | 意義 |
|---|---|
| 75 | 終止（`memory`），.85 至 .94 |

## 代價

無。

<!-- not translated: Left out -->
"""


def faults(english: str = ENGLISH, chinese: str = CHINESE) -> list[str]:
    texts = {"docs/guard.md": english.replace("docs/zh-Hant/", "zh-Hant/"), f"{FOLDER}guard.md": chinese}
    texts |= {"docs/other.md": "# Other\n\n## Some terms\n", f"{FOLDER}other.md": "# 其他\n\n## 一些用語\n"}
    return Pages({**texts, f"{FOLDER}terms.md": "# 對照\n"}).faults("docs/guard.md", f"{FOLDER}guard.md")


def test_pages_in_step_have_no_fault():
    assert faults() == []


@pytest.mark.parametrize(("old", "new", "said"), [
    ("5 %", "6 %", "# Guard | # 守衛: text: the English page has 6% besides; the translation has 5% besides"),
    ("5 %", "5", "the English page has 5 besides; the translation has 5% besides"),
    ("10⁻⁵", "10⁻⁶", "the English page has 10⁻⁶ besides; the translation has 10⁻⁵ besides"),
    ("GiB at", "GiB `now` at", "the English page has `now` besides"),
    ("`--limit-gb 16`", "`--limit-gb 24`", "has `--limit-gb 24` besides"),
    ("fgod plan", "fgod plan --json", "code block 1: code differs: 'fgod plan --json' in English, 'fgod plan' in the"),
    ("fgod plan", "fgod plan\n    make run", "code differs: 'make run' in English, '' in the translation"),
    ("CMD   #", "CMD  #", "code differs"),
    ("2 times", "3 times", "the comment of 'fgod guard -- CMD   # 任何指令，2 次': the English page has 3 besides"),
    ("2 times", "`x`, 2 times", "the comment of"),
    ("    fgod guard -- CMD   # any command, 2 times\n    fgod plan\n", "", "0 code blocks in English, 1 in the"),
    (".94 |", ".95 |", "## How it ends | ## 怎麼結束: table 1: row 1, column 2: the English page has .95 besides"),
    ("| code |", "| code 1 |", "table 1: head, column 1: the English page has 1 besides"),
    ("| 75 |", "| 1 | - |\n| 75 |", "table 1: 3 rows of 2 cells in English, 2 of 2 translated"),
    ("None.", "None.\n\n| a |\n|---|\n", "## Cost | ## 代價: 1 tables in English, 0 in the translation"),
    ("other.md#some-terms", "other.md", "has docs/zh-Hant/other.md besides; the translation has docs/zh-Hant/other.md"),
    ("None.", "[None](more.md).", "## Cost | ## 代價: links: the English page, translated, has docs/more.md besides"),
    ("## Cost", "### Cost", "the headings differ"),
    ("## Cost", "## New in 7\n\n## Cost", "4 in English, 3 in the translation; without an equal one: ## New in 7 in"),
    ("### Left out", "## Kept", "no such heading in English"),
    ("### Left out", "### Left in", "without an equal one: ### Left in in English; none in the translation"),
])  # fmt: skip
def test_a_change_of_the_english_page_alone_is_a_fault_that_names_its_section(old, new, said):
    changed = faults(english=ENGLISH.replace(old, new))
    assert any(said in fault for fault in changed), changed
    assert all(fault.startswith("docs/guard.md and docs/zh-Hant/guard.md: ") for fault in changed)


@pytest.mark.parametrize(("old", "new"), [
    ("## 代價\n", ""), ("無。", "無。\n\n## 新的"), ("5 %", "50 %"), ("`memory`", "`host`"), (".85 至 .94", ".94"),
    ("fgod plan", "fgod  plan"), ("# 任何指令，2 次", "任何指令，2 次"), ("Left out -->", "Left -->"),
    ("other.md#一些用語", "other.md#沒有"), ("(other.md#一些用語)", ""),
])  # fmt: skip
def test_a_change_of_the_translation_alone_is_a_fault(old, new):
    assert faults(chinese=CHINESE.replace(old, new)) != []


def test_sections_below_one_that_is_left_out_are_left_out_too():
    more = ENGLISH.replace("Nothing of 3.", "Nothing of 3.\n\n#### Deeper\n\n4 `x`")
    assert faults(english=more) == []


def test_a_link_to_a_heading_that_is_left_out_goes_on_to_the_english_page():
    english, translated = "# B\n\n[It](guard.md#left-out).\n", "# B\n\n[它](../guard.md#left-out)。\n"
    texts = {"docs/guard.md": ENGLISH, f"{FOLDER}guard.md": CHINESE, "docs/b.md": english, f"{FOLDER}b.md": translated}
    assert Pages(texts).faults("docs/b.md", f"{FOLDER}b.md") == []
    assert len(Pages({**texts, f"{FOLDER}b.md": english}).faults("docs/b.md", f"{FOLDER}b.md")) == 1


def test_links_that_lead_nowhere_are_named():
    pages = Pages({"a.md": "# A b, `c`\n\n[1](b.md) [2](#a-b-c) [3](#a) ![4](x.svg) [5](https://e.org/x)\n"})
    assert pages.broken("a.md", lambda path: path in pages.texts) == [
        "a.md: b.md leads to no file", "a.md: #a leads to no heading of a.md", "a.md: x.svg leads to no file"
    ]  # fmt: skip


def test_bold_text_that_markdown_does_not_close_is_found():
    assert unclosed("**情境**（frame）是。**好。**") == []
    assert unclosed("**情境（frame）**是。") == ["**情境（frame）**是。"]


def test_figures_and_headings_are_read_as_github_shows_them():
    assert figures("−.07 to .13, 2,435 of 10⁻⁵; 6 %, 5%, NVFP4.") == figures("NVFP4 5 % 6% 10⁻⁵ 2,435 −.07 .13")
    assert figures("v0.1.0, 0.1.") == {"0.1.0": 1, "0.1": 1}
    assert slugs(sections("# 提前停止（`train.check`）\n# One\n# One\n")) == ["", "提前停止traincheck", "one", "one-1"]
    assert english_of("docs/guard.md") is None
