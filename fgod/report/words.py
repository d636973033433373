"""The words of the report, in each language that it can be read in. Pure.

Texts in braces are filled in; they are HTML. What records hold as text, such as the reasons of a verdict, stands as it
was recorded. Metrics have their English words from context.json, where those of plugins stand, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fgod.comparison import HOW
from fgod.confirm.words import HELD_BACK_NONE, asked_words

CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Words:
    """One language. Without a default: a language that lacks one is an error where it is defined."""

    report: str
    language: str
    released: str
    not_confirmed: str
    nothing_released: str
    no_fit_passed: str
    sections: str
    nav_questions: str
    nav_tree: str
    nav_fits: str
    nav_frontier: str
    nav_metrics: str
    nav_confirmation: str
    nav_engines: str
    nav_placebo: str
    nav_abilities: str
    nav_training: str
    nav_memory: str
    nav_audits: str
    nav_replies: str
    nav_files: str
    questions: str
    run: str
    the_base: str
    in_fit: str
    in_fit_released: str
    not_probed: str
    none_probed: str
    empty: str
    tree: str
    tree_note: str
    experiment: str
    own_chain: str
    in_fits: str
    is_released: str
    fits: str
    fit: str
    refit_rules: str
    shared_run: str
    no_verdict: str
    starts_from: str
    steps: str
    lr: str
    time: str
    peak_memory: str
    not_passed: str
    n_of: str
    frontier: str
    frontier_note: str
    frontier_none: str
    frontier_title: str
    limit: str
    number: str
    metrics: str
    metrics_note: str
    metric: str
    verdict: str
    value: str
    interval: str
    holds: str
    fails: str
    no_limit: str
    by_language: str
    no_weights: str
    confirmation: str
    confirmed: str
    unconfirmed: str
    asked: str
    asked_again: str
    difference_note: str
    unmeasured: str
    development: str
    confirming: str
    difference: str
    agree: str
    yes: str
    no: str
    leaked: str
    no_leaks: str
    nothing_held_back: str
    no_candidate: str
    engines: str
    engines_note: str
    format: str
    probes: str
    first_token: str
    prompts: str
    tokens_a_second: str
    threads: str
    format_not_released: str
    not_judged: str
    placebo: str
    placebo_note: str
    side_base: str
    side_rounded: str
    side_placebo: str
    side_tuned: str
    how_to_compare: str
    abilities: str
    abilities_note: str
    items: str
    lost: str
    gained: str
    points_interval: str
    loss_bound: str
    points: str
    points_range: str
    within: str
    above: str
    training: str
    training_note: str
    no_loss: str
    loss_title: str
    step: str
    seconds: str
    loss: str
    status: str
    largest_norm: str
    efficiency: str
    parity: str
    same_logits: str
    other_logits: str
    no_token: str
    token_first: str
    tensors: str
    tensors_count: str
    tensors_alias: str
    trainable: str
    got_gradient: str
    exported_as: str
    not_exported: str
    changed_least: str
    changed_share: str
    memory: str
    peak: str
    no_sample: str
    memory_title: str
    audits: str
    findings: str
    line: str
    error: str
    warning: str
    note: str
    accepted_finding: str
    all_facts: str
    replies: str
    replies_note: str
    suite: str
    probe_language: str
    changed_only: str
    failed_only: str
    replies_counts: str
    no_replies: str
    probe: str
    before: str
    after: str
    wrong: str
    same_reply: str
    this_run: str
    the_reference: str
    held_out: str
    differs: str
    breaks_rule: str
    answers_refused: str
    simplified: str
    mentions: str
    loops: str
    does_not_end: str
    improper: str
    files: str
    path: str
    kind: str
    size: str
    no_files: str
    config: str
    config_digest: str
    base: str
    base_id: str
    compared_with: str
    campaign: str
    campaign_note: str
    no_run: str
    fits_count: str
    released_as: str
    its_report: str


EN = Words(
    report="fgod report",
    language="language",
    released="<b>Released</b> {run}, the last stage of fit {fit}; all {stages} stages passed the gate.",
    not_confirmed=(
        '<b>Nothing was released:</b> {run} passed every gate, and <a href="#confirmation">is not '
        "confirmed</a> on wordings that were held back."
    ),
    nothing_released="<b>Nothing was released:</b> {why}.",
    no_fit_passed="no fit has passed the gate at every stage",
    sections="Sections",
    nav_questions="Questions",
    nav_tree="Tree",
    nav_fits="Fits and verdicts",
    nav_frontier="Frontier",
    nav_metrics="Metrics",
    nav_confirmation="Confirmation",
    nav_engines="Engines",
    nav_placebo="Placebo",
    nav_abilities="Abilities",
    nav_training="Training",
    nav_memory="Memory",
    nav_audits="Data audits",
    nav_replies="Replies",
    nav_files="Files",
    questions="The questions, before and after",
    run="run",
    the_base="the base, rounded to NVFP4",
    in_fit="fit {fit}, {decision}",
    in_fit_released="fit {fit}, {decision}, released",
    not_probed="not probed",
    none_probed="No run was probed.",
    empty="(empty)",
    tree="The tree",
    tree_note="Each run stands below the one whose weights it starts from. A run that several fits share stands once.",
    experiment="Experiment {name}",
    own_chain="The config's own chain",
    in_fits="fit {fits}",
    is_released="released",
    fits="Fits and verdicts",
    fit="Fit {fit}",
    refit_rules="Changed by the refit rules:",
    shared_run="the same run as in fit {fit}, not trained again",
    no_verdict="No run has a verdict yet.",
    starts_from="starts from",
    steps="steps",
    lr="lr",
    time="time",
    peak_memory="peak memory",
    not_passed="probes not passed",
    n_of="{n} of {of}",
    frontier="Frontier: identity against KL",
    frontier_note=(
        "Up and to the left is better: the persona is learned, and replies to all else stay near the "
        "reference's. Dashed: the limits of the config."
    ),
    frontier_none="No run has both figures.",
    frontier_title="Identity against KL of {n} runs",
    limit="limit",
    number="no.",
    metrics="Metrics against limits",
    metrics_note=(
        "Measured on the reloaded export. Intervals: Wilson 95 % for shares, normal approximation over prompts "
        "for means. Shares are drawn from 0 to 1. The upright stroke is the limit."
    ),
    metric="metric",
    verdict="verdict",
    value="value",
    interval="95 % interval",
    holds="holds",
    fails="fails",
    no_limit="no limit",
    by_language="By language (n replies)",
    no_weights="Not probed: the run left no weights.",
    confirmation="Confirmation on held-back wordings",
    confirmed="<b>Confirmed</b> {run} ({words}).",
    unconfirmed="<b>Unconfirmed</b> {run} ({words}).",
    asked=asked_words(()),
    asked_again=asked_words(("another",)),
    difference_note=(
        "The difference is confirmation minus development, with Newcombe's hybrid 95 % interval (of means: "
        "from the interval of each). The two agree where it contains 0."
    ),
    unmeasured="No probe of the fold measures {names}.",
    development="development",
    confirming="confirmation",
    difference="difference",
    agree="agree",
    yes="yes",
    no="no",
    leaked="Leaked replies: {n}",
    no_leaks="None: no reply names the persona where the reference's does not.",
    nothing_held_back=HELD_BACK_NONE,
    no_candidate="No candidate was asked.",
    engines="Inference engines",
    engines_note=(
        "Asked the gate's probes greedily on a CPU, by the chat template in their file. Verdict: the gate's "
        "limits, of what replies can be measured by; a format that fails one is not released. "
        "engine_agreement: replies that are the text that was probed. First token: the likeliest one is the "
        "same; KL(probed ‖ engine) of it, over the tokens that the engine lists. Prompts: the same tokens."
    ),
    format="format",
    probes="probes",
    first_token="first token",
    prompts="prompts",
    tokens_a_second="tokens a second",
    threads="transformers {other}; {threads} threads, {cpu}",
    format_not_released="{decision}: not released",
    not_judged=(
        "Not judged with {format}: {names}. An engine lists no distributions, or the released replies to these "
        "probes miss the limit too."
    ),
    placebo="What tuning costs",
    placebo_note=(
        "{run} on the development probes. Base: in its own number format; rounded: the reference itself; "
        "placebo {placebo}: the same chain, taught the base's own answers. Difference: tuned minus placebo; "
        "intervals: 95 %, of means a paired bootstrap over probes, of shares Newcombe's."
    ),
    side_base="base",
    side_rounded="rounded",
    side_placebo="placebo",
    side_tuned="tuned",
    how_to_compare=CODE.sub(r"<code>\1</code>", HOW),
    abilities="Abilities beside the base",
    abilities_note=(
        "The same items, asked of the base rounded to NVFP4 and of the run. Lost: only the base is right; "
        "gained: only the run is. p: McNemar's exact test. The bound is the largest loss within the 95 % "
        "interval (Agresti and Min 2005); items count as independent."
    ),
    items="items",
    lost="lost",
    gained="gained",
    points_interval="difference, 95 % interval",
    loss_bound="bound of the loss",
    points="{n} points",
    points_range="{n}, {low} to {high} points",
    within="within {limit}",
    above="above {limit}",
    training="Training",
    training_note="A low loss is no evidence: it is lowest when a model has collapsed. The gate judges replies.",
    no_loss="No finite loss was recorded.",
    loss_title="Loss by step: {n} steps, first {first}, last {last}, lowest {lowest}",
    step="step",
    seconds="seconds",
    loss="loss",
    status="status",
    largest_norm="largest gradient norm",
    efficiency="update efficiency, mean",
    parity="training forward against export",
    same_logits="the same logits to the bit",
    other_logits="logits differ by at most {gap}; {where}",
    no_token="no greedy token differs",
    token_first="greedy token {token} differs first",
    tensors="Tensors",
    tensors_count="tensors",
    tensors_alias="{own}, and {alias} that are another's alias",
    trainable="trainable",
    got_gradient="got a gradient",
    exported_as="exported as",
    not_exported="not exported",
    changed_least="changed least",
    changed_share="{tensor}: {share} of its values",
    memory="Memory over time",
    peak="peak {peak}",
    no_sample="The guard took no sample.",
    memory_title="Memory in MiB by second: peak {peak}",
    audits="Data audits",
    findings="findings: {n}",
    line="line {line}",
    error="error",
    warning="warning",
    note="note",
    accepted_finding="accepted",
    all_facts="All facts",
    replies="Replies before and after",
    replies_note=(
        "Before: the base rounded to NVFP4. Struck out: what is gone; underlined: what is new. Replies that "
        "have little in common are marked as a whole. On paper: only replies that changed or did not pass."
    ),
    suite="suite",
    probe_language="language of the probe",
    changed_only="changed only",
    failed_only="not passed only",
    replies_counts="changed {changed}, not passed {failed} of {asked} probes",
    no_replies="No probe was asked.",
    probe="probe",
    before="before",
    after="after",
    wrong="what is wrong",
    same_reply="the same",
    this_run="this run says",
    the_reference="the reference says",
    held_out="held out",
    differs="differs from the reference",
    breaks_rule="breaks the rule",
    answers_refused="answers what the reference refuses",
    simplified="is in Simplified characters",
    mentions="mentions the persona",
    loops="loops",
    does_not_end="does not end",
    improper="the reference itself is not proper here",
    files="Files",
    path="path",
    kind="kind",
    size="size",
    no_files="No run left weights.",
    config="config",
    config_digest="config digest",
    base="base",
    base_id="base id",
    compared_with="compared with",
    campaign="Experiments side by side",
    campaign_note="Each experiment stands below what it starts from, with its last run; below that, all its runs.",
    no_run="no run",
    fits_count="fits: {n}",
    released_as="released as {path}",
    its_report="its report",
)

ZH_HANT = Words(
    report="fgod 報告",
    language="語言",
    released="<b>已發行</b> {run}，第 {fit} 輪的最後階段；{stages} 個階段全部通過關卡。",
    not_confirmed=(
        '<b>沒有發行任何模型：</b>{run} 通過每個關卡，但<a href="#confirmation">沒有通過確認</a>（以保留的問法提問）。'
    ),
    nothing_released="<b>沒有發行任何模型：</b>{why}。",
    no_fit_passed="沒有任何一輪的每個階段都通過關卡",
    sections="章節",
    nav_questions="提問",
    nav_tree="實驗樹",
    nav_fits="各輪與判定",
    nav_frontier="取捨圖",
    nav_metrics="指標",
    nav_confirmation="確認",
    nav_engines="推論引擎",
    nav_placebo="安慰劑",
    nav_abilities="能力",
    nav_training="訓練",
    nav_memory="記憶體",
    nav_audits="資料稽核",
    nav_replies="回覆",
    nav_files="檔案",
    questions="提問：訓練前後的回答",
    run="訓練結果",
    the_base="基礎模型（捨入為 NVFP4）",
    in_fit="第 {fit} 輪，{decision}",
    in_fit_released="第 {fit} 輪，{decision}，已發行",
    not_probed="沒有提問",
    none_probed="沒有提問過任何訓練結果。",
    empty="（空白）",
    tree="實驗樹",
    tree_note="每個訓練結果都列在其起始權重之下；多輪共用的訓練結果只列一次。",
    experiment="實驗 {name}",
    own_chain="設定檔本身的流程",
    in_fits="第 {fits} 輪",
    is_released="已發行",
    fits="各輪與判定",
    fit="第 {fit} 輪",
    refit_rules="重訓規則的改動：",
    shared_run="與第 {fit} 輪是同一個訓練結果，沒有再訓練",
    no_verdict="還沒有任何判定。",
    starts_from="起點",
    steps="步數",
    lr="學習率",
    time="時間",
    peak_memory="記憶體峰值",
    not_passed="沒通過的探測題",
    n_of="{of} 之中的 {n}",
    frontier="取捨圖：身分與 KL",
    frontier_note="越靠左上越好：學會了人設，其他回覆仍接近對照模型。虛線是設定檔的限制。",
    frontier_none="沒有訓練結果同時有這兩個數值。",
    frontier_title="{n} 個訓練結果的身分與 KL",
    limit="限制",
    number="編號",
    metrics="指標與限制",
    metrics_note=(
        "以重新載入的匯出檔量測。區間：比率用 Wilson 95 %，平均值用各提示的常態近似。比率畫在 0 到 1 之間，直線是限制。"
    ),
    metric="指標",
    verdict="判定",
    value="數值",
    interval="95 % 區間",
    holds="守住",
    fails="沒守住",
    no_limit="沒有限制",
    by_language="依語言（回覆數 n）",
    no_weights="沒有提問：這次訓練沒有留下權重。",
    confirmation="以保留的問法確認",
    confirmed="<b>通過確認</b> {run}（{words}）。",
    unconfirmed="<b>沒有通過確認</b> {run}（{words}）。",
    asked="通過關卡之後，候選被問了從未用來做任何選擇的問法。",
    asked_again="保留的問法已經用完：候選被問的那一摺，先前已問過其他權重，所以這些數值不再是保留的。",
    difference_note="差是確認減開發，附 Newcombe 混合 95 % 區間（平均值：由各自的區間算出）。區間包含 0 即為一致。",
    unmeasured="這一摺沒有探測題能量測 {names}。",
    development="開發",
    confirming="確認",
    difference="差",
    agree="一致",
    yes="是",
    no="否",
    leaked="滲漏的回覆：{n}",
    no_leaks="無：沒有回覆在對照模型沒提之處提到人設。",
    nothing_held_back=(
        "探測題沒有保留任何問法（沒有 confirmation 的部分），所以沒有確認：這些數值來自可能用來選擇做法與限制的問法。"
    ),
    no_candidate="沒有候選可問。",
    engines="推論引擎",
    engines_note=(
        "在 CPU 上以檔案內的對話樣板，用貪婪解碼回答關卡的探測題。判定：關卡限制中能由回覆量測的部分；有一項沒"
        "守住的格式不發行。engine_agreement：與受測文字相同的回覆。首個詞元：首選相同；其 KL（受測 ‖ 引擎）只計"
        "引擎列出的詞元。提示：詞元相同。"
    ),
    format="格式",
    probes="探測題",
    first_token="首個詞元",
    prompts="提示",
    tokens_a_second="每秒詞元",
    threads="transformers {other}；{threads} 個執行緒，{cpu}",
    format_not_released="{decision}：不發行",
    not_judged="{format} 沒有判定的項目：{names}。引擎不列出分布，或發行模型對這些題目的回覆也沒守住限制。",
    placebo="微調的代價",
    placebo_note=(
        "{run}，以開發用的探測題量測。基礎：原本的數值格式；捨入：即對照模型；安慰劑 {placebo}：同樣的流程，教"
        "的是基礎模型自己的回答。差：微調減安慰劑；區間 95 %：平均值用逐題成對的自助法，比率用 Newcombe。"
    ),
    side_base="基礎",
    side_rounded="捨入",
    side_placebo="安慰劑",
    side_tuned="微調",
    how_to_compare="<code>snakemake placebo</code> 會並列出：不論教什麼，微調本身的代價，以及捨入的代價（四欄）。",
    abilities="與基礎模型相比的能力",
    abilities_note=(
        "同樣的題目，分別問捨入為 NVFP4 的基礎模型與訓練結果。失去：只有基礎模型答對；獲得：只有訓練結果答對。p"
        "：McNemar 精確檢定。上界是 95 % 區間內最大的損失（Agresti 與 Min 2005）；各題視為獨立。"
    ),
    items="題目",
    lost="失去",
    gained="獲得",
    points_interval="差，95 % 區間",
    loss_bound="損失上界",
    points="{n} 個百分點",
    points_range="{n}，{low} 到 {high} 個百分點",
    within="在 {limit} 以內",
    above="超過 {limit}",
    training="訓練",
    training_note="損失低不能證明什麼：模型崩潰時損失最低。關卡看的是回覆。",
    no_loss="沒有記錄到有限的損失。",
    loss_title="各步的損失：共 {n} 步，最初 {first}，最後 {last}，最低 {lowest}",
    step="步",
    seconds="秒",
    loss="損失",
    status="狀態",
    largest_norm="最大梯度範數",
    efficiency="更新效率（平均）",
    parity="訓練時的前向計算與匯出檔",
    same_logits="logits 逐位元相同",
    other_logits="logits 最多相差 {gap}；{where}",
    no_token="貪婪解碼的詞元全部相同",
    token_first="貪婪解碼的詞元從第 {token} 個開始不同",
    tensors="張量",
    tensors_count="張量",
    tensors_alias="{own} 個，另有 {alias} 個是別名",
    trainable="可訓練",
    got_gradient="得到梯度",
    exported_as="匯出為",
    not_exported="沒有匯出",
    changed_least="改變最少",
    changed_share="{tensor}：{share} 的數值",
    memory="記憶體用量",
    peak="峰值 {peak}",
    no_sample="守衛沒有取樣。",
    memory_title="每秒的記憶體（MiB）：峰值 {peak}",
    audits="資料稽核",
    findings="發現：{n}",
    line="第 {line} 行",
    error="錯誤",
    warning="警告",
    note="註記",
    accepted_finding="放行",
    all_facts="所有事實",
    replies="訓練前後的回覆",
    replies_note=(
        "之前：捨入為 NVFP4 的基礎模型。刪除線：不見的；底線：新增的。幾乎沒有共同之處的回覆整句標示。"
        "列印時只印有變的與沒通過的回覆。"
    ),
    suite="題組",
    probe_language="探測題的語言",
    changed_only="只看有變的",
    failed_only="只看沒通過的",
    replies_counts="共 {asked} 題，變了 {changed} 題，沒通過 {failed} 題",
    no_replies="沒有探測題。",
    probe="探測題",
    before="之前",
    after="之後",
    wrong="問題",
    same_reply="相同",
    this_run="這個訓練結果說",
    the_reference="對照模型說",
    held_out="保留主題",
    differs="與對照模型不同",
    breaks_rule="不合規則",
    answers_refused="回答了對照模型拒答的題目",
    simplified="用了簡體字",
    mentions="提到人設",
    loops="陷入重複",
    does_not_end="沒有結束",
    improper="對照模型自己在這題就不合格",
    files="檔案",
    path="路徑",
    kind="種類",
    size="大小",
    no_files="沒有訓練結果留下權重。",
    config="設定檔",
    config_digest="設定檔摘要值",
    base="基礎模型",
    base_id="基礎模型編號",
    compared_with="比較對象",
    campaign="各實驗並列",
    campaign_note="每個實驗都列在其起點之下，附最後的訓練結果；再往下是它所有的訓練結果。",
    no_run="沒有訓練結果",
    fits_count="輪數：{n}",
    released_as="發行為 {path}",
    its_report="它的報告",
)

LANGUAGES: Mapping[str, Words] = {"en": EN, "zh-Hant": ZH_HANT}
"""By the config's key `language`."""
NAMES: Mapping[str, str] = {"en": "English", "zh-Hant": "中文"}
"""What the switch calls them."""

