"""What is said of faults of the machine, and what is left as it is."""

import pytest
import torch

from sftctl.engine.run.faults import failing_run, less_memory, memory_said
from sftctl.errors import DataError, Problem, RunError, TrainingError

SETTINGS = {
    "per_device_train_batch_size": 5,
    "gradient_accumulation_steps": 3,
    "gradient_checkpointing": "selective",
    "activation_offloading": False,
    "max_length": 4096,
}
CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB. "
    "If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF. See documentation for more."
)
CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (torch.OutOfMemoryError(CUDA), "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB."),
        (RuntimeError(CPU), "out of memory: can't allocate memory: you tried to allocate 4294967296 bytes"),
        (MemoryError(), "out of memory: MemoryError"),
    ],
)
def test_memory_that_ran_out_is_said_with_what_needs_less(error, what):
    with pytest.raises(TrainingError) as said, memory_said(lambda: ("", None), **SETTINGS):
        raise error
    assert what in str(said.value)
    assert "PYTORCH_ALLOC_CONF" not in str(said.value)
    assert "train.per_device_train_batch_size = 3 and train.gradient_accumulation_steps = 6" in str(said.value)


def plan_fails():
    raise MemoryError


def test_the_plan_and_the_cheapest_change_are_said():
    with pytest.raises(TrainingError) as said, memory_said(lambda: ("the plan has 9 GB", "set a = 1"), **SETTINGS):
        raise MemoryError
    assert str(said.value) == "out of memory: MemoryError; the plan has 9 GB; set a = 1"
    with (
        pytest.raises(TrainingError, match=r"out of memory: MemoryError; set train\."),
        memory_said(plan_fails, **SETTINGS),
    ):
        raise MemoryError


def test_only_what_is_not_set_already_is_proposed():
    assert less_memory(**SETTINGS)[1:] == [
        "set train.gradient_checkpointing = true",
        "set sft.activation_offloading = true",
        "lower sft.max_length (now 4096)",
    ]
    used = {**SETTINGS, "per_device_train_batch_size": 1, "gradient_checkpointing": True, "activation_offloading": True}
    assert less_memory(**used) == ["lower sft.max_length (now 4096)"]


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"), memory_said(plan_fails, **SETTINGS):
        raise RuntimeError("shapes do not match")


def test_a_directory_that_refuses_during_the_run_is_a_failed_run():
    with pytest.raises(TrainingError, match="the disk is full") as said, failing_run():
        raise RunError(Problem("", "the disk is full"))
    assert said.value.exit_code == 1
    with pytest.raises(DataError), failing_run():
        raise DataError(Problem("", "a row"))
