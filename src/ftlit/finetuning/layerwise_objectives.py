"""Objectives of greedy layer-wise unsupervised pretraining: what one layer learns from the features below it, without labels.

Bengio et al. 2007 (Greedy layer-wise training of deep networks); Hinton, Osindero and Teh 2006 for restricted Boltzmann machines.
"""

from abc import ABC, abstractmethod
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ftlit.errors import UserError, shorten

Units = Literal["gaussian", "binary"]
MIN_VARIANCE = 1e-6


class LayerObjective(nn.Module, ABC):
    """Base class of what one layer learns; it holds the layer.

    A subclass is built from the layer, the layer below (`None` for the lowest) and some inputs (n, *shape) of the layer. Errors are
    shares of the inputs' variance: 0 for a perfect reconstruction, 1 for the mean.
    """

    @abstractmethod
    def loss(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """A scalar to differentiate, and the error, for inputs (N, *shape) of the layer."""

    @abstractmethod
    def error(self, features: Tensor) -> Tensor:
        """The error for inputs (N, *shape), without noise."""

    def finish(self) -> None:
        """Complete the layer, in place, after training. By default there is nothing to do."""


class Reconstruction(LayerObjective):
    """The layer as the encoder of an autoencoder: mean squared error of its inputs, reconstructed by a linear decoder (see `mirror`).

    With `noise` it is a denoising autoencoder: that share of the values is set to 0 before encoding (Vincent et al. 2010).

    Args:
        layer: trains in place.
        below: the layer below; not used.
        sample: inputs (n, *shape) of the layer.
        noise: share of the values that are set to 0, in [0, 1).

    Raises:
        UserError: noise out of its range, or inputs without a decoder.
    """

    def __init__(self, layer: nn.Module, below: nn.Module | None, sample: Tensor, *, noise: float = 0.0) -> None:
        super().__init__()
        if not 0 <= noise < 1:
            raise UserError(
                f"pretrain.noise={noise}: give a number, at least 0 and below 1 (the share of the input values that are set to 0)"
            )
        self.layer, self.noise = layer, noise
        self.spread = float(sample.var(dim=0, correction=0).mean().clamp(min=MIN_VARIANCE))
        was = layer.training
        with torch.no_grad():
            output = layer.eval()(sample[:1])
        layer.train(was)
        self.decoder = mirror(tuple(output.shape[1:]), tuple(sample.shape[1:]))
        _begin_at_mean(self.decoder, sample)

    def loss(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The error with noise, twice: with its graph, and detached."""
        noisy = features * (torch.rand_like(features) >= self.noise) if self.noise else features
        error = F.mse_loss(self.decoder(self.layer(noisy)), features) / self.spread
        return error, error.detach()

    def error(self, features: Tensor) -> Tensor:
        """The error without noise."""
        return F.mse_loss(self.decoder(self.layer(features)), features) / self.spread


def mirror(code: tuple[int, ...], output: tuple[int, ...]) -> nn.Module:
    """A linear decoder from features of shape `code` to features of shape `output`, both without the batch dimension.

    Maps are decoded by convolutions with the stride between the two, vectors and tokens by a linear layer.

    Raises:
        UserError: shapes without a decoder, such as tokens to a map.
    """
    if len(code) == len(output) == 3:
        return _mirror_of_maps(code, output)
    if len(code) == 1:
        size = int(torch.tensor(output).prod())
        return nn.Sequential(nn.Linear(code[0], size), nn.Unflatten(1, output))
    if len(code) == len(output) == 2 and code[0] == output[0]:
        return nn.Linear(code[1], output[1])
    raise UserError(
        f"cannot reconstruct shape {output} from features of shape {code}: use a network whose layers give feature "
        "maps (C, H, W) or vectors (C)"
    )


def _begin_at_mean(decoder: nn.Module, sample: Tensor) -> None:
    """Set the bias of the last linear layer or convolution to the mean of its target, in place."""
    last = [part for part in decoder.modules() if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)][-1]
    mean = sample.mean(dim=0)
    if isinstance(last, nn.Linear) and mean.numel() == last.out_features:  # vectors: a bias for each value
        bias = mean.flatten()
    else:  # tokens (T, C) or maps (C, H, W): a bias for each channel
        bias = mean.mean(dim=0) if mean.ndim == 2 else mean.mean(dim=(1, 2))
    with torch.no_grad():
        cast(Tensor, last.bias).copy_(bias)


def _mirror_of_maps(code: tuple[int, ...], output: tuple[int, ...]) -> nn.Module:
    (before, *small), (after, *large) = code, output
    strides = [b // s if b % s == 0 else 0 for s, b in zip(small, large, strict=True)]
    if strides == [1, 1]:
        return nn.Conv2d(before, after, 3, padding=1)
    if strides[0] == strides[1] and strides[0] > 0:
        stride = strides[0]
        if stride % 2 == 0:  # overlapping windows leave no checkerboard
            return nn.ConvTranspose2d(before, after, 2 * stride, stride, stride // 2)
        return nn.ConvTranspose2d(before, after, stride, stride)
    return nn.Sequential(nn.Upsample(size=tuple(large)), nn.Conv2d(before, after, 3, padding=1))


class RestrictedBoltzmann(LayerObjective):
    """A fully connected layer as the hidden units of a restricted Boltzmann machine, by contrastive divergence (Hinton 2002).

    Visible units are binary if the layer below ends with a sigmoid, otherwise Gaussian of unit variance on standardised features
    (constant ones are 0). Hidden units are noisy rectified if the layer ends with a ReLU (Nair and Hinton 2010, section 2), binary if it
    ends with a sigmoid. Weights are initialized small and biases with 0 (Hinton 2012, section 8).

    Args:
        layer: one linear layer, with or without a flattening before it, and its activation; trains in place.
        below: the layer below; `None` for the lowest.
        sample: inputs (n, *shape) of the layer; their mean and standard deviation standardise the Gaussian units.
        k: steps of the chain, at least 1.

    Raises:
        UserError: another layer, or k below 1.
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
            scale = torch.where(deviation > MIN_VARIANCE, deviation, 1.0)
        self.spread = float(((features - mean) / scale).var(dim=0, correction=0).mean().clamp(min=MIN_VARIANCE))
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.mean: Tensor
        self.scale: Tensor
        self.bias = nn.Parameter(torch.zeros_like(mean))  # of the visible units
        with torch.no_grad():
            self.linear.weight.normal_(std=0.01)
            self.linear.bias.zero_()

    def loss(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """A scalar whose gradient is that of CD-k, and the error of the chain's first step. The scalar is not a likelihood: it may rise
        while the machine learns.
        """
        data = (features.flatten(1) - self.mean) / self.scale
        with torch.no_grad():
            first = self._sampled(data)
            chain = self._visible(first)
            error = F.mse_loss(chain, data) / self.spread
            hidden = self._sampled(chain)
            for _ in range(self.k - 1):
                chain = self._visible(hidden)
                hidden = self._sampled(chain)
        return self._energy(data, first) - self._energy(chain, hidden), error

    def error(self, features: Tensor) -> Tensor:
        """The error of the visible units after one step to the hidden units and back, by expectations."""
        data = (features.flatten(1) - self.mean) / self.scale
        return F.mse_loss(self._visible(self._expected(data)), data) / self.spread

    def finish(self) -> None:
        """Fold the standardisation into the layer, so that it takes raw features."""
        with torch.no_grad():
            self.linear.weight.div_(self.scale)
            self.linear.bias.sub_(self.linear.weight @ self.mean)

    def _energy(self, visible: Tensor, hidden: Tensor) -> Tensor:
        """The terms of the energy that depend on parameters, a mean over N, for these states of the units."""
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

    def _visible(self, hidden: Tensor) -> Tensor:
        """Expected values of the visible units; no noise is drawn for them (Hinton 2012, section 3.2)."""
        inputs = hidden @ self.linear.weight + self.bias
        return torch.sigmoid(inputs) if self.visible == "binary" else inputs


def _last(layer: nn.Module) -> nn.Module:
    return list(layer.modules())[-1]


def _linear_of(layer: nn.Module) -> tuple[nn.Linear, bool]:
    """The linear layer, and whether a ReLU follows."""
    parts = [part for part in layer.modules() if not list(part.children()) and not isinstance(part, nn.Flatten | nn.Identity)]
    if len(parts) == 2 and isinstance(parts[0], nn.Linear) and parts[0].bias is not None and isinstance(parts[1], nn.ReLU | nn.Sigmoid):
        return parts[0], isinstance(parts[1], nn.ReLU)
    names = [f"{type(part).__name__}{'' if getattr(part, 'bias', part) is not None else ' without bias'}" for part in parts]
    raise UserError(
        "pretrain=rbm needs layers of one Linear with bias and one ReLU or Sigmoid, but a layer of this backbone has "
        f"{shorten(names, most=4)}: give backbone=mlp or pretrain=autoencoder"
    )
