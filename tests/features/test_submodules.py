"""Features of any module by the name of a submodule: equal to those of the running module, and stored only where they can be."""

import lightning.pytorch as pl
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18
from transformers import ViTConfig, ViTModel

from ftlit import UserError, WeightsOrigin, extract_features, load_backbone

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(IMAGES, torch.arange(6))


def live(module, path):
    """The output of a submodule while the whole module runs, in evaluation mode."""
    found, modes = [], {part: part.training for part in module.modules()}
    hook = module.get_submodule(path).register_forward_hook(lambda _, args, result: found.append(result.clone()))
    with torch.inference_mode():
        module.eval()(IMAGES)
    hook.remove()
    for part, mode in modes.items():
        part.training = mode
    return found[0]


class Net(nn.Module):
    """Convolution, batch norm and dropout, then a head; code between them."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.mid = nn.Linear(4, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.mid(self.body(x).relu_().mean((2, 3))))


class Owner(pl.LightningModule):
    """A LightningModule without `forward`."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder


def nets():
    torch.manual_seed(0)
    yield resnet18(), "layer3", "avgpool"
    yield timm.create_model("vit_tiny_patch16_224", img_size=32), "blocks.2", "fc_norm"
    yield Net(), "body.1", "mid"
    yield load_backbone("glyph"), "layer1", "layer4"
    size = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 32,
        "patch_size": 16,
    }
    yield ViTModel(ViTConfig(**size), add_pooling_layer=False), "layers.0", "layernorm"


