"""A plain PyTorch loop, and scikit-learn on features."""

import copy
from collections.abc import Iterator

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from systems.task import Task, backbone_of, folders, loader

EPOCHS = 25


def loop(task: Task, *, pretrained: bool = True) -> float:
    """The loop of PyTorch's tutorial: all layers, SGD, a tenth of the learning rate every 7 epochs; the best epoch on val is kept."""
    data = folders(task)
    backbone, width = backbone_of(task, pretrained=pretrained)
    network = nn.Sequential(backbone, nn.Linear(width, len(data["train"].classes)))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001 if pretrained else 0.01, momentum=0.9)
    epochs = task.epochs or EPOCHS
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    best, kept = -1.0, network.state_dict()
    train, val = loader(data["train"], 4, shuffle=True), loader(data["val"], 64)
    for _ in range(epochs):
        network.train()
        for images, labels in train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
        scheduler.step()
        if (accuracy := accuracy_of(network, val)) > best:
            best, kept = accuracy, copy.deepcopy(network.state_dict())
    network.load_state_dict(kept)
    return accuracy_of(network, loader(data["test"], 64))


def scratch(task: Task) -> float:
    """The same loop from random weights, at ten times the learning rate."""
    return loop(task, pretrained=False)


def features(task: Task) -> float:
    """Logistic regression on the standardised features of train + val, with scikit-learn's default L2 penalty."""
    data = folders(task)
    backbone = backbone_of(task)[0].eval()
    data["train"].transform = data["val"].transform
    parts = {split: [torch.cat(tensors) for tensors in zip(*features_of(backbone, data[split]), strict=True)] for split in data}
    known, labels = (torch.cat([parts["train"][i], parts["val"][i]]).numpy() for i in (0, 1))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, random_state=task.seed)).fit(known, labels)
    return float(model.score(*(part.numpy() for part in parts["test"])))


def features_of(backbone: nn.Module, data: ImageFolder) -> Iterator[tuple[Tensor, Tensor]]:
    """Features and labels, batch by batch."""
    with torch.inference_mode():
        for images, labels in loader(data, 64):
            yield backbone(images), labels


def accuracy_of(network: nn.Module, batches: DataLoader) -> float:
    """Share of correctly classified images."""
    network.eval()
    with torch.inference_mode():
        correct = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in batches)
    return correct / len(batches.dataset)  # type: ignore[arg-type]
