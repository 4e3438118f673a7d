"""From config to a pretrained backbone: by labels, as `finetune` trains, or layer by layer without them; then keep the layers."""

from pathlib import Path

import torch
from omegaconf import DictConfig
from safetensors.torch import save_file

from ftlit.models.backbone import Backbone
from ftlit.recipes import finetune, layerwise


def run(cfg: DictConfig) -> float:
    """Train, then write `backbone.safetensors` (float16) to the run's folder. Returns the best validation accuracy; layer by layer minus
    the last layer's error.
    """
    if cfg.get("pretrain"):
        backbone, score = layerwise.pretrain(cfg)
        first = True
    else:
        run = finetune.build(cfg)
        score, backbone, first = finetune.fit(cfg, run), run.model.backbone, run.trainer.is_global_zero
    if first:
        path = save_backbone(backbone, Path(cfg.paths.run, "backbone.safetensors"))
        print(f"wrote {path}: a file that backbone.weights= takes")
    return score


def save_backbone(backbone: Backbone, path: Path) -> Path:
    """Parameters and statistics under the backbone's own names, floating point ones as float16."""
    state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in backbone.state_dict().items()}
    save_file({name: tensor.to(memory_format=torch.contiguous_format).contiguous() for name, tensor in state.items()}, path)
    return path
