"""Features of a trained discriminator and linear classifiers on them: the DCGAN paper's sections 5.1 and 5.2.

:class:`DiscriminatorFeatures` makes the features, :class:`LinearSVM` fits linear L2-SVMs of all classes at once.
"""

from __future__ import annotations

from . import reference
from .discriminator import DiscriminatorFeatures
from .svm import LinearSVM

__all__ = ["DiscriminatorFeatures", "LinearSVM", "reference"]
