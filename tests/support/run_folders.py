"""Folders of runs that are not trained: random weights and random statistics of batch norms, for tests of what reads a checkpoint."""

import torch
from torch import nn

from ftlit import batchnorm_to_affine, load_backbone
from ftlit.inference.record import record_of
from ftlit.models.heads import AttentionHead, LinearHead

CLASSES = ["ants", "bees", "wasps"]


def run_of(folder, name, options, head=LinearHead, *, affine=False, multilabel=False, load=load_backbone, **head_options):
    """Save the folder of a run with random weights and random batchnorm statistics."""
    torch.manual_seed(0)
    backbone = load(name, weights=None, **options)
    for norm in backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.7, 1.3)
    if affine:
        batchnorm_to_affine(backbone)
    made = head(**{"in_features": backbone.num_features, "num_classes": len(CLASSES), **head_options})
    if isinstance(made, AttentionHead):
        nn.init.normal_(made.query)
    (folder / "checkpoints").mkdir(parents=True)
    target = f"{head.__module__}.{head.__name__}"
    facts = {"class_names": CLASSES, "multilabel": multilabel, "affine": affine}
    record = record_of(backbone, {}, {"_target_": target, **head_options}, **facts)
    state = nn.ModuleDict({"backbone": backbone, "head": made}).state_dict()
    (folder / "other.json").write_text("{}")
    torch.save({"state_dict": state, "ftlit": record}, folder / "checkpoints" / "best.ckpt")
    return folder
