"""ftlit's own layers, transforms and readers have a name and a version, and give what was recorded for it."""

import importlib
import io
import pickle
import pkgutil
from collections.abc import Callable
from functools import partial, wraps
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.transforms.v2.functional import pil_to_tensor

from ftlit.code_identity import _stable_names, identity, stable_name, versioned
from ftlit.data.builtin import _array_to_rgb, _load, digits, torchvision_dataset
from ftlit.data.dataset import Examples, Split
from ftlit.data.images import image_reader, read_image, to_rgb
from ftlit.data.input_spec import InputSpec
from ftlit.data.text_files import read_text
from ftlit.data.tokens import TextSpec, TokenIds
from ftlit.data.transforms import AUGMENTS, eval_transform, train_transform
from ftlit.features.extract import ImageViews
from ftlit.features.keys import feature_keys, view_digest
from ftlit.features.spec import FeatureSpec
from ftlit.fingerprint import fingerprint, prefixes
from ftlit.models.backbone import Backbone, Layers
from ftlit.models.batchnorm_fold import AffineNorm, batchnorm_to_affine
from ftlit.models.fully_convolutional import _ChannelNorm
from ftlit.models.heads import ConvHead, LinearHead, LinearProbeHead, MLPHead, PooledHead
from ftlit.models.pooling import pool
from ftlit.zoo import blocks, load_backbone, text_encoders, timm_partial, vision_transformers

SPEC = InputSpec(size=6, resize=7)
FRACTIONS: dict[Split, float] = {"val": 0.1, "test": 0.1}


class Masked(nn.Module):
    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return tokens * mask.sum()


def numbers(*shape: int) -> Tensor:
    return torch.linspace(-1, 1, torch.Size(shape).numel()).view(shape)


def output(module: nn.Module, x: Tensor) -> Tensor:
    """In evaluation mode, with parameters that are the same with every version of torch."""
    for parameter in module.parameters():
        parameter.data = numbers(*parameter.shape)
    with torch.no_grad():
        return module.eval()(x)


def picture(mode: str = "RGB") -> Image.Image:
    return Image.linear_gradient("L").resize((9, 8)).convert(mode)


def read_from_file(folder) -> Image.Image:
    picture("LA").save(folder / "picture.png")
    return read_image(folder / "picture.png")


def read_draft(folder) -> Image.Image:
    """A JPEG that may be decoded at a part of its size."""
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(folder / "picture.jpg")
    return read_image(folder / "picture.jpg", at_least=10)


def turned() -> Image.Image:
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


def text_embeddings() -> nn.Module:
    return text_encoders.TokenEmbeddings(SimpleNamespace(embeddings=nn.Embedding(4, 3)), pad_id=1)


