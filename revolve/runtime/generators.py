"""Random number generators that a stage may draw from: torch's, the user's own, Python's and NumPy's."""

from __future__ import annotations

import _random
import ctypes
import pickle
import random
import struct
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

__all__ = [
    "FOREIGN",
    "KINDS",
    "RandomState",
    "Source",
    "TorchRandom",
    "default_sources",
    "devices_of",
    "outside_modes",
    "sources_of",
]


AS_IS = nullcontext()


def outside_modes() -> AbstractContextManager[Any]:
    """Return the context in which tensors are real, even where torch's operations are being watched or faked."""
    return _disable_current_modes() if torch._C._len_torch_dispatch_stack() else AS_IS


@lru_cache
def window(address: int, size: int) -> ctypes.Array[ctypes.c_char]:
    """Return the bytes at an address, which ``raw`` reads in a third of string_at's time; it must be alive then."""
    return (ctypes.c_char * size).from_address(address)


class Source(Protocol):
    """A generator whose state can be read, compared and written."""

    def read(self) -> Any:
        """Return the state."""

    def write(self, state: Any) -> None:
        """Set the state."""


@dataclass(frozen=True, eq=False, slots=True)
class Owned:
    """A generator, equal to itself alone."""

    generator: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Owned) and self.generator is other.generator

    def __hash__(self) -> int:
        return id(self.generator)


class TorchRandom(Owned):
    """A ``torch.Generator`` of any device."""

    __slots__ = ()

    def read(self) -> bytes:
        """Return the state; as bytes, since as a tensor it would count as training memory."""
        with outside_modes():
            state = self.generator.get_state()
            return ctypes.string_at(state.data_ptr(), state.nbytes)

    def write(self, state: bytes) -> None:
        """Set the state."""
        with outside_modes():
            self.generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


class PythonRandom(Owned):
    """The module ``random``, or a ``random.Random``."""

    __slots__ = ()

    def read(self) -> Any:
        """Return the state, in a form that can be compared: as bytes where they can be read from memory."""
        generator = self.generator
        if not WORDS_LIE_IN_ORDER:
            return generator.getstate()
        if generator is random:
            generator = random._inst
        return window(id(generator) + object.__basicsize__, MERSENNE_BYTES).raw, generator.gauss_next

    def write(self, state: Any) -> None:
        """Set the state."""
        words, *held_back = state
        if isinstance(words, bytes):
            position, *keys = struct.unpack(MERSENNE, words)
            self.generator.setstate((random.Random.VERSION, (*keys, position), *held_back))
        else:
            self.generator.setstate(state)


MERSENNE = "i624I"  # how CPython keeps a random.Random: the position, and the words
MERSENNE_BYTES = struct.calcsize(MERSENNE)


def words_lie_in_order() -> bool:
    """Whether the state of a random.Random lies in memory as CPython keeps it: getstate takes twenty times longer."""
    generator = random.Random(1)
    generator.random()
    if _random.Random.__basicsize__ < object.__basicsize__ + MERSENNE_BYTES or sys.implementation.name != "cpython":
        return False
    position, *keys = struct.unpack(MERSENNE, ctypes.string_at(id(generator) + object.__basicsize__, MERSENNE_BYTES))
    return generator.getstate() == (random.Random.VERSION, (*keys, position), None)


WORDS_LIE_IN_ORDER = words_lie_in_order()


class NumpyRandom(Owned):
    """The module ``numpy.random``, or a ``RandomState`` over any bit generator."""

    __slots__ = ()

    def read(self) -> Any:
        """Return the state, in a form that can be compared: as bytes where they can be read from memory."""
        generator = GLOBAL if self.generator is np.random else self.generator
        bits = generator._bit_generator
        if type(bits) is not np.random.MT19937:
            return pickle.dumps(generator.get_state(legacy=False))
        if HELD_BACK_AT is None:
            legacy: Any = generator.get_state()
            _, keys, position, *held_back = legacy
            return struct.pack(NUMPY_MERSENNE, *keys, position), struct.pack(HELD_BACK, *held_back)
        words = window(bits.ctypes.state_address, NUMPY_MERSENNE_BYTES).raw
        return words, window(id(generator) + HELD_BACK_AT, HELD_BACK_BYTES).raw

    def write(self, state: Any) -> None:
        """Set the state."""
        if isinstance(state, bytes):
            self.generator.set_state(pickle.loads(state))
        else:
            *keys, position = struct.unpack(NUMPY_MERSENNE, state[0])
            self.generator.set_state(("MT19937", keys, position, *struct.unpack(HELD_BACK, state[1])))


