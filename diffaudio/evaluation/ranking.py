"""Whether two backbones put systems in the same order: checkpoints of a run, decoders, settings.

A number may depend on the backbone and the conclusion not. Ranks say so: Spearman's and Kendall's correlation of the
order by one backbone with that by another, over the rows of reports.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from scipy.stats import kendalltau, spearmanr

from diffaudio.errors import UserError
from diffaudio.evaluation.report import Report, Row, direction

__all__ = ["Agreement", "Ranking", "markdown", "rank_systems"]

SYSTEMS = ("evaluated", "reconstructed")  # kinds of rows that are systems; real recordings and chance are not
RECOGNISED = "recognised"
SAME = {"accuracy": RECOGNISED, "recognised_at_5": RECOGNISED}  # what classifiers of other classes have in its place
MIN_SYSTEMS = 3


@dataclass(frozen=True)
class Agreement:
    """How far two backbones agree on the order of systems by one metric; 1 is the same order, -1 the opposite.

    Attributes:
        n: number of systems that both have a number for.
        spearman, kendall: NaN where one of the backbones gives all systems the same number.
    """

    metric: str
    backbones: tuple[str, str]
    n: int
    spearman: float
    kendall: float


@dataclass(frozen=True)
class Ranking:
    """The numbers of systems by several backbones, and how far these agree.

    Attributes:
        systems: names, in the order of the reports.
        values: by metric and backbone, a number for each system, or None.
        agreements: of each pair of backbones by each metric that both have.
    """

    systems: list[str]
    values: dict[tuple[str, str], list[float | None]]
    agreements: list[Agreement]


def rank_systems(reports: Sequence[Report]) -> Ranking:
    """Compare the order of the systems in some reports.

    Raises:
        ValueError: fewer than three systems, two of one name, or a single backbone.
    """
    rows = [row for report in reports for row in report.rows if row.kind in SYSTEMS]
    names = [row.name for row in rows]
    if len(rows) < MIN_SYSTEMS:
        raise UserError(f"the reports have {len(rows)} systems; an order of at least {MIN_SYSTEMS} can be compared")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two rows are named {twice!r}; give each system once")
    backbones = list(dict.fromkeys(each.name for report in reports for each in report.backbones))
    if len(backbones) < 2:
        raise UserError(f"all reports are by {backbones[0]}; measure by two backbones at least, with --backbone A B")
    columns = [_by_metric(row, backbones) for row in rows]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    values = {key: [column.get(key) for column in columns] for key in keys}
    agreements = [
        _agreement(metric, (one, other), values)
        for metric in dict.fromkeys(metric for metric, _ in keys)
        for one, other in combinations(backbones, 2)
        if (metric, one) in values and (metric, other) in values
    ]
    return Ranking(names, values, [each for each in agreements if each.n >= MIN_SYSTEMS])


def markdown(ranking: Ranking) -> str:
    """Both tables, for a card."""
    shared = [key for key in ranking.values if any(each.metric == key[0] for each in ranking.agreements)]
    lines = ["| system | " + " | ".join(f"{metric}, {backbone}" for metric, backbone in shared) + " |"]
    lines.append("|---|" + "---|" * len(shared))
    for index, system in enumerate(ranking.systems):
        cells = [ranking.values[key][index] for key in shared]
        lines.append(f"| {system} | " + " | ".join("–" if cell is None else f"{cell:.4g}" for cell in cells) + " |")
    lines += ["", "| metric | backbones | n | Spearman | Kendall |", "|---|---|---|---|---|"]
    for each in ranking.agreements:
        pair = " and ".join(each.backbones)
        lines.append(f"| {each.metric} | {pair} | {each.n} | {each.spearman:.2f} | {each.kendall:.2f} |")
    return "\n".join(lines) + "\n"


def _by_metric(row: Row, backbones: Sequence[str]) -> dict[tuple[str, str], float]:
    """The row's numbers that have a better and a worse, by metric and backbone."""
    found = {}
    for metric in row.metrics:
        for backbone in backbones:
            if metric.name.endswith(f"_{backbone}") and direction(metric.name):
                name = metric.name.removesuffix(f"_{backbone}")
                found[SAME.get(name, name), backbone] = metric.value
    return found


def _agreement(metric: str, pair: tuple[str, str], values: Mapping[tuple[str, str], list[float | None]]) -> Agreement:
    columns = zip(values[metric, pair[0]], values[metric, pair[1]], strict=True)
    both = [(a, b) for a, b in columns if a is not None and b is not None]
    one, other = [a for a, _ in both], [b for _, b in both]
    if len(both) < MIN_SYSTEMS or len(set(one)) < 2 or len(set(other)) < 2:
        return Agreement(metric, pair, len(both), float("nan"), float("nan"))
    spearman, kendall = spearmanr(one, other), kendalltau(one, other)
    return Agreement(metric, pair, len(both), float(spearman.statistic), float(kendall.statistic))  # pyright: ignore[reportAttributeAccessIssue]