TOKENS = torch.cat([numbers(2, 2, 3), torch.zeros(2, 1, 3)], dim=1)
MAP = numbers(2, 3, 4, 4)
# stable name and version, and a branch of it -> a function of an empty folder that gives an output, and a number that stands for it
EXAMPLES: dict[str, tuple[Any, float]] = {
    "affine_norm 1": (lambda _: output(AffineNorm(3), numbers(2, 3, 4)), -1.97768),
    "average_logits 1": (lambda _: output(timm_partial.AverageLogits([nn.Linear(3, 2), nn.Linear(3, 2)]), numbers(2, 3)), 0.289888),
    "backbone 1": (lambda _: output(Backbone({"a": nn.Conv2d(3, 2, 3), "b": nn.ReLU()}, SPEC), numbers(1, 3, 6, 6)), 6.38207),
    "channel_norm 1": (lambda _: output(_ChannelNorm(nn.LayerNorm(3)), numbers(1, 3, 2, 2)), -2.348),
    "class_token 1": (lambda _: output(vision_transformers.ClassToken(), numbers(2, 3, 4)), 1.39779),
    "clone_input 1": (lambda _: output(timm_partial.CloneInput(), numbers(5)), -0.375389),
    "conv_head 1": (lambda _: output(ConvHead(3, 2, channels=2), numbers(1, 3, 4, 4)), -3.3461),
    "layers 1": (lambda _: output(Layers({"a": nn.Linear(3, 2), "b": nn.ReLU()}), numbers(2, 3)), -1.4525),
    "linear_head 1": (lambda _: output(LinearHead(3, 2), numbers(2, 3)), 0.289888),
    "linear_probe_head 1": (lambda _: output(LinearProbeHead(3, 2), numbers(2, 3)), 0.289888),
    "mlp_head 1": (lambda _: output(MLPHead(3, 2, hidden=[4]), numbers(2, 3)), -2.54424),
    "partial_forward 1": (lambda _: output(timm_partial.PartialForward(nn.ReLU(), "forward"), numbers(5)), -0.0431596),
    "patch_embeddings 1": (
        lambda _: output(vision_transformers.PatchEmbeddings(VisionTransformer(4, 2, 1, 1, 4, 4)), numbers(1, 3, 4, 4)),
        -0.08833,
    ),
    "pool 1": (lambda _: torch.stack([pool(TOKENS, way) for way in ("mean", "class_token", "masked_mean")]), 0.316645),
    "pool 1, max": (lambda _: pool(TOKENS, "mean", "max"), 0.776303),
    "pool 1, max without padding": (lambda _: pool(torch.cat([TOKENS - 3 * TOKENS.ne(0), 0 * TOKENS[:1]]), "masked_mean", "max"), 1.561149),
    "pool 1, average of a map": (lambda _: pool(MAP), 0.763809),
    "pool 1, max of a map": (lambda _: pool(MAP, "mean", "max"), 0.720286),
    "pool 1, 2x2": (lambda _: pool(MAP, "mean", "2x2"), -0.122832),
    "pool 1, vectors": (lambda _: pool(MAP[:, :, 0, 0]), 0.807332),
    "pooled_head 1": (lambda _: output(PooledHead(3, 2, "max"), numbers(1, 3, 2, 2)), -1.35374),
    "read_digit 1": (lambda _: pil_to_tensor(_array_to_rgb(numbers(3, 3).add(1).mul(100).byte().numpy())), 25.2143),
    "read_image 1": (lambda folder: pil_to_tensor(read_from_file(folder)), -2.2091),
    "read_image 1, at_least": (lambda folder: torch.tensor(read_draft(folder).size), 3.65107),
    "read_text 1": (lambda _: torch.tensor([*read_text("äb ").encode()]), -80.825),
    "read_torchvision_image 1": (lambda _: pil_to_tensor(_load([(picture("LA"), 0)], 0)), -2.2091),
    "renormalise 1": (lambda _: output(blocks.Renormalise(), numbers(1, 3, 2, 2)), 0.279127),
    "text_encoder_layer 1": (lambda _: output(text_encoders.EncoderLayer(Masked()), TOKENS), 3.20315),
    "to_rgb 1": (lambda _: pil_to_tensor(to_rgb(picture("I"))), 0.981087),
    "to_rgb 1, 8-bit RGB": (lambda _: pil_to_tensor(to_rgb(picture())), -2.2091),
    "to_rgb 1, turned": (lambda _: pil_to_tensor(to_rgb(turned())), -185.3785),
    "to_rgb 1, palette with a transparent colour": (lambda _: pil_to_tensor(to_rgb(palette())), -16.3149),
    "to_rgb 1, CMYK": (lambda _: pil_to_tensor(to_rgb(picture("CMYK"))), -2.2091),
    "to_rgb 1, floats to 1": (lambda _: pil_to_tensor(to_rgb(floats(1))), -442.5165),
    "to_rgb 1, floats to 255": (lambda _: pil_to_tensor(to_rgb(floats(200))), -345.77),
    "to_rgb 1, floats to 65535": (lambda _: pil_to_tensor(to_rgb(floats(60000))), -402.8834),
    "to_rgb 1, larger floats": (lambda _: pil_to_tensor(to_rgb(floats(1e6))), -442.5165),
    "token_embeddings 1": (lambda _: output(text_embeddings(), torch.tensor([[0, 2, 3, 1]])), 0.334138),
}
AUGMENTED_VIEW = 23.78155  # of `ImageViews`; `ftlit.features.keys.FORMAT` is its version
RECORDED_ELSEWHERE = {"input_spec 1", "text_spec 1", "token_ids 1"}  # values only; tests/data/test_tokens.py has the ids of a text


