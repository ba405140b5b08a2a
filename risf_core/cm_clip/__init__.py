"""CM-CLIP: re-score detections by the similarity of their crops to class names, as a CLIP sees it.

The calibration of RISF (Jung et al., Re-scoring using image-language similarity for few-shot object detection, CVIU
2024). A detection of class k with score s gets ``c * s + (1 - c) * p_k``, where p is the softmax of temperature times
the cosines between its crop and the names of a label space with "background" last.

`clip` makes embeddings of boxes and texts with any CLIP of open_clip: `crops` cuts boxes out, `texts` averages
prompts and stores what it encoded, `costs` chooses precision and batch, `dense` embeds all boxes of an image at once.
`encoding` does so for stored detections, each box once (`encode_detections`, `embed_detections`); weights,
temperatures, fusions and narrower label spaces are then arithmetic on files (`scores`, `apply_cm_clip`).
`crop_choice` names the ways of encoding fewer boxes, `journal` keeps what is encoded through a kill. ``python -m
risf_core.cm_clip`` (`results_file`) re-scores the results file of any detector.
"""

from risf_core.clip_models import load_clip as load_clip
from risf_core.cm_clip.clip import CMCLIP as CMCLIP
from risf_core.cm_clip.encoding import CropEmbeddings as CropEmbeddings
from risf_core.cm_clip.encoding import embed_detections as embed_detections
from risf_core.cm_clip.encoding import encode_detections as encode_detections
from risf_core.cm_clip.scores import BACKGROUND as BACKGROUND
from risf_core.cm_clip.scores import TEMPERATURE as TEMPERATURE
from risf_core.cm_clip.scores import apply_cm_clip as apply_cm_clip
from risf_core.cm_clip.scores import label_space_names as label_space_names
from risf_core.cm_clip.scores import rescore as rescore
from risf_core.cm_clip.scores import rescored_rows as rescored_rows
