"""Which base model and which CLIPs a record builds on, where a profile has several of one split. Imports no torch."""

import json
from collections.abc import Mapping, Sequence

from risf_core.errors import RecordError
from risf_core.report.statistics import notebook_of

FINE_TUNING, BACKBONES = "20_fine_tuning", "32_clip_backbones"


def base_identity(record: Mapping) -> str:
    """Which base model a fine-tuning started from: its run, or its params file and replaced values."""
    runs = [name for name in record.get("upstream") or {} if name.startswith("base_training")]
    return runs[0] if len(runs) == 1 else json.dumps((record.get("params") or {}).get("base"), sort_keys=True)


def base_labels(records: Sequence[Mapping]) -> dict[str, str]:
    """``base 0`` for each fine-tuning run id, by the seed of its base model.

    The seed is that of the base model's record, else the one that the reference sets, else 0, the default. Two base
    models of one split with one seed are told apart by a letter.
    """
    trained = {
        record["run_id"]: record["params"].get("seed", 0)
        for record in records
        if notebook_of(record) == "10_base_training"
    }
    by_split: dict[int, dict[str, str]] = {}
    found: dict[str, tuple[int, str]] = {}
    for record in sorted(records, key=lambda record: record["run_id"]):
        if notebook_of(record) != FINE_TUNING:
            continue
        params, identity = record.get("params") or {}, base_identity(record)
        base = params.get("base")
        replaced = (base.get("set") or {}) if isinstance(base, Mapping) else {}
        label = f"base {trained.get(identity, replaced.get('seed', 0))}"
        known = by_split.setdefault(params.get("split", 1), {})
        if identity not in known:
            same = [other for other in known.values() if other.split(", ")[0] == label]
            known[identity] = f"{label}, {chr(ord('a') + len(same))}" if same else label
        found[record["run_id"]] = (params.get("split", 1), identity)
    return {run_id: by_split[split][identity] for run_id, (split, identity) in found.items()}


def has_several_bases(records: Sequence[Mapping]) -> bool:
    """Whether fine-tunings of one split and setting started from more than one base model."""
    bases: dict[tuple, set[str]] = {}
    for record in records:
        if notebook_of(record) == FINE_TUNING:
            params = record.get("params") or {}
            key = params.get("split", 1), params.get("setting", "fsod")
            bases.setdefault(key, set()).add(base_identity(record))
    return any(len(own) > 1 for own in bases.values())


def of_one_base(records: Sequence[Mapping]) -> list[Mapping]:
    """The records for tables and figures whose intervals are over the draws of one base model.

    Where a split has several base models these are all records but those of 20_fine_tuning and 32_clip_backbones: the
    crossed tables take their place, so that nothing is pooled silently.
    """
    if not has_several_bases(records):
        return list(records)
    return [record for record in records if notebook_of(record) not in (FINE_TUNING, BACKBONES)]


def clip_runs(record: Mapping) -> list[str]:
    """Runs of 12_tiny_clip that a record builds on."""
    return sorted(name for name in record.get("upstream") or {} if name.startswith("tiny_clip"))


def bases_of_backbones(records: Sequence[Mapping]) -> dict[tuple[str, int, int], str]:
    """The base model of each (run of 32_clip_backbones, split, K), of the fine-tunings that it builds on.

    A fine-tuning whose record is not at hand gives no entry.

    Raises:
        RecordError: If these have several base models, which the rows do not tell apart.
    """
    labels = base_labels(records)
    tuned = {record["run_id"]: record for record in records if notebook_of(record) == FINE_TUNING}
    found: dict[tuple[str, int, int], str] = {}
    for record in records:
        if notebook_of(record) != BACKBONES:
            continue
        for name in sorted(set(record.get("upstream") or {}) & tuned.keys()):
            params = tuned[name].get("params") or {}
            key = record["run_id"], params.get("split", 1), params.get("shots", 0)
            if found.setdefault(key, labels[name]) != labels[name]:
                raise RecordError(
                    f"{record['run_id']}: builds on fine-tunings of {found[key]} and {labels[name]}, which its rows "
                    "do not tell apart. Expected one run of 32_clip_backbones for each base model."
                )
    return found
