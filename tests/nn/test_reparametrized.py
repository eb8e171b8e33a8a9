from __future__ import annotations

import pytest
import torch
from torch import nn

from csqtool.nn.reparametrized import copied, fold_parametrizations, load_and_fold
from tests.support.networks import OldStyle, Reparametrized

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


@pytest.mark.parametrize("kind", [Reparametrized, OldStyle])
def test_folded_weights_are_parameters_of_the_same_network_and_the_original_stays(kind: type[nn.Module]) -> None:
    model = kind().eval()
    x = torch.randn(2, 3, 8, 8)
    wanted = model(x)
    folded = copied(model)
    names = fold_parametrizations(folded)
    assert len(names) == 2
    assert set(names) < set(dict(folded.named_parameters()))
    assert torch.allclose(folded(x), wanted, atol=1e-6)
    assert torch.equal(model(x), wanted)
    assert fold_parametrizations(copied(model)) == names


def test_a_state_dict_of_before_and_of_after_folding_loads() -> None:
    source, x = Reparametrized().eval(), torch.randn(2, 3, 8, 8)
    before, wanted = source.state_dict(), source(x)
    after = copied(source)
    fold_parametrizations(after)
    for state in (before, after.state_dict()):
        model = Reparametrized().eval()
        load_and_fold(model, state, "weights")
        assert torch.allclose(model(x), wanted, atol=1e-6)
