"""The ways of re-scoring that the study sets side by side: each gives the cosines of a cell's detections.

"cm_clip": the stored ones. "dense": CLIP's by one pass an image. "head:NAME": a head on the proposals' features.
Of the main head: "pooled" (the final boxes pooled again), "continued" (further trained on the K-shot images),
"targets:BETA" (few-shot visual targets in the place of the texts), "targets_clip:BETA" (the same with CLIP's crops).
"""

from __future__ import annotations

import numpy as np

from risf_core.detections import Detections, Similarities
from risf_core.distilled_rescoring.boxes import BoxBank
from risf_core.distilled_rescoring.head import DistilledHead
from risf_core.distilled_rescoring.pairs import RegionPairs, image_pairs
from risf_core.distilled_rescoring.rescoring import few_shot_targets, proposal_features, similarities
from risf_core.distilled_rescoring.training import continue_head
from risf_core.head_training import RegionFeatures
from risf_core.studies.stored_cells import StoredCell
from risf_core.studies.visual_prototypes import embed_truth

OF_BOXES = ("dense", "pooled", "targets_clip")  # ways that embed boxes anew


class Ways:
    """The cosines of each way; what several cells share is made once.

    Args:
        study: The base model, its cells and heads.
    """

    def __init__(self, study) -> None:
        self.study, self.params = study, study.params
        self._regions: RegionFeatures | None = None
        self._bank: BoxBank | None = None
        self._banked: list[StoredCell] = []
        self._embeds: dict[str, np.ndarray] = {}
        self._shots: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}

    def simple(self) -> list[str]:
        """Ways that need no head to be chosen before."""
        dense = ["dense"] if self.params.box_seeds else []
        return ["cm_clip", *dense, *(f"head:{name}" for name in self.params.heads)]

    def of_main(self) -> list[str]:
        """Ways of the main head, and CLIP with the same targets."""
        params = self.params
        ways = ["pooled"] if params.box_seeds else []
        ways += ["continued"] if params.solver.shot_iterations else []
        ways += [f"targets:{beta:g}" for beta in params.target_betas]
        return ways + ([f"targets_clip:{beta:g}" for beta in params.target_betas] if params.box_seeds else [])

    def takes(self, way: str, cell: StoredCell) -> bool:
        """Whether a way is made for a cell: those that embed boxes anew are for some draws of one loss."""
        if way.partition(":")[0] not in OF_BOXES:
            return True
        return cell.key["seed"] in self.params.box_seeds and cell.key["loss"] == self.params.box_loss

    def cosines(self, way: str, cell: StoredCell, found: Detections, stored: Similarities) -> Similarities:
        """Cosines of a cell's detections with all names.

        Args:
            way: Its name.
            cell: The cell.
            found: Its detections that count.
            stored: CLIP's cosines of these.
        """
        study = self.study
        kind, _, value = way.partition(":")
        texts = study.texts
        if kind == "cm_clip":
            return stored
        if kind in ("targets", "targets_clip"):
            shots, labels = self._shot_embeds(cell)
            columns = [study.names.index(name) for name in study.benchmark.novel_names]
            texts = few_shot_targets(texts, shots, labels, columns, beta=float(value))
        if kind in ("dense", "targets_clip"):
            embeds = self._box_embeds("dense" if kind == "dense" else "crop", cell)
        elif kind == "pooled":
            embeds = study.heads[study.main].embed(self._box_embeds("pooled", cell))
        elif kind == "continued":
            embeds = self._continued(cell).embed(proposal_features(self.regions, found))
        else:
            name = value if kind == "head" else study.main
            embeds = study.heads[name].embed(proposal_features(self.regions, found))
        return similarities(embeds, texts, study.names)

    @property
    def regions(self) -> RegionFeatures:
        """All proposals of the test images with their features, as fine-tuning has stored them."""
        if self._regions is None:
            self._regions = self.study.context.test_regions()
        return self._regions

    def _box_embeds(self, kind: str, cell: StoredCell) -> np.ndarray:
        """What detector or CLIP makes of a cell's final boxes, in the order of its detections."""
        study = self.study
        if self._bank is None:
            self._banked = [one for one in study.cells if self.takes("dense", one)]
            data = study.splits.get(cell)[1]
            self._bank = BoxBank([one.detections() for one in self._banked], data, study.run.dir / "boxes")
        if kind not in self._embeds:
            if kind == "pooled":
                self._embeds[kind] = self._bank.by_detector(study.detector)
            else:
                clip = study.cm_clip(path="dense") if kind == "dense" else study.clip
                self._embeds[kind] = self._bank.by_clip(clip, kind)
        return self._embeds[kind][self._bank.rows[self._banked.index(cell)]]

    def _shot_embeds(self, cell: StoredCell) -> tuple[np.ndarray, np.ndarray]:
        """CLIP's embeddings of the K shots of a cell's draw, and their classes."""
        key = (cell.key["shots"], cell.key["seed"])
        if key not in self._shots:
            self._shots[key] = embed_truth(self._shot_data(cell), self.study.clip)
        return self._shots[key]

    def _shot_data(self, cell: StoredCell):
        return self.study.benchmark.few_shot(cell.key["shots"], cell.key["seed"], arm=cell.key["arm"])

    def _continued(self, cell: StoredCell) -> DistilledHead:
        """The main head, further trained on the regions of a draw's K-shot images; kept with the run."""
        study, params = self.study, self.params
        shots, seed = cell.key["shots"], cell.key["seed"]
        path = study.run.dir / "heads" / f"{study.main}-{shots}shot-seed{seed}.pth"
        if not path.exists():
            records = self._shot_data(cell).images
            options = {"novel": {record.image_id for record in records}, "seed": params.seed}
            made = [
                image_pairs(study.detector, one, study.clip, params.regions, **options) for one in records
            ]
            pairs = RegionPairs.join(made)
            spec = params.heads[study.main]
            continue_head(
                study.heads[study.main],
                study.pairs.images(spec.images, seed=params.seed),
                (pairs.features, pairs.embeds),
                spec,
                params.solver,
                study.divergence_texts(spec),
                temperature=study.temperature,
                seed=seed,
            ).save(path)
        return DistilledHead.load(path)
