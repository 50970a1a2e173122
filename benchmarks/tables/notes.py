"""The sentences under a table."""

from collections.abc import Iterable

from benchmarks.tables.cells import Row
from benchmarks.tables.judge import what_differs
from benchmarks.tables.paper import Column, Paper, PaperTable
from benchmarks.tables.run import Run


def reasons(rows: Iterable[Row]) -> list[str]:
    """A sentence for each different reason for which cells are not compared or judged."""
    where: dict[str, list[str]] = {}
    for row in rows:
        for cell in row.cells:
            if cell.reason:
                labels = where.setdefault(f"{cell.verdict}: {cell.reason}", [])
                labels += [] if row.label in labels else [row.label]
    return [f"{'; '.join(labels)}: {reason}." for reason, labels in where.items()]


def noise(table: PaperTable, paper: Paper) -> list[str]:
    """What is published about the noise of the table's metrics, and what follows without it."""
    known: dict[str | None, list[str]] = {}
    unknown = []
    for column in table.columns:
        conditions = paper.conditions[column.benchmark]
        if column.key in conditions.noise:
            said = f"{column.metric} {conditions.noise[column.key]}"
            known.setdefault(conditions.noise_source, []).append(said)
        else:
            unknown.append(column.metric)
    notes = [
        f"Published noise of one trial: {', '.join(said)}. Source: {source}."
        for source, said in known.items()
    ]
    if unknown:
        notes.append(
            f"No noise is published for {', '.join(unknown)}: there the rule is 2·std/√n alone, "
            "and trials without a spread are not judged."
        )
    return notes


def status(table: PaperTable) -> list[str]:
    """How well the paper's numbers are established, where that is not by two sources."""
    words_of = {
        "one_source": "Seen in a single transcription of the paper",
        "partly_two_sources": "Seen in part in a single transcription of the paper",
        "figure_reading_pm0.1": "Read off the paper's plot, ± 0.1",
    }
    labels = {
        text: [row.label for row in table.rows if row.status == key]
        for key, text in words_of.items()
    }
    return [f"{text}: {'; '.join(found)}." for text, found in labels.items() if found]


def mixed_rows(run: Run, columns: Iterable[Column], rows: Iterable[Row]) -> list[str]:
    """A sentence for each benchmark whose rows differ in more than their weights."""
    names = [row.name or "" for row in rows]
    notes = []
    for benchmark in dict.fromkeys(column.benchmark for column in columns):
        found = [run.experiments.get((benchmark, name)) for name in names]
        different = what_differs([trial for e in found if e is not None for trial in e.trials])
        if different:
            notes.append(f"The rows of {benchmark} differ in {', '.join(different)}.")
    return notes


def unfinished(run: Run, columns: Iterable[Column], rows: Iterable[Row]) -> list[str]:
    """A sentence naming the unfinished trials of these benchmarks and rows, if there are any."""
    pairs = {(column.benchmark, row.name) for column in columns for row in rows}
    names = [folder for folder, experiment in run.unfinished.items() if experiment in pairs]
    return [f"Unfinished, not counted: {', '.join(names)}."] if names else []
