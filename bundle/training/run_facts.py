# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What a run's pages say: facts, once, for `summary.md` and `report.html`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bundle.data import PreparedVolume, SkippedVolume
from bundle.data.printable import counted
from bundle.runs import RunFolder
from bundle.training.history import class_metrics, clock, on_training

__all__ = ["EpochMetrics", "RunFacts", "data_facts", "files_facts", "training_facts", "volume_names"]

_NAMED, _CLASSES = 50, 20


@dataclass(frozen=True)
class EpochMetrics:
    """The metrics of one epoch: what each is called, and its value as text."""

    epoch: int
    note: str
    values: Mapping[str, str]

    @staticmethod
    def choose(
        rows: Sequence[Mapping[str, float]],
        shown: Mapping[str, tuple[str, str]],
        best: str | None,
        held_out: bool = True,
    ) -> EpochMetrics | None:
        """Those of the epoch with the highest `best`, else of the last one; None where there is no epoch.

        Args:
            rows: of the history.
            shown: names of metrics in the history: what to call each, and its number format. Below one that was split
                by class come those of the classes; of more than 20 classes the lowest ones.
            best: a metric's name.
            held_out: whether the validation was of other volumes than the training.
        """
        if not rows:
            return None
        validated = [row for row in rows if best in row and row[best] == row[best]] if best is not None else []
        row = max(validated, key=lambda row: row[str(best)], default=rows[-1])
        of_all = "the only validation" if len(validated) == 1 else f"the best validation of {len(validated)}"
        note = f"The weights are those of this epoch, which had {of_all}."
        if not held_out:
            note = (
                "No volume was held out: these figures are of the volumes that were trained on, and say nothing of "
                f"others. The weights are those of this epoch, which had the best of {len(validated)}."
            )
            shown = {name: (on_training(label), form) for name, (label, form) in shown.items()}
        shown = {key: value for name, (label, form) in shown.items() for key, value in _rows(row, name, label, form)}
        values = {label: f"{row[name]:{form}}" for name, (label, form) in shown.items() if name in row}
        return EpochMetrics(int(row["epoch"]), note if validated else "", values)


