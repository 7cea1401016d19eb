"""The rows of ``judge_quality`` and ``judge_confusions``, from labels, verdicts and verdicts that were repeated."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from trajectory_pipeline.quality.agreement import (
    Estimate,
    Pair,
    agreement,
    agreement_on,
    alpha,
    confusion,
    kappa,
    precision,
    recall,
    share,
)
from trajectory_pipeline.quality.requirements import Stated, match_requirements
from trajectory_pipeline.schema.enums import Criterion, Outcome, VerdictStatus
from trajectory_pipeline.schema.labels import (
    NO_STEP,
    RATINGS,
    LabelledVerdict,
    Repetition,
    StoredLabel,
    values_of,
)
from trajectory_pipeline.schema.quality import Comparison, Metric, Slice

UNDECIDED = "undecided"
"""What the judge says where its verdict leaves a column empty, because no valid evidence shows it."""
UNJUDGED = "unjudged"
SHORT, LONG = 4, 12
"""A run of at most so many messages is short, and one of more than so many is long."""
COMPARED = (
    Criterion.OUTCOME,
    Criterion.REQUIREMENT,
    Criterion.FAILURE_OWNER,
    Criterion.FAILURE_MODE,
    Criterion.FIRST_WRONG_STEP,
    *RATINGS,
)
"""Criteria of which a verdict says something."""

ANSWERED = (VerdictStatus.JUDGED, VerdictStatus.INSUFFICIENT_EVIDENCE)
"""Statuses of a verdict for which the judge gave a usable answer."""
_BY_INCLUSION, _UNIFORM = "inverse_inclusion_probability", "uniform"


@dataclass(frozen=True, slots=True)
class QualityRow:
    """A row of ``schema.quality.JUDGE_QUALITY`` but for the time."""

    policy_id: str
    comparison: Comparison
    criterion: str
    slice: Slice
    slice_value: str
    metric: Metric
    value: float | None
    low: float | None
    high: float | None
    runs: int
    pairs: int
    clusters: int
    weighting: str


@dataclass(frozen=True, slots=True)
class ConfusionRow:
    """A row of ``schema.quality.JUDGE_CONFUSIONS`` but for the time."""

    policy_id: str
    comparison: Comparison
    criterion: str
    person_value: str
    judge_value: str
    pairs: int
    weight: float


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One comparison on one run: the label's run, and what both said."""

    run_id: str
    pair: Pair


Compared = Sequence[ComparedRun]


def judge_and_people(
    policy_id: str, rows: Sequence[LabelledVerdict], language_of: Callable[[str], str] | None = None
) -> Iterator[QualityRow]:
    """Yield how far the verdicts of a policy agree with labels, by criterion, and the outcome by slice too.

    Each run counts as a whole, however many people labelled it: their labels share its weight.

    Args:
        policy_id: the policy that the verdicts were reached under.
        rows: labels of people, of any criteria, with these verdicts.
        language_of: the language of a text, by its code; without it there is no slice by language.
    """
    by_criterion: dict[str, list[LabelledVerdict]] = defaultdict(list)
    for row in rows:
        by_criterion[row.label.criterion].append(row)
    outcomes = by_criterion[Criterion.OUTCOME]
    weighting = _weighting(outcomes)
    for kind, value, members in _slices(outcomes, language_of):
        maker = _Maker(policy_id, Comparison.JUDGE_PEOPLE, Criterion.OUTCOME, kind, value, weighting)
        yield from _outcome_rows(maker, members)
    for criterion in (Criterion.FAILURE_OWNER, Criterion.FAILURE_MODE, *RATINGS):
        maker = _Maker(policy_id, Comparison.JUDGE_PEOPLE, criterion, weighting=_weighting(by_criterion[criterion]))
        scale = values_of(criterion) if criterion in RATINGS else None
        judged = _judged(by_criterion[criterion])
        # A rating that was not given is no rank.
        rated = [one for one in judged if not scale or one.pair.second != UNDECIDED]
        yield from maker.rows_of(rated, scale)
    yield from _requirement_rows(policy_id, by_criterion[Criterion.REQUIREMENT])
    yield from _step_rows(policy_id, by_criterion[Criterion.FIRST_WRONG_STEP])


