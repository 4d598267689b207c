"""Gradients are bitwise what they are without offloading; what must stay, stays; nothing is left behind."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sftctl.engine.memory.host_copies import CudaTransfer, HostCopy, Slabs
from sftctl.engine.memory.offloading import ActivationOffloading, byte_range, longest_module_list
from sftctl.engine.model.checkpointing import set_gradient_checkpointing
from sftctl.engine.model.loading import load_model

IDS = torch.arange(48).reshape(2, 24) % 50
NEEDS_CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CUDA = pytest.param("cuda", marks=NEEDS_CUDA)
DEVICES = pytest.mark.parametrize("device", ["cpu", CUDA])


def model_of(mode: Any = False, *, device: str = "cpu") -> Any:
    model = load_model(
        name_or_path=None,
        init="random",
        architecture={
            "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2,
        },
        vocab_size=50,
        token_ids={},
        seed=0,
    )  # fmt: skip
    set_gradient_checkpointing(model, mode)
    return model.to(device)


def gradients(
    model: Any, around: contextlib.AbstractContextManager[Any] | None = None, *, autocast: bool = False
) -> dict[str, Tensor]:
    model.zero_grad()
    ids = IDS.to(model.device)
    with around or contextlib.nullcontext():
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_bitwise(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


class Keep(torch.autograd.Function):
    """Saves tensors as an operation would, and shows what came back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, show: Callable[..., None], *saved: Tensor) -> Tensor:
        ctx.show = show
        ctx.save_for_backward(*saved)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ctx.show(*ctx.saved_tensors)
        return (grad, None, *(None for _ in ctx.saved_tensors))


def keep(*saved: Tensor, show: Callable[..., None] = lambda *_: None) -> Tensor:
    return Keep.apply(torch.zeros((), requires_grad=True), show, *saved)


@pytest.fixture
def offloading() -> ActivationOffloading:
    return ActivationOffloading(nn.Module(), min_offload_bytes=0, slab_bytes=4096)


class TestGradients:
    @DEVICES
    @pytest.mark.parametrize("mode", [False, True, "selective"])
    def test_are_bitwise_equal(self, mode: Any, device: str) -> None:
        """With every tensor offloaded, whatever its size, and over several steps with one object."""
        model = model_of(mode, device=device)
        expected = gradients(model)
        offloading = ActivationOffloading(model, min_offload_bytes=0)
        for _ in range(3):
            assert_bitwise(gradients(model, offloading), expected)
        assert offloading.statistics.tensors > 3 * longest_module_list(model)

    @DEVICES
    @pytest.mark.parametrize("mode", [False, True])
    def test_under_autocast(self, mode: Any, device: str) -> None:
        model = model_of(mode, device=device)
        expected = gradients(model, autocast=True)
        assert_bitwise(gradients(model, ActivationOffloading(model, min_offload_bytes=0), autocast=True), expected)

    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
    def test_of_compiled_blocks(self) -> None:
        """A compiled block saves its tensors through the same hooks; nothing of it is traced."""
        torch._dynamo.reset()
        model = model_of()
        for layer in model.model.layers:
            layer.compile(backend="aot_eager")
        expected = gradients(model)
        offloading = ActivationOffloading(model, min_offload_bytes=0)
        assert_bitwise(gradients(model, offloading), expected)
        assert_bitwise(gradients(model, offloading), expected)
        assert offloading.statistics.tensors > 0
        torch._dynamo.reset()

    def test_with_fsdp(self, tmp_path: Path) -> None:
        """Unsharded parameters come and go under fully_shard; they and their views stay."""
        from torch.distributed.fsdp import fully_shard

        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
        try:
            mesh = torch.distributed.init_device_mesh("cpu", (1,))
            model = model_of()
            for layer in model.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            expected = {name: grad.full_tensor() for name, grad in gradients(model).items()}
            offloading = ActivationOffloading(model, min_offload_bytes=0)
            actual = {name: grad.full_tensor() for name, grad in gradients(model, offloading).items()}
        finally:
            torch.distributed.destroy_process_group()
        assert_bitwise(actual, expected)

    def test_twice_through_a_kept_graph(self, offloading: ActivationOffloading) -> None:
        x = torch.randn(50, requires_grad=True)
        with offloading:
            y = (x.exp() * x).sum()
            y.backward(retain_graph=True)
            once = x.grad.clone()
            y.backward()
        assert torch.equal(x.grad, 2 * once)


