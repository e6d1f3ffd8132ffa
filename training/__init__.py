"""Training: uses encoders, mines with a retriever; nothing below it imports it.

Names are loaded when they are first used: importing this package imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from retrievers.lazy import lazily

if TYPE_CHECKING:
    from retrievers.training.augmentation import augment as augment
    from retrievers.training.extractive import ExtractiveGenerator as ExtractiveGenerator
    from retrievers.training.few_shot import FewShotCollator as FewShotCollator
    from retrievers.training.few_shot import FewShotSet as FewShotSet
    from retrievers.training.joining import Joiner as Joiner
    from retrievers.training.joining import UnifiedQA as UnifiedQA
    from retrievers.training.marginal import marginalize_sequence as marginalize_sequence
    from retrievers.training.marginal import marginalize_token as marginalize_token
    from retrievers.training.meta import MetaTrainer as MetaTrainer
    from retrievers.training.schedule import Schedule as Schedule

_HOMES = {
    "ExtractiveGenerator": "extractive",
    "FewShotCollator": "few_shot",
    "FewShotSet": "few_shot",
    "Joiner": "joining",
    "MetaTrainer": "meta",
    "Schedule": "schedule",
    "UnifiedQA": "joining",
    "augment": "augmentation",
    "marginalize_sequence": "marginal",
    "marginalize_token": "marginal",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazily(__name__, _HOMES, globals())
