"""An exported network gives the logits of the run without ftlit; a network that cannot be exported is an error and leaves no file."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from lanes import nightly
from run_folders import CLASSES, run_of
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torchvision import models
from torchvision.transforms.v2.functional import normalize

from ftlit import Backbone, UserError, export_run, load_backbone, load_timm
from ftlit.cli.main import main
from ftlit.export.export_formats import EXPORT_FORMATS
from ftlit.export.export_network import export
from ftlit.inference.load_network import load as load_run
from ftlit.inference.network import Network
from ftlit.models.heads import AttentionHead, ConvHead, LinearHead, MLPHead, PooledHead

pytestmark = pytest.mark.zoo

TOLERANCE = 1e-4
MINE = {"size": 64, "mean": 0.4, "std": 0.2}
RESNET = ("resnet18", {"input_spec": MINE})


def logits_of(network, images):
    """Return the logits of images in [0, 1], computed step by step."""
    spec = network.input_spec
    images = normalize(images, list(spec.mean), list(spec.std))
    features = [network.backbone.upto(cut)(images) for cut in getattr(network.head, "cuts", ()) or [-1]]
    return network.head(*(each if hasattr(network.head, "takes_map") else network.backbone.pool(each) for each in features))


def same(found, expected):
    return found.shape == expected.shape and bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


def images_of(network, count):
    return torch.rand(count, *network.input_spec.shape)


@pytest.mark.parametrize(
    ("name", "options", "affine", "arguments"),
    [
        (*RESNET, False, {}),
        (*RESNET, True, {}),
        ("alexnet", {"input_spec": MINE}, False, {}),
        ("mobilenet_v3_small", {"input_spec": MINE, "width_mult": 0.5}, True, {"width_mult": 0.5}),
        pytest.param("swin_t", {"input_spec": MINE}, False, {}, marks=pytest.mark.slow),
        pytest.param("vit_b_32", {"input_spec": MINE}, False, {"image_size": 64}, marks=pytest.mark.slow),  # 350 MB
        pytest.param("convnext_tiny", {"input_spec": MINE}, False, {}, marks=pytest.mark.slow),
        ("googlenet", {"input_spec": MINE, "transform_input": True}, False, {"transform_input": True, "aux_logits": False}),
    ],
)
@torch.inference_mode()
def test_torchvision_loads_the_exported_weights_and_gives_the_same_logits(tmp_path, name, options, affine, arguments):
    run = run_of(tmp_path, name, options, affine=affine)
    network = load_run(run)
    path, usage = export_run(run, "torchvision")
    assert path == run / "export" / "torchvision" / f"{name}.safetensors"
    model = models.get_model(name, num_classes=3, **arguments).eval()
    model.load_state_dict(load_file(path), strict=True)
    images = images_of(network, 2)
    assert same(model(normalize(images, [0.4] * 3, [0.2] * 3)), logits_of(network, images))
    space = {"images": normalize(images, [0.4] * 3, [0.2] * 3).numpy()}
    exec(f"import safetensors.torch, torch, torchvision; {usage}".splitlines()[0], space)
    assert same(torch.from_numpy(space["logits"]), logits_of(network, images))
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in space["model"].state_dict().items())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Save the runs for the exports to torch and onnx."""
    folder, several = tmp_path_factory.mktemp("runs"), {"in_features": [64, 128], "cuts": ["layer2", "layer4"]}
    return {
        "linear": run_of(folder / "linear", "mobilenet_v3_small", {"input_spec": MINE}, multilabel=True),
        "conv": run_of(folder / "conv", *RESNET, ConvHead, affine=True, channels=8),
        "attention": run_of(folder / "attention", *RESNET, AttentionHead),
        "cut": run_of(folder / "cut", "resnet18", {"input_spec": MINE, "cut": "layer2"}, MLPHead, hidden=[8]),
        "tokens": run_of(folder / "tokens", "swin_t", {"input_spec": MINE}, PooledHead, pooling="max"),
        "both tokens": run_of(folder / "both", "test_vit", {"input_spec": {"size": 160}, "pooling": "class_token_mean"}, load=load_timm),
        "attention to tokens": run_of(folder / "vit", "test_vit", {"input_spec": {"size": 160}}, AttentionHead, load=load_timm),
        "glyph": run_of(folder / "glyph", "glyph", {}),
        **{combine: run_of(folder / combine, "glyph", {}, combine=combine, **several) for combine in ("concat", "average")},
    }


