"""A project with fine-tuning records and stored detections in a tiny pictogram world: nothing was trained."""

import json
from pathlib import Path

import numpy as np

from risf_core.data.benchmark import Benchmark, open_benchmark
from risf_core.data_params import PictogramData
from risf_core.detections import Detections, Similarities
from risf_core.evaluation import Evaluator
from risf_core.fine_tuning import cell_name, results_by_rescoring
from risf_core.params import FineTuningParams
from risf_core.runs.state import data_hash

SEEDS = (0, 1, 2)
BASES = {"base_training-split1-00000000": "0" * 64}
QUALITY = {"ce": 0.6, "bnrl": 0.8}  # share of the objects that get the right class


def tiny_world(root: Path, **values) -> PictogramData:
    """Parameters of a world of thirty scenes of 64 pixels under a folder."""
    small = {"image_size": 64, "num_base_images": 60, "num_test_images": 30, "num_classification": 100}
    small |= {"num_corpus": 100, "few_shot_seeds": 3, "shots": (1, 2)}
    return PictogramData(root=str(root), **{**small, **values})


def write_run(
    project: Path,
    data: PictogramData,
    *,
    shots: int = 1,
    losses=("ce", "bnrl"),
    seeds=SEEDS,
    profile: str = "mini",
    tag: str = "aaaaaaaa",
    with_artifacts: bool = True,
    **params,
) -> str:
    """Write a record of 20_fine_tuning with its detections and similarities; returns the run id."""
    tuned = FineTuningParams(
        profile=profile, data=data, shots=shots, seeds=seeds, losses=losses, base="b.yaml", clip={"run": "c.yaml"},
        **params,
    )  # fmt: skip
    benchmark = open_benchmark(data)
    run_id = f"fine_tuning-split1-{shots}shot-{tag}"
    artifacts = project / "results" / profile / "artifacts" / run_id
    rows = []
    for seed in seeds:
        for loss in losses:
            found, beside = _cell(benchmark, seed, loss, shots)
            if with_artifacts:
                name = f"{cell_name(seed, 'kshot', loss)}.npz"
                found.save(artifacts / "detections" / name)
                beside.save(artifacts / "similarities" / name)
            test = benchmark.test.select_classes(benchmark.novel_names)
            evaluator = Evaluator(test, groups={"novel": benchmark.novel_names})
            cut = tuned.score_thresh
            results = results_by_rescoring(found, beside, benchmark, tuned.cm_clip, score_thresh=cut)
            for rescoring, detections in results.items():
                key = {
                    "split": 1,
                    "shots": shots,
                    "setting": "fsod",
                    "seed": seed,
                    "arm": "kshot",
                    "loss": loss,
                }
                rows.append({**key, "repeat": 0, "rescoring": rescoring, **evaluator.evaluate(detections)})
    record = {
        "schema": 1, "run_id": run_id, "notebook": "20_fine_tuning", "params": tuned.model_dump(mode="json"),
        "params_hash": tag * 8, "state_hash": "1" * 64, "data_hash": data_hash(tuned), "split_hash": benchmark.hash,
        "upstream": BASES, "metrics": {}, "rows": rows, "environment": {"host": "a-private-name", "cpu_seconds": 1.0},
    }  # fmt: skip
    path = project / "results" / profile / "records" / f"{run_id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, sort_keys=True, allow_nan=False))
    return run_id


def _cell(benchmark: Benchmark, seed: int, loss: str, shots: int) -> tuple[Detections, Similarities]:
    """Detections around the objects, some of another class or shifted, and cosines that know the class."""
    rng = np.random.default_rng([seed, shots])
    names = benchmark.novel_names
    rows = []
    for record in benchmark.test.select_classes(names).images:
        for box, label in zip(record.boxes, record.labels.tolist()):
            own = label if rng.random() < QUALITY[loss] else int(rng.integers(len(names)))
            shift = rng.normal(0, 0.08, 4) * np.tile(box[2:] - box[:2], 2)
            rows.append((record.image_id, box + shift, own, 0.3 + 0.6 * rng.random(), label))
        corner = rng.uniform(0, 40, 2)
        rows.append(
            (record.image_id, [*corner, *(corner + 15)], int(rng.integers(len(names))), rng.random(), -1)
        )
    image_ids, boxes, labels, scores, truth = (np.array(column) for column in zip(*rows))
    found = Detections(
        image_ids,
        boxes,
        scores,
        labels,
        np.full((len(rows), len(names) + 1), 0.1),
        np.arange(len(rows)),
        names,
    )
    spaces = (*names, *benchmark.base_names, "background")
    cosines = rng.uniform(0.1, 0.12, (len(rows), len(spaces)))
    cosines[np.arange(len(rows)), np.where(truth < 0, len(spaces) - 1, truth)] += 0.02
    place = {proposal: row for row, proposal in enumerate(range(len(rows)))}
    order = [place[proposal] for proposal in found.proposals.tolist()]
    return found, Similarities(cosines[order], np.ones(len(rows), dtype=bool), spaces)
