from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from csqtool.nn import gate_kernels
from csqtool.nn.activation import ActivationFakeQuantizer
from csqtool.nn.gates import BitGates
from csqtool.nn.kernels import Kernel
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.nn.weights import attach, weights_called
from csqtool.searching.bsq import BitWeight


def logits(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def by_autograd(m_p: Tensor, m_n: Tensor, s: Tensor, m_b: Tensor | None, weights: Tensor, beta: Tensor) -> Tensor:
    """CSQ, eq. 5 and 3, as they are written."""
    masks = 1 if m_b is None else torch.sigmoid(beta * m_b)
    digits = torch.sigmoid(beta * m_p) - torch.sigmoid(beta * m_n)
    return torch.tensordot(s * weights * masks, digits, dims=1)


def use(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forms = {"fusible": "_fusible", "few_launches": "_few_launches"}
    if form in forms:
        for kernel in Kernel._all:
            monkeypatch.setattr(kernel, "_active", getattr(kernel, forms[form]))


@pytest.mark.parametrize("form", ["by_plane", "fusible", "few_launches"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("weight_steps", [True, False])
def test_the_gate_kernel_is_equation_5_and_its_gradients(
    form: str, masked: bool, weight_steps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    use(form, monkeypatch)
    m_p, m_n, s, m_b = logits(5, 4, 3), logits(5, 4, 3), logits(), logits(5) if masked else None
    constants = torch.rand(5, dtype=torch.float64), torch.tensor(2.5, dtype=torch.float64)
    wanted = by_autograd(m_p, m_n, s, m_b, *constants)
    step = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True) if weight_steps else None
    p, n = (m_p.detach(), m_n.detach()) if weight_steps else (m_p, m_n)
    found, coefficients = gate_kernels.soft_weight(p, n, s, m_b, *constants, step=step)
    assert torch.allclose(found, wanted)
    assert not coefficients.requires_grad
    seed = torch.randn_like(wanted)
    arguments = [x for x in (s, m_b) if x is not None] + ([] if weight_steps else [m_p, m_n])
    for a, b in zip(
        torch.autograd.grad(found, arguments, seed, retain_graph=True), torch.autograd.grad(wanted, arguments, seed),
        strict=True,
    ):  # fmt: skip
        assert torch.allclose(a, b)
    if step is not None:
        assert torch.equal(torch.autograd.grad(found, step, seed)[0], seed)


@pytest.mark.parametrize("form", ["by_plane", "fusible", "few_launches"])
@pytest.mark.parametrize("closed", [[], [0, 3]])
def test_steps_of_the_weight_without_momentum_are_gradient_descent_of_the_logits(
    form: str, closed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(form, monkeypatch)
    torch.manual_seed(0)
    start, wanted = torch.randn(6, 5), torch.randn(6, 5)
    trained = []
    for weight_steps in (False, True):
        gates = BitGates(start, range(8), mask_init=0.05, weight_steps=weight_steps)
        assert gates.m_b is not None
        gates.beta.fill_(3.0)
        gates.m_b.data[closed] = -100.0
        gates.leave_closed_planes()
        optimizer = torch.optim.SGD([p for p in gates.parameters() if p.requires_grad], lr=0.5)
        for _ in range(5):
            optimizer.zero_grad()
            (gates() - wanted).square().sum().backward()
            optimizer.step()
            gates.take_step()
        trained.append([gates.m_p, gates.m_n, gates.m_b, gates.s])
    assert trained[0][0].shape == (8, 6, 5)
    torch.testing.assert_close(trained[0], trained[1], rtol=1e-5, atol=1e-6)
    assert float((trained[1][0].abs() - 1).abs().max()) > 0.1  # they moved


def test_steps_of_the_weight_need_neither_gradients_nor_momenta_of_logits() -> None:
    gates = BitGates(torch.randn(6, 5), range(8), mask_init=0.05, weight_steps=True)
    optimizer = torch.optim.SGD([p for p in gates.parameters() if p.requires_grad], lr=0.5, momentum=0.9)
    gates().sum().backward()
    optimizer.step()
    gates.take_step()
    state = [value.numel() for of_one in optimizer.state.values() for value in of_one.values()]
    assert sorted(state) == [1, 8, 30]  # s, m_B, the weight
    assert gates.m_p.grad is None
    assert gates.step is not None
    assert not gates.step.any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch.compile
def test_compiled_kernels_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 4, 3, 3)
    results: list[list[Tensor]] = []
    for wanted in ("no", "yes"):
        assert Kernel.choose(wanted, element_steps=0) == (wanted == "yes")
        results.append([])
        for weight_steps in (False, True):
            gates = BitGates(weight, range(8), mask_init=0.05, weight_steps=weight_steps)
            gates().square().sum().backward()
            results[-1] += [p.grad.clone() for p in gates.parameters() if p.grad is not None]
        assert gates.step is not None
        gates.step.data.copy_(weight)
        gates.take_step()
        results[-1] += [gates.m_p, gates.m_n]
    Kernel.choose("no", element_steps=0)
    assert len(results[0]) == 9
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore::DeprecationWarning")  # inside torch.compile
def test_kernels_are_compiled_a_few_times_for_any_layers_and_quantizers(monkeypatch: pytest.MonkeyPatch) -> None:
    # A kernel that is compiled anew for each layer or range soon hits torch's limit, and then runs uncompiled.
    counters: Any = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    for kernel in Kernel._all:
        monkeypatch.setattr(kernel, "_compiled", None)
    convolutions: list[nn.Module] = [nn.Conv1d(4, 4, 3, padding=1) for _ in range(4)]
    convolutions += [nn.Conv1d(4 + 2 * i, 6 + 2 * i, 1 + 2 * i, padding=i) for i in range(7)]
    model = nn.Sequential(*convolutions, nn.Linear(9, 5))
    for i, weight in enumerate(weights_called(model, [f"{i}.weight" for i in range(12)])):
        attach(weight, BitGates(weight.parameter, range(1 + i % 8), mask_init=0.05, weight_steps=i % 2 == 0))
    quantizers = [ActivationFakeQuantizer(f"{i}.output", 2 + i % 7) for i in range(12)]
    for i, quantizer in enumerate(quantizers):
        quantizer.set_zero_point(i % 4)
    net = QuantizedNet(model, quantizers)
    try:
        assert Kernel.choose("yes", element_steps=0)
        net(torch.randn(3, 4, 9)).sum().backward()
        assert counters["stats"]["unique_graphs"] <= 3 * len(Kernel._all) + 8  # one kernel once for each k
        assert not [reason for reason in counters["unimplemented"] if "limit" in str(reason)]
    finally:
        Kernel.choose("no", element_steps=0)


@pytest.mark.parametrize("weight", [torch.randn(6, 5, 3), torch.randn(3, 5, 6).movedim(0, 2)])
def test_logits_lie_plane_by_plane_in_memory(weight: Tensor) -> None:
    gates = BitGates(weight, range(8), mask_init=0.05)
    bits = BitWeight(weight, range(8), n_planes=8)
    assert all(logits.is_contiguous() for logits in (gates.m_p, gates.m_n, bits.p, bits.n))


def test_without_a_compiler_the_eager_kernels_run_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler was found"):
        assert not Kernel.choose("yes", element_steps=0)
    assert gate_kernels._gradients_kernel._active is gate_kernels._gradients_by_plane


def test_small_runs_and_runs_on_a_gpu_are_not_compiled() -> None:
    assert not Kernel.choose("auto", element_steps=1e6)
    assert not Kernel.choose("auto", element_steps=1e12, device="cuda")


@pytest.mark.parametrize("weight_steps", [False, True])
@pytest.mark.parametrize(
    ("closed", "holes"), [([0, 1, 2], False), ([0, 7], False), ([0, 1, 2, 3, 5, 6, 7], False), ([2, 3, 6], True)]
)
def test_closed_planes_leave_the_computation_without_changing_weight_or_gradients(
    closed: list[int], holes: bool, weight_steps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    kernel = gate_kernels._scale_gradients_kernel if weight_steps else gate_kernels._gradients_kernel

    def counted(m_p: Tensor, *more: Tensor) -> Any:
        computed[-1] += len(m_p)
        return kernel._eager(m_p, *more)

    monkeypatch.setattr(kernel, "_active", counted)
    torch.manual_seed(0)
    gates = BitGates(torch.randn(6, 5), range(8), mask_init=0.05, weight_steps=weight_steps)
    assert gates.m_b is not None
    gates.beta.fill_(200.0)
    gates.m_b.data[closed] = -1.0  # σ(−200) is 0 in float32
    results = []
    for leave in (False, True):
        if leave:
            gates.leave_closed_planes()
        computed.append(0)
        gates.zero_grad()
        weight = gates()
        weight.sum().backward()
        results.append([weight.detach(), *(p.grad.clone() for p in gates.parameters() if p.grad is not None)])
    assert computed == [8, 8 - len(closed)]
    resumed = BitGates(torch.randn(6, 5), range(8), mask_init=0.05, weight_steps=weight_steps)
    resumed.load_state_dict(gates.state_dict())
    computed.append(0)
    weight = resumed()
    weight.sum().backward()
    assert computed[-1] == 8 - len(closed)
    results.append([weight.detach(), *(p.grad.clone() for p in resumed.parameters() if p.grad is not None)])
    assert all(map(torch.equal, results[1], results.pop()))
    for a, b in zip(*results, strict=True):
        if holes:  # a sum around them rounds differently
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(a, b)


def test_gates_stay_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    gates = BitGates(torch.randn(6, 5), range(8), mask_init=0.05)
    plain = gates()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gates(), plain)
