"""Do samples look like the class that was asked for? A classifier of real images says, of 1,000 samples of each class.

    dcgan-fast train mnist --conditional --max-steps 3000
    python benchmarks/conditional_quality.py runs/mnist-cgan-dcgan mnist --grid grid.png    # 2 minutes on 2 cores

The classifier: two 3x3 convolutions of 32 and 64 channels with batch norm, each pooled by two, and a linear layer;
three epochs of Adam on the training images, never a sample. Its accuracy on the real test images is printed beside.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dcgan_fast import models
from dcgan_fast.data import prepare
from dcgan_fast.data.dataset import Dataset
from dcgan_fast.training.checkpoint import load_networks
from dcgan_fast.visualize import image_grid, save_png

BATCH, EPOCHS, OF_A_CLASS, IN_GRID = 128, 3, 1000, 16


def unit(images: Tensor | np.ndarray, value_range: tuple[float, float] = (0, 255)) -> Tensor:
    low, high = value_range
    values = images if isinstance(images, Tensor) else torch.from_numpy(images.astype(np.float32))
    return (values.float() - low) / (high - low)


def labels_of(dataset: Dataset) -> Tensor:
    if dataset.labels is None:
        raise SystemExit(f"{dataset.name} has no labels")
    return torch.as_tensor(dataset.labels)


def classifier_of(dataset: Dataset, classes: int) -> nn.Sequential:
    torch.manual_seed(0)
    channels, size = dataset.images.shape[1], dataset.images.shape[2]
    layers: list[nn.Module] = []
    for before, after in ((channels, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (size // 4) ** 2, classes))
    net.to(memory_format=torch.channels_last)
    images, labels = unit(dataset.images), labels_of(dataset)
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images))[: len(images) // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


@torch.no_grad()
def right(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Which images are taken for what they are to be, (N,)."""
    return torch.cat([net(part).argmax(1) for part in images.split(1000)]) == labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    parser.add_argument("checkpoints", nargs="+", help="runs or checkpoints of a conditional net")
    parser.add_argument("data", help="the labelled images that it was trained on: mnist, or a path")
    parser.add_argument("--grid", type=Path, help="PNG of samples of the last one, a row per class")
    parser.add_argument("--bn", choices=models.BN_MODES, help="default: as the checkpoint says")
    arguments = parser.parse_args()

    net: nn.Module | None = None
    print("| checkpoint | steps | accuracy, % | least of a class, % |\n|---|---|---|---|")
    for checkpoint in arguments.checkpoints:
        generator, _, content = load_networks(checkpoint)
        if not isinstance(generator, models.LatentNetwork) or not generator.classes:
            raise SystemExit(f"{checkpoint} holds no generator with classes")
        size, channels = generator.config["image_size"], generator.config["nc"]
        if net is None:
            train, test = (
                prepare(arguments.data, image_size=size, channels=channels, split=split)
                for split in ("train", "test")
            )
            net = classifier_of(train, generator.classes)
            real = right(net, unit(test.images), labels_of(test))
            print(f"| (real test images) | | {100 * real.float().mean():.2f} | |", flush=True)
        labels = torch.arange(generator.classes).repeat_interleave(OF_A_CLASS)
        latent = generator.sample_latent(len(labels), generator=torch.Generator().manual_seed(0))
        bn = arguments.bn or content.get("bn", "running")
        samples = models.generate(generator, latent, labels, bn=bn)
        hits = right(net, unit(samples, generator.output_range), labels).float()
        least = hits.reshape(generator.classes, -1).mean(1).min()
        cells = (
            checkpoint,
            content.get("step", ""),
            f"{100 * hits.mean():.2f}",
            f"{100 * least:.2f}",
        )
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    if arguments.grid:
        shown = samples.reshape(generator.classes, OF_A_CLASS, *samples.shape[1:])[:, :IN_GRID]
        grid = image_grid(shown.flatten(0, 1), columns=IN_GRID, value_range=generator.output_range)
        save_png(grid, arguments.grid)


if __name__ == "__main__":
    main()
