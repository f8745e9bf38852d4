"""What torch, CUDA and their like say, and what it means."""

from __future__ import annotations

import errno

import pytest
import torch

from storyreel.errors import DamagedError
from storyreel.models.device_errors import device_error, lacks_memory
from storyreel.models.loading import read_component
from tests.conftest import ROOT

MEMORY = [
    torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.32 GiB. GPU 0 has a total capacity of 23.64 GiB"
    ),
    torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory."),
    torch.AcceleratorError(
        "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com/cuda/"
    ),
    RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable …"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasLtMatmul( ltHandle, …)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate_v2(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB)"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA Error while trying to pin memory. error: 2, ptr: 140, size: 1000"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
        "to allocate 4096 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:75] data. DefaultCPUAllocator: not enough memory: you tried"
    ),
    RuntimeError("unable to mmap 1000 bytes from file <a.safetensors>: Cannot allocate memory (12)"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    MemoryError(),
]
OF_MACHINE = ("CPUAllocator", "Cannot allocate", "pin memory", "HOST_ALLOCATION")
LOST = [
    torch.AcceleratorError("CUDA error: unspecified launch failure\nCompile with …"),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: the launch timed out and was terminated"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, …)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("HIP error: unspecified launch failure"),
    RuntimeError("CUDA driver error: device kernel image is invalid"),
]
NEITHER = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)"),
    RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned"),
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    ValueError("out of memory"),
    OSError("CUDA error"),
    OSError(errno.ENOSPC, "No space left on device"),
    KeyError("CUDA error: out of memory"),
]


@pytest.mark.parametrize("error", MEMORY, ids=lambda error: str(error)[:40])
def test_a_lack_of_memory_is_one(error: Exception) -> None:
    assert lacks_memory(error)
    told = device_error(error)
    assert told is not None
    of_machine = isinstance(error, MemoryError) or any(words in str(error) for words in OF_MACHINE)
    who = "this machine" if of_machine else "the device"
    assert told.message.startswith(f"{who} has too little memory")
    assert "\n" not in told.message
    with pytest.raises(type(error)):  # and no weight is damaged
        read_component(lambda _: (_ for _ in ()).throw(error), ROOT)


@pytest.mark.parametrize("error", LOST, ids=lambda error: str(error)[:40])
def test_a_lost_gpu_is_one(error: Exception) -> None:
    assert not lacks_memory(error)
    told = device_error(error)
    assert told is not None
    assert told.message.startswith("the GPU is lost (")
    with pytest.raises(DamagedError):
        read_component(lambda _: (_ for _ in ()).throw(error), ROOT)


@pytest.mark.parametrize("error", NEITHER, ids=str)
def test_everything_else_is_neither(error: Exception) -> None:
    assert not lacks_memory(error)
    assert device_error(error) is None


def test_a_gpu_that_torch_does_not_know_is_not_lost() -> None:
    told = device_error(RuntimeError("CUDA error: no kernel image is available for execution on the device"))
    assert told is not None
    assert "build of torch" in told.message
