"""A full shared memory, through which loading processes pass images on, is an error in one line, and not a program that waits forever."""

import shutil
import subprocess
import sys

import pytest

from ftlit.files import shared_memory_error
from ftlit.recipes.config.error_messages import as_user_error

IN_A_SMALL_SHARED_MEMORY = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "sh"]
LOADING = """
import torch
from PIL import Image
from torch.utils.data import DataLoader
from ftlit.data.collate import MixedCollate
from ftlit.data.dataset import Examples
from ftlit.features.extract import ImageViews
from ftlit.files import shared_memory_error
from ftlit.inference.predict import _collate
from torchvision.transforms.functional import pil_to_tensor
import numpy as np

images = Examples(range(8), [(0,)] * 8, lambda source: Image.new("RGB", (600, 600)))
views = ImageViews(images, np.array([b"0"] * 8), pil_to_tensor)
tensors = [torch.zeros(3, 600, 600)] * 8
for loader in (
    DataLoader(views, sampler=[[*range(8)]], batch_size=None, num_workers=1, timeout=60),
    DataLoader([("name", tensor) for tensor in tensors], 8, num_workers=1, collate_fn=_collate, timeout=60),
    DataLoader([(tensor, 0) for tensor in tensors], 8, num_workers=1, collate_fn=MixedCollate("mixup", 2), timeout=60),
):
    try:
        next(iter(loader))
    except RuntimeError as error:
        print(shared_memory_error(error, "data.num_workers=0"))
"""


def small_shared_memory() -> bool:
    return shutil.which("unshare") is not None and not subprocess.run([*IN_A_SMALL_SHARED_MEMORY, "true"], capture_output=True).returncode


@pytest.mark.e2e
@pytest.mark.skipif(not small_shared_memory(), reason="this user cannot mount a small /dev/shm")
def test_the_error_of_a_loading_process_reaches_the_program():
    done = subprocess.run([*IN_A_SMALL_SHARED_MEMORY, sys.executable, "-c", LOADING], capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all("shared memory (/dev/shm) is full" in line for line in lines), done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        "RuntimeError: unable to allocate shared memory(shm) for file </torch_15985_1578070412_0>: No space left on device (28)",
        "unable to write to file </torch_76_3625483894>: No space left on device (28)",
        "DataLoader worker (pid 13) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory. "
        "Please try to raise your shared memory limit.",
    ],
)
def test_the_messages_of_torch_are_one_line_with_what_to_type(text):
    line = str(as_user_error(RuntimeError(text)))
    assert "give data.num_workers=0, or, in a container, more shared memory, as in docker run --shm-size=8g" in line and "\n" not in line
    assert "give --workers 0, or" in str(shared_memory_error(RuntimeError(text), "--workers 0"))
    assert shared_memory_error(RuntimeError("shapes do not match"), "--workers 0") is None