@pytest.mark.parametrize("number", range(5))
def test_stored_features_equal_those_of_the_running_module_and_modes_stay(tmp_path, number):
    net, *cuts = list(nets())[number]
    net.train()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    wanted = [live(net, cut) for cut in cuts]
    features = extract_features(net, DataLoader(DATA, batch_size=6), cuts, cache=tmp_path, pooled=False)
    for cut, value in zip(cuts, wanted, strict=True):
        assert torch.equal(features[cut].read(range(6)), value), cut
    assert all(part.training for part in net.modules()) and not any(part._forward_hooks for part in net.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def test_a_shuffled_loader_gives_rows_and_targets_in_its_order(tmp_path):
    loader = DataLoader(DATA, batch_size=4, shuffle=True)
    features = extract_features(Net(), loader, "mid", cache=tmp_path)
    order = features.targets.tolist()
    again = extract_features(Net(), DATA, "mid", cache=tmp_path)  # a data set, in its own order
    torch.manual_seed(0)
    assert sorted(order) == list(range(6)) and again.targets.tolist() == list(range(6))
    net = Net()
    shuffled, plain = (extract_features(net, data, "mid", cache=tmp_path) for data in (loader, DATA))
    assert torch.equal(shuffled["mid"].read(range(6)), plain["mid"].read(shuffled.targets.tolist()))


class Count:
    """Counts the images that pass a module, beside the two of the check."""

    def __init__(self, module):
        self.images = 0
        module.register_forward_hook(self.add)

    def add(self, module, args, result):
        self.images += len(args[0]) if len(args[0]) > 2 else 0


def test_weights_below_the_cut_and_images_decide_what_is_computed_again(tmp_path):
    net = Owner(Net())
    counter = Count(net.encoder.body)

    def computed(data=DATA):
        before = counter.images
        extract_features(net, DataLoader(data, batch_size=6), "encoder.mid", cache=tmp_path)
        return counter.images - before

    assert (computed(), computed()) == (6, 0)
    with torch.no_grad():
        net.encoder.head.weight += 1  # above the cut
    assert computed() == 0
    with torch.no_grad():
        net.encoder.mid.weight[0, 0] += 1e-6
    assert computed() == 6
    net.encoder.body[1].running_mean[0] += 1e-6
    assert computed() == 6
    changed = IMAGES.clone()
    changed[1:4] += 1e-3
    assert computed(TensorDataset(changed)) == 3


def test_batches_may_be_mappings_and_the_cut_the_output_of_the_module(tmp_path):
    loader = [{"id": ["a", "b", "c"], "pixel_values": IMAGES[:3], "labels": torch.tensor([1, 0, 1])}]
    net = Net()
    features = extract_features(net, loader, cache=tmp_path)
    with torch.inference_mode():
        assert torch.equal(features["output"].read(range(3)), net.eval()(IMAGES[:3])) and features.targets.tolist() == [1, 0, 1]


class Twice(Net):
    def forward(self, x):
        return self.mid(super().forward(x).new_zeros(len(x), 4))


class Masked(Net):
    def __init__(self):
        super().__init__()
        self.add = Add()

    def forward(self, x):
        return self.add(x, x), (x,)


class Add(nn.Module):
    def forward(self, x, other):
        return x + other


class AlwaysDropout(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5)


@pytest.mark.parametrize(
    ("net", "cut", "message"),
    [
        (
            Twice(),
            "mid",
            "'mid' is called 2 times per batch and has 2 outputs, but only one can be stored: name a module that is called once",
        ),
        (Masked(), "mid", "'mid' is not called, so there is no output to store"),
        (Masked(), "add", "'add' takes 2 tensors, but stored features can replace only one: name the module around"),
        (Masked(), -1, "'output' returns a tuple, but only tensors can be stored"),
        (AlwaysDropout(), -1, "'output' gives different features for the same images in evaluation mode"),
        (nn.Flatten(0), -1, r"'output' returns a tensor of shape \(6144,\) for 2 images"),
        (Net(), "bdy.1", "Net has no module 'bdy.1': did you mean 'body.1'"),
        (Net(), 1, "cuts=1 is only for a Backbone, not for Net: give the name of a submodule, or -1 for the output"),
        (Owner(Net()), -1, "Owner has no forward: give a submodule that takes the images"),
        (
            nn.Linear(7, 2),
            -1,
            r"Linear fails on a batch of images of shape \(3, 32, 32\) alone \(.*\): give a module, or the name of a submodule, that takes",
        ),
        (7, -1, "the first argument has the type int: give a Backbone"),
    ],
)
def test_what_cannot_be_stored_is_one_line(tmp_path, net, cut, message):
    with pytest.raises(UserError, match=f"^{message}") as raised:
        extract_features(net, DATA, cut, cache=tmp_path)
    assert "\n" not in str(raised.value)


def test_the_description_of_a_table_names_the_origin_of_the_weights(tmp_path):
    net = Net()
    net.origin = WeightsOrigin("torchvision", "IMAGENET1K_V1")
    extract_features(net, DATA, "mid", cache=tmp_path)
    assert "torchvision IMAGENET1K_V1" in next(tmp_path.rglob("*.json")).read_text()


def test_a_trainer_does_not_change_what_identifies_a_lightning_module_with_code_before_the_cut(tmp_path):
    class Scaling(Owner):
        def forward(self, x):
            return self.encoder(x * 2)

        def training_step(self, batch, batch_idx):
            return self(batch[0]).sum() * 0

        def configure_optimizers(self):
            return torch.optim.SGD(self.encoder.head.parameters(), lr=0.0)

    net = Scaling(Net())
    net.encoder.requires_grad_(False).eval().head.requires_grad_(True)
    counter = Count(net.encoder.body)
    extract_features(net, DataLoader(DATA, batch_size=6), "encoder.mid", cache=tmp_path)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(net, DataLoader(DATA, batch_size=1))
    assert net.trainer is trainer and counter.images == 6
    extract_features(net, DataLoader(DATA, batch_size=6), "encoder.mid", cache=tmp_path)
    assert net.trainer is trainer and counter.images == 6


def test_batches_of_which_only_some_have_targets_are_one_line(tmp_path):
    images = torch.rand(4, 3, 8, 8)
    with pytest.raises(UserError, match=r"^the batches do not all have the same entries .*: give all the same$"):
        extract_features(nn.Conv2d(3, 2, 3), [(images, torch.arange(4)), (images,)], cache=tmp_path)


def test_the_output_of_a_network_is_not_mistaken_for_that_of_a_module_named_so(tmp_path):
    torch.manual_seed(0)
    net, images = nn.Sequential(), torch.rand(2, 3, 8, 8)
    net.add_module("output", nn.Conv2d(3, 2, 3))
    net.add_module("larger", nn.Upsample(scale_factor=2.0))
    with pytest.raises(UserError, match=r"^cuts=-1 is ambiguous, because Sequential has a submodule 'output': give cuts='output' for"):
        extract_features(net, [images], cache=tmp_path)
    found = extract_features(nn.Sequential(net), [images], cache=tmp_path, pooled=False)
    assert torch.equal(found["output"].read([0, 1]), net(images).detach())


@pytest.mark.parametrize("cuts", ["", ["0", ""]], ids=str)
def test_an_empty_name_is_no_other_name_of_the_output(tmp_path, cuts):
    with pytest.raises(UserError, match=r"^cuts='' names no submodule of Sequential: give the name of one, or -1 for the output$"):
        extract_features(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), [torch.rand(2, 3, 2, 2)], cuts, cache=tmp_path)
