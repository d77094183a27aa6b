"""What the driver says of GPUs, by NVML (https://docs.nvidia.com/deploy/nvml-api/); nothing on a host without one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Seconds until a driver that was not there is looked for again.
RETRY_SECONDS = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gpu:
    """State of one GPU; None is what this card, or this slice of one, does not tell.

    Attributes:
        memory_used: bytes.
        memory_total: bytes.
        utilization: share of the last sample period in which a kernel ran, 0 to 1.
        temperature: degrees Celsius.
        ecc_corrected: memory errors over the life of the card that were corrected.
        ecc_uncorrected: those that were not.
    """

    memory_used: int | None
    memory_total: int | None
    utilization: float | None
    temperature: float | None
    ecc_corrected: int | None
    ecc_uncorrected: int | None


class Gpus:
    """The driver of this host.

    Args:
        nvml: the module ``pynvml``, or what stands in for it; imported when not given.
        clock: gives the time in seconds.
    """

    def __init__(self, nvml: Any = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._nvml = nvml
        self._clock = clock
        self._works = False
        self._look_at = 0.0

    def ask(self, uuid: str) -> Gpu | None:
        """State of the GPU or MIG slice with this UUID; None when there is no driver, or it does not know it."""
        if not self._ready():
            return None
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        except nvml.NVMLError as error:
            if error.value in (nvml.NVML_ERROR_UNINITIALIZED, nvml.NVML_ERROR_DRIVER_NOT_LOADED):
                self._works = False
            return None
        memory = self._one(nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = self._one(nvml.nvmlDeviceGetUtilizationRates, handle)
        total = nvml.NVML_AGGREGATE_ECC
        return Gpu(
            memory_used=None if memory is None else int(memory.used),
            memory_total=None if memory is None else int(memory.total),
            utilization=None if rates is None else rates.gpu / 100.0,
            temperature=self._one(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            ecc_corrected=self._one(
                nvml.nvmlDeviceGetTotalEccErrors, handle, nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, total
            ),
            ecc_uncorrected=self._one(
                nvml.nvmlDeviceGetTotalEccErrors, handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, total
            ),
        )

    def _one(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return ask(*arguments)
        except self._nvml.NVMLError:
            # Most likely not supported: a slice has no temperature, a consumer card no ECC.
            return None

    def _ready(self) -> bool:
        if self._works:
            return True
        if self._clock() < self._look_at:
            return False
        self._look_at = self._clock() + RETRY_SECONDS
        try:
            if self._nvml is None:
                import pynvml

                self._nvml = pynvml
            self._nvml.nvmlInit()
        except ImportError:
            return False
        except self._nvml.NVMLError as error:
            _log.info("no_driver", extra={"facts": {"reason": str(error)}})
            return False
        self._works = True
        return True