@pytest.mark.parametrize(
    "kind",
    nightly(
        ["linear", "conv", "attention", "cut", "tokens", "both tokens", "attention to tokens", "glyph", "concat", "average"],
        ["conv", "cut", "both tokens", "attention to tokens", "average"],
    ),
)
@torch.no_grad()
def test_the_torch_program_accepts_any_batch_size_and_normalises_the_images(runs, kind, tmp_path):
    network = load_run(runs[kind])
    path, _ = export_run(runs[kind], "torch", tmp_path / "new" / "net.pt2")
    facts = {"input_spec": "", "class_names": "", "multilabel": ""}
    program = torch.export.load(path, extra_files=facts).module()
    for count in (1, 5):
        images = images_of(network, count)
        assert same(program(images), logits_of(network, images))
    stored = {name: json.loads(text) for name, text in facts.items()}
    assert stored["class_names"] == CLASSES and stored["multilabel"] == (kind == "linear")
    assert stored["input_spec"]["size"] == network.input_spec.size


@pytest.mark.parametrize(
    "kind",
    nightly(
        ["linear", "conv", "attention", "both tokens", "attention to tokens", "concat", "average"],
        ["conv", "both tokens", "attention to tokens", "average"],
    ),
)
@torch.no_grad()
def test_the_onnx_model_accepts_any_batch_size_and_normalises_the_images(runs, kind, tmp_path):
    from onnxruntime import InferenceSession

    network = load_run(runs[kind])
    path, _ = export_run(runs[kind], "onnx", tmp_path / "net.onnx")
    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 5):
        images = images_of(network, count)
        assert same(torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]), logits_of(network, images))
    stored = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert stored["class_names"] == CLASSES and stored["multilabel"] == (kind == "linear")
    assert stored["input_spec"]["mean"] == list(network.input_spec.mean)


def test_class_names_and_input_spec_are_stored_with_torchvision_weights(runs, tmp_path):
    path, _ = export_run(runs["linear"], "torchvision", tmp_path / "a.safetensors")
    with safe_open(path, "pt") as file:
        inside = {name: json.loads(text) for name, text in file.metadata().items()}
    export_run(runs["linear"], "torchvision", tmp_path / "b" / "b.pth")
    assert json.loads((tmp_path / "b" / "b.json").read_text()) == inside
    assert inside["class_names"] == CLASSES and inside["multilabel"] is True
    known = {"size": 64, "resize": 73, "mean": [0.4] * 3, "std": [0.2] * 3, "interpolation": "bilinear", "grey_range": None}
    assert inside["input_spec"] == known
    weights, again = load_file(path), torch.load(tmp_path / "b" / "b.pth", weights_only=True)
    assert weights.keys() == again.keys() and all(torch.equal(weights[name], again[name]) for name in weights)


def test_exported_weights_can_be_loaded_as_a_backbone(runs, tmp_path):
    path, _ = export_run(runs["linear"], "torchvision", tmp_path / "a.safetensors")
    again, original = load_backbone("mobilenet_v3_small", weights=path), load_run(runs["linear"]).backbone
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_a_given_checkpoint_of_a_run_is_exported(runs, tmp_path):
    checkpoints = runs["glyph"] / "checkpoints"
    other = torch.load(checkpoints / "best.ckpt", weights_only=True)
    other["state_dict"]["head.bias"] += 1
    torch.save(other, checkpoints / "epoch.ckpt")
    best, other_bias = (load_run(runs["glyph"] / part).head.bias for part in ("", "checkpoints/epoch.ckpt"))
    assert torch.equal(other_bias, best + 1)
    assert export_run(checkpoints / "epoch.ckpt", "torch")[0] == runs["glyph"] / "export" / "torch" / "glyph.pt2"


def test_a_checkpoint_outside_of_a_run_is_exported_beside_itself(runs, tmp_path):
    alone = tmp_path / "some" / "best.ckpt"
    alone.parent.mkdir()
    alone.write_bytes((runs["glyph"] / "checkpoints" / "best.ckpt").read_bytes())
    assert export_run(alone, "torch")[0] == tmp_path / "some" / "export" / "torch" / "glyph.pt2"
    assert [path.name for path in tmp_path.iterdir()] == ["some"]


