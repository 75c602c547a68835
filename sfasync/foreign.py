"""Calls of C libraries that Python has loaded, and the memory they work on."""

from __future__ import annotations

import ctypes
from types import TracebackType
from typing import Any, Final, Self

from .interfaces import Buffer

POINTER: Final = ctypes.c_void_p
SIZE: Final = ctypes.c_size_t


def call(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    """A function of a library, with the types of its result and its arguments.

    Raises:
        AttributeError: The library has none of that name, or hides it.
    """
    function = library[name]  # not an attribute, whose types everybody would share
    function.restype, function.argtypes = result, arguments
    return function


class Memory(ctypes.Structure):
    """Where the bytes of a buffer lie, which stays so for the time of a block.

    It is a Py_buffer, whose layout is part of the stable ABI since Python 3.11: what nothing else tells is the address
    of memory that can only be read.

    Raises:
        BufferError: They do not lie one after the other, or cannot be written.
    """

    _fields_ = (
        ("address", POINTER),
        ("_owner", POINTER),
        ("length", ctypes.c_ssize_t),
        ("_itemsize", ctypes.c_ssize_t),
        ("_readonly", ctypes.c_int),
        ("_ndim", ctypes.c_int),
        ("_format", POINTER),
        ("_shape", POINTER),
        ("_strides", POINTER),
        ("_suboffsets", POINTER),
        ("_internal", POINTER),
    )
    address: int
    length: int

    def __init__(self, data: Buffer, *, writable: bool = False) -> None:
        super().__init__()
        _get_buffer(data, self, int(writable))  # PyBUF_SIMPLE or PyBUF_WRITABLE

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _release_buffer(self)


_get_buffer = call(
    ctypes.pythonapi, "PyObject_GetBuffer", ctypes.c_int, ctypes.py_object, ctypes.POINTER(Memory), ctypes.c_int
)
_release_buffer = call(ctypes.pythonapi, "PyBuffer_Release", None, ctypes.POINTER(Memory))