def stand_in(x: Tensor) -> float:
    """One number for a tensor, to which each value and its place contribute."""
    return float((x.double().flatten() * torch.arange(1, x.numel() + 1).double().cos()).sum())


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_output_of_a_version_is_as_recorded(name, tmp_path):
    """Where this fails because an output changed on purpose: raise the version of the class or function, and record the new number."""
    example, recorded = EXAMPLES[name]
    assert stand_in(example(tmp_path)) == pytest.approx(recorded, rel=1e-3, abs=1e-3)


def test_each_name_is_given_once_and_its_output_recorded():
    for module in pkgutil.walk_packages(importlib.import_module("ftlit").__path__, "ftlit."):
        if module.name.split(".")[1] in ("data", "models", "zoo"):
            importlib.import_module(module.name)
    own = {thing: name for thing, name in _stable_names.items() if thing.__module__.startswith("ftlit.")}
    assert sorted(own.values()) == sorted({name.partition(",")[0] for name in EXAMPLES} | RECORDED_ELSEWHERE)


def test_an_augmented_view_draws_from_its_seed_its_number_and_the_image_as_recorded():
    """Where this fails because views are seeded in another way on purpose: raise `FORMAT`, and record the new number."""
    assert stand_in(augmented_view()) == pytest.approx(AUGMENTED_VIEW, rel=1e-3, abs=1e-3)


def test_every_layer_of_ftlit_has_a_version():
    found = set()
    for name in ("data", "models", "zoo"):
        for module in pkgutil.iter_modules(importlib.import_module(f"ftlit.{name}").__path__, f"ftlit.{name}."):
            classes = [value for value in vars(importlib.import_module(module.name)).values() if isinstance(value, type)]
            found |= {cls for cls in classes if issubclass(cls, nn.Module) and cls.__module__ == module.name}
    assert len(found) > 12 and {cls.__name__ for cls in found if stable_name(cls) is None} == set()