@pytest.mark.parametrize(
    ("name", "options", "head", "head_options", "reason"),
    [
        ("resnet18", {"cut": "layer2"}, LinearHead, {}, "the network ends at layer2, but torchvision's resnet18 ends at layer4"),
        ("resnet18", {}, MLPHead, {"hidden": [8]}, "the head is MLPHead"),
        ("resnet18", {}, ConvHead, {"channels": 8}, "the head is ConvHead"),
        ("resnet18", {}, PooledHead, {"pooling": "max"}, "the head is PooledHead"),
        ("squeezenet1_1", {}, LinearHead, {}, "squeezenet1_1 does not end with a linear layer with a bias"),
        ("glyph", {}, LinearHead, {}, "torchvision has no network glyph"),
        (
            "resnet18",
            {},
            LinearHead,
            {"in_features": [256, 512], "cuts": ["layer3", "layer4"]},
            "the head reads 2 layers, but the head of torchvision's resnet18 reads only the last one",
        ),
    ],
)
def test_a_network_without_torchvision_names_is_an_error_for_torchvision(tmp_path, name, options, head, head_options, reason):
    run = run_of(tmp_path, name, {"input_spec": {"size": 64}, **options}, head, **head_options)
    with pytest.raises(UserError, match=reason) as error:
        export_run(run, "torchvision")
    assert "--to torch or --to onnx" in str(error.value) and not [*(run / "export" / "torchvision").iterdir()]


def test_a_timm_network_is_exported_to_torch_but_not_to_torchvision(tmp_path):
    run = run_of(tmp_path, "resnet18", {"input_spec": {"size": 64}}, load=load_timm)
    with pytest.raises(UserError, match="torchvision has no network resnet18"):
        export_run(run, "torchvision")
    assert export_run(run, "torch")[0].exists()


def test_an_mlp_head_without_hidden_layers_is_exported_to_torchvision(tmp_path):
    assert export_run(run_of(tmp_path, *RESNET, MLPHead, hidden=[]), "torchvision")[0].exists()


def test_an_export_with_other_logits_is_an_error_and_keeps_the_existing_file(runs, tmp_path):
    network = load_run(runs["linear"])
    network.backbone.register_forward_hook(lambda module, inputs, features: 2 * features)
    path = tmp_path / "net.safetensors"
    path.write_text("before")
    with pytest.raises(UserError, match="changes the logits by"):
        export(network, "torchvision", path)
    assert path.read_text() == "before" and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_network_that_cannot_be_traced_is_a_one_line_error(runs, tmp_path):
    class DataDependent(LinearHead):
        def forward(self, features):
            return super().forward(features) if features.sum() > 0 else super().forward(-features)

    network = replace(load_run(runs["glyph"]), head=DataDependent(128, 3))
    with pytest.raises(UserError, match=r"--to torch and --to onnx cannot export this network") as error:
        export(network, "torch", tmp_path / "net.pt2")
    assert "\n" not in str(error.value) and not [*tmp_path.iterdir()]


def test_a_network_of_texts_cannot_be_exported(runs, tmp_path):
    from ftlit import TextSpec

    texts = Backbone({"embeddings": nn.Embedding(9, 4)}, TextSpec("none"))
    with pytest.raises(UserError, match="takes texts"):
        export(Network(texts, LinearHead(4, 3), CLASSES, False), "torch", tmp_path / "net.pt2")


def test_a_network_of_ones_own_is_exported_as_that_of_a_run_is(tmp_path):
    backbone = load_backbone("glyph")
    network = Network(backbone.eval(), LinearHead(backbone.num_features, 3).eval(), CLASSES, False)
    path, usage = export_run(network, "torch", tmp_path / "new" / "net.pt2")
    images = images_of(network, 2)
    assert same(torch.export.load(path).module()(images), logits_of(network, images))
    assert (path.parent / "labels.txt").read_text().splitlines() == CLASSES and "predict.py" in usage
    with pytest.raises(
        UserError, match=r"^a Network has no run folder: give the path of the file too, as in export_run\(network, 'torch', 'export/"
    ):
        export_run(network, "torch")
    own = replace(network, backbone=Backbone(dict(backbone.items()), backbone.input_spec))
    with pytest.raises(UserError, match=r"because its backbone was not loaded by a name of torchvision, .*: give --to torch or --to onnx$"):
        export_run(own, "torchvision", tmp_path / "other" / "net.pth")