GLOBAL = np.random.mtrand._rand  # what the functions of the module are methods of
NUMPY_MERSENNE = "624Ii"  # how NumPy keeps an MT19937: the words, and the position
NUMPY_MERSENNE_BYTES = struct.calcsize(NUMPY_MERSENNE)
HELD_BACK = "i4xd"  # and in the RandomState, whether a second normal number is held back, and which
HELD_BACK_BYTES = struct.calcsize(HELD_BACK)


def find_held_back() -> int | None:
    """Return where a RandomState keeps what it holds back; None if that is not as expected: get_state takes long."""
    generator = np.random.RandomState(1)
    size = type(generator).__basicsize__
    before = ctypes.string_at(id(generator), size)
    generator.normal()
    after = ctypes.string_at(id(generator), size)
    state: Any = generator.get_state()
    _, keys, position, *held_back = state
    words = ctypes.string_at(generator._bit_generator.ctypes.state_address, NUMPY_MERSENNE_BYTES)
    start = after.find(struct.pack("d", held_back[1])) - struct.calcsize("i4x")
    if sys.implementation.name != "cpython" or start < 0 or words != struct.pack(NUMPY_MERSENNE, *keys, position):
        return None
    (flag,) = struct.unpack_from("i", before, start)
    end = start + HELD_BACK_BYTES
    alone = before[:start] + before[end:] == after[:start] + after[end:]
    return start if alone and not flag and [*struct.unpack(HELD_BACK, after[start:end])] == held_back else None


HELD_BACK_AT = find_held_back()


class NumpyGenerator(Owned):
    """A ``numpy.random.Generator``."""

    __slots__ = ()

    def read(self) -> bytes:
        """Return the state, in a form that can be compared."""
        return pickle.dumps(self.generator.bit_generator.state)

    def write(self, state: bytes) -> None:
        """Set the state."""
        self.generator.bit_generator.state = pickle.loads(state)


FOREIGN: tuple[Source, ...] = (PythonRandom(random), NumpyRandom(np.random))

KINDS: dict[type, type[TorchRandom | PythonRandom | NumpyRandom | NumpyGenerator]] = {
    torch.Generator: TorchRandom,
    random.Random: PythonRandom,
    np.random.RandomState: NumpyRandom,
    np.random.Generator: NumpyGenerator,
}


def sources_of(values: Iterable[Any]) -> list[Source]:
    """Return the generators among some values; those of the operating system have no state."""
    return [KINDS[type(value)](value) for value in values if type(value) in KINDS]


def devices_of(tensors: Iterable[torch.Tensor]) -> tuple[torch.device, ...]:
    """Return the accelerators that tensors live on; the CPU is always meant as well."""
    return tuple(dict.fromkeys([t.device for t in tensors if t.is_cuda]))


def default_sources(devices: Iterable[torch.device]) -> tuple[Source, ...]:
    """Return the global generators of the CPU and of some devices."""
    others = (torch.cuda.default_generators[device.index] for device in devices)
    return tuple(TorchRandom(generator) for generator in (torch.default_generator, *others))


@dataclass(frozen=True)
class RandomState:
    """Some generators, read and written together."""

    sources: tuple[Source, ...]

    def read(self) -> tuple[Any, ...]:
        """Return the states."""
        return tuple([source.read() for source in self.sources])

    def write(self, states: Iterable[Any]) -> None:
        """Set the states."""
        for source, state in zip(self.sources, states, strict=True):
            source.write(state)
