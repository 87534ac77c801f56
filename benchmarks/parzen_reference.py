"""Log-likelihoods of real images under Parzen windows on real images, beside scipy's float64: is the estimator right?

    python benchmarks/parzen_reference.py mnist    # half a minute on 2 cores; prints Markdown

The windows lie on the first 10,000 training images and are as wide as the last 10,000 find best: what a generator would
get that only remembers its training images. scipy's share is the first 500 test images.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from scipy.special import logsumexp

from dcgan_fast.data import prepare
from dcgan_fast.metrics import parzen_log_likelihood, search_sigma
from dcgan_fast.metrics.likelihood import pixels

SAMPLES, HELD_OUT, SUBSET = 10_000, 10_000, 500


def by_scipy(samples: np.ndarray, data: np.ndarray, sigma: float) -> np.ndarray:
    """As parzen_ll.py of goodfeli/adversarial: differences, squares, log of a mean of exponentials."""
    y = samples.astype(np.float64)
    squares = np.stack([((row - y) ** 2).sum(1) for row in data.astype(np.float64)])
    constant = math.log(len(y)) + y.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))
    return logsumexp(-squares / (2 * sigma**2), axis=1) - constant


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", help="mnist, or a path to images with a test split")
    parser.add_argument("--image-size", type=int, default=28)
    arguments = parser.parse_args()

    train, test = (
        pixels(prepare(arguments.data, image_size=arguments.image_size, split=split).images)
        for split in ("train", "test")
    )
    samples = train[:SAMPLES]
    sigma, _ = search_sigma(samples, train[-HELD_OUT:])
    ours = parzen_log_likelihood(samples, test, sigma)
    exact = by_scipy(samples.numpy(), test[:SUBSET].numpy(), sigma)
    difference = ours[:SUBSET].numpy() - exact
    error = ours.std() / math.sqrt(len(ours))
    titles = ("test images", "sigma", "ours, nats", "scipy, float64", "largest difference", "of the means")  # fmt: skip
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    print(f"| {len(test):,} | {sigma:.3f} | {ours.mean():.2f} ± {error:.2f} | | | |")
    cells = (f"the first {SUBSET}", f"{sigma:.3f}", f"{ours[:SUBSET].mean():.4f}", f"{exact.mean():.4f}",
             f"{np.abs(difference).max():.1e}", f"{abs(difference.mean()):.1e}")  # fmt: skip
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