def test_a_network_of_a_plain_model_is_an_error_that_names_the_conversion():
    with pytest.raises(
        UserError, match=r"^the backbone of a Network is a ResNet, not a ftlit\.Backbone: give ftlit\.backbone_from\(model\)"
    ):
        Network(models.resnet18(), nn.Linear(512, 3), CLASSES, False)


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["ftlit", "export", *map(str, arguments)])
    try:
        main()
        return 0, capsys.readouterr().out
    except SystemExit as end:
        return end.code, capsys.readouterr().err


@pytest.mark.parametrize("name", nightly(["net.pth", "net.safetensors", "net.pt2", "net.onnx"], ["net.pt2"]))
def test_the_code_that_is_printed_reads_the_class_names_in_the_order_of_the_logits(runs, tmp_path, name):
    if name.endswith("onnx"):
        pytest.importorskip("onnxscript")
    to = next(to for to, form in EXPORT_FORMATS.items() if f".{name.rpartition('.')[2]}" in form.suffixes)
    _, usage = export_run(runs["linear"], to, tmp_path / name)
    space = {}
    code = usage.splitlines()[1].partition("in the order of the logits; ")[2]
    exec(f"import json, safetensors, torch{', onnxruntime' if to == 'onnx' else ''}; {code}", space)
    assert space["class_names"] == CLASSES


def test_the_command_prints_the_file_and_the_code_that_loads_it(runs, tmp_path, monkeypatch, capsys):
    code, out = command(monkeypatch, capsys, runs["linear"], "--to", "torchvision", "--out", tmp_path / "ants.pth")
    path, usage, classes, images, script, others = out.splitlines()
    assert code == 0 and path == str(tmp_path / "ants.pth") and "get_model('mobilenet_v3_small', num_classes=3)" in usage
    assert classes.startswith(f"classes: {', '.join(CLASSES)}, in the order of the logits; class_names = ")
    assert images == (
        "images: float32 RGB (N, 3, 64, 64) in [0, 1]: shorter side resized to 73 (bilinear), centre crop of 64; "
        "mean 0.4, std 0.2, not normalised inside"
    )
    assert script == f"without ftlit: pip install torch torchvision safetensors numpy pillow; python {tmp_path}/predict.py photo.jpg"
    assert others == "beside it: labels.txt, sample.json (the answer for sample.png), README.md (model card)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("RUN",), "ftlit export needs --to; example: ftlit export runs/mine --to onnx"),
        (("RUN", "--to", "torchvison"), "'torchvison': did you mean 'torchvision'?"),
        (
            ("RUN", "--to", "onnx", "--out", "net.pt"),
            "--to onnx writes files that end in .onnx, not 'net.pt': give another name with --out",
        ),
        (
            ("RUN", "--to", "torchvision", "--out", "net"),
            "--to torchvision writes files that end in .safetensors or .pth, not 'net': give another name with --out",
        ),
        (("nothing", "--to", "torch"), "there is no file or folder nothing"),
        (("RUN", "--to", "torch", "--out", "RUN/other.json/net.pt2"), "cannot make the folder"),
        (("LINEAR", "--to", "torchvision", "--out", "LINEAR/other.pth"), "the export writes other.json beside other.pth, but"),
        (("RUN/other.json", "--to", "torch"), "is damaged, or not a checkpoint of ftlit"),
    ],
)
def test_wrong_arguments_of_export_are_one_line_errors(runs, monkeypatch, capsys, arguments, message):
    places = {"RUN": runs["glyph"], "LINEAR": runs["linear"]}
    known = [argument.replace("LINEAR", str(places["LINEAR"])).replace("RUN", str(places["RUN"])) for argument in arguments]
    before = (runs["linear"] / "other.json").read_text()
    code, line = command(monkeypatch, capsys, *known)
    assert code == 2 and message in line and line.count("\n") == 1, line
    assert (runs["linear"] / "other.json").read_text() == before


def test_a_missing_package_is_a_one_line_error_with_the_extra_to_install(runs, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, line = command(monkeypatch, capsys, runs["glyph"], "--to", "onnx")
    assert code == 2 and line == 'ftlit: --to onnx needs onnxscript: pip install "ftlit[onnx]"\n'
