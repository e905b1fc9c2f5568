"""What an evaluation gives: outcomes, as a nested table of numbers, and as a terminal table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from rich import box
from rich.table import Table

from multimodal.evaluation.evaluators.base import EMERGENT, TRAINED, Line, Missing, Outcome
from multimodal.evaluation.uncertainty import LEGEND, MARK

Kind = TypeVar("Kind", bound=Outcome)


@dataclass(frozen=True, slots=True)
class SetInfo:
    """Name, split, number of samples and description of an evaluation set."""

    name: str
    split: str
    samples: int
    description: str


@dataclass(slots=True)
class Results:
    """All outcomes of one evaluation, set by set."""

    sets: dict[str, SetInfo] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    def add(self, answer: Outcome | Missing) -> None:
        """Keeps an evaluator's answer."""
        if isinstance(answer, Missing):
            self.missing.append(answer)
        else:
            self.outcomes.append(answer)

    def kinds(self) -> list[type[Outcome]]:
        """The kinds of outcomes that there are."""
        return list(dict.fromkeys(type(outcome) for outcome in self.outcomes))

    def of(self, kind: type[Kind]) -> list[Kind]:
        """The outcomes of one kind."""
        return [outcome for outcome in self.outcomes if isinstance(outcome, kind)]

    def metrics(self) -> dict[str, Any]:
        """The numbers as ``{set: {task: {metric: value}}}``, fractions of 1 and counts.

        ``metrics["emoji_unseen"]["image_to_text"]["r@1"]``; beside it ``chance``, ``gallery``,
        ``queries``, ``trained``. Probes and ``diagnostics`` have their own blocks. Missing tasks
        are listed under their set with a reason.
        """
        table: dict[str, Any] = {
            info.name: {
                "split": info.split,
                "samples": info.samples,
                "description": info.description,
            }
            for info in self.sets.values()
        }
        for outcome in self.outcomes:
            row = outcome.row()
            if row is not None:
                table[outcome.set][outcome.key] = row
        for gap in self.missing:
            table.setdefault(gap.set, {}).setdefault("missing", {})[gap.what] = gap.reason
        return table

    def flat(self) -> dict[str, float]:
        """The figures that a curve can be drawn of: ``SET/TASK/METRIC`` -> value.

        Of tasks on a fusion also each modality's: ``SET/TASK/without/MODALITY/METRIC`` and so on.
        """
        return {
            f"{outcome.set}/{outcome.key}/{metric}": value
            for outcome in self.outcomes
            for metric, value in outcome.curves().items()
        }

    def table(self) -> Table | None:
        """The figures in percent for a terminal, trained pairs before emergent ones.

        None where there is nothing to say.
        """
        lines = [(each.group, each.set, each.lines()) for each in self.outcomes]
        lines = [entry for entry in lines if entry[2]]
        if not lines and not self.missing:
            return None
        table = Table(
            title="Held-out results, in percent",
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE,
        )
        table.add_column("query → answer", no_wrap=True)
        for name in ("top 1", "(95 %)", "", "top 5", "top 10", "chance", "among"):
            table.add_column(name, justify="right", no_wrap=True)
        for group in dict.fromkeys((TRAINED, EMERGENT, *(entry[0] for entry in lines))):
            of_group = [entry for entry in lines if entry[0] == group]
            if of_group:
                table.add_row(f"[bold]{group}")
            for name in dict.fromkeys(entry[1] for entry in of_group):
                table.add_row(f"[bold cyan]{name}")
                for line in (line for _, of_set, own in of_group if of_set == name for line in own):
                    table.add_row(*_cells(line), style="dim" if line.marked else None)
            table.add_section()
        gaps = [f"{gap.set}, {gap.what}: {gap.reason}" for gap in self.missing]
        notes = [LEGEND] if any(line.interval for entry in lines for line in entry[2]) else []
        notes += ["Not evaluated", *gaps] if gaps else []
        table.caption = "\n".join(notes) or None
        return table


def _cells(line: Line) -> list[str]:
    interval = f"({line.interval})" if line.interval else ""
    sign = MARK if line.marked else ""
    return [
        line.name, line.top_1, interval, sign, line.top_5, line.top_10, line.chance, line.among,
    ]  # fmt: skip