def judge_and_itself(policy_id: str, repetitions: Sequence[Repetition]) -> Iterator[QualityRow]:
    """Yield how far a judge agrees with itself on runs that it judged more than once under one policy."""
    by_run: dict[str, list[Repetition]] = defaultdict(list)
    for one in repetitions:
        if one.verdict_status in ANSWERED:
            by_run[one.run_id].append(one)
    units = {
        run_id: (again[0].cluster, [one.outcome or Outcome.UNKNOWN for one in again])
        for run_id, again in by_run.items()
        if len(again) > 1
    }
    maker = _Maker(policy_id, Comparison.JUDGE_ITSELF, Criterion.OUTCOME)
    yield from maker.rows_of_units(units)


def people_among_them(labels: Sequence[LabelledVerdict]) -> Iterator[QualityRow]:
    """Yield how far people agree where several labelled the same run: all together, and each two of them."""
    for criterion in COMPARED:
        if criterion in (Criterion.REQUIREMENT, Criterion.FIRST_WRONG_STEP):
            continue
        by_run: dict[str, list[LabelledVerdict]] = defaultdict(list)
        for row in labels:
            if row.label.criterion == criterion:
                by_run[row.label.run_id].append(row)
        units = {
            run_id: (rows[0].cluster, [row.label.value for row in rows])
            for run_id, rows in by_run.items()
            if len(rows) > 1
        }
        yield from _Maker("", Comparison.PEOPLE, criterion).rows_of_units(units)
        both: dict[tuple[str, str], list[ComparedRun]] = defaultdict(list)
        for run_id, rows in by_run.items():
            ordered = sorted(rows, key=lambda row: row.label.annotator)
            for one, other in combinations(ordered, 2):
                pair = Pair(one.label.value, other.label.value, cluster=one.cluster)
                both[one.label.annotator, other.label.annotator].append(ComparedRun(run_id, pair))
        for names, compared in both.items():
            maker = _Maker("", Comparison.PEOPLE, criterion, Slice.ANNOTATORS, ", ".join(names))
            yield from maker.rows_of(compared, values_of(criterion) if criterion in RATINGS else None)


def confusions(policy_id: str, rows: Sequence[LabelledVerdict]) -> Iterator[ConfusionRow]:
    """Yield how often people said one value and the judge another, by criterion."""
    by_criterion: dict[str, list[LabelledVerdict]] = defaultdict(list)
    for row in rows:
        by_criterion[row.label.criterion].append(row)
    for criterion in (Criterion.OUTCOME, Criterion.FAILURE_OWNER, Criterion.FAILURE_MODE, Criterion.REQUIREMENT):
        if criterion is Criterion.REQUIREMENT:
            compared = [compared for compared, *_ in _requirements(by_criterion[criterion])]
            pairs = [one.pair for group in compared for one in group]
        else:
            pairs = [one.pair for one in compared_runs(by_criterion[criterion])]
        for (person, judge), (count, weight) in confusion(pairs).items():
            yield ConfusionRow(policy_id, Comparison.JUDGE_PEOPLE, criterion, person, judge, count, weight)


# ---- one criterion ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Maker:
    """Makes rows of one comparison, criterion and slice."""

    policy_id: str
    comparison: Comparison
    criterion: str
    slice: Slice = Slice.ALL
    slice_value: str = ""
    weighting: str = _UNIFORM

    def row(self, metric: Metric, estimate: Estimate | None, compared: Compared) -> QualityRow:
        return QualityRow(
            self.policy_id,
            self.comparison,
            self.criterion,
            self.slice,
            self.slice_value,
            metric,
            estimate.value if estimate else None,
            estimate.low if estimate else None,
            estimate.high if estimate else None,
            len({one.run_id for one in compared}),
            len(compared),
            len({one.pair.cluster or one.run_id for one in compared}),
            self.weighting,
        )

    def rows_of(self, compared: Compared, scale: Sequence[str] | None = None) -> Iterator[QualityRow]:
        """Yield agreement, kappa and alpha of two raters; of nothing, nothing."""
        pairs = [one.pair for one in compared]
        if pairs:
            yield self.row(Metric.AGREEMENT, agreement(pairs), compared)
            yield self.row(Metric.KAPPA, kappa(pairs, scale), compared)
            yield self.row(Metric.ALPHA, alpha(pairs), compared)

    def rows_of_units(self, units: dict[str, tuple[str, list[str]]]) -> Iterator[QualityRow]:
        """Yield agreement and alpha of things with any number of raters each."""
        compared = [
            ComparedRun(run_id, Pair(one, other, 1 / (len(values) - 1), cluster))
            for run_id, (cluster, values) in units.items()
            for one, other in combinations(values, 2)
        ]
        pairs = [one.pair for one in compared]
        if pairs:
            yield self.row(Metric.AGREEMENT, agreement(pairs), compared)
            ratings = sum(len(values) for _, values in units.values())
            yield self.row(Metric.ALPHA, alpha(pairs, ratings), compared)


