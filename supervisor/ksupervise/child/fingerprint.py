"""What the bits of a training depend on besides its state: where it is computed, and by which versions."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping

_DRIVER = "/proc/driver/nvidia/version"


def take() -> dict[str, str]:
    """Devices, driver, threads, switches and versions, each as a short text."""
    prints = {"CPU": _processor(), "threads": _threads()}
    for number, name in enumerate(_accelerators()):
        prints[f"GPU {number}"] = name
    driver = _first_line(_DRIVER)
    if driver:
        prints["driver"] = driver
    for module in ("tensorflow", "keras", "numpy"):
        version = getattr(sys.modules.get(module), "__version__", "")
        if version:
            prints[module] = str(version)
    for name in ("TF_ENABLE_ONEDNN_OPTS", "TF_DETERMINISTIC_OPS", "XLA_FLAGS", "NVIDIA_TF32_OVERRIDE"):
        if os.environ.get(name):
            prints[name] = os.environ[name]
    return prints


def changes(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What differs, in words: "GPU 0: Tesla T4 → NVIDIA L4, keras: 3.13 → 3.15"; empty if nothing does."""
    names = [*then, *(name for name in now if name not in then)]
    changed = [name for name in names if then.get(name) != now.get(name)]
    return ", ".join(f"{name}: {then.get(name, 'none')} → {now.get(name, 'none')}" for name in changed)


def _processor() -> str:
    """The model, as far as the system tells: kernels are chosen by it."""
    try:
        with open("/proc/cpuinfo") as stream:
            for line in stream:
                name, _, value = line.partition(":")
                if name.strip() in ("model name", "Model"):
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _threads() -> str:
    """Sums are split among them."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        import tensorflow as tf

        threading = tf.config.threading
        inter, intra = threading.get_inter_op_parallelism_threads(), threading.get_intra_op_parallelism_threads()
    except Exception:
        inter = intra = 0
    chosen = f", {inter} between and {intra} within operations" if inter or intra else ""
    return f"{processors} processors{chosen}"


def _accelerators() -> list[str]:
    try:
        import tensorflow as tf

        details = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
        return [str(detail.get("device_name", "unknown")) for detail in details]
    except Exception:
        return []


def _first_line(path: str) -> str:
    try:
        with open(path) as stream:
            return stream.readline().strip()
    except OSError:
        return ""
