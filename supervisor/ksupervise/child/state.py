"""Everything numeric that a training consists of: found, named, read and put back.

Weights, seed generators, metric accumulators, every optimizer, and variables that a model of the
user's keeps as plain attributes. Named by role and path; two of one path are told apart by order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ksupervise.child import tensors


class Mismatch(Exception):
    """The checkpoint and the model do not have the same variables; nothing was put back."""


_ROOM = 1.2  # of a GPU's memory that was never used, in copies of the variables

# Keras numbers its seed generators as they come; of this one there is one.
_GLOBAL_SEED = "random/global_seed_generator"


@dataclass(frozen=True)
class Named:
    """One variable under its name in the checkpoint."""

    name: str
    variable: Any

    @property
    def dtype(self) -> str:
        """Its dtype by numpy's name."""
        dtype = self.variable.dtype
        return str(getattr(dtype, "name", dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(int(size) for size in self.variable.shape)


def variables(model: Any) -> list[Named]:
    """All variables of `model` and its training, in an order that is the same in every attempt."""
    seen: set[int] = set()
    names: dict[str, int] = {}
    found = []
    for role, variable in _roles(model):
        if id(variable) in seen or "string" in str(variable.dtype):
            continue
        seen.add(id(variable))
        name = _GLOBAL_SEED if role == "random" else f"{role}/{_path(variable, role)}"
        names[name] = names.get(name, 0) + 1
        name = name if names[name] == 1 else f"{name}#{names[name]}"
        replicas = _replicas(variable)
        found += [Named(f"{name}@{number}", replica) for number, replica in enumerate(replicas)]
        if not replicas:
            found.append(Named(name, variable))
    return found


def _replicas(variable: Any) -> Sequence[Any]:
    """Under a MirroredStrategy: the parts of a variable that differ between replicas.

    Metrics do, and so do, although they are called mirrored, batch statistics and all else that is not trained.
    Read as a whole it would be their average, or the first.
    """
    inner = getattr(variable, "_value", variable)
    kinds = {cls.__name__ for cls in type(inner).__mro__}
    differ = "SyncOnReadVariable" in kinds or ("DistributedVariable" in kinds and not variable.trainable)
    return list(inner.values) if differ else []


def _path(variable: Any, role: str) -> str:
    """The variable's path; of an optimizer's only the last part, which holds the whole path of what it belongs to.

    The scopes before it depend on who built the optimizer: the first step, or we.
    """
    path = str(getattr(variable, "path", None) or variable.name)
    return path.rsplit("/", 1)[-1] if role.startswith("optimizer") else path


def _roles(model: Any) -> Iterator[tuple[str, Any]]:
    for variable in model.variables:
        yield "model", variable
    for variable in model.metrics_variables:
        yield "metrics", variable
    for name, optimizer in optimizers(model):
        for variable in optimizer.variables:
            yield name, variable
    for variable in _attributes(model, _is_variable):
        yield "attributes", variable
    seeds = _global_seed_generator()
    if seeds is not None:
        yield "random", seeds.state


def optimizers(model: Any) -> list[tuple[str, Any]]:
    """The compiled optimizer, and those that a model with its own train_step keeps for itself."""
    main = getattr(model, "optimizer", None)
    found = [("optimizer", main)] if main is not None and hasattr(main, "variables") else []
    known = {id(main)}
    for optimizer in _attributes(model, _is_optimizer):
        if id(optimizer) not in known and id(optimizer) != id(getattr(main, "inner_optimizer", None)):
            known.add(id(optimizer))
            found.append((f"optimizer{len(known)}", optimizer))
    return found


def _attributes(model: Any, wanted: Callable[[Any], bool]) -> Iterator[Any]:
    """Values of plain attributes of the model's layers, also one level down in lists and dicts."""
    for layer in model._flatten_layers():
        for name in sorted(vars(layer)):
            value = vars(layer)[name]
            for item in _items(value):
                if wanted(item):
                    yield item


def _items(value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return value
    return (value,)


def _is_optimizer(value: Any) -> bool:
    return hasattr(value, "apply_gradients") and hasattr(value, "variables") and hasattr(value, "build")


def _is_variable(value: Any) -> bool:
    return hasattr(value, "assign") and hasattr(value, "shape") and hasattr(value, "dtype")


def _global_seed_generator() -> Any:
    import sys

    module = sys.modules.get("keras.src.backend.common.global_state")
    return module.get_global_attribute("global_seed_generator") if module is not None else None


def make_global_seed_generator(arrays: Mapping[str, Any]) -> None:
    """Keras makes it when it is first drawn from: that may have been inside the fit that is resumed."""
    if _GLOBAL_SEED in arrays and _global_seed_generator() is None:
        from keras.src.random.seed_generator import global_seed_generator

        global_seed_generator()


class Source:
    """Where a variable's value is read; looked up again only if the variable has got another."""

    def __init__(self, variable: Any) -> None:
        self._variable = variable
        self._inner = getattr(variable, "_value", None)
        self._handle = getattr(self._inner, "_handle", None)

    def read(self) -> Any:
        """The value as a numpy array; it shares memory with it where the backend allows."""
        try:
            return self.tensor()._numpy()
        except AttributeError:
            import keras

            return keras.ops.convert_to_numpy(self.tensor())

    def tensor(self) -> Any:
        """The value as a tensor. It keeps that value: who assigns to the variable later copies first."""
        if self._handle is not None and self._variable._value is self._inner:
            return _read_handle(self._inner, self._handle)
        value = getattr(self._variable, "value", self._variable)
        value = value() if callable(value) else value  # a raw tf.Variable has a method of that name
        handle = getattr(value, "_handle", None)
        if handle is None:
            return value.read_value() if hasattr(value, "read_value") else value
        return _read_handle(value, handle)


def _read_handle(value: Any, handle: Any) -> Any:
    # What `read_value` comes down to, in a third of its time. (All in one tf.function take half of that again, but it
    # costs a second or two to trace, at each attempt.)
    from tensorflow.python.ops.gen_resource_variable_ops import read_variable_op

    return read_variable_op(handle, value._dtype)


class Handle:
    """A tensor that keeps its value, to be copied later: what `tensors` needs of an array."""

    def __init__(self, tensor: Any) -> None:
        import numpy as np

        self._tensor = tensor
        self.dtype = np.dtype(tensor.dtype.as_numpy_dtype)
        self.shape = tuple(tensor.shape)
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def numpy(self) -> Any:
        """Its value; from a device that takes its time."""
        return self._tensor._numpy()


class Inventory:
    """A model's variables and the recipe of its optimizers, looked up anew only when there are more of them."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._optimizers = optimizers(model)
        self._counts: tuple[int, ...] = ()
        self._named: list[Named] = []
        self._sources: dict[str, Source] = {}
        self._device = ""  # the first GPU that variables lie on
        self.recipe: list[Any] = []

    def read(self, *, handles: bool = False) -> dict[str, Any]:
        """Name → value of everything, as numpy arrays, or as handles."""
        self._look()
        if handles:
            return {name: Handle(source.tensor()) for name, source in self._sources.items()}
        return {name: source.read() for name, source in self._sources.items()}

    def _look(self) -> None:
        """Find the variables anew if there are more of them."""
        model = self._model
        counts = (
            len(model.variables),
            len(model.metrics_variables),
            _global_seed_generator() is not None,
            *(len(optimizer.variables) for _, optimizer in self._optimizers),
        )
        if counts != self._counts:
            self._counts, self._named, self.recipe = counts, variables(model), recipe(model)
            self._sources = {named.name: Source(named.variable) for named in self._named}
            devices = (_device_of(named.variable) for named in self._named)
            self._device = next((device for device in devices if "GPU:" in device), "")

    @property
    def size(self) -> int:
        """Bytes of all variables."""
        self._look()
        return sum(math.prod(named.shape) * tensors.itemsize(named.dtype) for named in self._named)

    @property
    def overlaps(self) -> bool:
        """They lie on a GPU that has room for a second copy of them: it is copied to the host while training goes on.

        (On the CPU a copy made at once costs less than the fresh pages of copy-on-write.)
        """
        return bool(self._device) and _room_on(self._device) > _ROOM * self.size


def _device_of(variable: Any) -> str:
    return str(getattr(getattr(variable, "value", variable), "device", "") or "")


def _room_on(device: str) -> float:
    """Bytes of a GPU's memory that this process has never used, as far as TensorFlow tells; else 0."""
    try:
        import tensorflow as tf
        from tensorflow.python.client import device_lib

        short = device[device.index("GPU:") :]
        used = tf.config.experimental.get_memory_info(short)["peak"]
        limits = [each.memory_limit for each in device_lib.list_local_devices() if each.name.endswith(short)]
        return float(limits[0] - used)
    except Exception:
        return 0.0


def recipe(model: Any) -> list[Any]:
    """What is needed to build the optimizers again: for each, the names of what it trains."""
    names = {id(named.variable): named.name for named in variables(model)}
    return [
        [role, [names.get(id(variable), "") for variable in _trained_by(optimizer)]]
        for role, optimizer in optimizers(model)
    ]


def _trained_by(optimizer: Any) -> Sequence[Any]:
    inner = getattr(optimizer, "inner_optimizer", None) or optimizer
    return list(getattr(inner, "_trainable_variables", ()))


def build(model: Any, epoch_iterator: Any, optimizers_recipe: Sequence[Any]) -> None:
    """Create the variables that do not exist yet, drawing no data and running no step.

    What cannot be built this way is left alone: `put_back` then names what is missing.
    """
    try:
        spec = epoch_iterator._distributed_dataset.element_spec
        model._symbolic_build(data_batch=spec)
    except Exception:
        pass  # a model without `call` (a GAN, say) has its parts built already
    unbuilt = [(role, optimizer) for role, optimizer in optimizers(model) if not optimizer.built]
    by_name = {named.name: named.variable for named in variables(model)} if unbuilt else {}
    wanted = dict(optimizers_recipe)
    for role, optimizer in unbuilt:
        trained = [by_name.get(name) for name in wanted.get(role, ())]
        if trained and all(variable is not None for variable in trained):
            optimizer.build(trained)


def put_back(model: Any, arrays: Mapping[str, Any]) -> None:
    """Assign every array to its variable. Raises Mismatch, with nothing assigned, unless all fit."""
    named = variables(model)
    differences = compare(named, arrays)
    if differences:
        raise Mismatch(describe(differences))
    for entry in named:
        if entry.name in arrays:
            _assign(entry.variable, arrays[entry.name])


def _assign(variable: Any, array: Any) -> None:
    """Give a variable the value of an array of its shape and dtype; it is copied once, into memory of its own."""
    value = getattr(variable, "value", variable)
    if type(value).__name__ != "ResourceVariable":  # one of several replicas, say
        variable.assign(array)
        return
    # What `assign` comes down to, in a third of its time.
    from tensorflow.python.framework.constant_op import constant
    from tensorflow.python.ops.gen_resource_variable_ops import assign_variable_op

    assign_variable_op(value._handle, constant(array))


def compare(named: Sequence[Named], arrays: Mapping[str, Any]) -> list[str]:
    """What differs between a model and a checkpoint, one line a variable."""
    differences = []
    for entry in named:
        array = arrays.get(entry.name)
        if array is None and entry.name.startswith("metrics/"):
            continue  # an accumulator that the script's own train_step never used: there was nothing to keep
        if array is None:
            differences.append(f"{entry.name} {list(entry.shape)} is not in the checkpoint")
        elif tuple(array.shape) != entry.shape:
            differences.append(f"{entry.name} is {list(entry.shape)}, the checkpoint has {list(array.shape)}")
        elif array.dtype.name != entry.dtype:
            differences.append(f"{entry.name} is {entry.dtype}, the checkpoint has {array.dtype.name}")
    known = {entry.name for entry in named}
    return differences + [f"the model has no {name}" for name in arrays if name not in known]


def describe(differences: Sequence[str]) -> str:
    """The first few differences, and how many more there are."""
    shown = "; ".join(differences[:5])
    more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
    return f"the checkpoint does not fit the model: {shown}{more}"