def _outcome_rows(maker: _Maker, rows: Sequence[LabelledVerdict]) -> Iterator[QualityRow]:
    every = compared_runs(rows)
    if not every:
        return
    judged = [one for one in every if one.pair.second != UNJUDGED]
    pairs = [one.pair for one in judged]
    yield from maker.rows_of(judged)
    if judged:
        success, failure = Outcome.SUCCESS, Outcome.FAILURE
        yield maker.row(Metric.SUCCESS_AGREEMENT, agreement_on(success, pairs), judged)
        said = [one for one in judged if one.pair.second == failure]
        yield maker.row(Metric.FAILURE_PRECISION, precision(failure, pairs), said)
        real = [one for one in judged if one.pair.first == failure]
        yield maker.row(Metric.FAILURE_RECALL, recall(failure, pairs), real)
    open_values = (UNJUDGED, Outcome.UNKNOWN)
    abstained = share([(one.pair.second in open_values, one.pair) for one in every])
    yield maker.row(Metric.ABSTENTION, abstained, every)
    cited = [
        ComparedRun(one.run_id, pair) for one, row in zip(every, rows, strict=True) for pair in _citations(row, one)
    ]
    valid = share([(one.pair.second == "valid", one.pair) for one in cited])
    if cited:
        yield maker.row(Metric.VALID_CITATIONS, valid, cited)


def _citations(row: LabelledVerdict, compared: ComparedRun) -> Iterator[Pair]:
    """Yield the citations of a verdict, valid or not; those of one run are not independent."""
    for requirement in row.requirements or ():
        for citation in requirement["evidence"]:
            word = "valid" if citation["valid"] else "invalid"
            yield Pair("valid", word, compared.pair.weight, compared.pair.cluster or compared.run_id)


def _requirement_rows(policy_id: str, rows: Sequence[LabelledVerdict]) -> Iterator[QualityRow]:
    maker = _Maker(policy_id, Comparison.JUDGE_PEOPLE, Criterion.REQUIREMENT, weighting=_weighting(rows))
    compared: list[ComparedRun] = []
    matched: list[tuple[bool, ComparedRun]] = []
    for pairs, first, unmatched in _requirements(rows):
        compared += pairs
        one = ComparedRun(first.label.run_id, Pair("", "", pairs[0].pair.weight if pairs else 1.0, first.cluster))
        matched += [(True, one)] * len(pairs) + [(False, one)] * unmatched
    if matched:
        everything = [one for _, one in matched]
        estimate = share([(found, one.pair) for found, one in matched])
        yield maker.row(Metric.MATCHED_REQUIREMENTS, estimate, everything)
    yield from maker.rows_of(compared)


def _requirements(rows: Sequence[LabelledVerdict]) -> Iterator[tuple[list[ComparedRun], LabelledVerdict, int]]:
    """Yield, of each run and annotator with a verdict, the matched requirements, and how many have no counterpart."""
    weights = _weights(rows)
    groups: dict[tuple[str, str], list[LabelledVerdict]] = defaultdict(list)
    for row in rows:
        if row.verdict_status in ANSWERED and row.label.statement is not None:
            groups[row.label.run_id, row.label.annotator].append(row)
    for (run_id, _), group in groups.items():
        people = [Stated(str(row.label.statement), row.label.value, frozenset(row.label.evidence)) for row in group]
        judge = [
            Stated(
                requirement["statement"],
                requirement["status"],
                frozenset(citation["message_id"] for citation in requirement["evidence"]),
            )
            for requirement in group[0].requirements or ()
        ]
        matches = match_requirements(people, judge)
        pairs = [
            ComparedRun(run_id, Pair(one.status, other.status, weights[run_id], group[0].cluster))
            for one, other in matches
        ]
        yield pairs, group[0], len(people) - len(matches)


