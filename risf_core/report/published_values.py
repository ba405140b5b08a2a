"""Published results on COCO and VOC over K, which the main figure of these profiles shows as reference lines.

What no source gives is not here: of RISF K = 2, 3 and 5 on COCO, VOC, and the setting gfsod. Imports no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from risf_core.report.statistics import notebook_of

RISF_SOURCE = "https://paperswithcode.com/paper/re-scoring-using-image-language-similarity"
DEFRCN_SOURCE = "https://github.com/er-muyue/DeFRCN"


@dataclass(frozen=True)
class PublishedLine:
    """What one system reaches over K.

    Attributes:
        system: Its name, with the year's paper where it matters.
        profile: "coco" or "voc", the profile that follows the same protocol.
        metric: nAP or nAP50.
        setting: fsod or gfsod.
        split: Of VOC; 1 for COCO.
        values: K to percent.
        source: Address of the page that prints them.
    """

    system: str
    profile: str
    metric: str
    setting: str
    split: int
    values: Mapping[int, float]
    source: str


def _voc(split: int, *values: float) -> PublishedLine:
    by_shots = dict(zip((1, 2, 3, 5, 10), values, strict=True))
    return PublishedLine("DeFRCN", "voc", "nAP50", "fsod", split, by_shots, DEFRCN_SOURCE)


LINES = (
    # at K = 1 the source names no backbone; at 10 and 30 ResNet-101
    PublishedLine("RISF", "coco", "nAP", "fsod", 1, {1: 11.7, 10: 21.9, 30: 24.4}, RISF_SOURCE),
    PublishedLine(
        "DeFRCN",
        "coco",
        "nAP",
        "fsod",
        1,
        {1: 9.3, 2: 12.9, 3: 14.8, 5: 16.1, 10: 18.5, 30: 22.6},
        DEFRCN_SOURCE,
    ),
    PublishedLine(
        "DeFRCN",
        "coco",
        "nAP",
        "gfsod",
        1,
        {1: 4.8, 2: 8.5, 3: 10.7, 5: 13.6, 10: 16.8, 30: 21.2},
        DEFRCN_SOURCE,
    ),
    _voc(1, 53.6, 57.5, 61.5, 64.1, 60.8),
    _voc(2, 30.1, 38.1, 47.0, 53.3, 47.9),
    _voc(3, 48.4, 50.9, 52.3, 54.9, 57.4),
)


def published_lines(
    records: Sequence[Mapping], *, metric: str, setting: str, split: int, arm: str
) -> list[PublishedLine]:
    """The published values that a panel may be compared with; none where profile or arm are others.

    Args:
        records: Records of one profile; that of their fine-tunings counts.
        metric: Of the figure.
        setting: fsod or gfsod.
        split: Base/novel split of the panel.
        arm: Of the panel; published K-shot images are those of the arm kshot.
    """
    runs = [record for record in records if notebook_of(record) == "20_fine_tuning"]
    profiles = {record.get("params", {}).get("profile") for record in runs}
    if len(profiles) != 1 or arm != "kshot":
        return []
    wanted = (profiles.pop(), metric, setting, split)
    return [line for line in LINES if (line.profile, line.metric, line.setting, line.split) == wanted]


def lines_note(lines: Sequence[PublishedLine]) -> str:
    """Whose values the black lines are, for a caption, with a space before it; nothing without lines."""
    if not lines:
        return ""
    sources = dict.fromkeys(f"{line.system}, {line.source}" for line in lines)
    return f" Black: published values ({'; '.join(sources)}), for the K that the source gives."
