"""The sentences of the DevLog, in each language that it can be written in. Pure.

Texts in braces are filled in. What records hold as text, such as the reasons of a verdict, stands as it was recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """One language. Without a default: a language that lacks one is an error where it is defined."""

    about: str
    part: str
    comma: str
    semicolon: str
    gap: str
    hypothesis: str
    experiment: str
    noted: str
    holds: str
    no_limits: str
    command: str
    no_command: str
    data: str
    rows: str
    from_source: str
    user_files: str
    audit: str
    settings: str
    against: str
    first: str
    same: str
    weights: str
    base: str
    start: str
    between: str
    end: str
    export: str
    no_weights: str
    memory: str
    peak: str
    unknown: str
    questions: str
    before: str
    empty: str
    not_asked: str
    verdict: str
    measured: str
    worst: str
    next_step: str
    next_stage: str
    candidate: str
    refit: str
    refit_all: str
    interpolate: str
    bisect: str
    at_most: str
    no_rule: str
    no_refits: str
    remarks: str
    decisions: Mapping[str, str]


EN = Words(
    about=(
        "Each verdict on a run has an entry here, made of its records. fgod only ever adds to this file: what stands "
        "here stays, and remarks have their place between the marks at the end of each entry. `fgod devlog` adds what "
        "is missing, and makes the file anew where it is gone."
    ),
    part="**{label}**: {text}",
    comma=", ",
    semicolon="; ",
    gap=" ",
    hypothesis="Hypothesis",
    experiment="Experiment {name}:",
    noted="“{note}”;",
    holds="with these settings the run holds its limits: {limits}.",
    no_limits="none: the run has no limits.",
    command="Command",
    no_command="it is not in the manifest.",
    data="Data",
    rows="{kind}, {rows} rows: {shares}; mix {mix}.",
    from_source="{kind}: the file {source}; mix {mix}.",
    user_files="Files of the user's (sha256): {files}.",
    audit="Audit: errors {errors}, accepted {accepted}, warnings {warnings}.",
    settings="Settings that changed",
    against="against {run}, the run of this stage before it:",
    first="the first run of this stage: {settings}.",
    same="none against {run}, the run of this stage before it.",
    weights="Weights",
    base="the base {base}",
    start="from {start}",
    between="at α {alpha} between that and {of}",
    end="to `{path}` ({sha256})",
    export="export {sha256}",
    no_weights="none: {reason}",
    memory="Peak memory",
    peak="{peak}, limit {limit}; {seconds}.",
    unknown="unknown",
    questions="The questions",
    before="(before: {reply})",
    empty="(empty)",
    not_asked="not asked: the run left no weights.",
    verdict="Verdict",
    measured="Measured: {metrics}.",
    worst="Worst probe: {prompt} → {reply} (the reference: {reference})",
    next_step="Next step",
    next_stage="stage {stage} starts from these weights.",
    candidate="it is a candidate: it is confirmed on wordings that were held back, where there are any, and released.",
    refit="a new fit from the base, with this stage changed: {changes} (refits.rules[{rule}]).",
    refit_all="a new fit from the base, with all stages changed: {changes} (refits.rules[{rule}]).",
    interpolate="weights at α {alpha} between the stage's start and its end, without training (refits.rules[{rule}]).",
    bisect=(
        "a new fit from the base, with {key} between the largest value that missed and the smallest that was too much "
        "(refits.rules[{rule}])."
    ),
    at_most="At most {max} refits in all.",
    no_rule="no rule under refits.rules answers it: nothing is released. Change the data, the recipe or the limits.",
    no_refits="refits are off (refits.max: 0): nothing is released. Change the data, the recipe or the limits.",
    remarks="Remarks",
    decisions={
        "accepted": "accepted",
        "missed": "missed",
        "damaged": "damaged",
        "collapsed": "collapsed",
        "killed": "killed",
        "diverged": "diverged",
    },
)

ZH_HANT = Words(
    about=(
        "每次對一個訓練結果下判定，這裡就有一則紀錄，由紀錄檔產生。fgod 對這個檔案只增不改：寫下的都會保留，"
        "備註請寫在每則末尾的標記之間。`fgod devlog` 會補上缺少的紀錄；檔案不見時會重新產生。"
    ),
    part="**{label}**：{text}",
    comma="、",
    semicolon="；",
    gap="",
    hypothesis="假設",
    experiment="實驗 {name}：",
    noted="想法是「{note}」；",
    holds="以這些設定，這次訓練會守住以下限制：{limits}。",
    no_limits="無：這次訓練沒有任何限制。",
    command="指令",
    no_command="不在執行紀錄（manifest）中。",
    data="資料",
    rows="{kind}，{rows} 列：{shares}；混合集 {mix}。",
    from_source="{kind}：檔案 {source}；混合集 {mix}。",
    user_files="使用者的檔案（sha256）：{files}。",
    audit="稽核：錯誤 {errors}，放行 {accepted}，警告 {warnings}。",
    settings="改動的設定",
    against="與這個階段的前一次訓練 {run} 相比：",
    first="這個階段的第一次訓練：{settings}。",
    same="與這個階段的前一次訓練 {run} 相比沒有改動。",
    weights="權重",
    base="基礎模型 {base}",
    start="起點 {start}",
    between="取該起點與 {of} 之間 α {alpha} 處",
    end="終點 `{path}`（{sha256}）",
    export="匯出檔 {sha256}",
    no_weights="無：{reason}",
    memory="記憶體峰值",
    peak="{peak}，上限 {limit}；時間 {seconds}。",
    unknown="不明",
    questions="提問與回答",
    before="（原本：{reply}）",
    empty="（空白）",
    not_asked="沒有提問：這次訓練沒有留下權重。",
    verdict="判定",
    measured="量測值：{metrics}。",
    worst="最差的探測題：{prompt} → {reply}（對照模型：{reference}）",
    next_step="下一步",
    next_stage="階段 {stage} 從這份權重開始。",
    candidate="這是候選：若有保留的問法，先以這些問法確認，然後發行。",
    refit="從基礎模型重新開始，這個階段改為：{changes}（refits.rules[{rule}]）。",
    refit_all="從基礎模型重新開始，所有階段改為：{changes}（refits.rules[{rule}]）。",
    interpolate="取這個階段起點與終點之間 α {alpha} 處的權重，不再訓練（refits.rules[{rule}]）。",
    bisect="從基礎模型重新開始，{key} 取沒學會的最大值與過頭的最小值之間（refits.rules[{rule}]）。",
    at_most="重訓最多共 {max} 次。",
    no_rule="refits.rules 中沒有規則可以應對：不發行任何模型。請更改資料、做法或限制。",
    no_refits="不再重訓（refits.max: 0）：不發行任何模型。請更改資料、做法或限制。",
    remarks="備註",
    decisions={
        "accepted": "通過",
        "missed": "沒學會",
        "damaged": "受損",
        "collapsed": "崩潰",
        "killed": "被終止",
        "diverged": "發散",
    },
)

LANGUAGES: Mapping[str, Words] = {"en": EN, "zh-Hant": ZH_HANT}
"""By the config's key `language`."""
