"""Distilled re-scoring: CM-CLIP's re-scoring without CLIP at test time.

A head g, linear or with one hidden layer, reads the detector's own feature of a region and is trained once to give
CLIP's embedding of the same box (`pairs`, `training`, `head`). In `rescore` it stands in CLIP's place: the cosines of
g(e) with the names go through the same softmax and the same blend (`rescoring`), so that every label space, weight and
fusion works as before. The detector is frozen and few-shot fine-tuning changes its box head alone, so one g serves
every K, loss and draw of a base model.

What is distilled is ViLD's (Gu et al., Open-vocabulary object detection via vision and language knowledge distillation,
ICLR 2022); here it replaces the crops of CM-CLIP in a few-shot detector. `study` measures how much of CM-CLIP's gain is
kept (`retention`), `costs` what it takes.
"""