class Recorder(pickle.Unpickler):
    """Loads a pickle and keeps which classes and functions of ftlit it names."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self.found: set[Any] = set()

    def find_class(self, module: str, name: str) -> Any:
        thing = super().find_class(module, name)
        if module.startswith("ftlit."):
            self.found.add(thing)
        return thing


def test_what_decides_stored_features_holds_nothing_of_ftlit_without_a_version():
    fake = torchvision_dataset("FakeData", root="", download=False, options={"size": 40}, fractions=FRACTIONS, split_seed=0)
    collections = [digits(fractions=FRACTIONS, split_seed=0), fake]
    things: list[Any] = [image_reader(SPEC), read_text, *(one.splits["train"].load for one in collections)]
    things += [train_transform(SPEC, augment) for augment in AUGMENTS] + [eval_transform(SPEC), SPEC]
    for backbone in (load_backbone("glyph"), batchnorm_to_affine(load_backbone("glyph")), load_backbone("mlp", weights=None)):
        things += [layer for _, layer in backbone.items()]
    found = set()
    for thing in things:
        recorder = Recorder(pickle.dumps(thing))
        recorder.load()
        found |= recorder.found
    assert found and {thing.__name__ for thing in found if stable_name(thing) is None} == set()


def test_a_version_is_neither_inherited_nor_copied_and_counts():
    class Sharper(blocks.Renormalise):
        pass

    @wraps(read_image)
    def wrapped(path):
        return read_image(path).rotate(90)

    @versioned("doubled", 1)
    def doubled(x):
        return x * 2

    assert stable_name(blocks.Renormalise) == "renormalise 1" and stable_name(Sharper) is None is stable_name(wrapped)
    assert fingerprint(wrapped) != fingerprint(read_image) and identity(doubled) == ["ftlit", "doubled 1"]
    before = fingerprint(doubled)
    _stable_names[doubled] = "doubled 2"
    assert fingerprint(doubled) != before
    del _stable_names[doubled]


def of_layer(layer: nn.Module) -> str:
    return prefixes({"layer": layer})["layer"]


def of_view(load: Any, transform: Any = None) -> str:
    return view_digest(transform or eval_transform(SPEC), load)


def of_pooled_features() -> str:
    found = feature_keys(small_backbone(), [FeatureSpec("b", "average")], view="", size=(3, 6, 6), dtype=torch.float32)
    return found[FeatureSpec("b", "average")].digest


def small_backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone({"a": nn.Conv2d(3, 2, 3), "b": nn.ReLU()}, SPEC)


# stable name -> keys of stored features, all of which a raised version changes
KEYS: dict[str, list[Callable[[], str]]] = {
    "affine_norm": [lambda: of_layer(AffineNorm(3))],
    "average_logits": [lambda: of_layer(timm_partial.AverageLogits([nn.ReLU()]))],
    "backbone": [lambda: of_layer(small_backbone())],
    "channel_norm": [lambda: of_layer(_ChannelNorm(nn.LayerNorm(3)))],
    "class_token": [lambda: of_layer(vision_transformers.ClassToken())],
    "clone_input": [lambda: of_layer(timm_partial.CloneInput())],
    "input_spec": [lambda: of_view(read_image, partial(abs, SPEC))],
    "layers": [lambda: of_layer(Layers({"a": nn.ReLU()})), lambda: of_layer(small_backbone())],
    "partial_forward": [lambda: of_layer(timm_partial.PartialForward(nn.ReLU(), "forward"))],
    "patch_embeddings": [lambda: of_layer(vision_transformers.PatchEmbeddings(VisionTransformer(4, 2, 1, 1, 4, 4)))],
    "pool": [of_pooled_features],
    "read_digit": [lambda: of_view(_array_to_rgb)],
    "read_image": [lambda: of_view(image_reader(SPEC))],
    "read_text": [lambda: of_view(read_text)],
    "read_torchvision_image": [lambda: of_view(partial(_load, []))],
    "renormalise": [lambda: of_layer(blocks.Renormalise())],
    "text_encoder_layer": [lambda: of_layer(text_encoders.EncoderLayer(Masked()))],
    "text_spec": [lambda: of_view(read_text, partial(abs, TextSpec("folder")))],
    "to_rgb": [lambda: of_view(image_reader(SPEC)), lambda: of_view(partial(_load, [])), lambda: of_view(lambda x: to_rgb(read_image(x)))],
    "token_embeddings": [lambda: of_layer(text_embeddings())],
    "token_ids": [lambda: of_view(read_text, object.__new__(TokenIds))],
}
AFTER_THE_BACKBONE = {"conv_head", "linear_head", "linear_probe_head", "mlp_head", "pooled_head"}  # no feature depends on them


def test_every_version_is_in_a_key_or_of_a_head():
    assert {*KEYS, *AFTER_THE_BACKBONE} == {name.split()[0] for name in {*EXAMPLES, *RECORDED_ELSEWHERE}}


@pytest.mark.parametrize("name", KEYS)
def test_a_raised_version_changes_the_keys_of_all_features_that_it_decides(name, monkeypatch):
    before = keys_of(name)
    assert keys_of(name) == before
    monkeypatch.setitem(_stable_names, next(thing for thing, stable in _stable_names.items() if stable == f"{name} 1"), f"{name} 2")
    assert all(one != other for one, other in zip(before, keys_of(name), strict=True))


def keys_of(name: str) -> list[str]:
    torch.manual_seed(0)
    return [key() for key in KEYS[name]]


def test_an_installed_package_counts_by_its_version_and_code():
    import sklearn
    from sklearn.base import BaseEstimator, clone

    for thing in (BaseEstimator, clone):
        found = identity(thing)
        assert found[0] == f"{thing.__module__}.{thing.__qualname__}" and found[1] == sklearn.__version__
    assert isinstance(clone, FunctionType) and identity(clone)[3]
