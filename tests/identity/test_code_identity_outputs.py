"""The output of each version of a layer, transform or reader equals the recorded output."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.transforms.functional import InterpolationMode
from torchvision.transforms.v2.functional import pil_to_tensor
from versioned_parts import SPEC, Masked, block_with_constants, relative_block, rotary_block, text_embeddings, versions_of_ftlit

from ftlit.data.bands import read_bands, to_bands
from ftlit.data.dataset import Examples
from ftlit.data.images import read_image, read_image_in_range, to_rgb, to_rgb_in_range
from ftlit.data.sources.builtin import _array_to_rgb, _load
from ftlit.data.sources.hf_dataset import ReadHfImage
from ftlit.data.sources.text_files import read_text
from ftlit.data.sources.torch_items import ReadItem
from ftlit.data.splitting.gathered import ReadFromSeveral
from ftlit.features.extract import ImageViews
from ftlit.features.stored_pixels import WholeImage
from ftlit.models.backbone import Backbone, Layers
from ftlit.models.batchnorm_fold import AffineNorm
from ftlit.models.fully_convolutional import _ChannelNorm
from ftlit.models.heads import AttentionHead, ConvHead, LinearHead, LinearProbeHead, MLPHead, PooledHead
from ftlit.models.lora import LowRank
from ftlit.models.pooling import TokenPool, pool, real_tokens
from ftlit.zoo import blocks, text_blocks, text_encoders, vision_transformers
from ftlit.zoo.timm_split import grid_constants, timm_partial


def numbers(*shape: int) -> Tensor:
    return torch.linspace(-1, 1, torch.Size(shape).numel()).view(shape)


def output(module: nn.Module, *x: Tensor) -> Tensor:
    """Return the output in evaluation mode, with parameters that are equal for every version of torch."""
    for parameter in module.parameters():
        parameter.data = numbers(*parameter.shape)
    with torch.no_grad():
        return module.eval()(*x)


def picture(mode: str = "RGB") -> Image.Image:
    return Image.linear_gradient("L").resize((9, 8)).convert(mode)


def read_from_file(folder) -> Image.Image:
    picture("LA").save(folder / "picture.png")
    return read_image(folder / "picture.png")


def read_floats(folder) -> Image.Image:
    floats(1).save(folder / "floats.tif")
    return read_image_in_range(folder / "floats.tif", None, (0.2, 0.7))


def read_saved_bands(folder):
    np.save(folder / "bands.npy", numbers(2, 4, 5).numpy())
    return read_bands(folder / "bands.npy", 2)


def read_draft(folder) -> Image.Image:
    """Return a JPEG that may be decoded at a reduced size."""
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(folder / "picture.jpg")
    return read_image(folder / "picture.jpg", at_least=10)


def encoded() -> bytes:
    picture().save(file := BytesIO(), "png")
    return file.getvalue()


def rotated() -> Image.Image:
    image = picture()
    image.getexif()[0x0112] = 6  # orientation: a quarter turn
    return image


def floats(top: float) -> Image.Image:
    return Image.fromarray((numbers(4, 5).abs() * top).numpy())


def palette() -> Image.Image:
    image = picture("P")
    image.info["transparency"] = image.getpixel((0, 0))
    return image


class RandomCrop(nn.Module):
    """An augmentation that draws from torch's global random state."""

    def forward(self, image: Image.Image) -> Tensor:
        return pil_to_tensor(image).float() * torch.rand(())


def augmented_view() -> Tensor:
    examples = Examples([0, 1], [(0,), (0,)], lambda place: picture().rotate(90 * place), [numbers(2).numpy(), numbers(3).numpy()])
    return ImageViews(examples, np.array([b"0a" * 16, b"1b" * 16]), RandomCrop(), (3, 1))[[1, 0]][1]


