"""Which stages a search goes through."""

from __future__ import annotations

from csqtool.searching.config import SearchConfig
from csqtool.searching.options import MethodKind
from csqtool.searching.records import Stage

FIXED_SCHEME = (Stage.FINETUNE, Stage.SHRINK)


def stages_of(config: SearchConfig, kind: MethodKind) -> list[Stage]:
    """Return the stages that a search goes through, but for shrinking, which few need.

    An allocator is asked when its finetuning begins.
    """
    stages = [Stage.FLOAT] if config.pretrain_epochs else []
    if kind.allocates:
        return [*stages, Stage.FINETUNE]
    if not kind.searches:
        return [*stages, Stage.TRAIN]
    settled = config.finetune_epochs or config.repair or config.contiguous
    return [*stages, Stage.SEARCH, Stage.FINETUNE] if settled else [*stages, Stage.SEARCH]
