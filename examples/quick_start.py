"""Train a small DCGAN on the digits of scikit-learn, draw from it, walk through its latents, and use its features."""

import torch
from torch.nn.functional import cosine_similarity

from dcgan_fast import models
from dcgan_fast.data import normalize
from dcgan_fast.features import DiscriminatorFeatures
from dcgan_fast.training import ProgressBar, TrainConfig, Trainer
from dcgan_fast.visualize import image_grid, save_png

config = TrainConfig(data="digits", image_size=16, epochs=20, seed=1)  # 280 steps, seconds
trainer = Trainer(config)  # the default networks; any preset, or your own: Trainer(generator=...)
run = trainer.fit([ProgressBar()])  # a folder: grids, curves, checkpoints to go on from
generator, discriminator = trainer.generator.eval(), trainer.discriminator.eval()

latent = generator.sample_latent(64)
images = models.generate(generator, latent, bn="batch")  # (64, 1, 16, 16), in [-1, 1]
save_png(image_grid(images), "samples.png")

path = torch.stack([torch.lerp(latent[0], latent[1], i / 9) for i in range(10)])
walk = models.generate(generator, path)  # from one sample to another
save_png(image_grid(walk, columns=10), "walk.png")

real = torch.tensor(trainer.dataset.images[:500])
features = DiscriminatorFeatures(discriminator).transform(real)  # float32 (500, features)
likeness = cosine_similarity(torch.from_numpy(features[:1]), torch.from_numpy(features))
nearest = likeness.topk(8).indices  # the first image itself, then those most like it
save_png(image_grid(normalize(real[nearest]), columns=8), "nearest.png")
print(f"{run}; labels of the nearest: {trainer.dataset.labels[nearest].tolist()}")
