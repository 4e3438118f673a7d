"""Greedy layer-wise unsupervised pretraining: what one layer learns from the features below it, without labels.

Bengio et al. 2007 (Greedy layer-wise training of deep networks); Hinton, Osindero and Teh 2006 for the machines of the last class.
An option of the group `pretrain` is called with the layer, the layer below, and some features that the layer is given; it is a module
with `loss`, which trains the layer and tells how well it did, `error` of features as they are, and `finish`.
"""

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ftlit.errors import UserError

Units = Literal["gaussian", "binary"]
TINY = 1e-6


class Reconstruction(nn.Module):
    """The layer as the encoder of an autoencoder whose decoder is the layer's mirror image: mean squared error of its input features.

    With `noise` it is a denoising autoencoder: that share of the values is set to 0 before they are encoded (Vincent et al. 2010).

    Args:
        layer: trains in place.
        below: the layer below; not used.
        sample: features (n, *shape) that the layer is given.
        noise: share of the values that are set to 0, in [0, 1).

    Raises:
        UserError: noise out of its range, or features that no mirror image leads back to.
    """

    def __init__(self, layer: nn.Module, below: nn.Module | None, sample: Tensor, *, noise: float = 0.0) -> None:
        super().__init__()
        if not 0 <= noise < 1:
            raise UserError(f"pretrain.noise={noise}: give a share of the values, from 0 to below 1")
        self.layer, self.noise = layer, noise
        self.spread = float(sample.var(dim=0, correction=0).mean().clamp(min=TINY))
        was = layer.training
        with torch.no_grad():
            gives = layer.eval()(sample[:1]).shape[1:]
        layer.train(was)
        self.decoder = mirror(tuple(gives), tuple(sample.shape[1:]))
        _begin_at_mean(self.decoder, sample)

    def loss(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Of features (N, *shape), of which a part is hidden: the share of their variance that is lost, twice, once without its graph."""
        given = features * (torch.rand_like(features) >= self.noise) if self.noise else features
        lost = F.mse_loss(self.decoder(self.layer(given)), features) / self.spread
        return lost, lost.detach()

    def error(self, features: Tensor) -> Tensor:
        """The share of the variance of whole features that is lost."""
        return F.mse_loss(self.decoder(self.layer(features)), features) / self.spread

    def finish(self) -> None:
        """The layer has learned in place."""


def mirror(given: tuple[int, ...], gives: tuple[int, ...]) -> nn.Module:
    """A linear module from features of one shape to features of another: convolutions for maps, by their strides, and linear layers for vectors.

    Raises `UserError` for shapes that have none: from tokens to a map.
    """
    if len(given) == len(gives) == 3:
        return _mirror_of_maps(given, gives)
    if len(given) == 1:
        size = int(torch.tensor(gives).prod())
        return nn.Sequential(nn.Linear(given[0], size), nn.Unflatten(1, gives))
    if len(given) == len(gives) == 2 and given[0] == gives[0]:
        return nn.Linear(given[1], gives[1])
    raise UserError(f"no mirror image leads from features of shape {given} back to {gives}: pretrain a network of maps or vectors")


def _begin_at_mean(decoder: nn.Module, sample: Tensor) -> None:
    """Set the bias of the last linear layer, or convolution, to what it gives on average."""
    last = [part for part in decoder.modules() if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)][-1]
    mean = sample.mean(dim=0)
    whole = isinstance(last, nn.Linear) and mean.numel() == last.out_features
    with torch.no_grad():
        cast(Tensor, last.bias).copy_(mean.flatten() if whole else mean.mean(dim=0) if mean.ndim == 2 else mean.mean(dim=(1, 2)))


def _mirror_of_maps(given: tuple[int, ...], gives: tuple[int, ...]) -> nn.Module:
    (before, *small), (after, *large) = given, gives
    strides = [b // s if b % s == 0 else 0 for s, b in zip(small, large, strict=True)]
    if strides == [1, 1]:
        return nn.Conv2d(before, after, 3, padding=1)
    if strides[0] == strides[1] and strides[0] > 0:
        stride = strides[0]
        wide = stride % 2 == 0  # windows that overlap leave no grid
        return nn.ConvTranspose2d(before, after, 2 * stride if wide else stride, stride, stride // 2 if wide else 0)
    return nn.Sequential(nn.Upsample(size=tuple(large)), nn.Conv2d(before, after, 3, padding=1))


class RestrictedBoltzmann(nn.Module):
    """A fully connected layer as the hidden units of a restricted Boltzmann machine, by contrastive divergence (Hinton 2002).

    Visible units are Gaussian of unit variance, on standardised features (constant ones stay 0), or binary above a layer of sigmoids.
    Hidden units are noisy rectified ones where the layer ends with a ReLU (Nair and Hinton 2010, section 2), binary where it ends
    with a sigmoid. The weights begin small and the biases at 0 (Hinton 2012, section 8).

    Args:
        layer: holds one linear layer, perhaps after flattening, and its activation; its parameters train in place.
        below: the layer below, whose sigmoid makes binary units visible.
        sample: features (n, *shape) that the layer is given; their mean and deviation are those of the Gaussian units.
        k: steps of the chain, at least 1.

    Raises:
        UserError: a layer of another kind, or k below 1.
    """

    def __init__(self, layer: nn.Module, below: nn.Module | None, sample: Tensor, *, k: int = 1) -> None:
        super().__init__()
        if k < 1:
            raise UserError(f"pretrain.k={k}: give a whole number of steps, 1 or more")
        self.k = k
        self.linear, self.rectified = _linear_of(layer)
        self.visible: Units = "binary" if below is not None and isinstance(_last(below), nn.Sigmoid) else "gaussian"
        features = sample.flatten(1)
        mean, scale = torch.zeros_like(features[0]), torch.ones_like(features[0])
        if self.visible == "gaussian":
            mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
            scale = torch.where(deviation > TINY, deviation, 1.0)
        self.spread = float(((features - mean) / scale).var(dim=0, correction=0).mean().clamp(min=TINY))
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.mean: Tensor
        self.scale: Tensor
        self.bias = nn.Parameter(torch.zeros_like(mean))  # of the visible units
        with torch.no_grad():
            self.linear.weight.normal_(std=0.01)
            self.linear.bias.zero_()

    def loss(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """A number of features (N, *shape) whose gradient is that of CD-k, which is no likelihood and may rise while the machine learns; and
        the share of the variance that the chain's first step loses.
        """
        data = (features.flatten(1) - self.mean) / self.scale
        with torch.no_grad():
            first = self._sampled(data)
            chain = self._seen(first)
            lost = F.mse_loss(chain, data) / self.spread
            hidden = self._sampled(chain)
            for _ in range(self.k - 1):
                chain = self._seen(hidden)
                hidden = self._sampled(chain)
        return self._energy(data, first) - self._energy(chain, hidden), lost

    def error(self, features: Tensor) -> Tensor:
        """The share of the visible units' variance that is lost from them to the hidden units and back."""
        data = (features.flatten(1) - self.mean) / self.scale
        return F.mse_loss(self._seen(self._expected(data)), data) / self.spread

    def finish(self) -> None:
        """Fold the standardisation into the layer: it takes raw features from now on."""
        with torch.no_grad():
            self.linear.weight.div_(self.scale)
            self.linear.bias.sub_(self.linear.weight @ self.mean)

    def _energy(self, visible: Tensor, hidden: Tensor) -> Tensor:
        """Its terms that hold parameters, mean over N, with the units as they are."""
        energy: Tensor = -((hidden * self.linear(visible)).sum(dim=1) + visible @ self.bias).mean()
        return energy

    def _expected(self, visible: Tensor) -> Tensor:
        inputs = self.linear(visible)
        return torch.relu(inputs) if self.rectified else torch.sigmoid(inputs)

    def _sampled(self, visible: Tensor) -> Tensor:
        inputs = self.linear(visible)
        if self.rectified:
            return torch.relu(inputs + torch.randn_like(inputs) * torch.sigmoid(inputs).sqrt())
        return torch.bernoulli(torch.sigmoid(inputs))

    def _seen(self, hidden: Tensor) -> Tensor:
        """What the visible units expect: no noise is drawn for them (Hinton 2012, section 3.2)."""
        inputs = hidden @ self.linear.weight + self.bias
        return torch.sigmoid(inputs) if self.visible == "binary" else inputs


def _last(layer: nn.Module) -> nn.Module:
    return list(layer.modules())[-1]


def _linear_of(layer: nn.Module) -> tuple[nn.Linear, bool]:
    """The linear layer, and whether a ReLU follows."""
    parts = [part for part in layer.modules() if not list(part.children()) and not isinstance(part, nn.Flatten | nn.Identity)]
    if len(parts) == 2 and isinstance(parts[0], nn.Linear) and parts[0].bias is not None and isinstance(parts[1], nn.ReLU | nn.Sigmoid):
        return parts[0], isinstance(parts[1], nn.ReLU)
    kinds = ", ".join(dict.fromkeys(type(part).__name__ for part in parts))
    raise UserError(f"pretrain=rbm is of fully connected layers with ReLU or sigmoid (backbone=mlp), and this layer has {kinds}")
