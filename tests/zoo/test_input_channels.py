"""Networks for other than three channels: a copy of a grey image in three channels, or of three bands in six, has the same features."""

import pytest
import torch
from torchvision import models

from ftlit import UserError, load_backbone
from ftlit.data.input_spec import InputSpec
from ftlit.zoo.build import EmptyWeights
from ftlit.zoo.input_channels import adapted, set_in_chans

# one of each family
NETWORKS = (
    *("alexnet", "vgg11", "resnet18", "densenet121", "googlenet", "inception_v3", "squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v2"),
    *(
        "mobilenet_v3_small",
        "efficientnet_b0",
        "mnasnet0_5",
        "regnet_y_400mf",
        "convnext_tiny",
        "vit_b_32",
        "swin_t",
        "swin_v2_t",
        "maxvit_t",
    ),
)


def images(channels, size=32):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("in_chans", [1, 2, 3, 4, 6, 13])
def test_weights_are_adapted_as_timm_adapts_them(in_chans):
    manipulate = pytest.importorskip("timm.models._manipulate")
    weight = torch.randn(5, 3, 7, 7)
    assert torch.equal(adapted(weight, in_chans), manipulate.adapt_input_conv(in_chans, weight))


def check_copies(load):
    """`load(in_chans)` gives the same network each time."""
    whole, grey, double = (load(in_chans).eval() for in_chans in (3, 1, 6))
    assert [net.input_spec.shape[0] for net in (whole, grey, double)] == [3, 1, 6]
    one, three = (images(channels, whole.input_spec.size) for channels in (1, 3))
    with torch.no_grad():
        for other, given, copied in ((grey, one, one.expand(-1, 3, -1, -1)), (double, torch.cat([three, three], dim=1), three)):
            for cut in whole.cuts:
                expected = whole.upto(cut)(copied)
                assert (other.upto(cut)(given) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_copied_channels_have_the_same_features():
    check_copies(lambda in_chans: load_backbone("glyph", in_chans=in_chans))


@pytest.mark.zoo
def test_copied_channels_have_the_same_features_in_a_network_of_torchvision(tmp_path):
    torch.manual_seed(0)
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "net.pth")
    check_copies(lambda in_chans: load_backbone("squeezenet1_1", weights=tmp_path / "net.pth", in_chans=in_chans, input_spec={"size": 64}))


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_copied_channels_have_the_same_features_in_networks_of_timm(name, tmp_path):
    pytest.importorskip("timm")
    from timm_networks import build

    from ftlit import load_timm

    torch.save(build(name, 32).state_dict(), tmp_path / "net.pth")
    check_copies(lambda in_chans: load_timm(name, weights=tmp_path / "net.pth", in_chans=in_chans, input_spec={"size": 160}))


@pytest.mark.zoo
def test_the_published_googlenet_takes_grey_images_of_mean_and_std_one_half(tmp_path):
    torch.manual_seed(0)
    torch.save(models.googlenet(init_weights=False).state_dict(), path := tmp_path / "googlenet-1378be20.pth")
    whole, grey = (load_backbone("googlenet", weights=path, in_chans=channels, cut="inception3a").eval() for channels in (3, 1))
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():  # the network converts ImageNet's normalisation of RGB images to this one
        colours, one = (
            (image - torch.tensor(spec.mean)[:, None, None]) / torch.tensor(spec.std)[:, None, None]
            for spec in (whole.input_spec, grey.input_spec)
        )
        assert (grey(one) - whole(colours)).abs().max() <= 1e-5 * whole(colours).abs().max()