class TestWhatComesBack:
    @given(st.data())
    @settings(deadline=None, max_examples=150)
    def test_any_strided_view_is_restored_exactly(self, data: st.DataObject) -> None:
        """Transposed, sliced, broadcast (stride 0), overlapping, offset, of any dtype: values and strides."""
        dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]))
        storage = torch.arange(data.draw(st.integers(1, 200))).to(dtype)
        shape = data.draw(st.lists(st.integers(0, 5), max_size=3))
        stride = data.draw(st.lists(st.integers(0, 7), min_size=len(shape), max_size=len(shape)))
        span = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True) if size)
        offset = data.draw(st.integers(0, len(storage)))
        if offset + span > len(storage):
            return
        view = storage.as_strided(shape, stride, offset)
        offloading = ActivationOffloading(nn.Module(), min_offload_bytes=0, slab_bytes=1024)
        seen: list[Tensor] = []
        with offloading:
            keep(view, show=lambda tensor: seen.append(tensor.clone()) or seen.append(tensor)).backward()
        clone, restored = seen
        assert torch.equal(clone, view)
        assert (restored.dtype, restored.stride()) == (view.dtype, view.stride())

    def test_the_bytes_a_tensor_covers(self) -> None:
        """The docstring's example, and the empty one."""
        storage = torch.zeros(12)
        assert byte_range(storage.as_strided((2, 3), (6, 1), 2)) == (8, 44)
        assert byte_range(storage[5:5]) == (20, 20)
        assert byte_range(storage[3].expand(100)) == (12, 16)

    def test_a_small_part_of_a_storage_travels_alone(self, offloading: ActivationOffloading) -> None:
        storage = torch.arange(1000.0)
        with offloading:
            keep(storage[900:910])
            assert offloading.statistics.bytes_to_host == 40
            keep(storage[100:900])
            assert offloading.statistics.bytes_to_host == 40 + 4000

    def test_a_tensor_changed_after_it_was_saved_is_copied_again(self, offloading: ActivationOffloading) -> None:
        """Its version is part of its name: the second save must not find the first one's bytes."""
        x, seen = torch.zeros(8), []
        with offloading:
            first = keep(x, show=lambda tensor: seen.append(tensor.clone()))
            x.add_(1)
            second = keep(x, show=lambda tensor: seen.append(tensor.clone()))
            (first + second).backward()
        assert sorted(float(tensor[0]) for tensor in seen) == [0, 1]


class TestWhatStays:
    def test_parameters_their_views_and_buffers(self) -> None:
        model = nn.Linear(16, 16)
        model.register_buffer("table", torch.ones(16))
        offloading = ActivationOffloading(model, min_offload_bytes=0)
        with offloading:
            keep(model.weight, model.weight.T, model.weight[3:, 2:], model.weight.detach(), model.table)
            assert offloading.statistics.tensors == 0
            keep(torch.ones(16))
            assert offloading.statistics.tensors == 1

    def test_a_parameter_the_model_does_not_show(self, offloading: ActivationOffloading) -> None:
        """As FSDP2's unsharded ones."""
        with offloading:
            keep(nn.Parameter(torch.ones(16)), nn.Parameter(torch.ones(4, 4)).T)
        assert offloading.statistics.tensors == 0

    def test_autocast_copies_of_weights(self) -> None:
        """Per linear layer the input travels, once; the bf16 weight does not."""
        model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
        offloading = ActivationOffloading(model, min_offload_bytes=0)
        with offloading, torch.autocast("cpu", torch.bfloat16):
            model(torch.ones(4, 16))
        assert offloading.statistics.bytes_to_host == 2 * 4 * 16 * 2

    def test_small_tensors(self) -> None:
        offloading = ActivationOffloading(nn.Module(), min_offload_bytes=1024)
        with offloading:
            keep(torch.ones(255), torch.ones(1000)[:255], torch.ones(1).expand(10_000))
            assert offloading.statistics.tensors == 0
            keep(torch.ones(256))
            assert offloading.statistics.tensors == 1

    def test_the_default_limit_is_a_mebibyte(self) -> None:
        offloading = ActivationOffloading(nn.Module())
        with offloading:
            keep(torch.ones(2**18 - 1), torch.ones(2**18))
        assert offloading.statistics.bytes_to_host == 2**20

    def test_what_is_saved_while_paused(self, offloading: ActivationOffloading) -> None:
        with offloading:
            with offloading.paused():
                keep(torch.ones(99))
            assert offloading.statistics.tensors == 0
            keep(torch.ones(99))
        assert offloading.statistics.tensors == 1

    def test_views_that_are_more_than_strides(self, offloading: ActivationOffloading) -> None:
        """A conjugate is lazy: its storage alone does not tell its values."""
        seen: list[Tensor] = []
        with offloading:
            keep(torch.tensor([1 + 2j]).conj(), show=lambda tensor: seen.append(tensor.resolve_conj())).backward()
        assert seen[0].item() == 1 - 2j
        assert offloading.statistics.tensors == 0