def _step_rows(policy_id: str, rows: Sequence[LabelledVerdict]) -> Iterator[QualityRow]:
    """Yield how often the judge finds the step that a person named as the first wrong one, exactly and within one."""
    maker = _Maker(policy_id, Comparison.JUDGE_PEOPLE, Criterion.FIRST_WRONG_STEP, weighting=_weighting(rows))
    named = [row for row in rows if row.label.value != NO_STEP and row.verdict_status in ANSWERED]
    weights = _weights(named)
    compared = [
        ComparedRun(
            row.label.run_id,
            Pair(row.label.value, row.failed_step_id or NO_STEP, weights[row.label.run_id], row.cluster),
        )
        for row in named
    ]
    if not compared:
        return
    yield maker.row(Metric.EXACT_STEP, agreement([one.pair for one in compared]), compared)
    near = [(_distance(row) <= 1, one.pair) for row, one in zip(named, compared, strict=True)]
    yield maker.row(Metric.STEP_WITHIN_ONE, share(near), compared)


def _distance(row: LabelledVerdict) -> float:
    places = {step_id: place for place, step_id in enumerate(row.step_ids)}
    if row.label.value == row.failed_step_id:
        return 0
    if row.label.value not in places or row.failed_step_id not in places:
        return float("inf")
    return abs(places[row.label.value] - places[row.failed_step_id])


# ---- pairs and weights ----------------------------------------------------------------------------------------------


def _judged(rows: Sequence[LabelledVerdict]) -> list[ComparedRun]:
    return [one for one in compared_runs(rows) if one.pair.second != UNJUDGED]


def compared_runs(rows: Sequence[LabelledVerdict]) -> list[ComparedRun]:
    """Return what each label and the verdict on its run say, in the order of the rows."""
    weights = _weights(rows)
    return [
        ComparedRun(
            row.label.run_id,
            Pair(row.label.value, _judge_value(row), weights[row.label.run_id], row.cluster),
        )
        for row in rows
    ]


def _judge_value(row: LabelledVerdict) -> str:
    if row.verdict_status not in ANSWERED:
        return UNJUDGED
    if row.label.criterion == Criterion.OUTCOME:
        return row.outcome or Outcome.UNKNOWN
    said = getattr(row, row.label.criterion)
    return UNDECIDED if said is None else str(said)


def _weights(rows: Iterable[LabelledVerdict]) -> dict[str, float]:
    """Return, by run, the weight of each label: that of the run, shared by the people who labelled it.

    A run that was labelled by several designs was as likely to be labelled as by the likeliest of them. One that nobody
    drew stands for itself alone.
    """
    likeliest: dict[str, float] = defaultdict(float)
    people: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        label = row.label
        likeliest[label.run_id] = max(likeliest[label.run_id], _probability(label))
        people[label.run_id].add(label.annotator)
    return {run_id: 1 / likeliest[run_id] / len(people[run_id]) for run_id in likeliest}


def _probability(label: StoredLabel) -> float:
    return 1.0 if label.inclusion_probability is None else label.inclusion_probability


def _weighting(rows: Sequence[LabelledVerdict]) -> str:
    runs: dict[str, float] = defaultdict(float)
    for row in rows:
        runs[row.label.run_id] = max(runs[row.label.run_id], _probability(row.label))
    return _BY_INCLUSION if len(set(runs.values())) > 1 else _UNIFORM


def _slices(
    rows: Sequence[LabelledVerdict], language_of: Callable[[str], str] | None
) -> Iterator[tuple[Slice, str, list[LabelledVerdict]]]:
    """Yield each slice with its rows; a run of several models is in the slice of each."""
    yield Slice.ALL, "", list(rows)
    groups: dict[tuple[Slice, str], list[LabelledVerdict]] = defaultdict(list)
    for row in rows:
        for key in _slices_of(row, language_of):
            groups[key].append(row)
    several = Counter(kind for kind, _ in groups)
    for (kind, value), members in sorted(groups.items()):
        # The only value of a kind is the whole again.
        if several[kind] > 1:
            yield kind, value, members


def _slices_of(row: LabelledVerdict, language_of: Callable[[str], str] | None) -> Iterator[tuple[Slice, str]]:
    yield Slice.AGENT, row.agent_name or row.agent_id
    for model in row.models:
        yield Slice.MODEL, model
    length = "short" if row.message_count <= SHORT else "long" if row.message_count > LONG else "medium"
    yield Slice.LENGTH, length
    if language_of is not None and row.spoken.strip():
        yield Slice.LANGUAGE, language_of(row.spoken)
    if row.end_time is not None:
        year, week, _ = row.end_time.isocalendar()
        yield Slice.WEEK, f"{year}-W{week:02}"
