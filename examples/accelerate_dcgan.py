"""A DCGAN trained by a plain loop under Hugging Face Accelerate, on the digits that come with scikit-learn.

pip install accelerate
python examples/accelerate_dcgan.py                     # samples in digits.png, a minute on 2 CPU cores
accelerate launch --cpu --num_processes 2 examples/accelerate_dcgan.py
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, TensorDataset

from dcgan_fast import models
from dcgan_fast.data import normalize, prepare
from dcgan_fast.training.losses import FAKE, REAL, adversarial_loss
from dcgan_fast.visualize import image_grid, save_png


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a DCGAN on digits with Accelerate.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--max-steps", type=int, help="batches of an epoch at most")
    parser.add_argument("--batch-size", type=int, default=64, help="of each process")
    parser.add_argument("--width", type=int, default=32, help="channels of the outermost layers")
    parser.add_argument("--precision", default="no", choices=("no", "bf16", "fp16"))
    parser.add_argument("--out", type=Path, default=Path("digits.png"), help="64 samples")
    args = parser.parse_args()

    accelerator = Accelerator(mixed_precision=args.precision)
    set_seed(0)
    images = normalize(prepare("digits", image_size=32).images)
    loader = DataLoader(TensorDataset(images), args.batch_size, shuffle=True, drop_last=True)
    networks = models.build("pytorch", image_size=32, nc=1, ngf=args.width, ndf=args.width)
    optimizers = [torch.optim.Adam(n.parameters(), 2e-4, (0.5, 0.999)) for n in networks]
    G, D, optimizer_g, optimizer_d, loader = accelerator.prepare(*networks, *optimizers, loader)
    generator = accelerator.unwrap_model(G)  # what DDP wraps still draws latents

    for epoch in range(args.epochs):
        for (real,) in islice(loader, args.max_steps):
            fake = G(generator.sample_latent(len(real)))
            loss_d = adversarial_loss(D(real), REAL) + adversarial_loss(D(fake.detach()), FAKE)
            optimizer_d.zero_grad()
            accelerator.backward(loss_d)
            optimizer_d.step()

            loss_g = adversarial_loss(D(fake), REAL)
            optimizer_g.zero_grad()
            accelerator.backward(loss_g)
            optimizer_g.step()
        accelerator.print(f"epoch {epoch + 1}: loss_d {loss_d:.3f}  loss_g {loss_g:.3f}")

    if accelerator.is_main_process:
        samples = models.generate(generator, generator.sample_latent(64), bn="batch")
        save_png(image_grid(samples), args.out)


if __name__ == "__main__":
    main()