class TestSharing:
    def test_a_tensor_saved_twice_travels_once(self, offloading: ActivationOffloading) -> None:
        """Under other shapes too, and both come back on one device storage."""
        x, seen = torch.arange(64.0), []
        with offloading:
            first = keep(x, show=seen.append)
            second = keep(x.view(8, 8).T, x[5:], show=lambda *tensors: seen.extend(tensors))
            (first + second).backward()
        statistics = offloading.statistics
        assert (statistics.tensors, statistics.shared_tensors) == (1, 2)
        assert statistics.bytes_to_host == statistics.bytes_to_device == 256
        assert len({tensor.untyped_storage().data_ptr() for tensor in seen}) == 1
        transposed, tail = seen[0], seen[1]
        assert torch.equal(transposed, x.view(8, 8).T)
        assert torch.equal(tail, x[5:])

    def test_a_small_part_of_what_travels_goes_with_it(self) -> None:
        offloading = ActivationOffloading(nn.Module(), min_offload_bytes=1024)
        x = torch.arange(1000.0)
        with offloading:
            whole = keep(x)
            (whole + keep(x[7:9])).backward()
        assert offloading.statistics.shared_tensors == 1

    def test_the_host_copy_lives_as_long_as_one_of_them(self, offloading: ActivationOffloading) -> None:
        x = torch.ones(64)
        with offloading:
            first, second = keep(x), keep(x)
            assert live_copies() == 1
            first.backward()
            assert live_copies() == 1
            second.backward()
            assert live_copies() == 0

    def test_nothing_is_left_on_the_device(self, offloading: ActivationOffloading) -> None:
        """After forward the storages of activations are gone, though the graph is alive."""
        x = torch.randn(64, requires_grad=True)
        with offloading:
            hidden = x * 2
            storage = hidden.untyped_storage()._weak_ref()
            loss = (hidden.exp() + hidden.sin()).sum()
            del hidden
            gc.collect()
            assert torch.UntypedStorage._expired(storage)
            loss.backward()
        torch.UntypedStorage._free_weak_ref(storage)
        assert x.grad is not None

    def test_another_tensor_in_the_same_memory_is_not_taken_for_it(self, offloading: ActivationOffloading) -> None:
        """The allocator gives freed memory out again; a host copy must not answer for the new tenant."""
        seen: list[float] = []
        with offloading:
            losses = []
            for value in range(50):
                losses.append(keep(torch.full((64,), float(value)), show=lambda t: seen.append(float(t[0]))))
            sum(losses).backward()
        assert sorted(seen) == [float(value) for value in range(50)]


class TestState:
    def test_an_exception_in_the_forward_leaves_nothing(self) -> None:
        """No hooks, no copies, no lost host memory; the next pass is as if nothing had been."""
        model = model_of()
        expected = gradients(model)
        offloading = ActivationOffloading(model, min_offload_bytes=0)
        gradients(model, offloading)
        host_bytes = offloading.statistics.host_bytes

        def fail_in(*_: Any) -> None:
            raise RuntimeError("in the middle")

        hook = model.model.layers[1].register_forward_pre_hook(fail_in)
        with contextlib.suppress(RuntimeError):
            gradients(model, offloading)
        hook.remove()
        assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None
        gc.collect()
        assert live_copies() == 0
        assert_bitwise(gradients(model, offloading), expected)
        assert offloading.statistics.host_bytes == host_bytes

    def test_no_growth_over_200_steps(self) -> None:
        """Host memory is that of the largest pass, and no copy outlives its pass, whatever the lengths."""
        weight = torch.ones(8, requires_grad=True)
        offloading = ActivationOffloading(nn.Module(), min_offload_bytes=0, slab_bytes=4096)

        def step(length: int) -> None:
            with offloading:
                (torch.ones(length, 8) * weight).exp().square().sum().backward()

        step(200)
        host_bytes = offloading.statistics.host_bytes
        for number in range(200):
            step(1 + number * 37 % 200)
            assert live_copies() == 0
        assert offloading.statistics.host_bytes == host_bytes
        assert offloading.statistics.passes == 201

    def test_a_graph_that_outlives_its_pass_keeps_its_host_copy(self, offloading: ActivationOffloading) -> None:
        """Later passes fill other slabs; its gradient is still right, and its slab is let go with it."""
        x = torch.arange(1.0, 65.0, requires_grad=True)
        with offloading:
            late = x.log().sum()
        for _ in range(3):
            with offloading:
                keep(torch.zeros(1000)).backward()
        late.backward()
        torch.testing.assert_close(x.grad, 1 / x.detach())
        del late
        assert live_copies() == 0

    def test_one_pass_at_a_time(self, offloading: ActivationOffloading) -> None:
        with offloading, pytest.raises(AssertionError):
            offloading.__enter__()


