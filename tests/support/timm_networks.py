"""Small networks of timm with random weights, one of each module whose blocks are layers of their own."""

import timm
import torch

# module of timm, and what its blocks take -> architecture, size of its images, another size if it takes several, arguments
BLOCKWISE = {
    "eva, rotary positions": ("vit_small_patch16_dinov3", 32, 64, {"depth": 2, "embed_dim": 48, "num_heads": 3}),
    "eva, rotary positions of a fixed size": ("eva02_tiny_patch14_336", 28, None, {"depth": 2, "embed_dim": 48, "num_heads": 3}),
    "eva, learned rotary positions": ("vit_small_patch16_rope_mixed_224", 32, None, {"depth": 2, "embed_dim": 48, "num_heads": 3}),
    "naflexvit": ("naflexvit_base_patch16_gap", 32, 64, {"depth": 2, "embed_dim": 48, "num_heads": 3}),
    "naflexvit, rotary positions": (
        "naflexvit_base_patch16_gap", 32, 64, {"depth": 2, "embed_dim": 48, "num_heads": 3, "rope_type": "axial"}
    ),
    "beit": ("beit_base_patch16_224", 32, None, {"depth": 2, "embed_dim": 48, "num_heads": 3}),
    "beit, shared position bias": (
        "beit_base_patch16_224", 32, None,
        {"depth": 2, "embed_dim": 48, "num_heads": 3, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
    ),
    "vision_transformer": ("test_vit", 32, 64, {}),
    "vision_transformer_relpos": ("vit_relpos_small_patch16_224", 32, None, {"depth": 2, "embed_dim": 48, "num_heads": 3}),
    "vision_transformer_relpos, shared position bias": (
        "vit_srelpos_small_patch16_224", 32, None, {"depth": 2, "embed_dim": 48, "num_heads": 3, "rel_pos_dim": 8}
    ),
    "swin_transformer": (
        "swin_tiny_patch4_window7_224", 32, None, {"depths": [1, 1], "embed_dim": 16, "num_heads": [1, 2], "window_size": 2}
    ),
    "hiera": ("hiera_tiny_224", 64, None, {"stages": [1, 1, 1, 1], "embed_dim": 16, "num_heads": 1}),
    "convnext": ("test_convnext", 32, 64, {}),
    "metaformer": ("poolformer_s12", 32, 64, {}),
}  # fmt: skip
SHARING = [each for each in BLOCKWISE if "learned" in each or "shared" in each]  # with parameters that all blocks use


def build(name, size, **settings):
    """Build a network. No parameter is zero, as classifiers and scales of residual branches are by default."""
    torch.manual_seed(0)
    config = timm.get_pretrained_cfg(name)
    sized = {"img_size": size} if config.fixed_input_size and size != config.input_size[-1] else {}
    model = timm.create_model(name, **sized, **settings).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.uniform_(0.2, 0.8)
        if parameter.abs().max() < 1e-3:
            parameter.data.normal_(std=0.1)
    return model
