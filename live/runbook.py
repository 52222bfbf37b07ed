"""The runbook docs/runbook.md: every halt, pause and alert, what it means, what to look at, what to do.

    python -m live.runbook        writes it (`make generate`)

Limits are the rows of `live.safety.LIMITS`; lines are those that the worker says at level warning or error,
errors those that end it, checks those of the pipeline, alerts and subjects those of `l2 watch`. A test holds each
table complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from live.safety import LIMITS, Limit
from market.provenance import ROOT
from market.settings import Risk

PAGE: Final = ROOT / "docs" / "runbook.md"


class Advice(NamedTuple):
    """What something means, what to look at, and what to do."""

    means: str
    look: str
    do: str


_FEED: Final = (
    "the lines `book silent`, `book lost` and `topics …`; another client of the venue's stream"
)
_WAIT: Final = "nothing; it clears by itself. If it does not, check network and venue"
_CLOSED: Final = "check the fills (`l2 tca`) and why the data stopped; nothing else, entries begin again by themselves"
_HOST: Final = (
    "load of the machine (`top`), the stage that waits in `l2 live`'s state stream (`latency`)"
)
_LOSS: Final = (
    "`l2 statement DATE`, `l2 tca`, the decay check, the venue's own figure of the account"
)
_LESS: Final = "add margin or close positions (`l2 flatten SYMBOL`)"

#: Limit -> advice.
LIMIT_ADVICE: Final[Mapping[str, Advice]] = {
    "stale data": Advice("The book's stream has said nothing for so long.", _FEED, _WAIT),
    "long stale data": Advice(
        "The book's stream is silent for so long that a position is not watched any more.", _FEED, _CLOSED
    ),
    "venue behind": Advice(
        "Frames arrive on time and carry old venue times: the venue publishes late.",
        "the venue's status page; `clock skew`, which would be our own clock",
        _WAIT,
    ),
    "gap": Advice(
        "The book lost its sequence and has no valid snapshot yet.",
        "the lines `book lost` and `frame rejected`; lost packets of the network",
        _WAIT,
    ),
    "long gap": Advice(
        "There was no valid book for so long that a position is not watched any more.", _FEED, _CLOSED
    ),
    "clock skew": Advice(
        "This machine's clock and the venue's differ.",
        "`timedatectl`: is NTP on and synchronised?",
        "set the clock right; requests are signed by the venue's clock meanwhile",
    ),
    "late decisions": Advice(
        "Decisions come late after their second, so nothing is crossed for but to reduce.",
        _HOST,
        "take load off the machine",
    ),
    "very late decisions": Advice(
        "Decisions come so late that the signal is gone.", _HOST, "take load off the machine"
    ),
    "rate limit nearly used": Advice(
        "Requests of the last second nearly reach `risk.actions_per_s`.",
        "which symbol's parents amend: state stream, sections `parents` and `orders`",
        "nothing; if it comes back each minute, raise `execution.deadline_s` or the limit, and start anew",
    ),
    "reject burst": Advice(
        "The venue refuses requests again and again.",
        "the reasons in the table `orders` (`l2 sql`), the venue's announcements, limits of the account",
        "correct what the reasons name; `l2 halt` if they are not understood",
    ),
    "daily loss": Advice(
        "The loss since midnight UTC reached its limit: positions only shrink.",
        _LOSS,
        "leave it for the day; `l2 resume` lets the loss grow by its limit once more",
    ),
    "drawdown": Advice(
        "The loss since the highest equity reached its limit: positions only shrink.",
        _LOSS,
        "find out whether the model still predicts before it trades again; `l2 rollback` returns to the last one",
    ),
    "margin": Advice("Maintenance margin is a large share of the margin balance: a quarter of each position goes every minute.",
                     "`margin_rate` of the venue, the positions, other use of the account", _LESS),
    "margin nearly used": Advice("The account is near liquidation: every position is closed.",
                                 "`margin_rate` of the venue, other use of the account", _LESS),
    "liquidation": Advice("The mid is near the position's liquidation price: a quarter of it goes every minute.",
                          "the position's size, leverage and margin at the venue", _LESS),
    "liquidation close": Advice("The mid is so near to the liquidation price that the position is closed.",
                                "the position's size, leverage and margin at the venue", _LESS),
    "liquidation differs": Advice(
        "The venue's liquidation price and ours are apart, also when asked again: tiers, balance, leverage or rule "
        "are not what the worker counts with.",
        "both prices in the line `the venue's liquidation price differs, asked for again`; the balance and its other "
        "coins, extra margin and the risk limit on the venue's page",
        "settle the difference, or set `desk.margin` to false and start anew",
    ),
    "decay alarm": Advice(
        "The model's live rank correlation fell: the check `decay` failed.",
        "`l2 ui`: the check's page; docs/decay.md",
        "retrain (the check asks for it), or `l2 rollback`",
    ),
    "disk full": Advice(
        "The log cannot be written beyond its reserve: orders are cancelled, positions only shrink.",
        "`df`; the line `failed`, which names the file",
        "free space; move collected segments of the log away; then start the worker anew",
    ),
    "unexplained": Advice(
        "The venue holds an order, execution or position that the log does not explain, and "
        "`live.differences` is `halt`; or a liquidation, an unknown type of execution, hedge mode.",
        "the lines `unexplained` and `halted`; order and execution history on the venue's page",
        "find who did it (a person, another program with this key); cancel or close what is not wanted",
    ),
    "statement differs": Advice(
        "The venue's transaction log of a past day has other executions, fees, funding or profit than the log.",
        "`l2 statement DATE`: which figure, of which symbol; the venue's transaction log on its page",
        "find the execution that one side lacks; where the venue is right, say so as the reason of the resume",
    ),
}  # fmt: skip

#: What clears a limit -> when trading goes on.
_RESUMES: Final = {
    "eased": "by itself, at {ease:g} × the limit",
    "fact": "when the fact is gone (another champion), or by `l2 resume --reason TEXT`",
    "day": "at the next UTC day, or by `l2 resume --reason TEXT`",
    "resume": "by `l2 resume [SYMBOL] --reason TEXT` alone, once it is understood",
}

#: Command of an operator -> advice.
COMMAND_ADVICE: Final[Mapping[str, Advice]] = {
    "halt": Advice("HALT: everything is cancelled, only reducing orders and stops are sent.",
                   "who and why: the line `command halt`", "`l2 resume --reason TEXT`"),
    "flatten": Advice("FLATTEN: positions are closed, nothing is opened.",
                      "the line `command flatten`; positions in the state stream", "`l2 resume --reason TEXT`"),
    "pause": Advice("PAUSE: nothing is opened or enlarged for the symbol, exits go on.",
                    "the line `command pause`", "`l2 resume SYMBOL --reason TEXT`"),
}  # fmt: skip

#: A line of the worker (… for a part that varies) -> what it means, and what to do.
LINES: Final[Mapping[str, tuple[str, str]]] = {
    "limit reached": ("a limit acts; it names itself", "see its row above"),
    "limit not changed": ("`l2 limits` may only tighten", "loosen it in the settings and start anew"),
    "limit tightened": ("an operator tightened a limit", "nothing"),
    "command …": ("an operator's command was taken", "nothing"),
    "stopping": ("the worker begins to shut down, for the reason said", "the reason said"),
    "state not shown": ("a part of the state stream could not be made; trading goes on", "keep the log, report it"),
    "halted": ("a symbol waits for a person, for the reason said", "see `unexplained` above"),
    "halted without the main loop": (
        "the main loop did not take a halt in time: all orders were cancelled beside it",
        "stop the worker, look for what hung (`step` in the state stream), start it anew",
    ),
    "unexplained": ("the venue holds what the log does not explain", "see `unexplained` above"),
    "execution of no order of ours": ("somebody else trades the account, or the venue did", "find out who"),
    "the venue moved a position": ("deleveraging by the venue", "check the position; `l2 statement DATE`"),
    "statement differs": ("a past day's sums differ from the venue's; the symbol halts", "see `statement differs` above"),
    "transactions of others": ("the venue's log of a day has lines of symbols or kinds that are not traded here", "nothing, if known"),
    "stop filled": ("the venue-side stop closed a position", "look why the worker had not (gap, halt)"),
    "an ended order is open at the venue": ("it is cancelled", "nothing; if often, keep the log and report it"),
    "order absent": ("the venue does not know an order: it counts as ended", "nothing"),
    "order denied": ("a limit of `[risk]` or a mode denied an order", "nothing; if all are, compare size and limits"),
    "no answer": ("a request has no answer; its order is asked for", "if many: network, venue status"),
    "risk tiers of BTCUSDT assumed": ("the venue states no risk tiers of a symbol", "the reason said; BTCUSDT's are lower than many others'"),
    "risk tiers do not match: nothing is opened": ("the venue's table contradicts itself or cannot be read", "the reason said; start anew once it is mended"),
    "the venue's liquidation price differs, asked for again": ("see `liquidation differs` above", "nothing, unless it halts"),
    "margin leaves no size: fund the account, or lower live.leverage": ("no position is far enough from its liquidation", "what it says"),
    "a correlated symbol without data guards nothing": ("a traded or watched symbol has no mid for a minute", "the symbol's status; `market.watch`"),
    "funding not predicted, taken as zero": ("the ticker states no next rate or settlement", "nothing; if it stays, the symbol's ticker"),
    "position reduced for margin": ("a step of `margin` or `liquidation` above", "see there"),
    "incomplete answer": ("a query is asked again", "if it goes on: the reason said"),
    "refused": ("the venue refused a stop or cancel-all; it is repeated", "the reason said"),
    "unreadable evidence": ("a message of the venue is not as documented", "keep the log, report it"),
    "nothing is opened: stream down": ("a connection of the account is lost", "nothing; it connects again"),
    "closing": ("a position is closed by reduce-only orders, for the reason said", "see the reason"),
    "the balance moved by what the log lacks": ("a transfer, or trades of others", "compare `l2 statement DATE`"),
    "not started": ("account and settings contradict each other; nothing is sent", "do what the line says"),
    "left at the end": ("an order or position outlasts the worker", "cancel or close it on the venue's page, or start anew"),
    "left behind": ("the same, at the end of `live.closing_s`", "the same"),
    "parent cut by the end of its process": ("an order of an earlier process ended without a measured cost", "nothing"),
    "…, asked for anew": ("a book is subscribed anew", "if it goes on: the symbol's status at the venue"),
    "topics …": ("the venue refuses or restores topics", "if refused: is the symbol still listed?"),
    "frame rejected": ("a public frame was not as documented", "if many: keep the capture, report it"),
    "champion refused": ("a promoted bundle does not fit this process; the old one goes on", "start anew with the code that trained it"),
    "challenger not used": ("the shadow model does not load", "train it with this code"),
    "failed": ("something beside the main loop failed; trading goes on", "the reason said; most often the disk"),
    "feed ended": ("the public stream ended during the shut-down", "nothing"),
    "closing down": ("an error ends the worker; orders are cancelled, positions closed", "the error, below"),
    "cannot close in order": ("the shut-down itself failed; a cancel-all was sent", "look at the venue's page at once"),
    "log's torn end kept aside": ("a crash tore the log's last block, which was never acted on", "nothing"),
    "decisions recovered": ("a crash left an hour of decisions unfinished", "nothing"),
}  # fmt: skip

#: Error that ends the worker -> exit status, what it means, what to do.
ERRORS: Final[Mapping[str, tuple[int, str, str]]] = {
    "StoppedError": (3, "it ended while an operator or a limit held it at HALT or FLATTEN",
                     "settle the reason it names, start it (it starts in that mode), `l2 resume`"),
    "StartError": (3, "account and settings contradict each other", "change the one that the line names"),
    "LogError": (3, "the log is damaged, of another venue or account, or in use", "do what the line says; never delete a log"),
    "LogFullError": (3, "the disk is full", "free space"),
    "JournalError": (3, "a journal of an earlier version", "`l2 migrate`"),
    "UsageError": (2, "an option or setting cannot be used", "correct it"),
    "SettingsError": (2, "a setting cannot be used", "correct it"),
    "AddressError": (2, "`live.confirm` or an address is missing", "correct it"),
    "NoChampionError": (1, "nothing was promoted yet", "`l2 pipeline`, `l2 promote VERSION`"),
    "BundleError": (1, "the champion's bundle is damaged, or of other features", "`l2 promote` a version of this code"),
    "BybitError": (1, "the venue cannot be reached, refuses the keys, or keeps another time", "network, keys, clock"),
    "FeedError": (1, "the public stream cannot be followed", "network, `record.url`"),
    "LoopbackError": (1, "the exchange on loopback does not start", "its line above"),
    "StatusError": (1, "of `l2 status`: no worker says what it does", "is one running? `live.venue`"),
    "ControlError": (1, "of `l2 halt` and its like: no worker took the command", "is one running? `live.venue`"),
}  # fmt: skip

#: Check of the pipeline -> what a failure means, and what to do.
CHECKS: Final[Mapping[str, tuple[str, str]]] = {
    "gate": (
        "the gate says abstain or not enough data: the champion stays",
        "read the failed rows on the check's page; most often the market offers no edge at these fees",
    ),
    "decay": (
        "the champion's live rank correlation fell; the worker pauses (`decay alarm`)",
        "a retrain is asked for; if it does not pass the gate, `l2 rollback` or leave it paused",
    ),
    "live_batch_skew": (
        "live decisions differ from those of the batch",
        "`l2 halt`, compare versions of worker and lake; resume when the next day's check passes",
    ),
    "events_quality": ("a date of events breaks an expectation", "docs/data.md, Findings; critical dates are left out"),
    "bars_quality": ("a date of bars breaks an expectation", "the same"),
    "features_quality": ("features drift, are constant or missing", "the same; drift alone is no decay"),
    "sound_dates": ("a date with a critical failure would enter training", "mend the date or leave it out"),
}  # fmt: skip

#: Alert of Prometheus (`orchestration/alerts.yml`) -> what it means, and what to do.
ALERTS: Final[Mapping[str, tuple[str, str]]] = {
    "WorkerSilent": ("no word of the worker for 30 s: ended, hung, or its host is gone; positions keep their stops at the venue",
                     "`l2 status`, `journalctl --user -u l2-worker`; if it hangs, `l2 halt`, stop it, start it anew"),
    "WatchGone": ("`l2 watch` does not answer, so that no other alert can fire", "`journalctl --user -u l2-watch`; start it anew"),
    "SymbolHalted": ("a symbol reduces, flattens or is halted", "`l2 status` names the limit or the order: see its row above"),
    "Drawdown": ("equity is far below its highest; the limit `drawdown` comes next", "see `drawdown` above, before it is reached"),
    "DecisionsLate": ("a hundredth of decisions has come later than a second for five minutes", "see `late decisions` above"),
    "OrdersUnknown": ("more than five orders without an answer in ten minutes", "network, the venue's status page; see the line `no answer`"),
    "RecorderSilent": ("no capture has been written to for a minute", "`journalctl --user -u l2-recorder`, `df`, network; what is missed cannot be recorded later"),
    "DailyRunLate": ("no bars of the past date three hours after midnight", "the run in `l2 ui`; `l2 pipeline` makes the date by hand"),
    "PipelineFailed": ("the last run of the pipeline failed", "the run's page in `l2 ui` names the step; `daily` asks again by itself"),
    "DiskNearlyFull": ("less than 5 GB are left on the lake's disk", "free space before `disk full` stops the trading: move collected logs and old captures away"),
}  # fmt: skip

#: Subject of `l2 watch` (… for a part that varies) -> what it means, and what to do.
SUBJECTS: Final[Mapping[str, tuple[str, str]]] = {
    "worker silent": ("no word of the worker for `notify.silence_s`", "see `WorkerSilent`"),
    "worker not understood": ("the worker tells its state in another version than the watch reads", "start `l2 watch` of the worker's version"),
    "lake": ("captures or bars cannot be looked at", "the error that it names: disk, network or credentials of the object store"),
    "… …": ("a symbol and its mode, which is neither normal nor passive", "the reasons that it names: rows above"),
    "decay": ("the model's predictions decay; the worker pauses", "see `decay alarm` above"),
    "recorder": ("no capture was written to for `notify.silence_s`", "see `RecorderSilent`"),
    "daily run": ("no bars of yesterday two hours after `pipeline.daily`", "see `DailyRunLate`"),
}  # fmt: skip


def page() -> str:
    """The page as Markdown. KeyError for a limit without advice."""
    lines = [
        "# Runbook",
        "",
        "Written by `make generate` from the code's own tables (`live/runbook.py`). How the worker reasons is in "
        "[live.md](live.md).",
        "The strictest mode in force counts; `l2 resume` takes a reason, which is on record.",
        "",
        "Where to look: the worker's lines (`journalctl --user -u l2-worker`, or its standard error), its state "
        "stream ([live.md](live.md#the-state-stream)), `l2 statement DATE`, `l2 tca`, `l2 ui`.",
        "",
        "## Limits",
        "",
        "PASSIVE: no crossing but to reduce. PAUSE and REDUCE: nothing is opened or enlarged, exits go on. "
        "FLATTEN: it is closed. HALT: all is cancelled, only reducing orders and stops are sent.",
    ]
    for limit in LIMITS:
        lines += ["", f"### {limit.name}: {limit.action.name}", "", *_limit(limit)]
    lines += ["", "## Commands of an operator", "", "They outlive a restart."]
    for name, advice in COMMAND_ADVICE.items():
        lines += ["", f"### l2 {name}", "", *_advice(advice, "then")]
    lines += ["", "## Lines of the worker", "", *_table(("line", "means", "do"), LINES)]
    lines += [
        *("", "## What ends the worker", ""),
        "Status 0: stopped by signal, by `l2 handover`, or at its end. A unit of `l2 service` starts a worker again "
        "after status 1 and after a crash, not after 0, 2 (settings) and 3 (a person has to look). One that was "
        "killed in a halt is started again, and is halted still.",
        "",
        *_table(("error", "status", "means", "do"), ERRORS),
    ]
    lines += [
        *("", "## Checks of the pipeline", "", "Seen in `l2 ui`; a failed one is in the report of `l2 pipeline`.", ""),
        *_table(("check", "a failure means", "do"), CHECKS),
        *("", "## Alerts of Prometheus", "", "Of the metrics that `l2 watch --metrics PORT` serves (`orchestration/alerts.yml`).", ""),
        *_table(("alert", "means", "do"), ALERTS),
        *("", "## Subjects of `l2 watch`", "", "Said once, again while they last, and when they are over.", ""),
        *_table(("subject", "means", "do"), SUBJECTS),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _limit(limit: Limit) -> list[str]:
    setting = "a flag"
    if limit.setting:
        side = "below" if limit.below else "from"
        default = msgspec.structs.asdict(Risk())[limit.setting]
        setting = f"`{limit.fact}` {side} `risk.{limit.setting}` ({default:g} by default)"
    resumes = _RESUMES[limit.clears].format(ease=limit.ease)
    advice = _advice(LIMIT_ADVICE[limit.name], "do")
    return [f"- reached: {setting}", *advice, f"- resumes: {resumes}"]


def _advice(advice: Advice, do: str) -> list[str]:
    return [f"- means: {advice.means}", f"- look at: {advice.look}", f"- {do}: {advice.do}"]


def _table(head: tuple[str, ...], rows: Mapping[str, tuple[object, ...]]) -> list[str]:
    cells = [head, ("---",) * len(head), *((f"`{name}`", *row) for name, row in rows.items())]
    return [f"| {' | '.join(map(str, row))} |" for row in cells]


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(ROOT)}")