def test_three_channels_are_the_network_as_it_was():
    plain, given = load_backbone("glyph"), load_backbone("glyph", in_chans=3)
    assert plain.record == given.record and plain.input_spec == given.input_spec and "in_chans" not in plain.record
    assert "channels" not in plain.record["input_spec"]
    assert all(torch.equal(tensor, given.state_dict()[name]) for name, tensor in plain.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("in_chans", [1, 4])
def test_every_family_of_torchvision_takes_other_channels(name, in_chans):
    arguments = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with EmptyWeights():
        model = set_in_chans(name, models.get_model(name, weights=None, **arguments), in_chans).to("meta").eval()
    size = 299 if name == "inception_v3" else 224
    assert model(torch.empty(2, in_chans, size, size, device="meta")).shape == (2, 1000)


def test_random_weights_have_the_spread_of_the_networks_own():
    torch.manual_seed(0)
    three, many = (next(load_backbone("glyph", weights=None, in_chans=channels).parameters()) for channels in (3, 12))
    assert many.shape == (32, 12, 3, 3) and abs(many.std() / three.std() - 1) < 0.1
    assert not torch.equal(many[:, :3], many[:, 3:6])  # bands are told apart from the first step


def test_the_fully_connected_network_takes_any_number_of_channels():
    net = load_backbone("mlp", weights=None, in_chans=5, input_spec={"size": 8})
    assert net(torch.zeros(2, 5, 8, 8)).shape == (2, 128)


def test_weights_of_a_network_of_these_channels_stay_as_they_are(tmp_path):
    net = load_backbone("glyph", in_chans=4)
    torch.save(net.state_dict(), tmp_path / "four.pth")
    again = load_backbone("glyph", weights=tmp_path / "four.pth", in_chans=4)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in net.state_dict().items())
    assert net.origin.note == "first convolution adapted to 4 channels" and not again.origin.note


def test_mean_and_std_are_averaged_for_grey_and_unknown_for_bands():
    spec = InputSpec()
    assert spec.with_channels(1).mean == (sum(spec.mean) / 3,) and spec.with_channels(1).std == (sum(spec.std) / 3,)
    assert spec.with_channels(3) == spec and spec.with_channels(6).mean == spec.with_channels(6).std == ()
    assert load_backbone("glyph", in_chans=2, input_spec={"mean": [1, 2], "std": 3}).input_spec.std == (3, 3)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"in_chans": 0}, "backbone.in_chans=0: give a whole number of channels, 1 or more"),
        ({"in_chans": "4"}, "in_chans='4': give a whole number ('4' is a text"),
        ({"in_chans": 4, "input_spec": {"mean": [0, 1]}}, "input_spec.mean=[0, 1]: give one number, or 4, one for each channel"),
        ({"in_chans": 4, "input_spec": {"mean": 0}}, "give both, or leave both out to measure them"),
        ({"in_chans": 4, "input_spec": {"channels": 5}}, "backbone.in_chans=4: give backbone.in_chans only"),
        ({"in_chans": 4, "input_spec": {"interpolation": "lanczos"}}, "does not apply to bands (backbone.in_chans=4): give"),
    ],
)
def test_what_is_not_supported_is_an_error(arguments, line):
    with pytest.raises(UserError) as raised:
        load_backbone("glyph", **arguments)
    assert line in str(raised.value) and "\n" not in str(raised.value)


def test_a_network_that_does_not_begin_with_a_convolution_is_an_error():
    with pytest.raises(UserError, match=r"net does not support backbone.in_chans=4, because its first layer is not a convolution of three"):
        set_in_chans("net", torch.nn.Sequential(torch.nn.Linear(3, 4)), 4)


@pytest.mark.zoo
def test_a_network_of_timm_that_begins_with_a_linear_layer_takes_random_weights_only(tmp_path):
    pytest.importorskip("timm")
    from timm_networks import BLOCKWISE, build

    from ftlit import load_timm

    name, size, _, settings = BLOCKWISE["naflexvit"]
    torch.save(build(name, size, **settings).state_dict(), tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"in_chans=4, because its first layer is not a convolution of three channels"):
        load_timm(name, weights=tmp_path / "net.pth", in_chans=4, input_spec={"size": size}, **settings)
    assert load_timm(name, weights=None, in_chans=4, input_spec={"size": size}, **settings).input_spec.shape == (4, size, size)