def _rows(row: Mapping[str, float], name: str, label: str, form: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """A metric, and below it those of its classes; of one class alone that one, whose mean it is."""
    classes, every = class_metrics(row, name, _CLASSES), len(class_metrics(row, name))
    if every != 1:
        yield name, (label, form)
    some = f" (of the {_CLASSES} lowest of {every})" if every > _CLASSES else ""
    for of_class, called in classes.items():
        yield of_class, (f"{label.partition(', mean of')[0]}, {called}{some}", form)


@dataclass(frozen=True)
class RunFacts:
    """All that the pages say.

    Args:
        title: of the pages.
        outcome: how training ended, a sentence.
        trained: on the network and the machine, by name.
        data: on the volumes, by name.
        names: of the volumes by the name in `data`.
        notes: name and remark of each volume that was used in part or resampled.
        skipped: the volumes that could not be used.
        metrics: of the epoch to show.
        rows: of all epochs.
        files: what is where.
        hints: what to do next.
    """

    title: str
    outcome: str
    trained: Mapping[str, str]
    data: Mapping[str, str]
    names: Mapping[str, str]
    notes: Sequence[tuple[str, str]]
    skipped: Sequence[SkippedVolume]
    metrics: EpochMetrics | None
    rows: Sequence[Mapping[str, float]]
    files: Mapping[Path, str]
    hints: Sequence[str]

    def markdown(self) -> str:
        """The page `summary.md`."""
        lines = [f"# {self.title}", "", self.outcome]
        lines += ["", "## What was trained", *(f"- {name}: {value}" for name, value in self.trained.items())]
        lines += ["", "## On what", *(line for fact in self.data.items() for line in self._fact(*fact))]
        if self.notes:
            lines += [f"- used in part or resampled: {len(self.notes)}"]
            lines += [f"  - {name}: {note}" for name, note in self.notes]
        if self.skipped:
            lines += [f"- not used: {len(self.skipped)}"]
            lines += [f"  - {name}: {problem}; {remedy}" for name, problem, remedy in self.skipped]
        if self.metrics is None:
            lines += ["", "No epoch was completed, so there are no metrics."]
        else:
            lines += ["", f"## Metrics of epoch {self.metrics.epoch}", ""]
            lines += [self.metrics.note, ""] if self.metrics.note else []
            lines += ["| | |", "|---|---|", *(f"| {label} | {value} |" for label, value in self.metrics.values.items())]
        lines += ["", "## Where it is", *(f"- `{path}`: {what}" for path, what in self.files.items())]
        return "\n".join([*lines, *(f"- {hint}" for hint in self.hints), ""])

    def _fact(self, name: str, value: str) -> list[str]:
        return [f"- {name}: {value}", *([f"  - {self.names[name]}"] if self.names.get(name) else [])]


def training_facts(network: nn.Module, device: torch.device, rows: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """What was trained, where and how long."""
    count = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    encoder = getattr(network, "encoder", network)
    encoder = getattr(encoder, "network", encoder)  # the plain MONAI network
    threads = f"CPU, {counted(torch.get_num_threads(), 'thread')}"
    return {
        "network": f"{type(network).__name__}, encoder {type(encoder).__name__}",
        "trainable parameters": f"{count:,}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else threads,
        "time": f"{clock(sum(row['seconds'] for row in rows))} in {counted(len(rows), 'epoch')}",
    }


def data_facts(
    training: Sequence[PreparedVolume], validation: Sequence[PreparedVolume], held_out: bool = True
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """How many volumes of which modality, and the remarks on single ones."""
    facts = {"training": _counts(training), "validation": _counts(validation)}
    if not held_out:
        facts["validation"] = "none held out, so the training volumes again"
    every = (*training, *validation)  # with val_fraction 0 the same volumes twice
    padded = list(dict.fromkeys(volume.name for volume in every if volume.padded))
    if padded:
        facts["smaller than the crop, so padded"] = ", ".join(padded)
    return facts, list(dict.fromkeys((volume.name, volume.notes) for volume in every if volume.notes))


def volume_names(
    training: Sequence[PreparedVolume], validation: Sequence[PreparedVolume], held_out: bool = True
) -> dict[str, str]:
    """The names of the volumes of each part, in one line; of more than 50 the number of the others."""
    parts = {"training": training, "validation": validation if held_out else ()}
    found = {}
    for part, volumes in parts.items():
        more = f", and {len(volumes) - _NAMED} more" if len(volumes) > _NAMED else ""
        found[part] = ", ".join(volume.name for volume in volumes[:_NAMED]) + more
    return found


def files_facts(folder: RunFolder, held_out: bool = True) -> dict[Path, str]:
    """What each file of the run is, of those that are there."""
    files = {
        folder.model: "the weights, a flat state dict of the plain MONAI network",
        folder.last_checkpoint: "the whole state, for a resume",
        folder.best_checkpoint: "the same after the epoch with the best "
        + ("validation" if held_out else "figure on the training volumes"),
        folder.path / "predictions.csv": "what the network says of each validation volume",
        folder.labels: "a picture of the labels that were trained on",
        folder.panels: "pictures of what the network predicts",
        folder.curves: "learning curves",
        folder.history: "every epoch's metrics",
        folder.config: "the settings",
    }
    return {path: what for path, what in files.items() if path.exists()}


def _counts(volumes: Sequence[PreparedVolume]) -> str:
    modalities = Counter(volume.modality for volume in volumes)
    parts = ", ".join(f"{count} {modality}" for modality, count in sorted(modalities.items()))
    return counted(len(volumes), "volume") + (f" ({parts})" if parts else "")
