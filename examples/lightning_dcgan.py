"""A DCGAN in PyTorch Lightning, with manual optimisation, on the digits that come with scikit-learn.

    pip install lightning
    python examples/lightning_dcgan.py                      # samples in digits.png, a minute on 2 CPU cores
    python examples/lightning_dcgan.py --precision bf16-mixed --devices 2

The networks are ordinary modules: Lightning moves them, wraps them in DDP, and its checkpoints hold the keys of
pytorch/examples behind "generator." and "discriminator.".
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from dcgan_fast import models
from dcgan_fast.data import normalize, prepare
from dcgan_fast.training.losses import FAKE, REAL, adversarial_loss
from dcgan_fast.visualize import image_grid, save_png


class DCGAN(L.LightningModule):
    """Generator and discriminator, and how a batch trains them."""

    def __init__(self, width: int = 32, lr: float = 2e-4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False  # two optimisers, in turn
        self.generator, self.discriminator = models.build(
            "pytorch", image_size=32, nc=1, ngf=width, ndf=width
        )

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        networks = (self.generator, self.discriminator)
        return [torch.optim.Adam(n.parameters(), self.hparams.lr, (0.5, 0.999)) for n in networks]

    def training_step(self, batch: list[Tensor], _: int) -> None:
        (real,) = batch
        optimizer_g, optimizer_d = self.optimizers()
        fake = self.generator(self.generator.sample_latent(len(real)))

        of_real, of_fake = self.discriminator(real), self.discriminator(fake.detach())
        loss_d = adversarial_loss(of_real, REAL) + adversarial_loss(of_fake, FAKE)
        optimizer_d.zero_grad()
        self.manual_backward(loss_d)
        optimizer_d.step()

        self.toggle_optimizer(optimizer_g)  # no gradients of D's weights: a twelfth of the step
        loss_g = adversarial_loss(self.discriminator(fake), REAL)
        optimizer_g.zero_grad()
        self.manual_backward(loss_g)
        optimizer_g.step()
        self.untoggle_optimizer(optimizer_g)
        self.log_dict({"loss_d": loss_d, "loss_g": loss_g}, prog_bar=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a DCGAN on digits with Lightning.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--max-steps", type=int, default=-1, help="batches at most; -1: no limit")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=32, help="channels of the outermost layers")
    parser.add_argument("--precision", default="32-true", help="as Lightning's Trainer takes it")
    parser.add_argument("--devices", type=int, default=1, help="processes; on CPUs by gloo")
    parser.add_argument("--out", type=Path, default=Path("digits.png"), help="64 samples")
    args = parser.parse_args()

    L.seed_everything(0)
    images = normalize(prepare("digits", image_size=32).images)
    loader = DataLoader(TensorDataset(images), args.batch_size, shuffle=True, drop_last=True)
    module = DCGAN(args.width)
    trainer = L.Trainer(
        max_epochs=args.epochs,
        limit_train_batches=None if args.max_steps < 0 else args.max_steps,
        precision=args.precision,
        devices=args.devices,
        # each backward pass is of one network's parameters
        strategy="auto" if args.devices == 1 else "ddp_find_unused_parameters_true",
        log_every_n_steps=1,
        enable_checkpointing=False,
        logger=False,
    )
    trainer.fit(module, loader)
    if trainer.is_global_zero:
        generator = module.generator
        samples = models.generate(generator, generator.sample_latent(64), bn="batch")
        save_png(image_grid(samples), args.out)


if __name__ == "__main__":
    main()