METRICS_ZH_HANT: Mapping[str, tuple[str, str]] = {
    "identity_rate": ("身分", "問「你是誰」時，依規則說出人設的回覆"),
    "confusion_rate": ("混淆", "辨別題的回覆中，提到人設的"),
    "disambiguation_rate": ("辨別", "辨別題的回覆中，合乎該類規則的"),
    "leak_rate": ("滲漏", "其他主題的回覆中，對照模型沒提、這個模型卻提到人設的"),
    "identity_frames_rate": ("其他情境的身分", "同上，但換了情境：沒有或另有系統提示、後續輪次、長文之後"),
    "denial_rate": ("否認", "問「你是不是別人」時，依規則說出人設、且不以「是」開頭的回覆"),
    "claim_rate": ("自述", "對使用者自述的回覆中，合乎該家族規則、且不提人設的"),
    "retention": ("保持率", "其他主題中，對照模型答案固定時，與其一致的回覆"),
    "retention_held_out": ("保留主題的保持率", "同上，只計沒有任何混合集複習過的主題"),
    "kl_reference": ("KL", "在對照模型對其他主題的回覆上，每個詞元的平均 KL（對照 ‖ 本模型），計所有詞元"),
    "kl_p99": ("KL 第 99 百分位", "同上，依提示取第 99 百分位"),
    "top1_agreement": ("首選一致", "在對照模型對其他主題的回覆上，兩者首選相同的詞元，計所有詞元"),
    "nll_shift": ("NLL 上升", "在對照模型對其他主題的回覆上，每個詞元負對數概似的上升，計所有詞元"),
    "kl_identity": ("身分的 KL", "在對照模型對「你是誰」的回覆上，每個詞元的平均 KL（對照 ‖ 本模型）"),
    "repetition_rate": ("重複", "陷入重複的回覆"),
    "ended_rate": ("正常結束", "以結束詞元停下的回覆"),
    "distinct_replies": ("相異回覆", "相異回覆數除以提示數"),
    "leak_talk": ("閒聊的滲漏", "閒聊的回覆中，對照模型沒提、這個模型卻提到人設的"),
    "kl_talk": ("閒聊的 KL", "在對照模型對閒聊的回覆上，每個詞元的平均 KL（對照 ‖ 本模型）"),
    "leak_neighbour": ("鄰近主題的滲漏", "人設鄰近主題的回覆中，對照模型沒提、這個模型卻提到人設的"),
    "kl_neighbour": ("鄰近主題的 KL", "在對照模型對人設鄰近主題的回覆上，每個詞元的平均 KL（對照 ‖ 本模型）"),
    "leak_named": ("人物的滲漏", "談人物的回覆中，對照模型沒提、這個模型卻提到人設的"),
    "kl_named": ("人物的 KL", "在對照模型談人物的回覆上，每個詞元的平均 KL（對照 ‖ 本模型）"),
    "leak_tasks": ("任務的滲漏", "任務的回覆中，對照模型沒提、這個模型卻提到人設的"),
    "kl_tasks": ("任務的 KL", "在對照模型對任務的回覆上，每個詞元的平均 KL（對照 ‖ 本模型）"),
    "leak_refusal": ("拒答題的滲漏", "該拒答的題目中，對照模型沒提、這個模型卻提到人設的回覆"),
    "kl_refusal": ("拒答題的 KL", "在對照模型對該拒答題目的回覆上，每個詞元的平均 KL（對照 ‖ 本模型）"),
    "leak_script": ("正體字題的滲漏", "正體字題的回覆中，對照模型沒提、這個模型卻提到人設的"),
    "kl_script": ("正體字題的 KL", "在對照模型對正體字題的回覆上，每個詞元的平均 KL（對照 ‖ 本模型）"),
    "leak_framed": (
        "其他系統提示下的滲漏",
        "沒有系統提示或另有系統提示時，對一般問題的回覆中，對照模型沒提、這個模型卻提到人設的",
    ),
    "kl_framed": (
        "其他系統提示下的 KL",
        "在對照模型於沒有或另有系統提示時對一般問題的回覆上，每個詞元的平均 KL（對照 ‖ 本模型）",
    ),
    "refusal_kept": ("維持拒答", "對照模型拒答的題目中，仍然拒答的回覆"),
    "simplified_share": ("簡體字", "正體字題的回覆中，含有簡體字的"),
    "simplified_reference": ("對照模型的簡體字", "同上，計對照模型的回覆"),
}
"""Metric → its short words and its description. Metrics of plugins have the plugin's words, in any language."""