TOKENS = torch.cat([numbers(2, 2, 3), torch.zeros(2, 1, 3)], dim=1)
MAP = numbers(2, 3, 4, 4)
BOTH: tuple[TokenPool, ...] = ("class_token_mean", "masked_class_token_mean")
# name and version, perhaps with a case -> a function of an empty folder that returns an output, and the checksum of this output
EXAMPLES: dict[str, tuple[Any, float]] = {
    "affine_norm 1": (lambda _: output(AffineNorm(3), numbers(2, 3, 4)), -1.97768),
    "attention_head 1": (lambda _: output(AttentionHead(3, 2), TOKENS), 0.428177),
    "attention_head 1, map": (lambda _: output(AttentionHead(3, 2), MAP), 0.146205),
    "average_logits 1": (lambda _: output(timm_partial.AverageLogits([nn.Linear(3, 2), nn.Linear(3, 2)]), numbers(2, 3)), 0.289888),
    "backbone 1": (lambda _: output(Backbone({"a": nn.Conv2d(3, 2, 3), "b": nn.ReLU()}, SPEC), numbers(1, 3, 6, 6)), 6.38207),
    "channel_norm 1": (lambda _: output(_ChannelNorm(nn.LayerNorm(3)), numbers(1, 3, 2, 2)), -2.348),
    "class_token 1": (lambda _: output(vision_transformers.ClassToken(), numbers(2, 3, 4)), 1.39779),
    "clone_input 1": (lambda _: output(timm_partial.CloneInput(), numbers(5)), -0.375389),
    "conv_head 1": (lambda _: output(ConvHead(3, 2, channels=2), numbers(1, 3, 4, 4)), -3.3461),
    "grid_constants 1": (lambda _: output(block_with_constants(), numbers(2, 5, 3)), -1.06837),
    "layers 1": (lambda _: output(Layers({"a": nn.Linear(3, 2), "b": nn.ReLU()}), numbers(2, 3)), -1.4525),
    "linear_head 1": (lambda _: output(LinearHead(3, 2), numbers(2, 3)), 0.289888),
    "linear_probe_head 1": (lambda _: output(LinearProbeHead(3, 2), numbers(2, 3)), 0.289888),
    "low_rank 1": (lambda _: output(LowRank(numbers(2, 3), 1, 2.0), numbers(2, 3)), 7.19524),
    "mlp_head 1": (lambda _: output(MLPHead(3, 2, hidden=[4]), numbers(2, 3)), -2.54424),
    "partial_forward 1": (lambda _: output(timm_partial.PartialForward(nn.ReLU(), "forward"), numbers(5)), -0.0431596),
    "pass_through 1": (lambda _: output(timm_partial.PassThrough(), numbers(5)), -0.375389),
    "masked_norm 1": (lambda _: output(text_blocks.MaskedNorm(nn.LayerNorm(3)), TOKENS), 0.110792),
    "patch_embeddings 1": (
        lambda _: output(vision_transformers.PatchEmbeddings(VisionTransformer(4, 2, 1, 1, 4, 4)), numbers(1, 3, 4, 4)),
        -0.08833,
    ),
    "pool 1": (lambda _: torch.stack([pool(TOKENS, way) for way in ("mean", "class_token", "masked_mean")]), 0.316645),
    "pool 1, class token and mean": (lambda _: torch.stack([pool(TOKENS, way) for way in BOTH]), -0.089766),
    "pool 1, max": (lambda _: pool(TOKENS, "mean", "max"), 0.776303),
    "pool 1, max without padding": (lambda _: pool(torch.cat([TOKENS - 3 * TOKENS.ne(0), 0 * TOKENS[:1]]), "masked_mean", "max"), 1.561149),
    "pool 1, average of a map": (lambda _: pool(MAP), 0.763809),
    "pool 1, max of a map": (lambda _: pool(MAP, "mean", "max"), 0.720286),
    "pool 1, 2x2": (lambda _: pool(MAP, "mean", "2x2"), -0.122832),
    "pool 1, vectors": (lambda _: pool(MAP[:, :, 0, 0]), 0.807332),
    "pooled_head 1": (lambda _: output(PooledHead(3, 2, "max"), numbers(1, 3, 2, 2)), -1.35374),
    "read_bands 1": (read_saved_bands, 0.781154),
    "read_digit 1": (lambda _: pil_to_tensor(_array_to_rgb(numbers(3, 3).add(1).mul(100).byte().numpy())), 25.2143),
    "read_from_several 1": (lambda _: pil_to_tensor(ReadFromSeveral([[].__getitem__, [picture()].__getitem__], [0, 5])(5)), -2.2091),
    "read_hf_image 1": (lambda _: pil_to_tensor(ReadHfImage([{"image": {"bytes": encoded()}}], "image")(0)), -2.2091),
    "read_image 1": (lambda folder: pil_to_tensor(read_from_file(folder)), -2.2091),
    "read_image 1, at_least": (lambda folder: torch.tensor(read_draft(folder).size), 3.65107),
    "read_image_in_range 1": (lambda folder: pil_to_tensor(read_floats(folder)), -170.5517),
    "read_item 1": (lambda _: pil_to_tensor(ReadItem([(picture("LA"), 0)], "train")(0)), -2.2091),
    "read_text 1": (lambda _: torch.tensor([*read_text("äb ").encode()]), -80.825),
    "read_torchvision_image 1": (lambda _: pil_to_tensor(_load([(picture("LA"), 0)], 0)), -2.2091),
    "relative_block 1": (lambda _: output(relative_block(), TOKENS, real_tokens(TOKENS)[:, None, None]), 0.800789),
    "renormalise 1": (lambda _: output(blocks.Renormalise(), numbers(1, 3, 2, 2)), 0.279127),
    "rotary_block 1": (lambda _: output(rotary_block(), TOKENS, real_tokens(TOKENS)[:, None, None]), 27.35105),
    "square_images 1": (lambda _: output(grid_constants.SquareImages(), numbers(1, 3, 2, 2)), 0.490862),
    "text_encoder_layer 1": (lambda _: output(text_encoders.EncoderLayer(Masked()), TOKENS), 3.20315),
    "to_bands 1": (lambda _: to_bands(numbers(4, 5, 3).numpy(), 3), 2.35591),
    "to_rgb 1": (lambda _: pil_to_tensor(to_rgb(picture("I"))), 0.981087),
    "to_rgb 1, 8-bit RGB": (lambda _: pil_to_tensor(to_rgb(picture())), -2.2091),
    "to_rgb 1, turned": (lambda _: pil_to_tensor(to_rgb(rotated())), -185.3785),
    "to_rgb 1, palette with a transparent colour": (lambda _: pil_to_tensor(to_rgb(palette())), -16.3149),
    "to_rgb 1, CMYK": (lambda _: pil_to_tensor(to_rgb(picture("CMYK"))), -2.2091),
    "to_rgb 1, floats to 1": (lambda _: pil_to_tensor(to_rgb(floats(1))), -442.5165),
    "to_rgb 1, floats to 255": (lambda _: pil_to_tensor(to_rgb(floats(200))), -345.77),
    "to_rgb 1, floats to 65535": (lambda _: pil_to_tensor(to_rgb(floats(60000))), -402.8834),
    "to_rgb 1, larger floats": (lambda _: pil_to_tensor(to_rgb(floats(1e6))), -442.5165),
    "to_rgb_in_range 1": (lambda _: pil_to_tensor(to_rgb_in_range(floats(1), (0.2, 0.7))), -170.5517),
    "to_rgb_in_range 1, 8-bit RGB": (lambda _: pil_to_tensor(to_rgb_in_range(picture(), (0.2, 0.7))), -2.2091),
    "whole_image 1": (lambda _: WholeImage(4, InterpolationMode.BILINEAR)(picture()), -146.8082),
    "token_embeddings 1": (lambda _: output(text_embeddings(), torch.tensor([[0, 2, 3, 1]])), 0.334138),
}
AUGMENTED_VIEW = 23.78155  # of `ImageViews`; `ftlit.features.keys.FORMAT` is its version
RECORDED_ELSEWHERE = {"input_spec 1", "text_spec 1", "token_ids 1"}  # values only; tests/data/test_tokens.py has the ids of a text


def checksum(x: Tensor) -> float:
    """Return a number that depends on each value of a tensor and on its position."""
    return float((x.double().flatten() * torch.arange(1, x.numel() + 1).double().cos()).sum())


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_output_of_each_version_equals_the_recorded_output(name, tmp_path):
    """If an output has changed on purpose: raise the version of the class or function, and record the new number."""
    example, recorded = EXAMPLES[name]
    assert checksum(example(tmp_path)) == pytest.approx(recorded, rel=1e-3, abs=1e-3)


def test_each_stable_name_is_unique_and_its_output_is_recorded():
    assert versions_of_ftlit() == sorted({name.partition(",")[0] for name in EXAMPLES} | RECORDED_ELSEWHERE)


def test_an_augmented_view_equals_the_recorded_view():
    """If views are seeded in another way on purpose: raise `FORMAT`, and record the new number."""
    assert checksum(augmented_view()) == pytest.approx(AUGMENTED_VIEW, rel=1e-3, abs=1e-3)