class TestPrefetch:
    def test_comes_back_one_block_ahead(self) -> None:
        """Six tensors in three blocks: when backward asks for number 5, 4 and 3 start; for 4, 2; and so on."""
        offloading = ActivationOffloading(nn.Module(), min_offload_bytes=0, num_blocks=3)
        order: list[tuple[str, int]] = []
        to_device = offloading._transfer.to_device

        def recorded(copy: HostCopy) -> None:
            order.append(("fetch", copy.index))
            to_device(copy)

        offloading._transfer.to_device = recorded  # type: ignore[method-assign]
        x = torch.zeros((), requires_grad=True)
        with offloading:
            for index in range(6):
                x = Keep.apply(x, lambda _, index=index: order.append(("use", index)), torch.ones(64))
            x.backward()
        assert order == [
            ("fetch", 5), ("fetch", 4), ("fetch", 3), ("use", 5),
            ("fetch", 2), ("use", 4),
            ("fetch", 1), ("use", 3),
            ("fetch", 0), ("use", 2),
            ("use", 1), ("use", 0),
        ]  # fmt: skip
        assert offloading.statistics.bytes_to_device == offloading.statistics.bytes_to_host

    def test_blocks_are_the_longest_list_of_modules(self) -> None:
        assert longest_module_list(model_of()) == 3
        assert longest_module_list(nn.Linear(2, 2)) == 1


def test_slabs_are_filled_again_from_the_start() -> None:
    slabs = Slabs(4096, pinned=False)
    first = slabs.take(3000)[1].data_ptr()
    assert slabs.take(3000)[1].data_ptr() not in range(first, first + 3000)
    assert slabs.take(10_000)[1].numel() == 10_000
    assert slabs.num_bytes == 4096 + 4096 + 16_384
    slabs.rewind()
    assert slabs.take(100)[1].data_ptr() == first
    assert slabs.take(100)[1].data_ptr() == first + 512
    assert slabs.num_bytes == 4096 + 4096 + 16_384


class LateStream:
    """A stream that does its work as late as its promises allow: only when something waits for it."""

    def __init__(self, *_: Any) -> None:
        self.queue: list[Callable[[], Any]] = []
        self.num_done = 0

    def record_event(self) -> LateEvent:
        return LateEvent(self, len(self.queue))

    def wait_event(self, event: LateEvent) -> None:
        self.queue.append(event.happen)

    def wait_stream(self, stream: LateStream) -> None:
        self.wait_event(stream.record_event())

    def run_to(self, position: int) -> None:
        while self.num_done < position:
            self.num_done += 1
            self.queue[self.num_done - 1]()


class ComputeStream(LateStream):
    """Here the test's own operations run, at once; so what it waits for must have happened when it goes on."""

    def wait_event(self, event: LateEvent) -> None:
        event.happen()


class LateEvent:
    query_says = False

    def __init__(self, stream: LateStream, position: int) -> None:
        self.stream = stream
        self.position = position

    def happen(self) -> None:
        self.stream.run_to(self.position)

    def query(self) -> bool:
        if self.query_says:
            self.happen()
        return self.query_says


class OnStream(TorchDispatchMode):
    """Copies inside go to the stream's queue."""

    def __init__(self, stream: LateStream) -> None:
        super().__init__()
        self.stream = stream

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is torch.ops.aten.copy_.default
        self.stream.queue.append(lambda: args[0].copy_(args[1]))
        return args[0]


class TestStreams:
    """The CUDA transfers' order, without CUDA: on streams that run late, every missing wait gives wrong bytes."""

    @pytest.fixture(params=[(False, 0), (False, 2**30), (True, 2**30), (False, 3000)])
    def late(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ActivationOffloading:
        query_says, max_in_flight_bytes = request.param
        compute = ComputeStream()
        monkeypatch.setattr(LateEvent, "query_says", query_says)
        monkeypatch.setattr(torch.cuda, "Stream", LateStream)
        monkeypatch.setattr(torch.cuda, "stream", OnStream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: compute)
        offloading = ActivationOffloading(nn.Module(), min_offload_bytes=0, num_blocks=4, slab_bytes=2**16)
        offloading._transfer = CudaTransfer(
            torch.device("cpu"), max_in_flight_bytes=max_in_flight_bytes, measure_stalls=False
        )
        return offloading

    def test_every_byte_arrives_before_it_is_used(self, late: ActivationOffloading) -> None:
        """Two passes, so that host memory is written again; each tensor saved by two users."""
        for number in range(2):
            loss, seen = torch.zeros(()), []
            with late:
                for index in range(12):
                    saved = torch.full((250,), float(100 * number + index))
                    for _ in range(2):
                        loss = loss + keep(saved, show=lambda tensor, seen=seen: seen.append(tensor.clone()))
                loss.backward()
            expected = [torch.full((250,), float(100 * number + index)) for index in range(12) for _ in range(2)]
            assert torch.equal(torch.stack(seen).sort(0).values, torch.stack(expected))

    def test_nothing_is_under_way_after_a_pass(self, late: ActivationOffloading) -> None:
        with contextlib.suppress(RuntimeError), late:
            kept = [keep(torch.ones(250)) for _ in range(5)]
            kept[2].backward()
            raise RuntimeError
        for stream in (late._transfer._out, late._transfer._back):
            assert stream.num_done == len(stream.queue)

    def test_sources_in_flight_are_bounded_and_used_where_they_are(self, late: ActivationOffloading) -> None:
        with late:
            kept = [keep(torch.ones(250)) for _ in range(5)]
            assert late._transfer._in_flight_bytes <= late._transfer._max_in_flight_bytes
            num_home = len(late._transfer._in_flight)
            sum(reversed(kept)).backward()
            assert late._transfer._in_flight_bytes <= 1000  # that of the last to be read
        assert late.statistics.bytes_to_device == 1000 * (5 - num_home)


class TestCuda:
    pytestmark = NEEDS_CUDA

    def model_and_input(self) -> tuple[nn.Sequential, Tensor]:
        torch.manual_seed(0)
        blocks = nn.ModuleList(nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024)) for _ in range(8))
        return nn.Sequential(*blocks).cuda(), torch.randn(8192, 1024, device="cuda")

    def peak_bytes(self, model: nn.Module, x: Tensor, around: contextlib.AbstractContextManager[Any]) -> int:
        model.zero_grad()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        with around:
            model(x).square().mean().backward()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    def test_device_memory_falls_and_gradients_stay(self) -> None:
        model, x = self.model_and_input()
        before = self.peak_bytes(model, x, contextlib.nullcontext())
        expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        offloading = ActivationOffloading(model, num_blocks=8, max_in_flight_bytes=2**28)
        for _ in range(5):
            after = self.peak_bytes(model, x, offloading)
            assert_bitwise({name: parameter.grad for name, parameter in model.named_parameters()}, expected)
        assert after < 0.6 * before

    def test_stalls_are_measured(self) -> None:
        model, x = self.model_and_input()
        offloading = ActivationOffloading(model, num_blocks=8, measure_stalls=True)
        self.peak_bytes(model, x, offloading)
        assert offloading.statistics.stall_seconds is not None
        assert offloading.statistics.stall_seconds >= 0

    def test_an_exception_in_the_forward(self) -> None:
        model, x = self.model_and_input()
        offloading = ActivationOffloading(model, num_blocks=8)
        with contextlib.suppress(RuntimeError), offloading:
            model(x)
            raise RuntimeError
        self.peak_bytes(model, x, contextlib.nullcontext())
        expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        self.peak_bytes(model, x, offloading)
        assert_bitwise({name: parameter.grad for name, parameter in model.named_parameters()}, expected)


def live_copies() -> int:
    return sum(type(thing) is HostCopy for thing in gc.get_objects())
